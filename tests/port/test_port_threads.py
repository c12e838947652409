"""Several threads on one port. The hammering takes two seconds; NOTIFYLOOP_HAMMER_SECONDS=60 makes it a minute."""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort, Event, Operation, Registration, Trigger
from notifyloop.port.abi import REGISTRATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Network, Pair
    from notifyloop.port import Notification

HAMMER_SECONDS = float(os.environ.get("NOTIFYLOOP_HAMMER_SECONDS", "2"))
THREADS = 16
EXIT = 2**32 - 1  # the key of the packet that each thread posts again when it ends
PERSISTENT = Trigger.LEVEL | Trigger.PERSISTENT
EDGE = Trigger.EDGE | Trigger.PERSISTENT

edges = pytest.mark.only("edges", reason="AFD cannot report edges, so this provider refuses them")
pytestmark = pytest.mark.timeout(HAMMER_SECONDS + 120)


class Crew:
    """Threads, whose exceptions are the test's."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []

    def start(self, work: Callable[..., object], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(work, *arguments), daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _run(self, work: Callable[..., object], *arguments: object) -> None:
        try:
            work(*arguments)
        except BaseException as failure:
            self._failures.append(failure)

    @property
    def failed(self) -> bool:
        return bool(self._failures)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        if self._failures:
            raise self._failures[0]


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.join()


def until(condition: Callable[[], bool]) -> None:
    """Lets the other threads run until they have brought this about."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0)


def waiting(port: CompletionPort, threads: int) -> None:
    until(lambda: port.counters().waits >= threads)


class TestOneShotGoesToOneThread:
    MESSAGES = 200
    SOCKETS = 32

    class Client:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.owner = threading.Lock()
            self.received = 0
            self.notifications = 0

    @pytest.mark.parametrize("batch", [1, 3, 64])
    def test_which_owns_the_socket_until_it_re_arms_it(
        self, port: CompletionPort, network: Network, crew: Crew, batch: int
    ) -> None:
        pairs = [network.any_pair() for _ in range(self.SOCKETS)]
        clients = [self.Client(ours) for ours, _ in pairs]
        left = threading.Semaphore(0)

        def serve() -> None:
            changes: list[Registration] = []
            while True:
                notifications = port.process(changes, timeout=None, max_notifications=batch)
                assert not any(change.result for change in changes)
                changes = []
                for notification in notifications:
                    if notification.registration is None:
                        port.post(notification.key)
                        port.process(changes, max_notifications=0)
                        return
                    self.handle(notification, left)
                    changes.append(notification.registration)

        for _ in range(THREADS):
            crew.start(serve)
        port.process([Registration(client.sock, client) for client in clients], max_notifications=0)
        for _ in range(self.MESSAGES):
            for _, theirs in pairs:
                try:
                    theirs.send(b"x")
                except BlockingIOError:
                    network.until_writable(theirs)
                    theirs.send(b"x")
        for _ in range(self.MESSAGES * self.SOCKETS):
            while not left.acquire(timeout=1):
                assert not crew.failed
        port.post(EXIT)
        crew.join()
        assert [client.received for client in clients] == [self.MESSAGES] * self.SOCKETS

    @staticmethod
    def handle(notification: Notification, left: threading.Semaphore) -> None:
        client = notification.key
        assert notification.events == Event.IN
        assert client.owner.acquire(blocking=False), "two threads own one socket"
        try:
            client.sock.recv(1)
            client.received += 1
            left.release()
        except BlockingIOError:
            pass  # a report may be older than the read that drained the socket
        finally:
            client.owner.release()

    def test_all_wait_and_one_gets_it(self, port: CompletionPort, pair: Pair, crew: Crew) -> None:
        found: list[object] = []

        def wait() -> None:
            with pytest.raises(ValueError, match="closed"):
                while True:
                    found.extend(port.process(timeout=None))

        for _ in range(THREADS):
            crew.start(wait)
        waiting(port, THREADS)
        port.enable(Registration(pair[0]))
        pair[1].send(b"x")
        until(lambda: bool(found))
        pair[1].send(b"y")
        port.post(1)
        until(lambda: len(found) == 2)
        port.close()
        crew.join()
        assert len(found) == 2


