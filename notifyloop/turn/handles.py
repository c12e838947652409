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

import sys
from asyncio import events
from asyncio.format_helpers import _format_callback_source
from contextvars import copy_context
from typing import TYPE_CHECKING

from notifyloop.turn.handle_state import HandleState, TimerHandleState

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


def begin(
    handle: Handle, callback: Callable[..., object], args: tuple[Any, ...], loop: Loop, context: Context | None = None
) -> None:
    handle._context = copy_context() if context is None else context
    handle._loop = loop
    handle._callback = callback
    handle._args = args
    handle._cancelled = False


def cancel(handle: Handle) -> None:
    handle._cancelled = True  # before the rest: the loop, in another thread perhaps, looks in the other order
    handle._callback = handle._args = None  # type: ignore[assignment]


class Handle(HandleState):
    """What `call_soon` and `add_reader` return, where the loop is not in debug mode."""

    __slots__ = ()

    __init__ = begin
    cancel = cancel


if sys.version_info >= (3, 14):

    class LockedHandle(events._ThreadSafeHandle, Handle):  # type: ignore[name-defined, misc]
        """What `call_soon_threadsafe` returns, where the loop is not in debug mode."""

        __slots__ = ()

else:
    LockedHandle = Handle


def begin_timer(
    timer: TimerHandle,
    when: float,
    callback: Callable[..., object],
    args: tuple[Any, ...],
    loop: Loop,
    context: Context | None = None,
) -> None:
    timer._context = copy_context() if context is None else context
    timer._loop = loop
    timer._callback = callback
    timer._args = args
    timer._cancelled = False
    timer._when = when
    timer._scheduled = True


def is_before(timer: TimerHandle, other: Any) -> bool:
    when: float = other._when
    return timer._when < when


def cancel_timer(timer: TimerHandle) -> None:
    if not timer._cancelled and timer._scheduled:
        turn = timer._loop._turn
        turn.timers.cancelled += 1
    timer._cancelled = True
    timer._callback = timer._args = None  # type: ignore[assignment]


class TimerHandle(TimerHandleState):
    """What `call_later` and `call_at` return, where the loop is not in debug mode."""

    __slots__ = ()

    __init__ = begin_timer
    __lt__ = is_before
    cancel = cancel_timer
