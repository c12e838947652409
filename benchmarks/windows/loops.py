"""The loops that are compared on Windows."""

from __future__ import annotations

import asyncio
import os
import platform
from typing import TYPE_CHECKING

from benchmarks import loops

if TYPE_CHECKING:
    from collections.abc import Callable

NATIVE, POLLING = SUBJECTS = ("notifyloop-winsock", "notifyloop-afd")  # named after the provider of the port
SELECTOR, PROACTOR = STOCK = ("selector", "proactor")  # asyncio's
LOOPS = (*SUBJECTS, PROACTOR, "winloop", SELECTOR)


def factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a loop of that name. Raises ImportError when it cannot be imported. Called once in a process, for
    that has one provider.
    """
    if name == PROACTOR:
        return asyncio.ProactorEventLoop
    if name == SELECTOR:
        return asyncio.SelectorEventLoop
    library, _, provider = name.partition("-")
    if provider:
        os.environ["NOTIFYLOOP_PROVIDER"] = provider
    return loops.factory(library)


def version(name: str) -> str | None:
    """The installed version, None if there is none."""
    return platform.python_version() if name in STOCK else loops.version(name.partition("-")[0])
