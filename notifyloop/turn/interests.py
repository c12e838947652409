"""What is wanted of descriptors: level-triggered interest, out of one-shot registrations with the port.

The port has one registration per socket, with the union of what its reader and its writer wait for. So a descriptor is
registered once, LEVEL | ONESHOT, and what a notification disarmed is enabled again with the next wait, after its
callbacks ran. That is the recommended pattern of the port: it never spins, and a notification has one owner. Its one
danger is a lost re-arm, so nobody has to order it: the port does it by itself. What the next wait takes along are the
orders of those in `changed`, of which something else is wanted than before.

Errors that a caller must see (a bad descriptor, a regular file) are found by registering without waiting, at once;
interest that only shrinks is left to the next wait.
"""

from __future__ import annotations

import errno
from itertools import count
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

from notifyloop.port import foreign
from notifyloop.port.abi import FULL_ENTRY, REGISTRATION
from notifyloop.port.completion_port import CompletionPort
from notifyloop.port.provider import provider
from notifyloop.port.registration import (
    FORGET,
    REGISTERED,
    Event,
    Operation,
    descriptor_of,
    registration_error,
)
from notifyloop.turn.interest import LEVEL_ONESHOT, NOBODY, Interest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from socket import socket
    from typing import Any

    from notifyloop.port.registration import HasFileno

__all__ = ["ASLEEP", "AWAKE", "BETWEEN_WAITS", "Interests"]

lib = provider.lib

ENABLE = int(Operation.ENABLE)
REMOVE = int(Operation.REMOVE)
ASK = int(Event.HANGUP)  # which is not wanted alone
READABLE = int(Event.IN | Event.HANGUP | Event.ERR)
WRITABLE = int(Event.OUT | Event.ERR)
READY = tuple(
    (EVENT_READ if events & READABLE else 0) | (EVENT_WRITE if events & WRITABLE else 0) for events in range(256)
)
UNSURE = 4  # what an interest is armed for, if nobody knows: for no event, and unlike any
REMOVED = int(Event.REMOVE)
# Whether whoever brings work from elsewhere has to wake who waits. He does so once: then it is AWAKE.
AWAKE = 0  # it will look for work before it waits
ASLEEP = 1  # or about to
BETWEEN_WAITS = 2  # it may have looked already, and is about to wait

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


