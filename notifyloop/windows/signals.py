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
import contextlib
import inspect
import msvcrt
import os
import signal
import threading
from asyncio import windows_utils
from typing import TYPE_CHECKING

from notifyloop.windows.overlapped import OverlappedFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from notifyloop.turn.surface import Loop
    from notifyloop.windows.overlapped import Operation

__all__ = ["Signals"]

NOBODY = -1
MOST_AT_ONCE = 4096


class Signals:
    """The signal handlers of a loop."""

    __slots__ = ("_handlers", "_hears", "_loop", "_reading", "_tells")

    def __init__(self, loop: Loop) -> None:
        self._loop: Any = loop
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
            elif self._reading is None or not self._loop._system.operations.expects(self._reading):
                self._come()  # an interrupt came in between
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
        if self._reading is not None and not self._reading.ended():
            return  # called again, after an interrupt
        numbers = None if self._reading is None else self._reading.received()
        for number in numbers or b"":
            handle = self._handlers.get(number)
            if handle is not None:
                self._loop._turn.ready.append(handle)
        self._read()

    # ---- handlers

    def add(self, number: int, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Raises as `asyncio.loop.add_signal_handler`."""
        if asyncio.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        check(number)
        if self._loop is None:
            raise RuntimeError("Event loop is closed")
        if self.listen() is None:
            raise RuntimeError("set_wakeup_fd only works in main thread of the main interpreter")
        try:
            signal.signal(number, self._heard)
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
        give_up(number)
        if not self._handlers and not self._loop.is_running():
            self._give_back(NOBODY)
        return True

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        """A signal needs a handler of Python's to be written to the descriptor. That is all there is to do, unless
        another thread has closed the loop: then what is due since is done now, in the main thread.
        """
        if self._loop is None:
            self._leave_for_good()
            give_up(number)
            signal.raise_signal(number)

    def close(self) -> None:
        """Also in another thread. Python lets only the main thread change what becomes of signals, so that is left to
        the next one of them, if there are handlers.
        """
        in_charge = threading.current_thread() is threading.main_thread()
        if in_charge:
            for number in list(self._handlers):
                self.remove(number)
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
        if in_charge or not self._handlers:
            self._leave_for_good()
        for handle in self._handlers.values():
            handle.cancel()
        self._handlers.clear()

    def _leave_for_good(self) -> None:
        hears, self._hears = self._hears, None
        if hears is None:
            return
        with contextlib.suppress(ValueError):  # in another thread or interpreter, where it was not set
            told = signal.set_wakeup_fd(NOBODY)
            if told != self._tells:
                signal.set_wakeup_fd(told)
        hears.close()
        os.close(self._tells)
        self._tells = NOBODY


def give_up(number: int) -> None:
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def check(number: int) -> None:
    if not isinstance(number, int):
        raise TypeError(f"sig must be an int, not {number!r}")
    if number not in signal.valid_signals():
        raise ValueError(f"invalid signal number {number}")
