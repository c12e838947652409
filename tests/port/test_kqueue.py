"""What is kqueue's own about the port: one system call for each turn, two knotes for one registration, orders whose
result comes late. Calls are counted by the stand-in.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort, Event, Operation, Registration, Trigger
from notifyloop.port.abi import REGISTRATION
from notifyloop.port.registration import FORGET, REGISTERED

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Network, Pair
    from notifyloop.port import Notification

pytestmark = pytest.mark.only("kqueue", reason="about the provider over kqueue")

ONESHOT = Trigger.LEVEL | Trigger.ONESHOT
PERSISTENT = Trigger.LEVEL | Trigger.PERSISTENT


@pytest.fixture
def calls() -> Callable[[], int]:
    """How often kevent was called."""
    from notifyloop.port import _kqueue  # noqa: PLC0415

    library = ctypes.CDLL(_kqueue.__file__)
    if not hasattr(library, "kqueue_standin_calls"):
        pytest.skip("only the stand-in counts its calls")
    return library.kqueue_standin_calls  # type: ignore[no-any-return]


def order(sock: socket.socket, key: int, events: Event = Event.IN, trigger: Trigger = ONESHOT) -> bytes:
    return REGISTRATION.pack(sock.fileno(), REGISTERED | key << 8, events, Operation.ENABLE, trigger, 0)


class TestOneCall:
    def test_a_turn(self, port: CompletionPort, network: Network, calls: Callable[[], int]) -> None:
        """Whatever it orders: to register, to arm again, to change a filter."""
        batch = port.batch(capacity=64)
        pairs = [network.unix_pair() for _ in range(10)]
        before = calls()
        for _, theirs in pairs:
            theirs.send(b"x")
        assert len(batch.turn(b"".join(order(ours, key) for key, (ours, _) in enumerate(pairs)), 10**10)) == 10
        for _ in range(5):
            assert len(batch.turn(None, 10**10)) == 10  # enabled again by the call
        both = b"".join(order(ours, key, Event.IN | Event.OUT) for key, (ours, _) in enumerate(pairs))
        assert len(batch.turn(both, 10**10)) == 10
        assert len(batch.turn(None, 10**10)) == 10
        assert calls() - before == 8

    def test_one_that_waits(self, port: CompletionPort, pair: Pair, calls: Callable[[], int]) -> None:
        batch = port.batch()
        before = calls()
        assert batch.turn(order(pair[0], 1), 10**6) == ()
        assert calls() - before == 1

    def test_is_what_the_counters_count(self, port: CompletionPort, network: Network, calls: Callable[[], int]) -> None:
        """All but those that wake."""
        counters = port.counters()
        before = calls() - counters.kernel_waits - counters.kernel_changes
        registrations = [Registration(network.udp(), events=Event.OUT) for _ in range(5)]
        port.process(registrations, timeout=10)
        port.process(registrations, timeout=10)
        for registration in registrations:
            port.disable(registration)
            port.enable(registration)
            port.remove(registration)
        assert len(port.process()) == 5
        counters = port.counters()
        assert calls() - counters.kernel_waits - counters.kernel_changes == before

    def test_more_than_a_list_holds(self, port: CompletionPort, network: Network) -> None:
        registrations = [Registration(network.udp(), key, Event.IN | Event.OUT) for key in range(300)]
        dequeued = port.process(registrations, timeout=10, max_notifications=512)
        assert sorted(notification.key for notification in dequeued) == list(range(300))

    def test_more_than_there_is_room_for(self, port: CompletionPort, network: Network) -> None:
        """Each change may be refused, and that is told where events would be."""
        registrations = [Registration(network.udp(), key, Event.OUT) for key in range(20)]
        found = {notification.key for notification in port.process(registrations, timeout=10, max_notifications=2)}
        while len(found) < 20:
            [notification] = port.process(timeout=10, max_notifications=1)
            found.add(notification.key)


class TestTwoKnotes:
    def test_both_are_one_notification(self, port: CompletionPort, pair: Pair, network: Network) -> None:
        pair[1].send(b"x")
        network.until_readable(pair[0])
        registration = Registration(pair[0], events=Event.IN | Event.OUT)
        for _ in range(3):
            [notification] = port.process([registration], timeout=10)
            assert notification.events == Event.IN | Event.OUT

    @pytest.mark.parametrize("trigger", [ONESHOT, Trigger.EDGE | Trigger.ONESHOT])
    def test_the_other_is_disarmed_too(
        self, port: CompletionPort, pair: Pair, network: Network, trigger: Trigger, calls: Callable[[], int]
    ) -> None:
        """Without telling the kernel."""
        registration = Registration(pair[0], events=Event.IN | Event.OUT, trigger=trigger)
        [notification] = port.process([registration], timeout=10)
        assert notification.events == Event.OUT
        pair[1].send(b"x")
        network.until_readable(pair[0])
        before = calls()
        assert port.process() == port.process() == []
        assert calls() - before == 2
        assert port.counters().withheld == 1
        [notification] = port.process([registration], timeout=10)
        assert notification.events == Event.IN | Event.OUT

    def test_persistent(self, port: CompletionPort, pair: Pair, network: Network) -> None:
        registration = Registration(pair[0], events=Event.IN | Event.OUT, trigger=PERSISTENT)
        port.enable(registration)
        assert [notification.events for notification in port.process(timeout=10)] == [Event.OUT]
        pair[1].send(b"x")
        network.until_readable(pair[0])
        assert [notification.events for notification in port.process(timeout=10)] == [Event.IN | Event.OUT]
        registration.events = Event.IN
        port.enable(registration)
        assert [notification.events for notification in port.process(timeout=10)] == [Event.IN]

    def test_changed_triggers(self, port: CompletionPort, pair: Pair) -> None:
        """A knote keeps its mode, so it is made anew."""
        registration = Registration(pair[0], events=Event.OUT, trigger=PERSISTENT)
        port.process([registration])
        registration.trigger = ONESHOT
        assert len(port.process([registration], timeout=10)) == 1
        assert port.process() == []
        registration.trigger = PERSISTENT
        assert [len(port.process([registration], timeout=10)), len(port.process(timeout=10))] == [1, 1]


class TestQuietWatch:
    """Who waits for the end only hears of it, and not of data."""

    @pytest.mark.parametrize("trigger", [ONESHOT, PERSISTENT])
    def test_the_end(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        ours, theirs = network.unix_pair()
        registration = Registration(ours, events=Event.HANGUP, trigger=trigger)
        port.enable(registration)
        for _ in range(3):
            theirs.send(b"x")
            assert port.process() == []
        waits = port.counters().kernel_waits
        assert port.process(timeout=0.001) == []
        assert port.counters().kernel_waits == waits + 1  # data that stay do not keep it busy
        theirs.close()
        for _ in range(3):
            assert [note.events for note in port.process([registration], timeout=10)] == [Event.HANGUP]

    @pytest.mark.parametrize("trigger", [ONESHOT, PERSISTENT])
    def test_who_waits_for_nothing_hears_when_it_is_gone(
        self, port: CompletionPort, network: Network, trigger: Trigger
    ) -> None:
        """And not when the peer has only finished sending."""
        ours, theirs = network.unix_pair()
        registration = Registration(ours, events=Event.NONE, trigger=trigger)
        port.enable(registration)
        theirs.send(b"x")
        theirs.shutdown(socket.SHUT_WR)
        assert port.process() == port.process() == []
        theirs.close()
        for _ in range(3):
            assert [note.events for note in port.process([registration], timeout=10)] == [Event.ERR]

    def test_the_end_persists(self, port: CompletionPort, network: Network) -> None:
        ours, theirs = network.unix_pair()
        port.enable(Registration(ours, events=Event.HANGUP, trigger=PERSISTENT))
        theirs.close()
        for _ in range(3):
            assert [note.events for note in port.process(timeout=10)] == [Event.HANGUP]


class TestForgotten:
    """Whoever closes a socket says so, before or after, and then its knotes are nobody's."""

    @staticmethod
    def forget(sock: socket.socket, key: int) -> bytes:
        return REGISTRATION.pack(sock.fileno(), REGISTERED | key << 8, 0, FORGET, 0, 0)

    def test_before_it_is_closed(self, port: CompletionPort, network: Network) -> None:
        """Their first report is dropped, and is the last."""
        ours, theirs = network.unix_pair()
        batch = port.batch()
        batch.turn(order(ours, 1, Event.IN | Event.OUT, PERSISTENT) + self.forget(ours, 1), 0)
        theirs.send(b"x")
        for _ in range(3):
            assert batch.turn(None, 0) == ()
        assert port.counters().stale == 2
        assert batch.turn(order(ours, 2), 10**10) == (2,)
        assert batch.turn(self.forget(ours, 2), 0) == ()

    def test_its_number_is_used_again(self, port: CompletionPort, network: Network, calls: Callable[[], int]) -> None:
        """Which costs no call but that which registers the next."""
        batch = port.batch()
        sock = network.udp()
        number = sock.fileno()
        batch.turn(order(sock, 1, Event.IN | Event.OUT), 10**10)
        forgotten = self.forget(sock, 1)
        sock.close()
        successor = network.reuse(number)
        before = calls()
        assert batch.turn(forgotten + order(successor, 2, Event.OUT), 10**10) == (1 << 32 | 2 << 8 | Event.OUT,)
        assert calls() - before == 1


