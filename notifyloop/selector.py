"""A selector over the completion port.

`selectors` wants level-triggered readiness, reader and writer apart; the port has one registration per
socket, with the union of both. So a descriptor is registered once, LEVEL | ONESHOT, and what a notification
disarmed is enabled again in one batch with the next wait, after its callbacks ran. That is the recommended
pattern of the port: it never spins, and a notification has one owner. Its one danger is a lost re-arm, so
there is exactly one place that re-arms: everything that was dequeued goes through `_disarmed`.

Errors that a caller must see (a bad descriptor, a regular file) are found by registering without waiting,
at once; interest that only shrinks is left to the next notification.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
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
    next_generation,
    registration_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from notifyloop.port.registration import HasFileno

__all__ = ["Interest", "NotificationSelector"]

ENABLE = int(Operation.ENABLE)
REMOVE = int(Operation.REMOVE)
LEVEL_ONESHOT = int(Trigger.LEVEL | Trigger.ONESHOT)

# Hang-up is asked for together with IN, and wakes the reader: a stream's end is something to read. An error
# wakes both, because a failed connect is reported as an error alone, and whoever connects waits for
# writability.
FILTERS = {
    EVENT_READ: int(Event.IN | Event.HANGUP),
    EVENT_WRITE: int(Event.OUT),
    EVENT_READ | EVENT_WRITE: int(Event.IN | Event.HANGUP | Event.OUT),
}
READY = tuple(
    (EVENT_READ if events & (Event.IN | Event.HANGUP | Event.ERR) else 0)
    | (EVENT_WRITE if events & (Event.OUT | Event.ERR) else 0)
    for events in range(256)
)
REMOVED = int(Event.REMOVE)
WAKE_UP = REGISTERED - 1  # the key of the packet that only ends a wait; Windows' own posts have the key 0

OUT_OF_MEMORY = (
    errno.ENOMEM,
    errno.ENOSPC,
)  # what passes: the kernel's memory, the user's limit of watched files


class Interest:
    """What is wanted of one descriptor, and the packed order that re-arms it."""

    __slots__ = ("data", "enable", "events", "fd", "fileobj", "key")

    def __init__(self, fileobj: int | HasFileno, fd: int, events: int, data: Any) -> None:
        self.fileobj = fileobj
        self.fd = fd
        self.events = events
        self.data = data
        self.key = next_generation()
        self.enable = self.order(ENABLE)

    def order(self, operation: int) -> bytes:
        return REGISTRATION.pack(self.fd, self.key, FILTERS[self.events], operation, LEVEL_ONESHOT, 0)

    def selector_key(self) -> SelectorKey:
        return SelectorKey(self.fileobj, self.fd, self.events, self.data)


class _InterestMap(Mapping["int | HasFileno", SelectorKey]):
    """The public view: file object or descriptor -> SelectorKey."""

    def __init__(self, selector: NotificationSelector) -> None:
        self._selector = selector

    def __len__(self) -> int:
        return len(self._selector.interests)

    def __getitem__(self, fileobj: int | HasFileno) -> SelectorKey:
        interest = self._selector.find(fileobj)
        if interest is None:
            raise KeyError(f"{fileobj!r} is not registered")
        return interest.selector_key()

    def __iter__(self) -> Iterator[int | HasFileno]:
        return iter(self._selector.interests)


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
        # What to call with the packets of other origins, by their completion key: with the address of the overlapped
        # operation and the number posted or transferred. Called in the midst of `dequeue`, so it takes note of what
        # came, raises nothing and calls nobody.
        self.foreign: dict[int, Callable[[int, int], object]] = {}
        self._by_key: dict[int, Interest] = {}
        self._disarmed: list[Interest] = []
        self._batch = self.port.batch()
        self._map: _InterestMap | None = _InterestMap(self)

    def find(self, fileobj: int | HasFileno) -> Interest | None:
        """The interest in a file object, also one that was closed and has lost its descriptor; None if
        there is none.
        """
        try:
            return self.interests.get(descriptor_of(fileobj))
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
        if fd in self.interests:
            raise KeyError(f"{fileobj!r} (FD {fd}) is already registered")
        return self.watch(fileobj, fd, events, data).selector_key()

    def watch(self, fileobj: int | HasFileno, fd: int, events: int, data: Any) -> Interest:
        """Register a descriptor that is not registered. Raises OSError, ValueError if the selector is
        closed.
        """
        interest = Interest(fileobj, fd, events, data)
        self._apply(interest.enable)
        self.interests[fd] = interest
        self._by_key[interest.key] = interest
        return interest

    def unregister(self, fileobj: int | HasFileno) -> SelectorKey:
        """As `selectors.BaseSelector.unregister`. Raises KeyError if it is not registered, ValueError for
        invalid file objects.
        """
        interest = self.find(fileobj)
        if interest is None:
            raise KeyError(f"{fileobj!r} is not registered")
        self.remove(interest)
        return interest.selector_key()

    def remove(self, interest: Interest) -> None:
        """Take back a registration."""
        self.forget(interest)
        self._batch.exchange(interest.order(REMOVE), 0, 0)  # fails only if it was closed: then it is gone already

    def forget(self, interest: Interest) -> None:
        """Take back a registration without telling the port, because its descriptor is about to be closed."""
        del self.interests[interest.fd]
        del self._by_key[interest.key]
        interest.enable = b""  # it may still stand in line to be re-armed

    def modify(self, fileobj: int | HasFileno, events: int, data: Any = None) -> SelectorKey:
        """As `selectors.BaseSelector.modify`; a change of data alone stays in Python. Raises as `register`,
        then it is unregistered.
        """
        interest = self.find(fileobj)
        if interest is None:
            raise KeyError(f"{fileobj!r} is not registered")
        if events != interest.events and (not events or events & ~(EVENT_READ | EVENT_WRITE)):
            raise ValueError(f"Invalid events: {events!r}")
        self.change(interest, events, data)
        return interest.selector_key()

    def change(self, interest: Interest, events: int, data: Any) -> None:
        """Change what is wanted. More is ordered at once, and raises OSError if it cannot be; less is left
        to the next wait.
        """
        if events != interest.events:
            widened = events & ~interest.events
            interest.events = events
            interest.enable = interest.order(ENABLE)
            if widened:
                try:
                    self._apply(interest.enable)
                except OSError:
                    self.forget(interest)
                    raise
            else:
                self._disarmed.append(interest)
        interest.data = data

    def _apply(self, order: bytes) -> None:
        self._batch.exchange(order, 0, 0)
        for _, _, result in self._batch.failures:
            fd, _, _, operation, _, _ = REGISTRATION.unpack(order)
            raise registration_error(result, fd, operation)

    def dequeue(self, timeout: float | None) -> list[tuple[Interest, int]]:
        """Re-arm what was dequeued last, then wait up to `timeout` seconds (None: for ever); in one foreign
        call.

        Returns the interests that are ready and for what. Raises ValueError if the selector is closed.
        """
        disarmed = self._disarmed
        if not disarmed:
            packed = b""
        else:
            packed = disarmed[0].enable if len(disarmed) == 1 else b"".join([interest.enable for interest in disarmed])
            disarmed.clear()
        batch = self._batch
        dequeued = batch.turn(packed, -1 if timeout is None else math.ceil(timeout * 1e9) if timeout > 0 else 0)
        ready: list[tuple[Interest, int]] = []
        if batch.failures:
            self._not_armed(ready)
        by_key = self._by_key
        foreign = False
        for key, events in dequeued:
            interest = by_key.get(key)
            if interest is not None:
                disarmed.append(interest)
                mask = READY[events & 255] & interest.events
                if mask:
                    ready.append((interest, mask))
            elif not key & REGISTERED:
                foreign = foreign or key != WAKE_UP
            elif not events & REMOVED:
                self.stale_notifications += 1
        if foreign:
            self._hand_on(len(dequeued))
        return ready

    def _hand_on(self, count: int) -> None:
        packets = list(FULL_ENTRY.iter_unpack(self._batch.entries[: count * FULL_ENTRY.size]))
        for key, overlapped, _, value in packets:
            if not key & REGISTERED and key != WAKE_UP:
                handler = self.foreign.get(key)
                if handler is None:
                    self.stale_notifications += 1
                else:
                    handler(overlapped, value)

    def _not_armed(self, ready: list[tuple[Interest, int]]) -> None:
        """A descriptor closed behind our back reports nothing more, as in every selector. But where only
        memory was short, nobody would ever hear of the socket again: call it ready, and arm it with the
        next wait.
        """
        for _, key, result in self._batch.failures:
            interest = self._by_key.get(key)
            if interest is not None and registration_error(result, interest.fd, ENABLE).errno in OUT_OF_MEMORY:
                self._disarmed.append(interest)
                ready.append((interest, interest.events))

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """As `selectors.BaseSelector.select`; waits with the resolution of nanoseconds where the system
        can.
        """
        return [(interest.selector_key(), mask) for interest, mask in self.dequeue(timeout)]

    def wake_up(self) -> None:
        """End the wait of another thread, or the next one, early. Raises ValueError if the selector is
        closed.
        """
        self.port.post(WAKE_UP)

    def close(self) -> None:
        """Close the port. Descriptors stay open; closing twice is no error."""
        self.port.close()
        self.interests.clear()
        self._by_key.clear()
        self._disarmed.clear()
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
