"""An OwnedSocket is used by one thread at a time and released once, whatever goes wrong."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import socket
import struct
import sys
import threading
import weakref
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort, Event, OwnedSocket, Registration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notifyloop.port import Notification

WAIT = 10.0  # seconds until something that must come is given up


@pytest.fixture
def port() -> Iterator[CompletionPort]:
    with CompletionPort() as port:
        yield port


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    with ours, peer:
        yield ours, peer


class Log:
    """Callbacks that write down what happened."""

    def __init__(self) -> None:
        self.ready: list[Event] = []
        self.released: list[OwnedSocket] = []

    def on_ready(self, owned: OwnedSocket, events: Event) -> None:
        self.ready.append(events)
        if events & Event.IN:
            owned.socket.recv(100)

    def on_release(self, owned: OwnedSocket) -> None:
        self.released.append(owned)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def owned(port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log) -> OwnedSocket:
    """Registered, with callbacks that write down what happened."""
    owned = OwnedSocket(port, pair[0], log.on_ready, log.on_release)
    owned.register()
    return owned


def dequeue(port: CompletionPort) -> Notification:
    """The next notification, which must come."""
    [notification] = port.process(timeout=WAIT, max_notifications=1)
    return notification


def deliver_next(port: CompletionPort) -> None:
    notification = dequeue(port)
    notification.key.deliver(notification)


def assert_released_once(owned: OwnedSocket, log: Log) -> None:
    assert owned.released
    assert log.released == [owned]
    assert owned.socket.fileno() == -1
    owned.close()
    assert log.released == [owned]


def test_each_notification_is_handled_and_the_socket_armed_again(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], owned: OwnedSocket, log: Log
) -> None:
    for _ in range(3):
        pair[1].send(b"data")
        deliver_next(port)
    assert log.ready == [Event.IN] * 3
    assert port.process() == []


def test_takes_the_socket_over_as_a_non_blocking_one(owned: OwnedSocket) -> None:
    assert not owned.socket.getblocking()


def test_a_closed_socket_cannot_be_owned(port: CompletionPort, log: Log) -> None:
    closed = socket.socket()
    closed.close()
    with pytest.raises(ValueError, match="Invalid file descriptor"):
        OwnedSocket(port, closed, log.on_ready)


def test_is_registered_once(owned: OwnedSocket, log: Log) -> None:
    with pytest.raises(RuntimeError, match="registered once"):
        owned.register()
    owned.close()
    with pytest.raises(RuntimeError, match="registered once"):
        owned.register()


@pytest.mark.only("descriptors", reason="nowhere else it is known that a socket is registered already")
def test_a_refused_registration_can_be_tried_again(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log
) -> None:
    other = Registration(pair[0])
    port.enable(other)
    owned = OwnedSocket(port, pair[0], log.on_ready, log.on_release)
    with pytest.raises(FileExistsError):
        owned.register()
    port.remove(other)
    assert dequeue(port).registration is other
    owned.register()
    pair[1].send(b"data")
    deliver_next(port)
    assert log.ready == [Event.IN]


def test_one_that_was_never_registered_is_released_at_once(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log
) -> None:
    owned = OwnedSocket(port, pair[0], log.on_ready, log.on_release)
    owned.close()
    assert_released_once(owned, log)
    assert port.process() == []


def test_no_release_callback_is_needed(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log
) -> None:
    owned = OwnedSocket(port, pair[0], log.on_ready)
    owned.close()
    assert owned.released
    assert pair[0].fileno() == -1


def test_closing_waits_for_the_notice(port: CompletionPort, owned: OwnedSocket, log: Log) -> None:
    owned.close()
    owned.close()
    assert not owned.released
    assert owned.socket.fileno() != -1
    deliver_next(port)
    assert_released_once(owned, log)
    assert port.process() == []


def test_may_close_itself(port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log) -> None:
    def on_ready(owned: OwnedSocket, events: Event) -> None:
        owned.close()
        owned.socket.recv(100)  # still ours

    owned = OwnedSocket(port, pair[0], on_ready, log.on_release)
    owned.register()
    pair[1].send(b"data")
    deliver_next(port)
    assert not owned.released
    deliver_next(port)
    assert_released_once(owned, log)


def test_closing_from_elsewhere_lets_the_owner_finish(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def on_ready(owned: OwnedSocket, events: Event) -> None:
        entered.set()
        assert leave.wait(WAIT)
        log.on_ready(owned, events)

    owned = OwnedSocket(port, pair[0], on_ready, log.on_release)
    owned.register()
    pair[1].send(b"data")
    owner = threading.Thread(target=deliver_next, args=[port])
    owner.start()
    assert entered.wait(WAIT)
    owned.close()
    assert not owned.released
    assert port.process() == []  # not removed before its owner has left
    leave.set()
    owner.join()
    assert log.ready == [Event.IN]
    deliver_next(port)
    assert_released_once(owned, log)


@pytest.mark.parametrize("notice_first", [False, True])
def test_a_notification_that_comes_too_late_is_dropped(
    port: CompletionPort,
    pair: tuple[socket.socket, socket.socket],
    owned: OwnedSocket,
    log: Log,
    notice_first: bool,
) -> None:
    pair[1].send(b"data")
    late = dequeue(port)
    owned.close()
    notice = dequeue(port)
    for notification in [notice, late] if notice_first else [late, notice]:
        owned.deliver(notification)
    assert log.ready == []
    assert_released_once(owned, log)


def test_a_second_notification_while_owned_is_dropped_and_reported_again(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log
) -> None:
    """`watch` arms a socket whose notification is on its way: then two threads hold one."""
    pair[1].send(b"data")

    def on_ready(owned: OwnedSocket, events: Event) -> None:
        log.ready.append(events)
        if len(log.ready) == 1:
            owned.deliver(second)

    owned = OwnedSocket(port, pair[0], on_ready)
    owned.register()
    first = dequeue(port)
    owned.watch(Event.IN | Event.HANGUP)
    second = dequeue(port)
    owned.deliver(first)
    assert len(log.ready) == 1
    deliver_next(port)
    assert len(log.ready) == 2


def test_where_removing_fails_it_is_released_at_once(port: CompletionPort, owned: OwnedSocket, log: Log) -> None:
    port.remove(owned._registration)
    owned.close()
    assert_released_once(owned, log)
    deliver_next(port)  # the notice of the first removal
    assert_released_once(owned, log)


def test_closed_behind_its_back(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], owned: OwnedSocket, log: Log
) -> None:
    pair[0].close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        owned.watch(Event.IN)
    owned.close()
    assert_released_once(owned, log)
    assert port.process() == []


def connect_as(descriptor: int, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Connected sockets, the first with a descriptor that is free."""
    with contextlib.ExitStack() as others:
        heir = socket.create_connection(listener.getsockname())
        if sys.platform == "win32":  # where the lowest that is free is given out, sooner or later
            while heir.fileno() != descriptor:
                others.enter_context(heir)
                others.enter_context(listener.accept()[0])
                heir = socket.create_connection(listener.getsockname())
        elif heir.fileno() != descriptor:
            os.dup2(heir.fileno(), descriptor)
            heir.close()
            heir = socket.socket(fileno=descriptor)
        return heir, listener.accept()[0]


