"""Loops whose waits are part of the program: time passes only where it says so, and what is reported has an order.

Stock asyncio's loop and ours get a selector that asks the kernel without waiting. Where the loop would sleep, nothing
is ready, so what happens next is decided here: another thread does what it was to do when the loop sleeps, or whoever
waits until all is quiet goes on, or the clock jumps to the next timer. If there is nothing of all that, the loop would
sleep for ever, and is stopped with `Stuck`.

What one wait reports of several descriptors comes in the kernel's order, on which no program can rely. It is sorted by
the order in which the program has named them.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import notifyloop
from notifyloop.turn.interests import OTHER_EVENTS, OTHER_ORIGIN, Interests, place_of

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_TURNS = 1000  # of one program
REAL_SECONDS = 60.0  # in which another thread's wake-up must come


class Stuck(BaseException):
    """The loop sleeps for ever, or turns for ever."""


class Waiting:
    """The time of one loop, and how it waits."""

    def __init__(self) -> None:
        self.now = 1000.0  # seconds; programs add multiples of 1/64, so nothing is ever rounded
        self.turns = 0
        self.named = 0
        self.places: dict[int, int] = {}  # descriptor -> its place in the order of reports
        self.when_quiet: deque[Callable[[], object]] = deque()  # called in the loop's thread
        self.when_asleep: deque[Callable[[], object]] = deque()  # called in another thread, which must wake the loop

    def time(self) -> float:
        return self.now

    def name(self, fd: int) -> None:
        """Let what is reported of this descriptor come after what is reported of those named before."""
        self.named += 1
        self.places[fd] = self.named

    def forget(self, fd: int) -> None:
        """It is about to be closed: the number may be given to what the program does not name."""
        self.places.pop(fd, None)

    def place(self, fd: int) -> int:
        return self.places.get(fd, 0)

    def wait(self, ask: Callable[[float], Any], timeout: float | None) -> Any:
        """What `ask(seconds)` reports, where the loop is willing to wait for `timeout` seconds, or for ever."""
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise Stuck("turns for ever")
        reports = ask(0)
        if reports or timeout == 0:
            return reports
        if self.when_asleep:
            thread = threading.Thread(target=self.when_asleep.popleft())
            thread.start()
            try:
                reports = ask(REAL_SECONDS)
            finally:
                thread.join()
            if not reports:
                raise Stuck("was not woken")
            return reports
        if self.when_quiet:
            self.when_quiet.popleft()()
        elif timeout is not None:
            self.now += timeout
        else:
            raise Stuck("sleeps for ever")
        return reports


class StockSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """asyncio's."""

    def __init__(self, waiting: Waiting) -> None:
        super().__init__()
        self.waiting = waiting

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self.waiting.wait(super().select, timeout)
        return sorted(ready, key=lambda report: self.waiting.place(report[0].fd))


class OurSelector(notifyloop.NotificationSelector):
    """Ours."""

    def __init__(self, waiting: Waiting) -> None:
        super().__init__()
        self.interests.close()
        self.interests = OurInterests(waiting)


class OurInterests(Interests):
    def __init__(self, waiting: Waiting) -> None:
        super().__init__()
        self.waiting = waiting

    def dequeue(self, timeout: int) -> tuple[int, ...]:
        def ask(seconds: float) -> tuple[int, ...]:
            return super(OurInterests, self).dequeue(round(seconds * 1e9))

        words = self.waiting.wait(ask, None if timeout < 0 else timeout / 1e9)
        return tuple(sorted(words, key=self._place))

    def _place(self, word: int) -> int:
        if word >= OTHER_ORIGIN:
            return 0
        other = word >= OTHER_EVENTS
        return self.waiting.place(self.places[place_of(word) if other else word].fd)


def stock(waiting: Waiting) -> asyncio.SelectorEventLoop:
    loop = asyncio.SelectorEventLoop(StockSelector(waiting))
    loop.time = waiting.time  # type: ignore[method-assign]
    return loop


def ours(waiting: Waiting) -> notifyloop.NotifyLoop:
    loop = notifyloop.NotifyLoop(OurSelector(waiting))
    loop.time = waiting.time  # type: ignore[method-assign]
    return loop
