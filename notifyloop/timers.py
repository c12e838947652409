"""Timers: what `call_later` and `call_at` schedule, in a heap.

A timer that is cancelled, as most are, stays in the heap: to take it out would cost more than to pass it by. It is
dropped when it would be next, or when more are cancelled than not.
"""

from __future__ import annotations

import asyncio
from heapq import heapify, heappop, heappush
from math import ceil
from typing import TYPE_CHECKING, TypeVarTuple

from notifyloop.backports import SelectorEventLoop
from notifyloop.handles import TimerHandle

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any, Unpack

    from notifyloop.loop import Turn

__all__ = ["Timers"]

Ts = TypeVarTuple("Ts")

LONGEST_WAIT = 24 * 3600.0  # seconds

# A heap with more cancelled timers than this, and than this share of all, is built anew.
MIN_CANCELLED = 50
CANCELLED_SHARE = 0.5


class Timers(SelectorEventLoop):
    """The methods of a `NotifyLoop` that schedule timers, and those that the turn calls for them."""

    _turn: Turn
    _ready: deque[asyncio.Handle]
    _scheduled: list[tuple[float, int, asyncio.TimerHandle]]
    _timer_cancelled_count: int
    _clock_resolution: float
    _check_closed: Callable[[], None]
    _check_thread: Callable[[], None]
    _check_callback: Callable[[object, str], None]

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's: in `delay` seconds."""
        if delay is None:
            raise TypeError("delay must not be None")
        return self._schedule(self.time() + delay, callback, args, context, "call_later")

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's: when `time()` has reached `when`, in seconds."""
        if when is None:
            raise TypeError("when cannot be None")
        return self._schedule(when, callback, args, context, "call_at")

    def _schedule(
        self, when: float, callback: Callable[..., object], args: Any, context: Context | None, method: str
    ) -> asyncio.TimerHandle:
        turn = self._turn
        timer: asyncio.TimerHandle
        if turn.checked:
            self._check_closed()
            self._check_thread()
            self._check_callback(callback, method)
            timer = asyncio.TimerHandle(when, callback, args, self, context)
            if timer._source_traceback:  # type: ignore[attr-defined]
                del timer._source_traceback[-2:]  # type: ignore[attr-defined]  # from here on it is our own frames
            timer._scheduled = True  # type: ignore[attr-defined]
        else:
            timer = TimerHandle(when, callback, args, self, context)
        # The number keeps timers of the same time in order, and the heap from comparing handles.
        turn.timers += 1
        heappush(self._scheduled, (when, turn.timers, timer))
        return timer

    def _until_next_timer(self) -> int:
        """Nanoseconds."""
        scheduled = self._scheduled
        if scheduled[0][2]._cancelled or self._timer_cancelled_count > MIN_CANCELLED:
            self._drop_cancelled_timers()
            if not scheduled:
                return -1
        seconds = scheduled[0][0] - self.time()
        if seconds <= 0.0:
            return 0
        return ceil(1e9 * seconds) if seconds < LONGEST_WAIT else ceil(1e9 * LONGEST_WAIT)

    def _schedule_due_timers(self) -> None:
        if self._timer_cancelled_count > MIN_CANCELLED:
            self._drop_cancelled_timers()
        scheduled = self._scheduled
        now = self.time() + self._clock_resolution
        while scheduled and scheduled[0][0] < now:
            timer = heappop(scheduled)[2]
            timer._scheduled = False  # type: ignore[attr-defined]
            if timer._cancelled:
                self._timer_cancelled_count -= 1
            else:
                self._ready.append(timer)

    def _drop_cancelled_timers(self) -> None:
        """Those that would be next, and all if they are many."""
        scheduled = self._scheduled
        if self._timer_cancelled_count > max(MIN_CANCELLED, CANCELLED_SHARE * len(scheduled)):
            for _, _, timer in scheduled:
                if timer._cancelled:
                    timer._scheduled = False  # type: ignore[attr-defined]
            scheduled[:] = [entry for entry in scheduled if not entry[2]._cancelled]
            heapify(scheduled)
            self._timer_cancelled_count = 0
        while scheduled and scheduled[0][2]._cancelled:
            self._timer_cancelled_count -= 1
            heappop(scheduled)[2]._scheduled = False  # type: ignore[attr-defined]
