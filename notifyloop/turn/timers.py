"""Timers: what `call_later` and `call_at` schedule, in a heap.

A timer that is cancelled, as most are, stays in the heap: to take it out would cost more than to pass it by. It is
dropped when it would be next, or when more are cancelled than not.

The heap is asyncio's, a list of `asyncio.TimerHandle`, for there are programs that look into it.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import ceil, inf, nextafter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections import deque
    from typing import Any

__all__ = ["Timers"]

LONGEST_WAIT = 24 * 3600.0  # seconds

# A heap of more timers than this, of which more than this share are cancelled, is built anew: asyncio's numbers, for
# of timers that are due at the same time it depends on the heap which comes first.
MIN_SCHEDULED = 100
CANCELLED_SHARE = 0.5
MIN_CANCELLED = int(MIN_SCHEDULED * CANCELLED_SHARE)


def is_among(timer: Any, handles: deque[Any]) -> bool:
    """Itself, not one that is due at the same time."""
    return any(handle is timer for handle in handles)


class Timers:
    """The timers of one loop. Times are in seconds, of the loop's clock."""

    __slots__ = ("cancelled", "interrupted", "resolution", "scheduled")

    def __init__(self) -> None:
        self.scheduled: list[Any] = []  # a heap of asyncio.TimerHandle
        self.cancelled = 0  # of those that are scheduled
        self.resolution = 0.0
        self.interrupted = False  # while some were moved, or they are being moved

    def schedule(self, timer: asyncio.TimerHandle) -> None:
        scheduled = self.scheduled
        try:
            heappush(scheduled, timer)
        except BaseException:  # an interrupt, between two comparisons
            timer.cancel()
            heapify(scheduled)
            raise

    def until_next(self, now: float) -> int:
        """Nanoseconds to wait, -1 for ever."""
        scheduled = self.scheduled
        if scheduled[0]._cancelled or self.cancelled > MIN_CANCELLED:
            self._drop_cancelled()
            if not scheduled:
                return -1
        seconds: float = scheduled[0]._when - now
        if seconds <= 0.0:
            return 0
        return ceil(1e9 * seconds) if seconds < LONGEST_WAIT else ceil(1e9 * LONGEST_WAIT)

    def move_due(self, now: float, ready: deque[Any]) -> None:
        """Queue those that are due."""
        scheduled = self.scheduled
        if scheduled[0]._cancelled or self.cancelled > MIN_CANCELLED:
            self._drop_cancelled()
        end = now + self.resolution
        if end == now:  # so late that the resolution is less than the distance of two floats
            end = nextafter(now, inf)
        if not scheduled or scheduled[0]._when >= end:
            return
        # An interrupt may come at any point, and must neither lose a timer nor have it called twice. So each is queued
        # first and then taken from the heap; and after an interrupt it is looked for in the queue.
        interrupted, self.interrupted = self.interrupted, True
        while scheduled and scheduled[0]._when < end:
            timer = scheduled[0]
            if timer._cancelled:
                self.cancelled -= 1
            elif not interrupted or not is_among(timer, ready):
                ready.append(timer)
            timer._scheduled = False
            try:
                heappop(scheduled)
            except BaseException:
                heapify(scheduled)
                raise
        self.interrupted = False

    def _drop_cancelled(self) -> None:
        """Those that would be next, and all if they are many."""
        scheduled = self.scheduled
        if len(scheduled) > MIN_SCHEDULED and self.cancelled > CANCELLED_SHARE * len(scheduled):
            for timer in scheduled:
                if timer._cancelled:
                    timer._scheduled = False
            left = [timer for timer in scheduled if not timer._cancelled]
            heapify(left)
            scheduled[:] = left
            self.cancelled = 0
        while scheduled and scheduled[0]._cancelled:
            self.cancelled -= 1
            heappop(scheduled)._scheduled = False
