"""The interest in one descriptor, and the order that tells the port of it."""

from __future__ import annotations

from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import TYPE_CHECKING, ClassVar

from notifyloop.port import foreign
from notifyloop.port.registration import REGISTERED, RENEW, Event, Operation, Trigger

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from notifyloop.port.registration import HasFileno

__all__ = ["LEVEL_ONESHOT", "NOBODY", "Interest", "InterestInTheEnd"]

DISABLE = int(Operation.DISABLE)
LEVEL_ONESHOT = int(Trigger.LEVEL | Trigger.ONESHOT)

# Hang-up is asked for together with IN, and wakes the reader: a stream's end is something to read. An error
# wakes both, because a failed connect is reported as an error alone, and whoever connects waits for
# writability.
FILTERS = {
    0: 0,
    EVENT_READ: int(Event.IN | Event.HANGUP),
    EVENT_WRITE: int(Event.OUT),
    EVENT_READ | EVENT_WRITE: int(Event.IN | Event.HANGUP | Event.OUT),
}


class Interest:
    """What is wanted of one descriptor, who is called, and what the port was told of it.

    One that has an owner rests while nothing is wanted of it. It may still be armed then, for what was wanted last:
    that costs nothing if the same is wanted soon, and one notification for nobody if not.
    """

    __slots__ = ("armed", "data", "events", "fd", "fileobj", "key", "owner", "reader", "writer")

    filters: ClassVar[dict[int, int]] = FILTERS

    def __init__(self, fileobj: int | HasFileno, fd: int, events: int, key: int, data: Any = None) -> None:
        self.fileobj = fileobj
        self.fd = fd
        self.events = events
        self.data = data  # of who has registered it as with any selector
        self.reader: Any = None  # the loop's handles
        self.writer: Any = None
        self.owner: Callable[[], object] | None = None  # who tells before it closes the descriptor, as a weak reference
        self.key = key
        self.armed = 0

    def handle_for(self, event: int) -> Any:
        """What is called for one event; None if nothing is."""
        return self.reader if event == EVENT_READ else self.writer

    def hand_to(self, event: int, handle: Any) -> Any:
        """Have a handle, or None, called for one event. Returns what was called until now."""
        if event == EVENT_READ:
            replaced, self.reader = self.reader, handle
        else:
            replaced, self.writer = self.writer, handle
        return replaced

    def arm(self, enable: int = RENEW) -> bytes:
        """The order that has it armed for what is wanted now, whatever the port knew, and if another file has been put
        under its number. Should it not get to the port, it is `disbelieved`.
        """
        events = self.armed = self.events
        operation = enable if events else DISABLE
        return foreign.pack(self.fd, self.key, self.filters[events], operation, LEVEL_ONESHOT)

    def selector_key(self) -> SelectorKey:
        """With the handles of its reader and its writer as data, as asyncio has it, if it is a loop's."""
        fileobj, reader, writer = self.fileobj, self.reader, self.writer
        data = self.data if reader is None and writer is None else (reader, writer)
        return SelectorKey(fileobj, self.fd, self.events, data)


class InterestInTheEnd(Interest):
    """One whose reader is called when the other end is gone, but not when there is something to receive. Errors and
    hang-up of both directions come unasked.
    """

    __slots__ = ()

    filters: ClassVar[dict[int, int]] = {
        events: wanted & ~int(Event.IN | Event.HANGUP) for events, wanted in FILTERS.items()
    }


NOBODY = Interest(-1, -1, 0, REGISTERED)  # has every place that is vacant