class TestLateResults:
    def test_what_is_refused_is_told_at_once(self, port: CompletionPort, network: Network) -> None:
        """The call does not wait then, and the others are registered."""
        closed = network.udp()
        number = closed.fileno()
        good, bad = Registration(network.tcp(), "good"), Registration(number, "bad")
        closed.close()
        assert port.process([good, bad], timeout=None) == []
        assert (good.result, bad.result) == (0, errno.EBADF)
        port.disable(good)
        with pytest.raises(OSError, match="cannot DISABLE"):
            port.disable(bad)

    def test_what_is_ready_comes_all_the_same(self, port: CompletionPort, network: Network) -> None:
        closed = network.udp()
        number = closed.fileno()
        good, bad = Registration(network.udp(), "good", Event.OUT), Registration(number, "bad")
        closed.close()
        assert [notification.key for notification in port.process([good, bad], timeout=None)] == ["good"]

    def test_a_batch_hears_of_it(self, port: CompletionPort, network: Network) -> None:
        batch, silent, sock = port.batch(), network.tcp(), network.udp()
        closed = order(sock, 1)
        sock.close()
        assert batch.turn(order(silent, 2) + closed, -1) == ()
        assert batch.failures == [(1, REGISTERED | 1 << 8, errno.EBADF)]

    @pytest.mark.parametrize("duplicate", [False, True])
    def test_what_was_closed_cannot_be_enabled(self, port: CompletionPort, network: Network, duplicate: bool) -> None:
        """A knote goes with its descriptor, also where a duplicate lives; and its successor is not taken for it."""
        ours, theirs = network.unix_pair()
        registration = Registration(ours, "ours")
        theirs.send(b"x")
        port.process([registration], timeout=10)
        kept = os.dup(ours.fileno()) if duplicate else None
        number = ours.fileno()
        ours.close()
        successor = network.reuse(number)
        assert port.process([registration]) == []
        assert registration.result == errno.ENOENT
        other = Registration(successor, "successor", Event.OUT)
        assert [notification.key for notification in port.process([other], timeout=10)] == ["successor"]
        if kept is not None:
            os.close(kept)

    def test_orders_for_one_socket_in_one_call(self, port: CompletionPort, pair: Pair) -> None:
        batch = port.batch()
        both = order(pair[0], 1, Event.IN) + order(pair[0], 1, Event.OUT)
        assert batch.turn(both, 10**10) == (1 << 32 | 1 << 8 | Event.OUT,)

    def test_an_interrupted_wait_has_registered(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], "ours")
        before = signal.signal(signal.SIGALRM, lambda *_: pair[1].send(b"x"))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            found = [notification.key for notification in port.process([registration], timeout=10)]
            assert found + [notification.key for notification in port.process(timeout=10)] == ["ours"]
        finally:
            signal.signal(signal.SIGALRM, before)


