"""The loops that are compared. What runs on them never asks which one it runs on."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SUBJECT = "notifyloop"
LOOPS = ("asyncio", "uvloop", "rloop", "zuvloop", SUBJECT)


def factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a loop of that name. Raises ImportError when it cannot be imported."""
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    return importlib.import_module(name).new_event_loop


def version(name: str) -> str | None:
    """The installed version, None if there is none. What then fails to import says so in its cells."""
    if name == "asyncio":
        return platform.python_version()
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