def test_closed_behind_its_back_by_its_owner(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log
) -> None:
    """The descriptor's next life is left alone."""
    listener = socket.create_server(("127.0.0.1", 0))
    heirs: list[socket.socket] = []

    def on_ready(owned: OwnedSocket, events: Event) -> None:
        descriptor = owned.socket.fileno()
        owned.socket.close()
        heirs.extend(connect_as(descriptor, listener))

    owned = OwnedSocket(port, pair[0], on_ready, log.on_release)
    owned.register()
    pair[1].send(b"data")
    deliver_next(port)
    assert_released_once(owned, log)
    assert isinstance(owned.error, OSError)
    assert owned.error.errno == errno.EBADF
    with listener, heirs[0], heirs[1]:
        heirs[1].send(b"data")
        assert port.process() == []
        OwnedSocket(port, heirs[0], log.on_ready).register()
        deliver_next(port)
        assert log.ready == [Event.IN]


def test_after_the_port_was_closed_it_is_released_at_once(port: CompletionPort, owned: OwnedSocket, log: Log) -> None:
    port.close()
    assert not owned.released
    owned.close()
    assert_released_once(owned, log)


def test_when_the_port_is_closed_before_the_notice_came(port: CompletionPort, owned: OwnedSocket, log: Log) -> None:
    owned.close()
    port.close()
    assert not owned.released
    owned.close()
    assert_released_once(owned, log)