def wait_elsewhere(port: CompletionPort, registration: Registration) -> tuple[threading.Thread, list[Notification]]:
    """A thread that orders this and waits already, and where it puts what it dequeues."""
    found: list[Notification] = []
    waits = port.counters().waits
    thread = threading.Thread(target=lambda: found.extend(port.process([registration], timeout=10)))
    thread.start()
    while port.counters().waits == waits:
        pass
    return thread, found


class TestInFlight:
    """A thread that was alone waits with changes. Whoever orders something has it come back first."""

    def test_another_changes_what_is_in_flight(self, port: CompletionPort, network: Network) -> None:
        for _ in range(50):
            ours, theirs = network.unix_pair()
            registration = Registration(ours, "ours")
            thread, found = wait_elsewhere(port, registration)
            registration_of_another = Registration(theirs, "theirs", Event.OUT)
            port.enable(registration_of_another)
            thread.join()
            port.remove(registration_of_another)
            assert [note.key for note in found] == ["theirs"]
            port.remove(registration)
            removed = [note.key for note in port.process(timeout=10)]
            assert sorted(removed) == ["ours", "theirs"]

    def test_a_removal(self, port: CompletionPort, network: Network) -> None:
        for _ in range(50):
            ours, _ = network.unix_pair()
            registration = Registration(ours, "ours")
            thread, found = wait_elsewhere(port, registration)
            port.remove(registration)
            thread.join()
            assert [note.events for note in found] == [Event.REMOVE]