class TestChangesWhileOthersWait:
    """They take effect without waking anybody by hand."""

    @pytest.fixture
    def found(self, port: CompletionPort, crew: Crew) -> Iterator[list[Notification]]:
        found: list[Notification] = []

        def wait() -> None:
            with pytest.raises(ValueError, match="closed"):
                while True:
                    found.extend(port.process(timeout=None))

        for _ in range(3):
            crew.start(wait)
        waiting(port, 3)
        yield found
        port.close()

    def test_enable(self, port: CompletionPort, pair: Pair, found: list[Notification]) -> None:
        for turn in range(1, 20):
            registration = Registration(pair[0], turn, Event.OUT)
            port.enable(registration)
            until(lambda turn=turn: len(found) == 2 * turn - 1)
            port.remove(registration)
            until(lambda turn=turn: len(found) == 2 * turn)
            assert [notification.events for notification in found[-2:]] == [Event.OUT, Event.REMOVE]

    def test_re_arm(self, port: CompletionPort, pair: Pair, found: list[Notification]) -> None:
        registration = Registration(pair[0], events=Event.OUT)
        for turn in range(1, 100):
            port.enable(registration)
            until(lambda turn=turn: len(found) == turn)

    def test_widen_the_filter(self, port: CompletionPort, pair: Pair, found: list[Notification]) -> None:
        registration = Registration(pair[0])
        port.enable(registration)
        registration.events = Event.IN | Event.OUT
        port.enable(registration)
        until(lambda: len(found) == 1)
        assert found[0].events == Event.OUT

    @pytest.mark.parametrize("trigger", [Trigger.LEVEL | Trigger.ONESHOT, PERSISTENT, pytest.param(EDGE, marks=edges)])
    def test_disable(
        self, port: CompletionPort, network: Network, pair: Pair, found: list[Notification], trigger: Trigger
    ) -> None:
        registration = Registration(pair[0], trigger=trigger)
        port.enable(registration)
        port.disable(registration)
        pair[1].send(b"x")
        network.until_readable(pair[0])
        port.post(1)
        until(lambda: len(found) == 1)
        assert found[0].key == 1

    def test_post(self, port: CompletionPort, found: list[Notification]) -> None:
        for key in range(1000):
            port.post(key)
        until(lambda: len(found) == 1000)
        assert sorted(notification.key for notification in found) == list(range(1000))

    @pytest.mark.only("epoll", reason="only epoll goes on reporting what was closed while a duplicate lives")
    def test_a_surviving_duplicate(self, port: CompletionPort, network: Network, found: list[Notification]) -> None:
        """Waiting threads move to the new set when it is built."""
        ours, theirs = network.unix_pair()
        registration = Registration(ours, "closed", trigger=PERSISTENT)
        port.enable(registration)
        duplicate = os.dup(ours.fileno())
        ours.close()
        with pytest.raises(OSError, match="cannot REMOVE"):
            port.remove(registration)
        theirs.send(b"x")
        until(lambda: port.counters().rebuilds > 0)
        os.close(duplicate)
        other, peer = network.unix_pair()
        for turn in range(1, 20):
            registration = Registration(other, "other")
            port.enable(registration)
            peer.send(b"x")
            until(lambda turn=turn: len(found) == 2 * turn - 1)
            assert other.recv(1) == b"x"
            port.remove(registration)
            until(lambda turn=turn: len(found) == 2 * turn)
        assert {notification.key for notification in found} == {"other"}


class TestRegisteringWithALongWait:
    """The call that registered may return when all has changed since."""

    @staticmethod
    def registered(port: CompletionPort, registration: Registration) -> None:
        """Until another thread's call, which waits now, has registered this one. It is disabled then."""
        batch = port.batch()
        disable = REGISTRATION.pack(registration.socket, registration.generation, 0, Operation.DISABLE, 0, 0)

        def known() -> bool:
            batch.exchange(disable, 0, 0)
            return not batch.failures

        until(known)

    def test_the_successor_keeps_its_key(self, port: CompletionPort, network: Network, crew: Crew) -> None:
        sock = network.udp()
        descriptor = sock.fileno()
        first = Registration(sock, "first")
        woken: list[Notification] = []
        crew.start(lambda: woken.extend(port.process([first], timeout=None)))
        self.registered(port, first)
        sock.close()
        successor = network.reuse(descriptor)
        second = Registration(successor, "second")
        port.enable(second)
        port.post(1)
        crew.join()
        assert [notification.key for notification in woken] == [1]
        network.udp().sendto(b"x", successor.getsockname())
        assert [notification.registration for notification in port.process(timeout=10)] == [second]

    @pytest.mark.only("winsock", reason="elsewhere a registration that fails ends the wait")
    def test_a_removal_that_failed_then_does_not_count_now(
        self, port: CompletionPort, network: Network, crew: Crew
    ) -> None:
        registration = Registration(network.udp(), "ours", operation=Operation.REMOVE)
        after = Registration(network.udp(), "after")
        crew.start(lambda: port.process([registration, after], timeout=None))
        self.registered(port, after)
        registration.operation = Operation.ENABLE
        port.process([registration], max_notifications=0)
        port.post(1)
        crew.join()
        registration.events = Event.OUT
        port.enable(registration)
        assert [notification.registration for notification in port.process(timeout=10)] == [registration]