def test_when_the_port_is_closed_while_it_is_owned(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log
) -> None:
    owned = OwnedSocket(port, pair[0], lambda owned, events: port.close(), log.on_release)
    owned.register()
    pair[1].send(b"data")
    deliver_next(port)
    assert_released_once(owned, log)
    assert isinstance(owned.error, ValueError)


def test_what_on_ready_raises_is_raised_and_closes_the_socket(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log
) -> None:
    def on_ready(owned: OwnedSocket, events: Event) -> None:
        raise KeyError("a mistake")

    owned = OwnedSocket(port, pair[0], on_ready, log.on_release)
    owned.register()
    pair[1].send(b"data")
    with pytest.raises(KeyError, match="a mistake"):
        deliver_next(port)
    deliver_next(port)
    assert_released_once(owned, log)
    assert owned.error is None


def test_watching_other_events(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], owned: OwnedSocket, log: Log
) -> None:
    owned.watch(Event.OUT)
    deliver_next(port)
    assert log.ready == [Event.OUT]
    owned.watch(Event.NONE)
    pair[1].send(b"data")
    assert port.process() == []
    owned.watch(Event.IN)
    deliver_next(port)
    assert log.ready == [Event.OUT, Event.IN]


def test_its_owner_may_watch_other_events(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log
) -> None:
    def on_ready(owned: OwnedSocket, events: Event) -> None:
        log.ready.append(events)
        owned.watch(Event.OUT if events & Event.IN else Event.NONE)

    OwnedSocket(port, pair[0], on_ready).register()
    pair[1].send(b"data")
    deliver_next(port)
    deliver_next(port)
    assert log.ready == [Event.IN, Event.OUT]
    assert port.process() == []


def test_an_event_that_is_no_longer_watched_is_not_handed_on(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], owned: OwnedSocket, log: Log
) -> None:
    owned.watch(Event.OUT)
    notification = dequeue(port)
    owned.watch(Event.IN)
    owned.deliver(notification)
    assert log.ready == []
    pair[1].send(b"data")
    deliver_next(port)
    assert log.ready == [Event.IN]


def test_errors_are_reported_unwatched(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], owned: OwnedSocket, log: Log
) -> None:
    owned.watch(Event.NONE)
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair[1].close()
    deliver_next(port)
    assert log.ready == [Event.ERR]


def test_lives_as_long_as_it_is_registered(
    port: CompletionPort, pair: tuple[socket.socket, socket.socket], log: Log
) -> None:
    owned = OwnedSocket(port, pair[0], log.on_ready)
    owned.register()
    reference = weakref.ref(owned)
    del owned
    gc.collect()
    pair[1].send(b"data")
    deliver_next(port)
    assert log.ready == [Event.IN]
    owned_again = reference()
    assert owned_again is not None
    owned_again.close()
    del owned_again
    deliver_next(port)
    gc.collect()
    assert reference() is None


