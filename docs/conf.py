"""Sphinx's configuration: `make docs` builds these pages into _build/html."""

from importlib.metadata import version as installed_version

project = "notifyloop"
author = "The notifyloop authors"
version = release = installed_version("notifyloop")

extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
# Links to the sources beside this folder are for readers of the repository; tests/test_docs.py checks them.
suppress_warnings = ["myst.xref_missing"]

html_theme = "furo"
html_title = f"notifyloop {release}"