class TestClose:
    def test_ends_all_waits(self, port: CompletionPort, pair: Pair, crew: Crew) -> None:
        ended = threading.Semaphore(0)

        def wait(timeout: float | None) -> None:
            with pytest.raises(ValueError, match="the completion port is closed"):
                port.process(timeout=timeout)
            ended.release()

        port.enable(Registration(pair[0]))
        for index in range(THREADS):
            crew.start(wait, None if index % 2 else 1000.0)
        waiting(port, THREADS)
        port.close()
        for _ in range(THREADS):
            assert ended.acquire(timeout=60)

    def test_while_everything_else_goes_on(self, network: Network, crew: Crew) -> None:
        """Calls on a port that others close fail with ValueError, or they were in time."""
        ours, _ = network.pair()

        def use(ports: list[CompletionPort], call: Callable[[CompletionPort], object]) -> None:
            for port in ports:
                try:
                    while True:
                        call(port)
                except ValueError as error:
                    assert str(error) == "the completion port is closed"  # noqa: PT017

        ports = [CompletionPort() for _ in range(50)]
        calls: list[Callable[[CompletionPort], object]] = [
            lambda port: port.process(timeout=None),
            lambda port: port.process(timeout=0.001),
            lambda port: port.post(1),
            lambda port: port.counters(),
            lambda port: port.process([Registration(ours, events=Event.OUT)]),
        ]
        for call in calls:
            crew.start(use, ports, call)
        for port in ports:
            until(lambda port=port: port.counters().calls > 20)
            port.close()
        crew.join()

    def test_many_threads_close_one_port(self, crew: Crew) -> None:
        for _ in range(20):
            port = CompletionPort()
            start = threading.Barrier(4)

            def close(port: CompletionPort = port, start: threading.Barrier = start) -> None:
                start.wait()
                port.close()

            for _ in range(4):
                crew.start(close)
            crew.join()
            assert port.closed


LIVES = ["removed", "closed", "closed at once"]
if sys.platform != "win32":
    LIVES.append("handed on")  # Windows cannot open a socket under a number of one's choice


class Owner:
    """Whoever registered a socket. Nothing is ever sent to the silent ones: what reaches them was another's."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent
        self.notified = threading.Event()
        self.removed = threading.Event()
        self.removals = 0


class TestHammering:
    """Threads close, open and register descriptors as fast as they can, while others dequeue."""

    DEQUEUERS = 4
    CHURNERS = 6

    def test_no_notification_reaches_another_s_owner(self, port: CompletionPort, crew: Crew, traits: set[str]) -> None:
        triggers = [Trigger.LEVEL | Trigger.ONESHOT]
        if not traits & {"afd", "double"}:  # they poll a persistent one again, which may be closed by then
            triggers.append(PERSISTENT)
        if "edges" in traits:
            triggers += [EDGE, Trigger.EDGE | Trigger.ONESHOT]
        stop = threading.Event()
        figures: Counter[str] = Counter()

        def dequeue() -> None:
            while True:
                for notification in port.process(timeout=None, max_notifications=3):
                    if notification.registration is not None:
                        self.note(notification)
                    elif notification.key == EXIT:
                        port.post(EXIT)
                        return
                    else:  # closed and replaced while this thread was about to hand it out
                        assert notification.key >= 2**63

        def churn(seed: int) -> None:
            chance = random.Random(seed)
            while not stop.is_set():
                figures[self.one_life(port, chance, chance.choice(triggers))] += 1

        dequeuers = Crew()
        for _ in range(self.DEQUEUERS):
            dequeuers.start(dequeue)
        for seed in range(self.CHURNERS):
            crew.start(churn, seed)
        deadline = time.monotonic() + HAMMER_SECONDS
        while time.monotonic() < deadline and not crew.failed and not dequeuers.failed:
            stop.wait(0.1)
        stop.set()
        if dequeuers.failed:
            port.close()
        else:
            crew.join()
            port.post(EXIT)
        dequeuers.join()
        assert all(figures[life] for life in LIVES), figures

    @staticmethod
    def note(notification: Notification) -> None:
        owner = notification.key
        if notification.events & Event.REMOVE:
            owner.removals += 1
            owner.removed.set()
        else:
            assert not owner.silent, f"a silent socket was notified: {notification}"
            owner.notified.set()

    @staticmethod
    def one_life(port: CompletionPort, chance: random.Random, trigger: Trigger) -> str:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        owner = Owner(silent=chance.random() < 0.5)
        registration = Registration(ours, owner, Event.IN | Event.HANGUP, trigger)
        port.enable(registration)
        if not owner.silent:
            theirs.send(b"x")
        how = chance.choice(LIVES)
        if how == "closed at once":
            ours.close()
        else:
            if not owner.silent:
                assert owner.notified.wait(60), "a notification was lost"
            if how == "removed":
                port.remove(registration)
                assert owner.removed.wait(60), "a removal was lost"
                assert owner.removals == 1
                ours.close()
            elif how == "closed":
                ours.close()
            else:  # the next owner has the same descriptor from the first moment on
                heir, peer = socket.socketpair()
                descriptor = ours.detach()
                os.dup2(heir.fileno(), descriptor, inheritable=False)
                heir.close()
                with socket.socket(fileno=descriptor) as inherited:
                    port.enable(Registration(inherited, Owner(silent=True)))
                peer.close()
        theirs.close()
        return how
