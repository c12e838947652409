"""How callbacks come to the queue, and how a loop that sleeps is woken for those of other threads.

There is no self-pipe. `call_soon_threadsafe` posts a packet to the port, and only if the loop is asleep or about to be:
`Interests.sleeping` says so, and whoever sets it back posts. So at most one wake-up is ever pending.
"""

from __future__ import annotations

from asyncio.base_events import BaseEventLoop
from contextvars import copy_context
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, TypeVarTuple

from notifyloop.turn import primitives
from notifyloop.turn.handles import Handle, LockedHandle, TimerHandle
from notifyloop.turn.interests import ASLEEP, AWAKE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any, Unpack

    from notifyloop.turn.state import Turn
    from notifyloop.turn.surface import Loop

__all__ = ["Scheduler", "finalize", "wake_up"]

Ts = TypeVarTuple("Ts")


class Scheduler:
    """The methods of a loop that schedule, and what a loop keeps for its turn: of its bases, the first."""

    __slots__ = ("_turn",)

    _turn: Turn

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's."""
        turn = self._turn
        spare = turn.spare
        if not spare:
            return call_anew(self, callback, args, context)
        try:
            handle = spare.pop()
        except IndexError:  # a signal handler that came in between took the last
            return call_anew(self, callback, args, context)
        if primitives.getrefcount(handle) != primitives.UNSHARED:  # somebody has found it, and may cancel it
            return call_anew(self, callback, args, context)
        renew(handle, callback, args, context)
        turn.ready.append(handle)
        return handle  # type: ignore[no-any-return]

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's: `call_soon` from any thread, or a signal handler. It ends the wait, if the loop waits."""
        turn = self._turn
        spare = turn.spare_for_threads
        if not spare:
            return call_anew_threadsafe(self, callback, args, context)
        try:
            handle = spare.pop()
        except IndexError:  # another thread took the last
            return call_anew_threadsafe(self, callback, args, context)
        if primitives.getrefcount(handle) != primitives.UNSHARED:
            return call_anew_threadsafe(self, callback, args, context)
        renew(handle, callback, args, context)
        turn.ready.append(handle)
        if turn.interests.sleeping:
            wake_up(self)  # type: ignore[arg-type]
        return handle  # type: ignore[no-any-return]

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's: in `delay` seconds. Raises ValueError if that is not a number."""
        if delay is None:
            raise TypeError("delay must not be None")
        timer = self.call_at(self.time() + delay, callback, *args, context=context)  # type: ignore[attr-defined]
        return primitives.leave_out(timer, 1)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's: when `time()` has reached `when`, in seconds. Raises ValueError if that is not a number, for
        what is neither earlier nor later than any other would stop all timers.
        """
        if when is None:
            raise TypeError("when cannot be None")
        if not when <= inf:
            raise ValueError(f"a timer cannot be due at {when!r}, which is not a number")
        turn = self._turn
        if turn.checked:
            timer: asyncio.TimerHandle = BaseEventLoop.call_at(self, when, callback, *args, context=context)  # type: ignore[arg-type]
            return primitives.leave_out(timer, 1)
        timer = TimerHandle(when, callback, args, self, context)
        turn.timers.schedule(timer)
        return timer


def renew(handle: Handle, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None) -> None:
    """Use a handle again, that has run and is nobody's."""
    handle._callback = callback
    handle._args = args
    handle._context = copy_context() if context is None else context


def call_anew(
    loop: Any, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
) -> asyncio.Handle:
    """With a handle that was not used before."""
    if loop._turn.checked:
        return primitives.leave_out(BaseEventLoop.call_soon(loop, callback, *args, context=context), 2)
    handle: asyncio.Handle = Handle(callback, args, loop, context)
    loop._turn.ready.append(handle)
    return handle


def call_anew_threadsafe(
    loop: Any, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
) -> asyncio.Handle:
    if loop._turn.checked:
        return primitives.leave_out(BaseEventLoop.call_soon_threadsafe(loop, callback, *args, context=context), 2)
    handle: asyncio.Handle = LockedHandle(callback, args, loop, context)
    loop._turn.ready.append(handle)
    wake_up(loop)
    return handle


def finalize(loop: Loop, finish: Callable[[], object]) -> None:
    """For finalizers, which run in whatever thread collects: have this done in the loop's, if it runs."""
    if loop._thread_id is not None and loop._thread_id != get_ident():
        try:
            loop.call_soon_threadsafe(finish)
            return
        except RuntimeError:  # it was closed meanwhile
            pass
    finish()


def wake_up(loop: Loop) -> None:
    """Called after work was added from another thread or a signal handler."""
    turn = loop._turn
    interests = turn.interests
    if not interests.sleeping:
        return
    with turn.waking.lock:
        if not interests.sleeping:
            return  # somebody else has woken it
        try:
            interests.sleeping = AWAKE
            interests.wake_up()
        except ValueError:
            return  # closed meanwhile: nobody sleeps there any more
        except BaseException:
            interests.sleeping = ASLEEP  # the packet may be on its way or not: the next one is posted in any case
            raise
