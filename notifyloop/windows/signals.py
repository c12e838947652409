"""Signals on Windows: Ctrl-C ends the loop's wait, and signal handlers are called by the loop.

What Windows offers: a thread of its own in each process calls the C library's handler, which makes Python take note
of the signal; the main thread looks after it when it next runs Python code. A wait on a port does not end because of
it. But Python also writes the signal's number to a descriptor of the program's choice (`signal.set_wakeup_fd`).

What we make of it: that descriptor is a pipe's, and a read of its other end is in flight on the port while the loop
runs in the main thread. Not a pair of sockets, as in asyncio: those are gone when the network is reconfigured or the
machine has slept, and then are always readable.

While a loop runs, signals come to it; then to whom they came before, unless it has handlers.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import asyncio
import inspect
import msvcrt
import os
import signal
import threading
from asyncio import coroutines, windows_utils
from typing import TYPE_CHECKING

from notifyloop.windows.overlapped import OverlappedFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from notifyloop.windows.overlapped import Operation
    from notifyloop.windows.system import System

__all__ = ["Signals"]

NOBODY = -1
MOST_AT_ONCE = 4096


def _heard(_signal: int, _frame: FrameType | None) -> None:
    """A signal needs a handler of Python's to be written to the descriptor."""


class Signals:
    """The signal handlers of a loop."""

    __slots__ = ("_handlers", "_hears", "_loop", "_reading", "_tells")

    def __init__(self, loop: System) -> None:
        self._loop = loop
        self._handlers: dict[int, asyncio.Handle] = {}
        self._tells = NOBODY  # the descriptor that Python writes to
        self._hears: OverlappedFile | None = None
        self._reading: Operation | None = None

    def listen(self) -> int | None:
        """Have signals come to this loop. Returns the descriptor to which they came before, or None where a loop
        cannot hear them: elsewhere than in the main thread of the main interpreter.
        """
        if threading.current_thread() is not threading.main_thread():
            return None
        try:
            if self._hears is None:
                self._open()
            return signal.set_wakeup_fd(self._tells)
        except ValueError:
            return None

    def leave(self, previous: int | None) -> None:
        """Give back what `listen` returned."""
        if previous is not None and not self._handlers:
            self._give_back(previous)

    def _give_back(self, previous: int) -> None:
        if signal.set_wakeup_fd(NOBODY) != self._tells or previous in (NOBODY, self._tells):
            return
        try:
            signal.set_wakeup_fd(previous)
        except (ValueError, OSError):  # closed meanwhile
            return

    def _open(self) -> None:
        hears, tells = windows_utils.pipe(overlapped=(True, False))
        self._tells = msvcrt.open_osfhandle(tells, os.O_WRONLY)
        self._hears = OverlappedFile(self._loop, windows_utils.PipeHandle(hears), hears)
        self._read()

    def _read(self) -> None:
        assert self._hears is not None
        self._reading = self._hears.read(MOST_AT_ONCE, self._come)

    def _come(self) -> None:
        assert self._reading is not None
        numbers = self._reading.received()
        self._read()
        for number in numbers or b"":
            handle = self._handlers.get(number)
            if handle is not None:
                self._loop._ready.append(handle)

    # ---- handlers

    def add(self, number: int, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Raises as `asyncio.loop.add_signal_handler`."""
        if coroutines.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        check(number)
        self._loop._check_closed()
        if self.listen() is None:
            raise RuntimeError("set_wakeup_fd only works in main thread of the main interpreter")
        try:
            signal.signal(number, _heard)
        except (OSError, ValueError) as error:
            if not self._handlers and not self._loop.is_running():
                self._give_back(NOBODY)
            raise RuntimeError(f"sig {number} cannot be caught") from error
        self._handlers[number] = asyncio.Handle(callback, args, self._loop, None)

    def remove(self, number: int) -> bool:
        """Raises as `asyncio.loop.remove_signal_handler`."""
        check(number)
        handle = self._handlers.pop(number, None)
        if handle is None:
            return False
        handle.cancel()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if not self._handlers and not self._loop.is_running():
            self._give_back(NOBODY)
        return True

    def close(self) -> None:
        for number in list(self._handlers):
            self.remove(number)
        if self._hears is None:
            return
        if self._reading is not None:
            self._reading.cancel()
        self._hears.close()
        self._hears = None
        os.close(self._tells)
        self._tells = NOBODY


def check(number: int) -> None:
    if not isinstance(number, int):
        raise TypeError(f"sig must be an int, not {number!r}")
    if number not in signal.valid_signals():
        raise ValueError(f"invalid signal number {number}")
