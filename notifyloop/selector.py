"""A selector over the completion port.

`selectors` wants level-triggered readiness, reader and writer apart; the port has one registration per
socket, with the union of both. So a descriptor is registered once, LEVEL | ONESHOT, and what a notification
disarmed is enabled again with the next wait, after its callbacks ran. That is the recommended pattern of the
port: it never spins, and a notification has one owner. Its one danger is a lost re-arm, so nobody has to
order it: the port does it by itself. What the next wait takes along are the orders of those in `changed`, of which
something else is wanted than before.

Errors that a caller must see (a bad descriptor, a regular file) are found by registering without waiting,
at once; interest that only shrinks is left to the next wait.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from itertools import count
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, SelectorKey
from typing import TYPE_CHECKING

from notifyloop.port.abi import FULL_ENTRY, REGISTRATION
from notifyloop.port.completion_port import CompletionPort
from notifyloop.port.registration import (
    REGISTERED,
    Event,
    Operation,
    Trigger,
    descriptor_of,
    registration_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from socket import socket
    from typing import Any

    from notifyloop.port.registration import HasFileno

__all__ = ["Interest", "NotificationSelector"]

ENABLE = int(Operation.ENABLE)
DISABLE = int(Operation.DISABLE)
REMOVE = int(Operation.REMOVE)
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
READABLE = int(Event.IN | Event.HANGUP | Event.ERR)
WRITABLE = int(Event.OUT | Event.ERR)
READY = tuple(
    (EVENT_READ if events & READABLE else 0) | (EVENT_WRITE if events & WRITABLE else 0) for events in range(256)
)
ERROR = int(Event.ERR)
REMOVED = int(Event.REMOVE)
WAKE_UP = REGISTERED - 1  # the key of the packet that only ends a wait; Windows' own posts have the key 0

# What a packet says is one number, its word (see the packed form in port/abi.py). Nearly all say that there is
# something to receive, or no more: then the word is the interest's place in a list. Its key has that place, and
# a number besides that no other interest had; for places are taken again, though not before everything is handled
# that was dequeued when it was another's.
#
#     bit 63 (31)     to 32        to 8      to 0
#     set             number       place     events, in words
#
# Where keys have 32 bits there is no room for the number; the provider's own care for late packets must do.
EVENTS = 0xFF
PLACE = 0xFFFFFF00 & (REGISTERED - 1)
LAST_PLACE = PLACE >> 8
numbers = count(1 << 32, 1 << 32)  # of all the process's interests
OTHER_EVENTS = 1 << 32  # and more: words of interests with more to tell
OTHER_ORIGIN = 2 << 32  # and more: words of packets from elsewhere
INPUT = int(Event.IN)
WAKE_UP_WORD = OTHER_ORIGIN | WAKE_UP & 0xFFFFFFFF

OUT_OF_MEMORY = (
    errno.ENOMEM,
    errno.ENOSPC,
)  # what passes: the kernel's memory, the user's limit of watched files


def place_of(key: int) -> int:
    """Also of a word with other events."""
    return (key & PLACE) >> 8


class Interest:
    """What is wanted of one descriptor, who is called, and what the port was told of it.

    One that has an owner rests while nothing is wanted of it. It may still be armed then, for what was wanted last:
    that costs nothing if the same is wanted soon, and one notification for nobody if not.
    """

    __slots__ = ("armed", "data", "drained", "events", "fd", "fileobj", "key", "owner", "reader", "writer")

    def __init__(self, fileobj: int | HasFileno, fd: int, events: int, key: int, data: Any = None) -> None:
        self.fileobj = fileobj
        self.fd = fd
        self.events = events
        self.data = data  # of who has registered it as with any selector
        self.reader: Any = None  # the loop's handles
        self.writer: Any = None
        self.owner: Callable[[], object] | None = None  # who tells before it closes the descriptor, as a weak reference
        self.drained = False  # of what there was to receive, as far as the owner knows
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

    def arm(self) -> bytes:
        """The order that has it armed for what is wanted now."""
        events = self.armed = self.events
        return REGISTRATION.pack(self.fd, self.key, FILTERS[events], ENABLE if events else DISABLE, LEVEL_ONESHOT, 0)

    def selector_key(self) -> SelectorKey:
        return SelectorKey(self.fileobj, self.fd, self.events, self.data)


NOBODY = Interest(-1, -1, 0, REGISTERED)  # has every place that is vacant


class _InterestMap(Mapping["int | HasFileno", SelectorKey]):
    """The public view: file object or descriptor -> SelectorKey."""

    def __init__(self, selector: NotificationSelector) -> None:
        self._selector = selector

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, fileobj: int | HasFileno) -> SelectorKey:
        interest = self._selector.find(fileobj)
        if interest is None:
            raise KeyError(f"{fileobj!r} is not registered")
        return interest.selector_key()

    def __iter__(self) -> Iterator[int | HasFileno]:
        return iter([fd for fd, interest in self._selector.interests.items() if interest.events])


class NotificationSelector(BaseSelector):
    """A `selectors.BaseSelector` on a completion port of its own.

    Any number of sockets, at a cost that does not depend on how many are idle. Use it as
    `selectors.DefaultSelector`, or as the selector of an `asyncio.SelectorEventLoop`. Not thread-safe, but
    for `wake_up`.
    """

    def __init__(self) -> None:
        self.port = CompletionPort()
        self.interests: dict[int, Interest] = {}  # by descriptor
        self.stale_notifications = 0
        self.places: list[Interest] = []
        self._vacant: list[int] = []  # places to be taken again
        self._vacated: list[int] = []  # likewise, after the next wait
        self.changed: list[Interest] = []  # may have to be armed otherwise; the next wait sees to it
        # What to call with the packets of other origins, by their completion key: with the address of the overlapped
        # operation and the number posted or transferred. Called in the midst of a turn, so it takes note of what came,
        # raises nothing and calls nobody.
        self.foreign: dict[int, Callable[[int, int], object]] = {}
        self._batch = self.port.batch()
        self._map: _InterestMap | None = _InterestMap(self)

    def find(self, fileobj: int | HasFileno) -> Interest | None:
        """The interest in a file object, also one that was closed and has lost its descriptor; None if
        there is none, or if it rests.
        """
        try:
            interest = self.interests.get(descriptor_of(fileobj))
            return interest if interest is not None and interest.events else None
        except ValueError:
            for interest in self.interests.values():
                if interest.fileobj is fileobj:
                    return interest
            raise

    def register(self, fileobj: int | HasFileno, events: int, data: Any = None) -> SelectorKey:
        """As `selectors.BaseSelector.register`.

        Raises ValueError for invalid events or file objects and for a closed selector, KeyError if the
        descriptor is registered, OSError (EBADF, EPERM for a regular file, ...) if the system refuses it.
        """
        if not events or events & ~(EVENT_READ | EVENT_WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        fd = descriptor_of(fileobj)
        if self.find(fd) is not None:
            raise KeyError(f"{fileobj!r} (FD {fd}) is already registered")
        return self.watch(fileobj, fd, events, data).selector_key()

    def watch(self, fileobj: int | HasFileno, fd: int, events: int, data: Any = None) -> Interest:
        """Register a descriptor that nobody watches. Raises OSError, ValueError if the selector is closed."""
        resting = self.interests.get(fd)
        if resting is not None:
            self.remove(resting)
        interest = self._take_place(fileobj, fd, events, data)
        try:
            self._apply(interest.arm())
        except BaseException:
            self._leave_place(interest, self._vacant)
            raise
        self.interests[fd] = interest
        return interest

    def _take_place(self, fileobj: int | HasFileno, fd: int, events: int, data: Any = None) -> Interest:
        if self._vacant:
            place = self._vacant.pop()
        else:
            place = len(self.places)
            if place > LAST_PLACE:
                raise OSError(errno.EMFILE, f"cannot watch more than {place} descriptors")
            self.places.append(NOBODY)
        key = REGISTERED | next(numbers) & REGISTERED - 1 | place << 8
        interest = self.places[place] = Interest(fileobj, fd, events, key, data)
        return interest

    def _leave_place(self, interest: Interest, vacant: list[int]) -> None:
        place = place_of(interest.key)
        self.places[place] = NOBODY
        vacant.append(place)

    def unregister(self, fileobj: int | HasFileno) -> SelectorKey:
        """As `selectors.BaseSelector.unregister`. Raises KeyError if it is not registered, ValueError for
        invalid file objects.
        """
        interest = self.find(fileobj)
        if interest is None:
            raise KeyError(f"{fileobj!r} is not registered")
        key = interest.selector_key()
        self.remove(interest)
        return key

    def adopt(self, sock: socket, fd: int, owner: Callable[[], object]) -> Interest:
        """The interest in a socket, for somebody who keeps it, and will call `forget` before he closes it, or be gone.
        What he wants of it he says with `want`. What rests there of another socket is removed.
        """
        interest = self.interests.get(fd)
        if interest is not None and not interest.events and (interest.owner is None or interest.owner() is not sock):
            self.remove(interest)
            interest = None
        if interest is None:
            interest = self.interests[fd] = self._take_place(fd, fd, 0)
        interest.owner = owner
        return interest

    def want(self, interest: Interest, events: int) -> None:
        """Change what is wanted of a descriptor with an owner, nothing included. It is ordered with the next wait; if
        it cannot be, the interest is called ready, so that the owner meets the error.
        """
        interest.events = events
        if events != interest.armed:
            self.changed.append(interest)

    def remove(self, interest: Interest) -> None:
        """Take back a registration."""
        self.forget(interest)
        interest.armed = 0
        # Fails only if the descriptor was closed: then it is gone already.
        self._batch.exchange(REGISTRATION.pack(interest.fd, interest.key, 0, REMOVE, LEVEL_ONESHOT, 0), 0, 0)
        self._batch.failures = []

    def forget(self, interest: Interest) -> None:
        """Take back a registration whose descriptor is about to be closed. That removes it; what is left to order is
        that it is not armed again.
        """
        del self.interests[interest.fd]
        self._leave_place(interest, self._vacated)
        interest.reader = interest.writer = None
        interest.events = 0
        self.changed.append(interest)

    def modify(self, fileobj: int | HasFileno, events: int, data: Any = None) -> SelectorKey:
        """As `selectors.BaseSelector.modify`; a change of data alone stays in Python. Raises as `register`,
        then it is unregistered.
        """
        interest = self.find(fileobj)
        if interest is None:
            raise KeyError(f"{fileobj!r} is not registered")
        if events != interest.events and (not events or events & ~(EVENT_READ | EVENT_WRITE)):
            raise ValueError(f"Invalid events: {events!r}")
        self.change(interest, events)
        interest.data = data
        return interest.selector_key()

    def change(self, interest: Interest, events: int) -> None:
        """Change what is wanted. More is ordered at once, and raises OSError if it cannot be; less is left
        to the next wait.
        """
        self.want(interest, events)
        if events & ~interest.armed:
            try:
                self._apply(interest.arm())
            except OSError:
                self.forget(interest)
                raise

    def _apply(self, order: bytes) -> None:
        self._batch.exchange(order, 0, 0)
        failures, self._batch.failures = self._batch.failures, []
        for _, _, result in failures:
            fd, _, _, operation, _, _ = REGISTRATION.unpack(order)
            raise registration_error(result, fd, operation)

    def dequeue(self, timeout: int) -> tuple[int, ...]:
        """Re-arm what was dequeued last, then wait up to `timeout` nanoseconds (negative: for ever); in one
        foreign call.

        Returns the words of the packets; `ready` says what they mean. Raises ValueError if the selector is closed.
        """
        words = self._batch.turn(self._orders() if self.changed else None, timeout)
        return words + self._failed() if self._batch.failures else words

    def _orders(self) -> bytes:
        """What `changed` tells the port with the next wait."""
        # A finalizer may come in and want something, too: that is for the wait after.
        vacated, self._vacated = self._vacated, []
        changed, self.changed = self.changed, []
        self._vacant += vacated
        return b"".join([interest.arm() for interest in changed if interest.events != interest.armed])

    def _failed(self) -> tuple[int, ...]:
        """The words for those who must hear that they cannot be armed.

        A descriptor closed behind our back reports nothing more, as in every selector. But where only memory was
        short, nobody would ever hear of the socket again, and an owner waits for its own: those are called ready, to
        be armed with the next wait.
        """
        failures, self._batch.failures = self._batch.failures, []
        words = []
        for _, key, result in failures:
            interest = self.places[place_of(key)]
            if interest.key == key and (
                registration_error(result, interest.fd, ENABLE).errno in OUT_OF_MEMORY or interest.owner is not None
            ):
                interest.armed = 0
                self.changed.append(interest)
                words.append(OTHER_EVENTS | key & PLACE | ERROR)
        return tuple(words)

    def ready(self, words: Iterable[int]) -> list[tuple[Interest, int]]:
        """The interests that packets report ready, and for what. The next wait arms them again."""
        ready: list[tuple[Interest, int]] = []
        for word in words:
            if word < OTHER_EVENTS:
                interest, events = self.places[word], INPUT
            elif word < OTHER_ORIGIN:
                interest, events = self.places[place_of(word)], word & EVENTS
                if events & REMOVED:
                    continue
            else:
                self._note_origin(word)
                continue
            mask = READY[events] & interest.events
            if mask:
                ready.append((interest, mask))
            else:
                self.unwanted(interest)
        return ready

    def unwanted(self, interest: Interest) -> None:
        """Take note of a packet that tells what nobody wants to know, or not soon: let it not be told again."""
        if interest is NOBODY:
            self.stale_notifications += 1  # it comes too late
        else:
            self.want(interest, interest.events)

    def _note_origin(self, word: int) -> None:
        """Take note of a packet of another origin: a wake-up, or one that the program itself sent for."""
        if word != WAKE_UP_WORD and self._batch.count:
            self._hand_on()

    def _hand_on(self) -> None:
        """All of the last batch at once, for a pair of key and number does not tell which operation has ended."""
        size, self._batch.count = self._batch.count * FULL_ENTRY.size, 0
        for key, overlapped, _, value in FULL_ENTRY.iter_unpack(bytes(self._batch.entries[:size])):
            if not key & REGISTERED and key != WAKE_UP:
                handler = self.foreign.get(key)
                if handler is None:
                    self.stale_notifications += 1
                else:
                    handler(overlapped, value)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """As `selectors.BaseSelector.select`; waits with the resolution of nanoseconds where the system
        can.
        """
        ns = -1 if timeout is None else math.ceil(timeout * 1e9) if timeout > 0 else 0
        return [(interest.selector_key(), mask) for interest, mask in self.ready(self.dequeue(ns))]

    def wake_up(self) -> None:
        """End the wait of another thread, or the next one, early. Raises ValueError if the selector is
        closed.
        """
        self.port.post(WAKE_UP)

    def close(self) -> None:
        """Close the port. Descriptors stay open; closing twice is no error."""
        self.port.close()
        for interest in self.interests.values():
            interest.reader = interest.writer = None  # an owner may hold it, and it what calls the owner
        self.interests.clear()
        self.places[:] = [NOBODY] * len(self.places)
        self._vacant.clear()
        self._vacated.clear()
        self.changed.clear()
        self._map = None

    def get_map(self) -> Mapping[int | HasFileno, SelectorKey]:
        """The registered file objects; None once closed, as for the standard selectors."""
        return self._map  # type: ignore[return-value]

    def get_key(self, fileobj: int | HasFileno) -> SelectorKey:
        """As `selectors.BaseSelector.get_key`. Raises RuntimeError if the selector is closed, KeyError if
        it is not registered.
        """
        if self._map is None:
            raise RuntimeError("Selector is closed")
        return self._map[fileobj]