class Interests:
    """The interests of one loop or selector, on a completion port of their own. Not thread-safe, but for `wake_up`."""

    def __init__(self) -> None:
        self.port = CompletionPort()
        self.by_descriptor: dict[int, Interest] = {}
        self.stale_notifications = 0
        self.asked = 0  # how often the port was asked for what is ready
        self.places: list[Interest] = []
        self._vacant: list[int] = []  # places to be taken again
        self._vacated: list[int] = []  # likewise, after the next wait
        self.changed: list[Interest] = []  # may have to be armed otherwise; the next wait sees to it
        self._doubted = False  # an interrupt has left open which of them the port knows
        # What to call with the packets of other origins, by their completion key: with the address of the overlapped
        # operation and the number posted or transferred. Called in the midst of a turn, so it takes note of what came,
        # raises nothing and calls nobody.
        self.foreign: dict[int, Callable[[int, int], object]] = {}
        self._forgotten: list[bytes] = []  # orders that say so
        self._forks = lib.fork_count
        self._shared = REGISTERED  # keys below were registered before the last fork, and a child may have the file
        self.sleeping = BETWEEN_WAITS
        self._untold: list[tuple[int, int, int]] = []  # foreign packets of which nobody has taken note yet
        self._batch = self.port.batch()  # of who waits
        self._orders_now = self.port.batch(1)  # of who does not

    def find(self, fileobj: int | HasFileno) -> Interest | None:
        """The interest in a file object, also one that was closed and has lost its descriptor; None if
        there is none, or if it rests.
        """
        try:
            interest = self.by_descriptor.get(descriptor_of(fileobj))
            return interest if interest is not None and interest.events else None
        except ValueError:
            for interest in self.by_descriptor.copy().values():
                if interest.fileobj is fileobj:
                    return interest
            raise

    def watch(
        self,
        fileobj: int | HasFileno,
        fd: int,
        events: int,
        data: Any = None,
        reader: Any = None,
        writer: Any = None,
        kind: type[Interest] = Interest,
    ) -> Interest:
        """Register a descriptor that nobody watches. Raises OSError, ValueError if the port is closed."""
        resting = self.by_descriptor.get(fd)
        if resting is not None:
            self.remove(resting)
        if self._forgotten:  # the last that had this number, perhaps
            self._say_what_is_forgotten()
        interest = self._take_place(fileobj, fd, events, data, kind)
        # Before the port can report it: an interrupt may come between.
        interest.reader, interest.writer = reader, writer
        try:
            self._apply(interest.arm())
            self.by_descriptor[fd] = interest
        except OSError:
            vacant = self._vacant
            self._leave_place(interest, vacant)
            raise
        except BaseException:  # an interrupt: the port may know it, or not
            self._order_removal(interest)
            self.by_descriptor.pop(fd, None)
            vacated = self._vacated
            self._leave_place(interest, vacated)
            raise
        return interest

    def _take_place(
        self, fileobj: int | HasFileno, fd: int, events: int, data: Any = None, kind: type[Interest] = Interest
    ) -> Interest:
        if self._vacant:
            place = self._vacant.pop()
        else:
            place = len(self.places)
            if place > LAST_PLACE:
                raise OSError(errno.EMFILE, f"cannot watch more than {place} descriptors")
            self.places.append(NOBODY)
        key = REGISTERED | next(numbers) & REGISTERED - 1 | place << 8
        interest = self.places[place] = kind(fileobj, fd, events, key, data)
        return interest

    def _leave_place(self, interest: Interest, vacant: list[int]) -> None:
        place = place_of(interest.key)
        self.places[place] = NOBODY
        vacant.append(place)

    def adopt(self, sock: socket, fd: int, owner: Callable[[], object]) -> Interest:
        """The interest in a socket, for somebody who keeps it, and will call `forget` before he closes it, or be gone:
        the socket itself, or its transport. What he wants of it he says with `want`. What is there of another owner is
        removed.
        """
        interest = self.by_descriptor.get(fd)
        if interest is not None and (interest.owner is None or interest.owner() is not sock):
            if not interest.events or interest.owner is not None:  # of one that closes or is gone
                self.remove(interest)
                interest = None
            elif not self.renew(interest, interest.events):
                interest = None
        if interest is None:
            interest = self.by_descriptor[fd] = self._take_place(fd, fd, 0)
        interest.owner = owner
        return interest

    def renew(self, interest: Interest, events: int) -> bool:
        """Have this wanted of a descriptor that is still the file it was when it was registered. If that was closed
        behind our back, and the number is another file's, take the interest back and return False.

        Only the system knows, and the port does not ask it for what it has asked for already. Then order what never is.
        """
        interest.events = events
        known = not events & ~interest.armed
        try:
            if known:
                self._apply(foreign.pack(interest.fd, interest.key, ASK, ENABLE, LEVEL_ONESHOT))
                interest.armed = 0
                self.want(interest, events)
            else:
                self._apply(interest.arm(ENABLE))
        except OSError:
            interest.armed = 0
            self.forget(interest)
            return False
        except BaseException:  # an interrupt
            self.disbelieve((interest,))
            raise
        return True

    def want(self, interest: Interest, events: int) -> None:
        """Change what is wanted of a descriptor with an owner, nothing included. It is ordered with the next wait; if
        it cannot be, whoever is called for it is told: `fail`.
        """
        if events != interest.armed:
            self.changed.append(interest)  # first: an interrupt may come in between
            interest.events = events
            if self.sleeping == ASLEEP:  # a wait in another thread, which does not know of it
                self.wake_up()
        else:
            interest.events = events

    def remove(self, interest: Interest) -> None:
        """Take back a registration."""
        self.disbelieve((interest,))
        self._order_removal(interest)
        self.forget(interest)
        interest.armed = 0

    def _order_removal(self, interest: Interest) -> None:
        # Fails only if the descriptor was closed: then it is gone already.
        self._orders_now.exchange(foreign.pack(interest.fd, interest.key, 0, REMOVE, LEVEL_ONESHOT), 0, 0)
        self._orders_now.failures = []

    def disbelieve(self, interests: Iterable[Interest]) -> None:
        """What the port was to be told of these, it may know or not: the next wait tells it again."""
        for interest in interests:
            interest.armed = UNSURE
            self.changed.append(interest)

    def forget(self, interest: Interest) -> None:
        """Take back a registration whose descriptor is about to be closed. That removes it, unless a forked child has
        the file, too; what is left to say is that nothing is registered any more. May be called twice.
        """
        if self.places[place_of(interest.key)] is not interest:
            return
        # First what matters most: an interrupt may come in between.
        self._forgotten.append(foreign.pack(interest.fd, interest.key, 0, FORGET, 0))
        self.changed.append(interest)
        interest.events = interest.armed = 0
        if lib.fork_count != self._forks:
            self._note_forks()
        if interest.key < self._shared:
            self._orders_now.forget(interest.fd, interest.key)
        interest.reader = interest.writer = None
        if self.by_descriptor.get(interest.fd) is interest:  # or the number is somebody else's by now
            del self.by_descriptor[interest.fd]
        vacated = self._vacated
        self._leave_place(interest, vacated)

    def _say_what_is_forgotten(self) -> None:
        forgotten, self._forgotten = self._forgotten, []
        try:
            self._orders_now.exchange(b"".join(forgotten), 0, 0)
        except BaseException:
            self._forgotten += forgotten
            raise

    def _note_forks(self) -> None:
        # Keys have no number where there is no room for one.
        self._shared = REGISTERED | next(numbers) & REGISTERED - 1 if REGISTERED >> 32 else 2 * REGISTERED
        self._forks = lib.fork_count

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
            except BaseException:  # an interrupt
                self.disbelieve((interest,))
                raise

    def _apply(self, order: bytes) -> None:
        self._orders_now.exchange(order, 0, 0)
        failures, self._orders_now.failures = self._orders_now.failures, []
        for _, _, result in failures:
            fd, _, _, operation, _, _ = REGISTRATION.unpack(order)
            raise registration_error(result, fd, operation)

    def dequeue(self, timeout: int) -> tuple[int, ...]:
        """Re-arm what was dequeued last, then wait up to `timeout` nanoseconds (negative: for ever); in one
        foreign call.

        Returns the words of the packets; `ready` says what they mean. Raises ValueError if the port is closed.
        """
        self.asked += 1
        words = self._order_and_wait(timeout) if self.changed else self._batch.turn(None, timeout)
        if self._batch.failures:
            self._hear_of_failures()
        return words

    def _order_and_wait(self, timeout: int) -> tuple[int, ...]:
        """Tell the port with the wait what `changed` asks for."""
        changed: list[Interest] = []
        forgotten: list[bytes] = []
        try:
            # A finalizer may come in and want something, too: that is for the wait after.
            changed, self.changed = self.changed, changed
            forgotten, self._forgotten = self._forgotten, forgotten
            self._vacant, self._vacated = self._vacant + self._vacated, []
            if self._doubted:
                for interest in changed:
                    interest.armed = UNSURE
                self._doubted = False
            orders = [interest.arm() for interest in changed if interest.events != interest.armed]
            return self._batch.turn(b"".join(forgotten + orders), timeout)
        except BaseException:  # an interrupt; or the call has failed as a whole
            # No call and no loop: there another interrupt would come in, and what is not noted yet be lost.
            self._doubted = True
            self.changed += changed
            self._forgotten += forgotten
            raise

    def _hear_of_failures(self) -> None:
        """Tell those who wait that their socket cannot be watched. Then it is up to them to close it.

        Where nobody can be told, a descriptor closed behind our back reports nothing more, as in every selector; and
        what only memory was short for is ordered again with the next wait.
        """
        failures, self._batch.failures = self._batch.failures, []
        for _, key, result in failures:
            interest = self.places[place_of(key)]
            if interest.key != key or not interest.events:
                continue
            error = registration_error(result, interest.fd, ENABLE)
            handles = [handle for handle in (interest.reader, interest.writer) if hasattr(handle, "fail")]
            if handles:
                interest.armed = UNSURE
                for handle in handles:
                    handle.fail(error)
            elif error.errno in OUT_OF_MEMORY:
                self.disbelieve((interest,))

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

    def unwanted(self, interest: Interest, events: int = 0) -> None:
        """Take note of a packet that tells what nobody wants to know, or not soon: let it not be told again."""
        if interest is NOBODY:
            self.stale_notifications += 1  # it comes too late
        else:
            self.want(interest, interest.events & ~events)

    def _note_origin(self, word: int) -> None:
        """Take note of a packet of another origin: a wake-up, or one that the program itself sent for."""
        if word != WAKE_UP_WORD:
            self.hand_on()

    def hand_on(self) -> None:
        """Tell of foreign packets: of all in the last batch at once, for a pair of key and number does not tell which
        operation has ended; and of those that are left since an interrupt. Whoever is told twice of one knows it.
        """
        untold = self._untold
        if self._batch.count:
            size = self._batch.count * FULL_ENTRY.size
            untold += [
                (key, overlapped, value)
                for key, overlapped, _, value in FULL_ENTRY.iter_unpack(bytes(self._batch.entries[:size]))
                if not key & REGISTERED and key != WAKE_UP
            ]
            self._batch.count = 0
        while untold:
            key, overlapped, value = untold[0]
            handler = self.foreign.get(key)
            if handler is None:
                self.stale_notifications += 1
            else:
                handler(overlapped, value)
            del untold[0]

    def wake_up(self) -> None:
        """End the wait of another thread, or the next one, early. Raises ValueError if the port is closed."""
        self.port.post(WAKE_UP)

    def close(self) -> None:
        """Close the port. Descriptors stay open; closing twice is no error."""
        self.port.close()
        while self.by_descriptor:  # a finalizer may take out another
            _, interest = self.by_descriptor.popitem()
            interest.reader = interest.writer = None  # an owner may hold it, and it what calls the owner
        self.places[:] = [NOBODY] * len(self.places)
        self._vacant.clear()
        self._vacated.clear()
        self.changed.clear()
        self._forgotten.clear()
