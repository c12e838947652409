"""Callbacks that wait for their turn.

asyncio's handles with a shorter way in and out. They are made a few times per message, so each call that making
or running one does not make counts: whether the loop is in debug mode is asked by the loop, which then makes
asyncio's own handles; arguments are passed on as cheaply as their number allows.

To make an object and to take it apart costs more than to run most callbacks. Nearly always nobody has kept the handle
that `call_soon` returned, as the tasks that it wakes do not. So the loop uses such a handle again, when it has run:
see `NotifyLoop._run_ready`. That nobody has it, the count of its references tells; where that is not the truth, on
builds without a global interpreter lock, each handle is used once.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import events
from asyncio.format_helpers import _format_callback_source
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any

    from notifyloop.loop import NotifyLoop
    from notifyloop.timers import Timers

__all__ = [
    "LOCKED_HANDLES",
    "MOST_SPARE",
    "NO_ARGUMENTS",
    "UNSHARED",
    "Handle",
    "LockedHandle",
    "StandingHandle",
    "TimerHandle",
    "report",
]

# What sys.getrefcount() says of an object that only one local variable refers to. Its own argument counts, but since
# Python 3.14 it may be borrowed from the variable. Should it not be, no handle is used again, which costs time only.
UNSHARED = 1 if sys.version_info >= (3, 14) else 2
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    UNSHARED = -1
MOST_SPARE = 1024  # handles
NO_ARGUMENTS = ()  # which CPython has one of


def _run(self: Handle | TimerHandle) -> None:
    """Call back; what it raises goes to the loop's exception handler, but for SystemExit and KeyboardInterrupt."""
    try:
        args = self._args
        if not args:
            self._context.run(self._callback)
        elif len(args) == 1:  # every task that is woken; passing a tuple on costs twice as much
            self._context.run(self._callback, args[0])
        else:
            self._context.run(self._callback, *args)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        report(self, error)
    self = None  # type: ignore[assignment]  # the exception's traceback would keep it, and it the exception


def nothing(*args: object) -> None:
    """Instead of a callback that was cancelled; by another thread perhaps, so it may still get arguments."""


def report(self: Any, error: BaseException) -> None:
    """Tell the loop's exception handler what the callback raised."""
    callback = _format_callback_source(self._callback, self._args)
    self._loop.call_exception_handler(
        {"message": f"Exception in callback {callback}", "exception": error, "handle": self}
    )


class Handle(asyncio.Handle):
    """What `call_soon` and `add_reader` return, where the loop is not in debug mode."""

    __slots__ = ()

    # Debug mode's, which would only be set to None here.
    _repr = None
    _source_traceback = None

    _context: Context
    _loop: NotifyLoop
    _callback: Callable[..., object]
    _args: tuple[Any, ...]

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: NotifyLoop, context: Context | None = None
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args

    _run = _run

    @property
    def _cancelled(self) -> bool:  # type: ignore[override]
        return self._callback is nothing

    def cancel(self) -> None:
        self._callback = nothing
        self._args = NO_ARGUMENTS

    def _repr_info(self) -> list[str]:
        return [type(self).__name__, "cancelled"] if self._cancelled else super()._repr_info()  # type: ignore[misc]


class StandingHandle(Handle):
    """What `add_reader` and `add_writer` register, to be called any number of times.

    What calls back is made beforehand, of nothing that is written in Python, and leaves errors to whoever runs it.
    """

    __slots__ = ("_run",)

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], loop: NotifyLoop) -> None:
        super().__init__(callback, args, loop)
        self._run: Callable[[], Any] = partial(self._context.run, callback, *args)

    def cancel(self) -> None:
        super().cancel()
        self._run = nothing


# Since Python 3.14 asyncio's handles of other threads have a lock.
LOCKED_HANDLES = sys.version_info >= (3, 14)

if sys.version_info >= (3, 14):

    class LockedHandle(events._ThreadSafeHandle, Handle):  # type: ignore[name-defined, misc]
        """What other threads get: asyncio's lock around the above. Whoever cancels it waits until it has run."""

        __slots__ = ()

        def _run(self) -> None:
            with self._lock:
                _run(self)

else:
    LockedHandle = Handle


class TimerHandle(asyncio.TimerHandle):
    """What `call_later` and `call_at` return, where the loop is not in debug mode."""

    __slots__ = ()

    _repr = None
    _source_traceback = None

    _context: Context
    _loop: Timers
    _callback: Callable[..., object]
    _args: tuple[Any, ...]

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: Timers,
        context: Context | None = None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._when = when
        self._scheduled = True

    _run = _run

    def cancel(self) -> None:
        if not self._cancelled and self._scheduled:
            self._loop._timer_cancelled_count += 1
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]
