"""Sphinx's configuration: `make docs` builds these pages into _build/html."""

from importlib.metadata import version as installed_version

project = "notifyloop"
author = "The notifyloop authors"
version = release = installed_version("notifyloop")

extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"notifyloop {release}"
