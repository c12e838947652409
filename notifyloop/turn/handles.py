"""Callbacks that wait for their turn.

asyncio's handles with a shorter way in and out. They are made a few times per message, so each call that making
or running one does not make counts: whether the loop is in debug mode is asked by the loop, which then makes
asyncio's own handles; and the loop itself calls what these are for, where nobody watches `asyncio.Handle._run`.

To make an object and to take it apart costs more than to run most callbacks. Nearly always nobody has kept the handle
that `call_soon` returned, as the tasks that it wakes do not. So the loop uses such a handle again, when it has run:
see `notifyloop.turn.turn`. That nobody has it, the count of its references tells, and that it has no weak ones; asked
when it has run, and again when it is taken, because a debugger or the garbage collector reaches what rests. Where the
count is not the truth, on free-threaded builds, each handle is used once: another thread may be about to take a
reference that is not counted yet.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import events
from asyncio.format_helpers import _format_callback_source
from contextvars import copy_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = [
    "MOST_SPARE",
    "NO_ARGUMENTS",
    "Handle",
    "LockedHandle",
    "TimerHandle",
    "report",
]

MOST_SPARE = 1024  # handles
NO_ARGUMENTS = ()  # which CPython has one of


def report(handle: Any, error: BaseException) -> None:
    """Tell the loop's exception handler what a callback raised, as asyncio does."""
    callback = _format_callback_source(handle._callback, handle._args)
    handle._loop.call_exception_handler(
        {"message": f"Exception in callback {callback}", "exception": error, "handle": handle}
    )


class Handle(asyncio.Handle):
    """What `call_soon` and `add_reader` return, where the loop is not in debug mode."""

    __slots__ = ()

    # Debug mode's, which would only be set to None here.
    _repr = None
    _source_traceback = None

    _context: Context
    _loop: Loop
    _callback: Callable[..., object]
    _args: tuple[Any, ...]
    _cancelled: bool

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: Loop, context: Context | None = None
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True  # before the rest: the loop, in another thread perhaps, looks in the other order
        self._callback = self._args = None  # type: ignore[assignment]


if sys.version_info >= (3, 14):

    class LockedHandle(events._ThreadSafeHandle, Handle):  # type: ignore[name-defined, misc]
        """What `call_soon_threadsafe` returns, where the loop is not in debug mode."""

        __slots__ = ()

else:
    LockedHandle = Handle


class TimerHandle(asyncio.TimerHandle):
    """What `call_later` and `call_at` return, where the loop is not in debug mode."""

    __slots__ = ()

    _repr = None
    _source_traceback = None

    _context: Context
    _loop: Loop
    _callback: Callable[..., object]
    _args: tuple[Any, ...]
    _cancelled: bool
    _when: float
    _scheduled: bool

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: Loop,
        context: Context | None = None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._when = when
        self._scheduled = True

    def __lt__(self, other: Any) -> bool:
        when: float = other._when
        return self._when < when

    def cancel(self) -> None:
        if not self._cancelled and self._scheduled:
            self._loop._turn.timers.cancelled += 1
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]
