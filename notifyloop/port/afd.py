"""The provider for Windows without the native call (Windows 10, Server 2019) and for wine: polls of Windows'
socket driver, AFD.

What Windows offers: polls, each of one socket, whose answers arrive as packets on a completion port (`afd_poll`).

What we make of it: an enabled registration is one poll in flight. A poll is answered once and looks at the
present state, so it is a level-triggered one-shot registration by itself. A persistent one is polled again with
the next wait, when whoever was notified has looked after the socket, or at once if other threads wait already.
ENABLE always looks afresh: a poll that is in flight is given up, because its answer may be older. REMOVE posts
its own notice. Edges cannot be had: AFD does not say when a condition ends, and whoever guesses loses one or
spins; ERROR_NOT_SUPPORTED is the result.

The invariants:

* Never two polls of one socket in flight on a port, because Windows mixes their answers up (wepoll issue 35).
  Cancelling one completes it before the call returns.
* An answer is attributed by the address of its poll's memory, never by the socket's number, which Windows soon gives
  to another. A poll that was given up has no owner, and its answer is dropped.

The limits: the number is all that is known of a socket between two polls. Registered with another key, it is
taken for a new one. A helper with many polls in flight is slow to cancel one of them, so there is one for every
`POLLS_PER_HELPER`.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING

from notifyloop.port.abi import FULL_ENTRY, REGISTRATION
from notifyloop.port.afd_poll import (
    AFD_POLL_LOCAL_CLOSE,
    POLL_KEY,
    WSAENOTSOCK,
    Helper,
    RefusalError,
    base_socket,
    is_socket,
    reported,
    take_poll,
    unused_polls,
)
from notifyloop.port.iocp import (
    NULL,
    Port,
    describe,
    entry_point,
    ffi,
    kernel32,
    library,
    milliseconds,
    packed_call,
    system_handle,
)

if TYPE_CHECKING:
    from typing import Any

    from notifyloop.port.afd_poll import Poll
    from notifyloop.port.iocp import PackedCall

__all__ = ["describe", "entry_point", "ffi", "lib", "name", "packed_call", "system_handle"]

name = "afd"

POLLS_PER_HELPER = 128  # what c-ares has; wepoll has 32, Trio 500
DRAIN_MS = 1000  # for the answers of cancelled polls, which come at once

ERR: int = kernel32.SOCK_NOTIFY_EVENT_ERR
REMOVED: int = kernel32.SOCK_NOTIFY_EVENT_REMOVE
FILTER: int = kernel32.SOCK_NOTIFY_REGISTER_EVENTS_ALL
NONE: int = kernel32.SOCK_NOTIFY_OP_NONE
ENABLE: int = kernel32.SOCK_NOTIFY_OP_ENABLE
DISABLE: int = kernel32.SOCK_NOTIFY_OP_DISABLE
REMOVE: int = kernel32.SOCK_NOTIFY_OP_REMOVE
ONESHOT: int = kernel32.SOCK_NOTIFY_TRIGGER_ONESHOT
PERSISTENT: int = kernel32.SOCK_NOTIFY_TRIGGER_PERSISTENT
LEVEL: int = kernel32.SOCK_NOTIFY_TRIGGER_LEVEL
EDGE: int = kernel32.SOCK_NOTIFY_TRIGGER_EDGE
TRIGGERS = {often | kind for often in (ONESHOT, PERSISTENT) for kind in (LEVEL, EDGE)}

ERROR_NOT_SUPPORTED = 50
ERROR_INVALID_PARAMETER = 87
WAIT_TIMEOUT = 258
ERROR_ABANDONED_WAIT_0 = 735
ERROR_NOT_FOUND = 1168


class Registered:
    """What is registered of a socket."""

    __slots__ = ("base", "enabled", "events", "key", "poll", "sock", "trigger")

    def __init__(self, sock: int, key: int) -> None:
        self.sock = sock
        self.key = key
        self.base = base_socket(sock)
        self.events = self.trigger = 0
        self.enabled = False
        self.poll: Poll[Registered] | None = None  # in flight


class AfdPort(Port):
    """A completion port whose sockets are polled."""

    __slots__ = ("helpers", "polls", "registered", "spent", "to_poll", "with_room")

    def __init__(self, handle: Any) -> None:
        super().__init__(handle)
        self.registered: dict[int, Registered] = {}  # by socket
        self.spent: dict[int, Registered] = {}  # by key: disabled by a notification, and nothing was ordered since
        self.polls: dict[int, Poll[Registered]] = {}  # in flight, by address
        self.to_poll: list[Registered] = []  # persistent, and notified since the last wait began
        self.helpers: list[Helper] = []
        self.with_room: list[Helper] = []  # of these, for more polls

    def carry_out(
        self, packed: bytes, size: int, failures: Any, timeout: int, room: int, entries: Any, call: PackedCall | None
    ) -> int:
        failed = self.apply(packed, failures) if size else 0
        if call is not None and call.reported:
            failed = self.enable_again(call.reported, failures, failed)
        if not room:
            return failed << 32
        if failed:
            timeout = 0  # whoever ordered it is told first
        received = ffi.new("ULONG *") if call is None else call.received
        try:
            entered = self.enter_wait()
            count = self.dequeue(entered, timeout, room, entries, received)
            self.leave_wait(entered)
        except BaseException:
            if call is None:
                self.put_back(entries, received[0])
            raise
        if count < 0:
            return count
        self.hand_out(entries, count, call)
        return failed << 32 | count

    # ---- registrations

    def apply(self, packed: bytes, failures: Any) -> int:
        """The changes of a batch; returns how many failed."""
        failed = 0
        with self.lock:
            for index, (sock, key, events, operation, trigger, _) in enumerate(REGISTRATION.iter_unpack(packed)):
                try:
                    self.change(sock, key, events, operation, trigger)
                except RefusalError as refusal:
                    failures[failed] = (key, index, refusal.code)
                    failed += 1
        return failed

    def enable_again(self, packets: list[tuple[int, int]], failures: Any, failed: int) -> int:
        """What packets have disarmed, as it was; returns how many have failed now."""
        with self.lock:
            for key, _ in packets:
                spent = self.spent.get(key)
                if spent is not None:
                    self.re_arms += 1
                    try:
                        self.arm(spent)
                    except RefusalError as refusal:
                        failures[failed] = (key, 0, refusal.code)
                        failed += 1
                    else:
                        self.spent.pop(key, None)
        return failed

    def change(self, sock: int, key: int, events: int, operation: int, trigger: int) -> None:
        if operation == NONE:
            return
        if operation == ENABLE:
            self.enable(sock, key, events, trigger)
            return
        if operation not in (DISABLE, REMOVE):
            raise RefusalError(ERROR_INVALID_PARAMETER)
        registered = self.registered.get(sock)
        if registered is None or registered.key != key:
            raise RefusalError(ERROR_NOT_FOUND)
        if operation == DISABLE:
            registered.enabled = False
            self.spent.pop(key, None)
        else:
            self.remove(registered)

    def enable(self, sock: int, key: int, events: int, trigger: int) -> None:
        self.spent.pop(key, None)
        if trigger not in TRIGGERS or events & ~FILTER:
            raise RefusalError(ERROR_INVALID_PARAMETER)
        if trigger & EDGE:
            raise RefusalError(ERROR_NOT_SUPPORTED)
        registered = self.registered.get(sock)
        if registered is None or registered.key != key:
            newcomer = Registered(sock, key)
            if registered is not None:
                self.forget(registered)
            registered = self.registered[sock] = newcomer
            self.registrations += 1
        else:
            self.re_arms += not registered.enabled
            self.give_up(registered)
        registered.events, registered.trigger = events, trigger
        self.arm(registered)

    def arm(self, registered: Registered) -> None:
        try:
            self.poll(registered)
        except RefusalError as refusal:
            registered.enabled = False
            if refusal.code == WSAENOTSOCK:
                self.forget(registered)
            raise
        registered.enabled = True

    def remove(self, registered: Registered) -> None:
        if not is_socket(registered.sock):
            self.forget(registered)  # closed behind our back: that deregistered it, without a notice
            raise RefusalError(ERROR_NOT_FOUND)
        if not kernel32.PostQueuedCompletionStatus(self.handle, REMOVED, registered.key, NULL):
            raise RefusalError(kernel32.GetLastError())
        self.forget(registered)

    def forget(self, registered: Registered) -> None:
        self.give_up(registered)
        registered.enabled = False
        self.spent.pop(registered.key, None)
        if self.registered.get(registered.sock) is registered:
            del self.registered[registered.sock]

    # ---- polls

    def poll(self, registered: Registered) -> None:
        """Ask for what the registration wants to know."""
        if not self.with_room:
            self.helpers.append(Helper(self.handle))
            self.with_room.append(self.helpers[-1])
        helper = self.with_room[-1]
        poll = take_poll()
        poll.owner, poll.helper, registered.poll = registered, helper, poll
        self.polls[poll.address] = poll  # before it is sent, for another thread may have the answer first
        helper.in_flight += 1
        if helper.in_flight == POLLS_PER_HELPER:
            self.with_room.remove(helper)
        self.kernel_changes += 1
        try:
            helper.send(poll, registered.base, registered.events)
        except RefusalError:
            registered.poll = None
            self.landed(poll)
            unused_polls.append(poll)
            raise
        except BaseException:  # an interrupt: it may have been sent, or not; whatever comes of it is nobody's
            self.polls.pop(poll.address, None)
            registered.poll = None
            helper.cancel(poll)
            raise

    def give_up(self, registered: Registered) -> None:
        """Want no answer any more. It comes, but to nobody."""
        poll, registered.poll = registered.poll, None
        if poll is not None:
            poll.owner = None
            self.kernel_changes += 1
            poll.helper.cancel(poll)

    def landed(self, poll: Poll[Registered]) -> None:
        """It is not in flight any more. When its packet is of no more use, its memory is unused."""
        del self.polls[poll.address]
        if poll.helper.in_flight == POLLS_PER_HELPER:
            self.with_room.append(poll.helper)
        poll.helper.in_flight -= 1
        poll.owner = None

    def answered(self, poll: Poll[Registered], packets: Any, place: int) -> None:
        """Put the notification that an answer is in the place of its packet, or none.

        In this order, because of interrupts: a packet whose poll has landed is dropped when it is looked at again,
        and what it has told is asked once more as long as the registration is enabled; and the memory is another
        poll's only after the packet with its address is gone.
        """
        registered, answer = poll.owner, poll.answer()
        self.landed(poll)
        events = 0
        if registered is None:
            self.stale += 1
        else:
            events = self.told(registered, answer)
        if registered is not None and events:
            FULL_ENTRY.pack_into(packets, place, registered.key, 0, 0, events)
            self.disarm(registered)
        else:
            FULL_ENTRY.pack_into(packets, place, POLL_KEY, 0, 0, 0)
        unused_polls.append(poll)

    def told(self, registered: Registered, answer: int) -> int:
        """The events of an answer that a registration has got; 0 if they are not to be told."""
        registered.poll = None
        if answer & AFD_POLL_LOCAL_CLOSE:
            self.forget(registered)
            return 0
        if not registered.enabled:
            self.withheld += 1
            return 0
        events = reported(answer, registered.events)
        if not events:
            self.poll_again(registered)
        return events

    def disarm(self, registered: Registered) -> None:
        """What was notified is not told again, or not before the next wait."""
        if registered.trigger & ONESHOT:
            self.spent[registered.key] = registered
            registered.enabled = False
        elif len(self.inside) > 1:  # others may be waiting for it already
            self.poll_again(registered)
        else:
            self.to_poll.append(registered)

    def recover(self) -> None:
        """Ask again what an interrupt has left unasked, and count again what is in flight."""
        super().recover()
        with self.lock:
            for helper in self.helpers:
                helper.in_flight = 0
            for poll in self.polls.values():
                poll.helper.in_flight += 1
                if poll.owner is None or poll.owner.poll is not poll:
                    poll.owner = None
                    poll.helper.cancel(poll)
            self.with_room = [helper for helper in self.helpers if helper.in_flight < POLLS_PER_HELPER]
            for registered in list(self.registered.values()):
                if registered.poll is not None and self.polls.get(registered.poll.address) is not registered.poll:
                    registered.poll = None
                if registered.enabled and registered.poll is None:
                    self.poll_again(registered)

    def poll_again(self, registered: Registered) -> None:
        try:
            self.poll(registered)
        except RefusalError as refusal:
            if refusal.code == WSAENOTSOCK:
                self.forget(registered)  # closed: no notice
            else:  # whoever owns it then learns the reason from its next ENABLE
                registered.enabled = False
                kernel32.PostQueuedCompletionStatus(self.handle, ERR, registered.key, NULL)

    # ---- waiting

    def dequeue(self, entered: int, timeout: int, room: int, entries: Any, received: Any) -> int:
        """Wait, unless there is something already; returns the number of packets in `entries`, 0 after the timeout, or
        a negative error code.
        """
        remaining = timeout
        while True:
            if not received[0]:
                self.poll_persistent()
                done = kernel32.GetQueuedCompletionStatusEx(
                    self.handle, entries, room, received, milliseconds(remaining), 0
                )
                self.kernel_waits += 1
                if self.closing:
                    return -ERROR_ABANDONED_WAIT_0
                if not done:
                    code: int = kernel32.GetLastError()
                    received[0] = 0
                    return 0 if code == WAIT_TIMEOUT else -code
            count = self.translate(entries, received)
            if count:
                return count
            if timeout > 0:  # there were only answers that nobody wants
                remaining = max(entered + timeout - perf_counter_ns(), 0)

    def poll_persistent(self) -> None:
        if self.to_poll:
            with self.lock:
                while self.to_poll:
                    registered = self.to_poll.pop()
                    current = self.registered.get(registered.sock) is registered
                    if current and registered.enabled and registered.poll is None:
                        self.poll_again(registered)

    def translate(self, entries: Any, received: Any) -> int:
        """Put notifications in the place of answers; returns how many packets there are then."""
        size = FULL_ENTRY.size
        packets = ffi.buffer(entries, received[0] * size)
        with self.lock:
            for index, (key, address, _, _) in enumerate(FULL_ENTRY.iter_unpack(bytes(packets))):
                if key == POLL_KEY and address in self.polls:
                    self.answered(self.polls[address], packets, index * size)
        packed = b"".join(
            [FULL_ENTRY.pack(*packet) for packet in FULL_ENTRY.iter_unpack(packets) if packet[0] != POLL_KEY]
        )
        packets[: len(packed)] = packed
        received[0] = len(packed) // size
        return len(packed) // size

    def tear_down(self) -> None:
        for helper in self.helpers:
            helper.cancel_all()
        entries, received = ffi.new("OVERLAPPED_ENTRY[]", 64), ffi.new("ULONG *")
        while self.polls and kernel32.GetQueuedCompletionStatusEx(self.handle, entries, 64, received, DRAIN_MS, 0):
            for key, address, _, _ in FULL_ENTRY.iter_unpack(ffi.buffer(entries, received[0] * FULL_ENTRY.size)):
                if key == POLL_KEY and address in self.polls:
                    poll = self.polls[address]
                    self.landed(poll)
                    unused_polls.append(poll)
        for helper in self.helpers:
            helper.close()
        super().tear_down()


lib = library(AfdPort)
