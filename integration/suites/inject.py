"""Puts a loop in the place of asyncio's loops, in this process: of its selector event loop, on Windows also of the
Proactor's.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import sys
import unittest
from importlib import import_module

if sys.platform == "win32":
    from asyncio import windows_events as system_events
else:
    from asyncio import unix_events as system_events


def inject(loop: str) -> None:
    """Make `module:callable` what asyncio's names and policies make; 'stock' changes nothing. Where `inherit` is
    imported, this holds for the processes of tests, too.
    """
    if loop == "stock":
        return
    os.environ["SUITE_LOOP"] = loop
    module, _, name = loop.partition(":")
    chosen = getattr(import_module(module), name)
    stock = [asyncio.SelectorEventLoop]
    if sys.platform == "win32":
        stock.append(asyncio.ProactorEventLoop)

    class Injected(chosen):  # type: ignore[misc, valid-type]
        """Takes the selector argument that tests pass. They run once for each kind; once is enough for one
        loop.
        """

        def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
            self._closed = True
            if selector is not None:
                selector.close()
                if not isinstance(selector, selectors.SelectSelector):
                    raise unittest.SkipTest("the same test on another selector")
            super().__init__()

    Injected.__name__ = Injected.__qualname__ = getattr(chosen, "__name__", name)
    for place in (asyncio, system_events):
        for attribute in ("SelectorEventLoop", "EventLoop", "ProactorEventLoop"):
            if getattr(place, attribute, None) in stock:
                setattr(place, attribute, Injected)
    for attribute in (
        "_UnixDefaultEventLoopPolicy",
        "_DefaultEventLoopPolicy",
        "WindowsProactorEventLoopPolicy",
        "_WindowsProactorEventLoopPolicy",
        "WindowsSelectorEventLoopPolicy",
        "_WindowsSelectorEventLoopPolicy",
    ):  # its names until 3.13, and since
        policy = vars(system_events).get(attribute)
        if policy is not None:
            policy._loop_factory = Injected
    # Since 3.16 there are no policies, and what asyncio.new_event_loop() makes is EventLoop, by its name.
    made = asyncio.new_event_loop()
    made.close()
    if type(made) is not Injected:
        raise RuntimeError(f"asyncio makes {made!r}, not what was put in its place")
