"""A model of the port's state machine, driven by Hypothesis over real TCP connections.

The model keeps, for each end of a connection, what its registration was told and what the network did to it. From that
follows which notifications must come, which may come, and which must not. It asserts the portable guarantees and no
more, so it holds for every provider: bits that were true at any time since the last notification may be reported, and
closed sockets may have notifications on their way. A forked child goes on with a copy of the model, and its parent with
the model as it was. NOTIFYLOOP_MODEL_EXAMPLES=10000 looks longer than the usual run.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
import warnings
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run

from notifyloop.port import CompletionPort, Event, Operation, Registration, Trigger
from notifyloop.port.provider import provider
from notifyloop.port.registration import REGISTERED

if TYPE_CHECKING:
    from conftest import Network
    from notifyloop.port import Notification

EXAMPLES = int(os.environ.get("NOTIFYLOOP_MODEL_EXAMPLES", "300"))

NONE, IN, OUT, HANGUP, ERR = Event.NONE, Event.IN, Event.OUT, Event.HANGUP, Event.ERR
ENABLE, DISABLE, REMOVE = Operation.ENABLE, Operation.DISABLE, Operation.REMOVE

filters = st.sampled_from([IN, OUT, HANGUP, IN | OUT, IN | HANGUP, OUT | HANGUP, IN | OUT | HANGUP])


def accepted(trigger: Trigger) -> bool:
    with CompletionPort() as port, socket.socket() as sock:
        registration = Registration(sock, trigger=trigger)
        port.process([registration], max_notifications=0)
        return registration.result == 0


triggers = st.sampled_from(
    [
        kind | often
        for kind in (Trigger.LEVEL, Trigger.EDGE)
        for often in (Trigger.ONESHOT, Trigger.PERSISTENT)
        if accepted(kind | often)
    ]
)

# Only where the kernel tells one open socket from another is it an error to register a socket twice, and is a
# duplicate of it another one.
KNOWS_SOCKETS = provider.name in ("epoll", "kqueue")
FORKS = hasattr(os, "fork")


class End:
    """One end of a connection, as the model sees it."""

    def __init__(self, sock: socket.socket, traits: set[str]) -> None:
        self.sock = sock
        self.end_is_seen_last = "wine" in traits  # when the data before it has been read
        self.descriptors = {sock.fileno()}
        self.peer: End | None = None  # None: closed
        self.unread = 0  # bytes that were sent to us
        self.finished = False  # the peer sends no more
        self.shut = False  # we send no more
        self.error = False  # reset, and nobody has read the error
        self.loose = False  # no saying what is reported
        self.registration: Registration | None = None
        self.enabled = False
        self.recent = NONE  # what was true at some time since ENABLE or the last notification
        self.news = NONE  # what became true since then, and still is

    @property
    def holds(self) -> Event:
        """What a level-triggered registration must report."""
        if self.error:
            return ERR
        if self.loose:
            return NONE
        ended = self.finished and not (self.unread and self.end_is_seen_last)
        return (IN if self.unread else NONE) | (HANGUP if ended else NONE) | (NONE if self.shut else OUT)

    @property
    def may_hold(self) -> Event:
        if self.error or self.loose:
            return IN | OUT | HANGUP | ERR
        ended = self.finished or self.shut
        return OUT | (IN if self.unread or self.finished else NONE) | (HANGUP if ended else NONE)

    @property
    def due(self) -> bool:
        """A notification must come."""
        if not self.enabled or self.registration is None:
            return False
        condition = self.holds if self.registration.trigger & Trigger.LEVEL else self.news
        return bool(condition & (self.registration.events | ERR))

    def happened(self, what: Event = NONE) -> None:
        """To be called after every change of the network: `what` has become true."""
        if self.enabled:
            self.news = (self.news | what) & self.holds
            self.recent |= self.may_hold

    def enable(self) -> None:
        self.enabled = True
        self.news, self.recent = NONE, self.may_hold

    def reset_by_peer(self) -> None:
        if self.shut and self.finished:
            self.loose = True  # closed already: a reset is no news
            self.happened()
        else:
            self.error = self.loose = True
            self.happened(ERR)


class PortModel(RuleBasedStateMachine):
    ends = Bundle("ends")

    def __init__(self, network: Network, traits: set[str]) -> None:
        super().__init__()
        self.network = network
        self.traits = traits
        self.port = CompletionPort()
        self.open: list[End] = []
        self.posted: list[tuple[int, int]] = []
        self.removing: set[Registration] = set()
        self.removed: set[Registration] = set()
        self.closed: set[Registration] = set()
        self.forked = False

    # -- sockets

    @initialize(target=ends, orders=st.lists(st.tuples(filters, triggers), min_size=6, max_size=6))
    def begin(self, orders: list[tuple[Event, Trigger]]) -> object:
        for _ in range(3):
            self.connect()
        for end, (events, trigger) in zip(self.open, orders, strict=True):
            self.apply(end, ENABLE, events, trigger)
        return multiple(*self.open)

    @precondition(lambda self: len(self.open) < 10)
    @rule(target=ends)
    def connect_again(self) -> object:
        return multiple(*self.connect())

    def connect(self) -> tuple[End, End]:
        ours, theirs = (End(sock, self.traits) for sock in self.network.pair())
        ours.peer, theirs.peer = theirs, ours
        self.open += [ours, theirs]
        return ours, theirs

    @rule(end=ends, size=st.integers(1, 3))
    def write(self, end: End, size: int) -> None:
        try:
            end.sock.send(bytes(size))
        except OSError:
            assert end.shut or end.loose
            return
        peer = end.peer
        if peer is None:
            end.reset_by_peer()
        elif peer.loose or end.loose:
            peer.loose = True
            peer.happened()
        else:
            self.network.until_readable(peer.sock)
            peer.unread += size
            peer.happened(IN if peer.unread == size else NONE)

    @rule(end=ends, limit=st.integers(1, 10))
    def read(self, end: End, limit: int) -> None:
        if end.loose:
            try:
                end.sock.recv(limit)
            except OSError:
                end.error = False
            end.happened()
            return
        left = min(limit, end.unread)
        end.unread -= left
        while left:
            self.network.until_readable(end.sock)
            left -= len(end.sock.recv(left))
        end.happened()

    @rule(end=ends)
    def half_close(self, end: End) -> None:
        if end.shut or end.loose:
            return
        end.sock.shutdown(socket.SHUT_WR)
        end.shut = True
        end.happened()
        if end.peer is not None:
            self.network.until_readable(end.peer.sock)
            end.peer.finished = True
            end.peer.happened(HANGUP)

    @rule(end=consumes(ends), abort=st.booleans())
    def close(self, end: End, abort: bool) -> None:
        if abort:
            self.network.reset(end.sock)
        else:
            end.sock.close()
        self.forget(end)
        self.open.remove(end)
        peer = end.peer
        if peer is None:
            return
        peer.peer = None
        if end.loose:
            peer.loose = True
            peer.happened()
        elif abort or end.unread:
            self.network.until_readable(peer.sock)
            peer.reset_by_peer()
        elif not peer.finished:
            self.network.until_readable(peer.sock)
            peer.finished = True
            peer.happened(HANGUP)

    @precondition(lambda self: KNOWS_SOCKETS)
    @rule(end=ends)
    def go_on_with_a_duplicate(self, end: End) -> None:
        """The descriptor is closed, the socket is not. If it came back under the same descriptor, nobody could
        tell that it was away.
        """
        duplicates = [self.network.adopt(end.sock.dup()) for _ in range(len(end.descriptors) + 1)]
        end.sock.close()
        end.sock = next(duplicate for duplicate in duplicates if duplicate.fileno() not in end.descriptors)
        end.descriptors.add(end.sock.fileno())
        for duplicate in duplicates:
            if duplicate is not end.sock:
                duplicate.close()
        self.forget(end)

    def forget(self, end: End) -> None:
        if end.registration is not None:
            self.closed.add(end.registration)
        end.registration = None
        end.enabled = False

    # -- the port

    def change(self, end: End, operation: Operation, events: Event, trigger: Trigger) -> tuple[Registration, bool]:
        """The registration for this change, and whether it must succeed; notes that it did."""
        registration = end.registration
        if registration is None:
            registration = Registration(end.sock, object(), events, trigger, operation)
            if operation == ENABLE:
                end.registration = registration
                end.enable()
            return registration, operation == ENABLE
        registration.operation = operation
        if operation == ENABLE:
            registration.events, registration.trigger = events, trigger
            end.enable()
        else:
            end.enabled = False
        if operation == REMOVE:
            self.removing.add(registration)
            end.registration = None
        return registration, True

    @rule(end=ends, operation=st.sampled_from([ENABLE, DISABLE, REMOVE]), events=filters, trigger=triggers)
    def change_one(self, end: End, operation: Operation, events: Event, trigger: Trigger) -> None:
        self.apply(end, operation, events, trigger)

    def apply(self, end: End, operation: Operation, events: Event, trigger: Trigger) -> None:
        registration, valid = self.change(end, operation, events, trigger)
        call = {ENABLE: self.port.enable, DISABLE: self.port.disable, REMOVE: self.port.remove}[operation]
        if valid:
            call(registration)
        else:
            with pytest.raises(OSError, match=f"cannot {operation.name}"):
                call(registration)

    @rule(end=ends)
    def re_arm(self, end: End) -> None:
        self.re_arm_unless_absent(end)

    def re_arm_unless_absent(self, end: End) -> None:
        if end.registration is not None:
            end.enable()
            self.port.enable(end.registration)

    @rule(
        changes=st.lists(
            st.tuples(ends, st.sampled_from([ENABLE, DISABLE, REMOVE]), filters, triggers),
            max_size=5,
            unique_by=lambda change: id(change[0]),
        ),
        room=st.integers(1, 5),
    )
    def apply_a_batch_and_dequeue(self, changes: list[tuple[End, Operation, Event, Trigger]], room: int) -> None:
        batch = [self.change(*change) for change in changes]
        batch.insert(len(batch) // 2, (Registration(1_000_000), False))
        notifications = self.port.process([registration for registration, _ in batch], max_notifications=room)
        assert [registration.result == 0 for registration, _ in batch] == [valid for _, valid in batch]
        assert len(notifications) <= room
        for notification in notifications:
            self.take(notification)

    @precondition(lambda self: KNOWS_SOCKETS)
    @rule(end=ends, events=filters, trigger=triggers)
    def register_twice(self, end: End, events: Event, trigger: Trigger) -> None:
        if end.registration is not None:
            with pytest.raises(OSError, match="cannot ENABLE"):
                self.port.enable(Registration(end.sock, object(), events, trigger))

    @rule(key=st.integers(0, REGISTERED - 1), value=st.integers(0, 2**32 - 1))
    def post(self, key: int, value: int) -> None:
        self.port.post(key, value)
        self.posted.append((key, value))

    @rule(room=st.integers(1, 10))
    def dequeue_some(self, room: int) -> None:
        for notification in self.port.process(max_notifications=room):
            self.take(notification)

    @rule(room=st.integers(1, 64))
    def dequeue_what_must_come(self, room: int) -> None:
        self.dequeue(room)

    def dequeue(self, room: int) -> None:
        due = {end.registration for end in self.open if end.due} | self.removing
        packets = len(self.posted)
        while due or packets:
            notifications = self.port.process(timeout=5, max_notifications=room)
            assert notifications, f"still to come: {due}, {packets} packets"
            for notification in notifications:
                self.take(notification)
                packets -= notification.registration is None
                if notification.registration not in self.removing:
                    due.discard(notification.registration)
        for notification in self.port.process(max_notifications=room):
            self.take(notification)

    @precondition(lambda self: FORKS and not self.forked)
    @rule(room=st.integers(1, 64))
    def fork(self, room: int) -> None:
        """The child only dequeues and changes registrations: the sockets are the parent's as well."""
        self.forked = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking while there are other threads
            child = os.fork()
        if not child:
            status = 1
            try:
                signal.alarm(60)
                self.dequeue(room)
                for end in self.open:
                    self.re_arm_unless_absent(end)
                self.dequeue(room)
                self.remove_all()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def take(self, notification: Notification) -> None:
        registration, events = notification.registration, notification.events
        if registration is None:
            assert (notification.key, notification.value) == self.posted.pop(0)
            return
        assert notification.key is registration.key
        assert registration not in self.removed
        if registration in self.removing:  # others may come before the last
            if events & Event.REMOVE:
                self.removing.remove(registration)
                self.removed.add(registration)
            return
        assert not events & Event.REMOVE
        if registration in self.closed:
            return
        [end] = [end for end in self.open if end.registration is registration]
        assert end.enabled
        assert events
        assert not events & ~(registration.events | ERR)
        assert not events & ~(end.recent | end.may_hold)
        if registration.trigger & Trigger.ONESHOT:
            end.enabled = False
        end.news, end.recent = NONE, end.may_hold

    def remove_all(self) -> None:
        for end in self.open:
            if end.registration is not None:
                self.apply(end, REMOVE, NONE, Trigger(0))
        self.dequeue(64)
        assert not self.removing

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:  # after a failure, one report is enough
            self.remove_all()
        self.port.close()
        for end in self.open:
            end.sock.close()


def test_the_port_follows_the_model(network: Network, traits: set[str]) -> None:
    run(
        lambda: PortModel(network, traits),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
