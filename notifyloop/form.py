"""In which form what runs in a turn is run: compiled, or as it is written.

The compiled modules, of `notifyloop.turn` and of the port, lie beside the files that they were made from, and nothing
but the time that it takes tells one from the other. Either all of them are run compiled or none is, which is decided
here, before any is imported. They take for granted where Python puts the slots of some classes, which `layouts.pxd`
has, so that is looked at first. And they must have been made from what lies beside them.

NOTIFYLOOP_PLAIN, in the environment, has them run as they are written: to debug, and to find out whose fault it is.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    PathFinder,
    SourceFileLoader,
)
from importlib.util import module_from_spec, source_hash
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

__all__ = ["compiled", "form"]

ROOT = Path(__file__).parent
FOLDERS = [str(ROOT / "port"), str(ROOT / "turn")]
LAYOUTS = "notifyloop.turn.layouts"


class UnfitError(Exception):
    """Why what is compiled cannot be run."""


def check_sources(layouts: Any) -> None:
    """That the files are what was compiled. Whoever has edited one expects to see what it does."""
    for name, made_from in layouts.SOURCES.items():
        path = ROOT / name
        if path.exists() and source_hash(path.read_bytes()).hex() != made_from:
            warnings.warn(
                f"notifyloop runs as it is written, and slower, for {name} is not what was compiled: install it anew",
                RuntimeWarning,
                stacklevel=1,
            )
            raise UnfitError(f"{name} is not what was compiled")


def check_modules(layouts: Any) -> None:
    """That each can be loaded, without running it. A sub-interpreter is refused, and a Python that lacks a symbol."""
    for name in layouts.SOURCES:
        if name.endswith(".py"):
            spec = PathFinder.find_spec(f"notifyloop.{name.removesuffix('.py').replace('/', '.')}", FOLDERS)
            if spec is None or not str(spec.origin).endswith(tuple(EXTENSION_SUFFIXES)):
                raise UnfitError(f"{name} alone is not compiled")
            module_from_spec(spec)


def check_layouts(layouts: Any) -> None:
    """That the slots of the classes lie where the compiled modules read them, and keep these classes so."""
    kinds = []
    for (module, name), (size, slots) in layouts.CLASSES.items():
        kind = getattr(import_module(module), name, None)
        found = {slot: layouts.offset(getattr(kind, slot, None)) for slot in slots}
        if getattr(kind, "__basicsize__", None) != size or found != slots:
            raise UnfitError(f"{name} is laid out otherwise than when it was compiled, for Python {layouts.PYTHON}")
        kinds.append(kind)
    for kind in kinds:
        try:
            layouts.guard(kind)
        except TypeError as error:
            raise UnfitError(str(error)) from error


def choose() -> str:
    """The form, and why it is not the compiled one."""
    if PathFinder.find_spec(LAYOUTS, FOLDERS) is None:
        return "plain: not compiled when it was installed"
    try:
        if os.environ.get("NOTIFYLOOP_PLAIN"):
            raise UnfitError("NOTIFYLOOP_PLAIN is set")
        layouts = import_module(LAYOUTS)
        check_sources(layouts)
        check_modules(layouts)
        check_layouts(layouts)
    except (ImportError, UnfitError) as error:
        # The source first; what has none, as the port's own C, is loaded all the same.
        loaders = ((SourceFileLoader, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES))
        sys.path_importer_cache.update({folder: FileFinder(folder, *loaders) for folder in FOLDERS})
        return f"plain: {str(error).replace(str(ROOT) + os.sep, '')}"
    return "compiled"


form = choose()
compiled = form == "compiled"