class TestFaults:
    """One thing after the other fails once: a queue, a change, a wait."""

    PROGRAM = """
import ctypes, errno, os, socket, sys
from notifyloop.port import CompletionPort, Event, Registration, Trigger, _kqueue
standin = ctypes.CDLL(_kqueue.__file__)
number = int(sys.argv[1])
PERSISTENT = Trigger.LEVEL | Trigger.PERSISTENT
told = []

def attempt(step):
    try:
        return step()
    except (OSError, MemoryError) as error:
        told.append(error)
        return step()

def until_dequeued(port, registrations, *expected):
    missing = set(expected)
    while missing:
        dequeued = attempt(lambda: port.process(registrations, timeout=10))
        missing -= {notification.key for notification in dequeued}
        again = [registration for registration in registrations if registration.result]
        told.extend(OSError(registration.result, "") for registration in again)
        registrations = again

def drive():
    port = attempt(CompletionPort)
    ours, theirs = socket.socketpair()
    other = socket.socket(type=socket.SOCK_DGRAM)
    with port, ours, theirs, other:
        registration = Registration(ours, "ours", Event.IN | Event.HANGUP)
        second = Registration(other, "other", Event.OUT)
        theirs.send(b"x")
        until_dequeued(port, [registration, second], "ours", "other")
        for trigger in PERSISTENT, Trigger.EDGE | Trigger.PERSISTENT, Trigger.LEVEL | Trigger.ONESHOT:
            registration.trigger = trigger
            registration.events ^= Event.OUT
            until_dequeued(port, [registration], "ours")
        port.disable(second)
        for _ in range(3):
            attempt(port.process)
        for key in range(3):
            attempt(lambda: port.post(key))
        until_dequeued(port, [], 0, 1, 2)
        quiet = Registration(theirs, "theirs", Event.HANGUP, PERSISTENT)
        attempt(lambda: port.enable(quiet))
        ours.shutdown(socket.SHUT_WR)
        for _ in range(3):
            until_dequeued(port, [], "theirs")
        child = os.fork()
        if not child:
            try:
                told.clear()
                attempt(lambda: port.enable(second))
                until_dequeued(port, [], "other", "theirs")
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
                os._exit(1)
            os._exit(10 if standin.kqueue_standin_failed() else 0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 10), status
        for one in registration, second, quiet:
            attempt(lambda: port.remove(one))
        removed = []
        while len(removed) < 3:
            removed += [note.key for note in attempt(lambda: port.process(timeout=10)) if note.events & Event.REMOVE]
        assert sorted(removed) == ["other", "ours", "theirs"]
    return status == 10

drive()
before = len(os.listdir("/proc/self/fd"))
after = 0
while True:
    told.clear()
    standin.kqueue_standin_fail(after, number)
    in_child = drive()
    if not standin.kqueue_standin_failed() and not in_child:
        break
    standin.kqueue_standin_fail(-1, 0)
    assert all(isinstance(error, MemoryError) or error.errno == number for error in told), told
    assert len(os.listdir("/proc/self/fd")) == before
    after += 1
print(after)
"""

    @pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINTR], ids=errno.errorcode.get)
    def test_whoever_asked_is_told_and_the_port_goes_on(self, calls: Callable[[], int], number: int) -> None:
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", self.PROGRAM, str(number)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert int(ended.stdout) > 5