def test_says_what_it_is_doing(owned: OwnedSocket) -> None:
    assert repr(owned).startswith("<OwnedSocket armed <socket.socket")


def test_many_threads_close_one(port: CompletionPort) -> None:
    """Whoever owns it is told once, and its descriptor, which is another socket's a moment later, is closed once."""
    told: list[OwnedSocket] = []
    failures: list[OSError] = []
    all_owned = [OwnedSocket(port, socket.socket(), lambda owned, events: None, told.append) for _ in range(200)]
    start = threading.Barrier(4)

    def close() -> None:
        start.wait()
        try:
            for owned in all_owned:
                owned.close()
                socket.socket().close()
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Counter(told) == Counter(all_owned)


class ClosedByOne(socket.socket):
    """Says whether another thread closes it at the same time: then both may close the descriptor."""

    def __init__(self) -> None:
        super().__init__()
        self.closed_twice = False
        self._closing = threading.Lock()
        self._another = threading.Event()

    def close(self) -> None:
        if self._closing.acquire(blocking=False):
            self.closed_twice = self._another.wait(0.05)
            super().close()
            self._closing.release()
        else:
            self._another.set()


def test_threads_that_close_one_do_so_one_after_the_other(port: CompletionPort, log: Log) -> None:
    sock = ClosedByOne()
    owned = OwnedSocket(port, sock, log.on_ready, log.on_release)
    threads = [threading.Thread(target=owned.close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not sock.closed_twice
    assert log.released == [owned]


class Hammered:
    """One connection of the race test; it sees any second user, any second release, any use after release."""

    def __init__(self, port: CompletionPort, ours: socket.socket, peer: socket.socket) -> None:
        self.owned = OwnedSocket(port, ours, self.on_ready, self.on_release)
        self.peer = peer
        self.users = threading.Lock()
        self.released = threading.Event()
        self.faults: list[str] = []

    def on_ready(self, owned: OwnedSocket, events: Event) -> None:
        if not self.users.acquire(blocking=False):
            self.faults.append("two threads at a time")
            return
        try:
            if self.released.is_set():
                self.faults.append("used after its release")
            try:
                if not owned.socket.recv(1):
                    owned.close()
            except BlockingIOError:
                pass
            except OSError as error:
                self.faults.append(f"another's descriptor? {error}")
        finally:
            self.users.release()

    def on_release(self, owned: OwnedSocket) -> None:
        if not self.users.acquire(blocking=False):
            self.faults.append("released while used")
            return
        if self.released.is_set():
            self.faults.append("released twice")
        self.released.set()
        self.users.release()


def test_threads_that_close_and_watch_while_others_dequeue(port: CompletionPort) -> None:
    faults: list[str] = []
    stopping = threading.Event()

    def dequeue_all() -> None:
        while not stopping.is_set():
            for notification in port.process(timeout=None, max_notifications=3):
                if isinstance(notification.key, OwnedSocket):
                    notification.key.deliver(notification)
        port.post(0)  # wakes the next

    def make_and_close(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            hammered = Hammered(port, *socket.socketpair())
            hammered.owned.register()
            for _ in range(chance.randrange(4)):
                hammered.peer.send(b"data")
                if chance.random() < 0.3:
                    hammered.owned.watch(Event.IN | Event.HANGUP)
            if chance.random() < 0.5:
                hammered.owned.close()
            hammered.peer.close()  # ends those that we have not closed
            if not hammered.released.wait(WAIT):
                hammered.faults.append(f"never released: {hammered.owned!r}")
            faults.extend(hammered.faults)

    workers = [threading.Thread(target=dequeue_all) for _ in range(4)]
    makers = [threading.Thread(target=make_and_close, args=[seed]) for seed in range(4)]
    for thread in workers + makers:
        thread.start()
    for thread in makers:
        thread.join()
    stopping.set()
    port.post(0)
    for thread in workers:
        thread.join()
    assert faults == []
