"""Puts a loop in the place of asyncio's selector event loop, in this process."""

from __future__ import annotations

import asyncio
import selectors
import unittest
from asyncio import unix_events
from importlib import import_module


def inject(loop: str) -> None:
    """Make `module:callable` what asyncio's names and policies make; 'stock' changes nothing."""
    if loop == "stock":
        return
    module, _, name = loop.partition(":")
    chosen = getattr(import_module(module), name)
    stock = asyncio.SelectorEventLoop

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
    for place in (asyncio, unix_events):
        for attribute in ("SelectorEventLoop", "EventLoop"):
            if getattr(place, attribute, None) is stock:
                setattr(place, attribute, Injected)
    for attribute in (
        "_UnixDefaultEventLoopPolicy",
        "_DefaultEventLoopPolicy",
    ):  # its name until 3.13, and since
        policy = getattr(unix_events, attribute, None)
        if policy is not None:
            policy._loop_factory = Injected
