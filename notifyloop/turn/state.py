"""What one turn of a loop hands to the next."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from notifyloop.port.forks import Guarded
from notifyloop.turn.primitives import LOCKED_HANDLES
from notifyloop.turn.timers import Timers

if TYPE_CHECKING:
    from typing import Any

    from notifyloop.turn.interests import Interests

__all__ = ["Turn"]


class Turn:
    """What is ready, what is watched and what is scheduled: all that a loop has of its own.

    Apart from the loop, because CPython's fast way to an attribute ends at thirty names in one object, and the base
    class has nearly as many.
    """

    __slots__ = (
        "callbacks",
        "checked",
        "interests",
        "iterations",
        "own",
        "pop",
        "pops_from",
        "ready",
        "selectors",
        "spare",
        "spare_for_threads",
        "timers",
        "waking",
    )

    def __init__(self, interests: Interests, own: dict[str, Any], selectors: dict[str, Any]) -> None:
        self.ready: deque[Any] = deque()  # handles, and what stands in interests and is called as they are
        self.pop: Any = None  # its method: to ask for that in each turn costs more than to call it
        self.pops_from: Any = None
        self.interests = interests
        self.timers = Timers()
        self.iterations = 0
        self.callbacks = 0  # called from the ready queue
        self.use_handles_again(True)
        self.waking = Guarded()  # a signal handler may come in between
        # Whoever replaces a method of one object leaves it there.
        self.own = own  # the loop's
        self.selectors = selectors

    def use_handles_again(self, again: bool) -> None:
        """Or make asyncio's own, which check and remember more: in debug mode, and when the loop is closed."""
        self.checked = not again
        self.spare: list[Any] = []  # handles that have run
        self.spare_for_threads: list[Any] = [] if LOCKED_HANDLES else self.spare
