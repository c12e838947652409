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

# What a packet says is one small number, its word: 24 bits that tell the interest, and 8 of events. Nearly all packets
# say that something can be received, and nothing else; so an interest is found by just that word. The words of packets
# of other origins are their keys, and below the first.
EVENTS = 0xFF
INTEREST = 0xFFFFFF00
INPUT = int(Event.IN)
FIRST_WORD = 1 << 16
WAKE_UP_WORD = WAKE_UP & 0xFFFFFFFF

OUT_OF_MEMORY = (
    errno.ENOMEM,
    errno.ENOSPC,
)  # what passes: the kernel's memory, the user's limit of watched files


class Interest:
    """What is wanted of one descriptor, and what the port was told of it.

    One that has an owner rests while nothing is wanted of it. It may still be armed then, for what was wanted last:
    that costs nothing if the same is wanted soon, and one notification for nobody if not.
    """

    __slots__ = ("armed", "data", "drained", "events", "fd", "fileobj", "owner", "word")

    def __init__(self, fileobj: int | HasFileno, fd: int, events: int, data: Any, word: int) -> None:
        self.fileobj = fileobj
        self.fd = fd
        self.events = events
        self.data = data
        self.owner: Callable[[], object] | None = None  # who tells before it closes the descriptor, as a weak reference
        self.drained = False  # of what there was to receive, as far as the owner knows
        self.word = word  # of the packet that says there is something to receive
        self.armed = 0

    def arm(self) -> bytes:
        """The order that has it armed for what is wanted now."""
        events = self.armed = self.events
        return self.order(ENABLE if events else DISABLE, FILTERS[events])

    def order(self, operation: int, filter: int = 0) -> bytes:
        return REGISTRATION.pack(self.fd, REGISTERED | self.word & INTEREST, filter, operation, LEVEL_ONESHOT, 0)

    def selector_key(self) -> SelectorKey:
        return SelectorKey(self.fileobj, self.fd, self.events, self.data)


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
        self.by_word: dict[int, Interest] = {}
        self.changed: list[Interest] = []  # may have to be armed otherwise; the next wait sees to it
        # What to call with the packets of other origins, by their completion key, which is below FIRST_WORD: with the
        # address of the overlapped operation and the number posted or transferred. Called in the midst of a turn, so it
        # takes note of what came, raises nothing and calls nobody.
        self.foreign: dict[int, Callable[[int, int], object]] = {}
        self._unread = 0  # packets dequeued last, while those of other origins among them were not handed on
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

    def watch(self, fileobj: int | HasFileno, fd: int, events: int, data: Any) -> Interest:
        """Register a descriptor that nobody watches. Raises OSError, ValueError if the selector is closed."""
        resting = self.interests.get(fd)
        if resting is not None:
            self.remove(resting)
        interest = Interest(fileobj, fd, events, data, self._unused_word())
        self._apply(interest.arm())
        self.interests[fd] = interest
        self.by_word[interest.word] = interest
        return interest

    def _unused_word(self) -> int:
        """They come again after sixteen million registrations, when one may still be in use."""
        while True:
            word = next_generation() << 8 & INTEREST | INPUT
            if word >= FIRST_WORD and word not in self.by_word:
                return word

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

    def adopt(self, sock: socket, owner: Callable[[], object]) -> Interest:
        """The interest in a socket, for somebody who keeps it, and will call `forget` before he closes it, or be gone.
        What he wants of it he says with `want`. What rests there of another socket is removed.
        """
        fd = sock.fileno()
        interest = self.interests.get(fd)
        if interest is not None and not interest.events and (interest.owner is None or interest.owner() is not sock):
            self.remove(interest)
            interest = None
        if interest is None:
            interest = self.interests[fd] = Interest(fd, fd, 0, (None, None), self._unused_word())
            self.by_word[interest.word] = interest
        interest.owner = owner
        return interest

    def want(self, interest: Interest, events: int, data: Any) -> None:
        """Change what is wanted of a descriptor with an owner, nothing included. It is ordered with the next wait; if
        it cannot be, the interest is called ready, so that the owner meets the error.
        """
        interest.data = data
        interest.events = events
        if events != interest.armed:
            self.changed.append(interest)

    def remove(self, interest: Interest) -> None:
        """Take back a registration."""
        self.forget(interest)
        interest.armed = 0
        # Fails only if the descriptor was closed: then it is gone already.
        self._batch.exchange(interest.order(REMOVE), 0, 0)

    def forget(self, interest: Interest) -> None:
        """Take back a registration whose descriptor is about to be closed. That removes it; what is left to order is
        that it is not armed again.
        """
        del self.interests[interest.fd]
        del self.by_word[interest.word]
        self.want(interest, 0, (None, None))

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
        self.want(interest, events, data)
        if events & ~interest.armed:
            try:
                self._apply(interest.arm())
            except OSError:
                self.forget(interest)
                raise

    def _apply(self, order: bytes) -> None:
        self._batch.exchange(order, 0, 0)
        for _, _, result in self._batch.failures:
            fd, _, _, operation, _, _ = REGISTRATION.unpack(order)
            raise registration_error(result, fd, operation)

    def dequeue(self, timeout: int) -> tuple[int, ...]:
        """Re-arm what was dequeued last, then wait up to `timeout` nanoseconds (negative: for ever); in one
        foreign call.

        Returns the words of the packets; `ready` says what they mean. Raises ValueError if the selector is closed.
        """
        changed = self.changed
        if changed:
            orders = b"".join([interest.arm() for interest in changed if interest.events != interest.armed])
            changed.clear()
        else:
            orders = b""
        batch = self._batch
        words = batch.turn(orders, timeout)
        self._unread = len(words)
        if batch.failures:
            words += tuple(self._who_must_hear(batch.failures))
        return words

    def _who_must_hear(self, failures: Iterable[tuple[int, int, int]]) -> Iterator[int]:
        """A descriptor closed behind our back reports nothing more, as in every selector. But where only memory was
        short, nobody would ever hear of the socket again, and an owner waits for its own: those are called ready, to
        be armed with the next wait.
        """
        for _, key, result in failures:
            interest = self.by_word.get(key & INTEREST | INPUT)
            if interest is not None and (
                registration_error(result, interest.fd, ENABLE).errno in OUT_OF_MEMORY or interest.owner is not None
            ):
                interest.armed = 0
                self.changed.append(interest)
                yield key & INTEREST | ERROR

    def ready(self, words: Iterable[int]) -> list[tuple[Interest, int]]:
        """The interests that packets report ready, and for what. The next wait arms them again."""
        ready: list[tuple[Interest, int]] = []
        for word in words:
            interest = self.by_word.get(word & INTEREST | INPUT)
            if interest is None:
                self.unknown(word)
                continue
            mask = READY[word & EVENTS] & interest.events
            if mask:
                ready.append((interest, mask))
            else:
                self.unwanted(interest)
        return ready

    def unwanted(self, interest: Interest) -> None:
        """Take note of a packet that tells what nobody wants to know, or not soon: let it not be told again."""
        self.want(interest, interest.events, interest.data)

    def unknown(self, word: int) -> None:
        """Take note of a packet that no interest has: a wake-up, a notice of removal, one that comes too late, or one
        of another origin.
        """
        if word < FIRST_WORD:
            if self._unread:
                self._hand_on()
        elif word != WAKE_UP_WORD and not word & REMOVED:
            self.stale_notifications += 1

    def _hand_on(self) -> None:
        """All of the last batch at once, for a pair of key and number does not tell which operation has ended."""
        size, self._unread = self._unread * FULL_ENTRY.size, 0
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
            interest.data = (None, None)  # an owner may hold it, and it what calls the owner
        self.interests.clear()
        self.by_word.clear()
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
