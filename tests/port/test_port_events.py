"""What is reported in each situation of a socket, with the tolerance that the providers need: a notification must have
some bits, and may have some others.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort, Event, Registration, Trigger
from notifyloop.port.provider import provider

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Network

ONESHOT = Trigger.LEVEL | Trigger.ONESHOT
PERSISTENT = Trigger.LEVEL | Trigger.PERSISTENT
EDGE = Trigger.EDGE | Trigger.PERSISTENT
EDGE_ONESHOT = Trigger.EDGE | Trigger.ONESHOT

NONE, IN, OUT, HANGUP, ERR = Event.NONE, Event.IN, Event.OUT, Event.HANGUP, Event.ERR
ALL = IN | OUT | HANGUP

edges = pytest.mark.only("edges", reason="AFD cannot report edges, so this provider refuses them")
ALL_TRIGGERS = [ONESHOT, PERSISTENT, pytest.param(EDGE, marks=edges), pytest.param(EDGE_ONESHOT, marks=edges)]
both_levels = pytest.mark.parametrize("trigger", [ONESHOT, PERSISTENT])
every_trigger = pytest.mark.parametrize("trigger", ALL_TRIGGERS)


def report(port: CompletionPort, registration: Registration) -> Event:
    """The events of the notification that is there, NONE if there is none."""
    notifications = port.process()
    assert {notification.registration for notification in notifications} <= {registration}
    assert len(notifications) < 2
    return notifications[0].events if notifications else NONE


# A situation: how it comes about (the socket, or descriptor, of interest), and which bits it must and may bring
# where everything is asked for.
SITUATIONS: dict[str, tuple[Callable[[Network], socket.socket | int], Event, Event]] = {}
MARKS: dict[str, list[pytest.MarkDecorator]] = {}

unix_sockets = pytest.mark.only("unix sockets", reason="this Python has no Unix sockets")
linux_pipes = pytest.mark.only("linux", reason="a pipe is no socket, and only Linux watches it like one")


def situation(
    must: Event, may: Event = NONE, *marks: pytest.MarkDecorator
) -> Callable[[Callable[[Network], socket.socket | int]], Callable[[Network], socket.socket | int]]:
    def note(make: Callable[[Network], socket.socket | int]) -> Callable[[Network], socket.socket | int]:
        name = make.__name__.replace("_", " ")
        SITUATIONS[name] = make, must, must | may
        MARKS[name] = list(marks)
        return make

    return note


@situation(NONE)
def fresh_tcp_socket(network: Network) -> socket.socket:
    return network.tcp()


@situation(NONE)
def bound_tcp_socket(network: Network) -> socket.socket:
    sock = network.tcp()
    sock.bind(("127.0.0.1", 0))
    return sock


@situation(OUT, NONE, unix_sockets)
def fresh_unix_socket(network: Network) -> socket.socket:
    return network.adopt(socket.socket(socket.AF_UNIX))


@situation(NONE)
def idle_listener(network: Network) -> socket.socket:
    return network.listener()


@situation(IN)
def listener_with_a_pending_connection(network: Network) -> socket.socket:
    listener = network.listener()
    network.connect(network.tcp(), listener.getsockname())
    network.until_readable(listener)
    return listener


@situation(IN)
def listener_whose_pending_connection_was_reset(network: Network) -> socket.socket:
    listener = network.listener()
    client = network.tcp()
    network.connect(client, listener.getsockname())
    network.until_readable(listener)
    network.reset(client)
    return listener


@situation(OUT)
def connected(network: Network) -> socket.socket:
    return network.pair()[0]


@situation(OUT)
def connected_without_blocking(network: Network) -> socket.socket:
    sock = network.tcp()
    network.connect(sock, network.listener().getsockname())
    network.until_writable(sock)
    return sock


@situation(ERR, HANGUP | IN)
def connection_refused(network: Network) -> socket.socket:
    sock = network.tcp()
    network.connect(sock, network.refusing())
    network.until_writable(sock)
    return sock


@situation(NONE)
def full_send_buffer(network: Network) -> socket.socket:
    ours, _ = network.pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    try:
        while True:
            ours.send(bytes(65536))
    except BlockingIOError:
        return ours


@situation(IN | OUT)
def data(network: Network) -> socket.socket:
    ours, theirs = network.pair()
    theirs.send(b"x")
    network.until_readable(ours)
    return ours


@situation(
    IN | OUT | HANGUP,
    NONE,
    pytest.mark.never("wine", reason="wine reports the end when the data before it has been read"),
)
def data_and_end(network: Network) -> socket.socket:
    ours, theirs = network.pair()
    theirs.send(b"x")
    theirs.shutdown(socket.SHUT_WR)
    network.until_readable(ours)
    return ours


@situation(HANGUP | OUT, IN)
def end(network: Network) -> socket.socket:
    ours, theirs = network.pair()
    theirs.shutdown(socket.SHUT_WR)
    network.until_readable(ours)
    return ours


@situation(HANGUP | OUT, IN)
def end_after_it_was_read(network: Network) -> socket.socket:
    ours = end(network)
    assert isinstance(ours, socket.socket)
    assert ours.recv(1) == b""
    return ours


@situation(ERR, HANGUP | IN)
def reset(network: Network) -> socket.socket:
    ours, theirs = network.pair()
    network.reset(theirs)
    network.until_readable(ours)
    return ours


@situation(ERR, HANGUP | IN)
def sent_to_a_closed_peer(network: Network) -> socket.socket:
    ours, theirs = network.pair()
    theirs.close()
    network.until_readable(ours)
    ours.send(b"x")
    return ours


@situation(NONE, OUT | HANGUP | IN)
def reading_shut_down_here(network: Network) -> socket.socket:
    ours, _ = network.pair()
    ours.shutdown(socket.SHUT_RD)
    return ours


@situation(NONE, OUT)
def writing_shut_down_here(network: Network) -> socket.socket:
    ours, _ = network.pair()
    ours.shutdown(socket.SHUT_WR)
    return ours


@situation(HANGUP, OUT | IN)
def both_directions_shut_down(network: Network) -> socket.socket:
    ours, theirs = network.pair()
    ours.shutdown(socket.SHUT_WR)
    theirs.shutdown(socket.SHUT_WR)
    network.until_readable(ours)
    return ours


@situation(OUT)
def idle_udp_socket(network: Network) -> socket.socket:
    return network.udp()


@situation(IN | OUT)
def datagram(network: Network) -> socket.socket:
    ours = network.udp()
    network.udp().sendto(b"x", ours.getsockname())
    network.until_readable(ours)
    return ours


@situation(IN | OUT)
def empty_datagram(network: Network) -> socket.socket:
    ours = network.udp()
    network.udp().sendto(b"", ours.getsockname())
    network.until_readable(ours)
    return ours


# Windows and kqueue say that there is something to read, which is the error.
@situation(
    ERR if provider.name == "epoll" else IN,
    IN if provider.name == "epoll" else OUT | ERR,
    pytest.mark.never("wine", reason="wine tells nobody that a datagram was refused"),
)
def unreachable_datagram_peer(network: Network) -> socket.socket:
    ours, theirs = network.udp(), network.udp()
    ours.connect(theirs.getsockname())
    theirs.close()
    ours.send(b"x")
    network.until_readable(ours)
    return ours


@situation(OUT)
def out_of_band_data(network: Network) -> socket.socket:
    ours, theirs = network.pair()
    theirs.send(b"x", socket.MSG_OOB)
    return ours


@situation(OUT, NONE, unix_sockets)
def unix_pair(network: Network) -> socket.socket:
    return network.unix_pair()[0]


@situation(IN | OUT, NONE, unix_sockets)
def unix_pair_with_data(network: Network) -> socket.socket:
    ours, theirs = network.unix_pair()
    theirs.send(b"x")
    return ours


@situation(HANGUP, IN | OUT, unix_sockets)
def unix_pair_whose_peer_has_closed(network: Network) -> socket.socket:
    ours, theirs = network.unix_pair()
    theirs.close()
    return ours


@situation(NONE, NONE, linux_pipes)
def empty_pipe(network: Network) -> int:
    return network.pipe()[0]


@situation(IN, NONE, linux_pipes)
def pipe_with_data(network: Network) -> int:
    reading, writing = network.pipe()
    os.write(writing, b"x")
    return reading


@situation(HANGUP, IN, linux_pipes)
def pipe_whose_writer_has_closed(network: Network) -> int:
    reading, writing = network.pipe()
    os.close(writing)
    return reading


@situation(OUT, NONE, linux_pipes)
def writable_pipe(network: Network) -> int:
    return network.pipe()[1]


# kqueue says that it may be written to, which fails, and that it has ended.
@situation(ERR if provider.name == "epoll" else HANGUP, NONE if provider.name == "epoll" else IN | OUT, linux_pipes)
def pipe_whose_reader_has_closed(network: Network) -> int:
    reading, writing = network.pipe()
    os.close(reading)
    return writing


every_situation = pytest.mark.parametrize(
    "situation", [pytest.param(name, marks=marks) for name, marks in MARKS.items()]
)


class TestSituations:
    @both_levels
    @every_situation
    def test_everything_is_asked_for(
        self, port: CompletionPort, network: Network, situation: str, trigger: Trigger
    ) -> None:
        make, must, may = SITUATIONS[situation]
        registration = Registration(make(network), events=ALL, trigger=trigger)
        port.enable(registration)
        found = report(port, registration)
        assert found & must == must
        assert found & ~may == NONE

    @both_levels
    @pytest.mark.parametrize("events", [NONE, IN, OUT, HANGUP, IN | HANGUP, IN | OUT])
    @every_situation
    def test_no_more_than_the_filter_and_errors(
        self, port: CompletionPort, network: Network, situation: str, trigger: Trigger, events: Event
    ) -> None:
        make, must, may = SITUATIONS[situation]
        registration = Registration(make(network), events=events, trigger=trigger)
        port.enable(registration)
        found = report(port, registration)
        if found == ERR and may & HANGUP:
            return  # nobody asked for the hang-up, and nothing else will ever come: called an error
        assert found & must == must & (events | ERR)
        assert found & ~(may & (events | ERR)) == NONE

    @both_levels
    @every_situation
    def test_a_level_stays(self, port: CompletionPort, network: Network, situation: str, trigger: Trigger) -> None:
        make, must, _ = SITUATIONS[situation]
        registration = Registration(make(network), events=ALL, trigger=trigger)
        for _ in range(3):
            port.enable(registration)
            assert report(port, registration) & must == must

    @every_situation
    def test_it_comes_about_while_disabled(self, port: CompletionPort, network: Network, situation: str) -> None:
        make, must, may = SITUATIONS[situation]
        registration = Registration(make(network), events=ALL)
        port.enable(registration)
        port.disable(registration)
        assert report(port, registration) == NONE
        assert report(port, registration) == NONE
        port.enable(registration)
        found = report(port, registration)
        assert found & must == must
        assert found & ~may == NONE

    @every_situation
    def test_what_is_withheld_does_not_keep_the_port_busy(
        self, port: CompletionPort, network: Network, situation: str
    ) -> None:
        make, _, _ = SITUATIONS[situation]
        registration = Registration(make(network), events=ALL)
        port.process([registration])
        port.disable(registration)
        for _ in range(4):
            assert report(port, registration) == NONE
        waits = port.counters().kernel_waits
        assert port.process(timeout=0.001) == []
        assert port.counters().kernel_waits == waits + 1


class TestNotYetConnected:
    """A stream socket that is neither connected nor listening is silent, and needs no second ENABLE later."""

    @every_trigger
    @pytest.mark.parametrize("events", [OUT, IN | OUT, ALL])
    def test_connect(self, port: CompletionPort, network: Network, trigger: Trigger, events: Event) -> None:
        sock = network.tcp()
        registration = Registration(sock, events=events, trigger=trigger)
        port.enable(registration)
        assert report(port, registration) == NONE
        network.connect(sock, network.listener().getsockname())
        network.until_writable(sock)
        assert report(port, registration) == OUT

    @every_trigger
    def test_refused(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        sock = network.tcp()
        registration = Registration(sock, events=ALL, trigger=trigger)
        port.enable(registration)
        assert report(port, registration) == NONE
        network.connect(sock, network.refusing())
        network.until_writable(sock)
        found = report(port, registration)
        assert found & ERR
        assert not found & OUT

    @every_trigger
    def test_listen(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        sock = network.tcp()
        registration = Registration(sock, events=ALL, trigger=trigger)
        port.enable(registration)
        assert report(port, registration) == NONE
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        assert report(port, registration) == NONE
        network.connect(network.tcp(), sock.getsockname())
        network.until_readable(sock)
        assert report(port, registration) == IN

    @both_levels
    def test_is_a_level_once_it_is_connected(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        sock = network.tcp()
        registration = Registration(sock, events=ALL, trigger=trigger)
        port.enable(registration)
        assert report(port, registration) == NONE
        network.connect(sock, network.listener().getsockname())
        network.until_writable(sock)
        for _ in range(3):
            assert report(port, registration) == OUT
            port.enable(registration)

    @both_levels
    def test_enabling_it_again_and_again(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        sock = network.tcp()
        registration = Registration(sock, events=ALL, trigger=trigger)
        for _ in range(5):
            port.enable(registration)
            assert report(port, registration) == NONE
        registration.events = OUT
        port.enable(registration)
        assert report(port, registration) == NONE
        network.connect(sock, network.listener().getsockname())
        network.until_writable(sock)
        assert report(port, registration) == OUT

    @both_levels
    def test_does_not_keep_the_port_busy(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        for _ in range(10):
            port.enable(Registration(network.tcp(), events=ALL, trigger=trigger))
        assert port.process() == []
        assert port.process() == []
        before = port.counters()
        assert port.process(timeout=0.001) == []
        after = port.counters()
        assert after.kernel_waits == before.kernel_waits + 1
        assert after.kernel_changes == before.kernel_changes

    @unix_sockets
    @both_levels
    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM)])
    def test_a_unix_socket_is_writable(
        self, port: CompletionPort, network: Network, trigger: Trigger, kind: socket.SocketKind
    ) -> None:
        """Linux tells nobody that a Unix socket was connected, so OUT must not wait for that."""
        listener = network.adopt(socket.socket(socket.AF_UNIX, kind))
        listener.bind("")  # any abstract address
        listener.listen()
        sock = network.adopt(socket.socket(socket.AF_UNIX, kind))
        registration = Registration(sock, events=ALL, trigger=trigger)
        for _ in range(2):
            port.enable(registration)
            assert report(port, registration) == OUT
        port.enable(registration)
        sock.connect(listener.getsockname())
        assert report(port, registration) == OUT

    @unix_sockets
    @pytest.mark.parametrize("what", ["data", "end"])
    def test_a_unix_socket_is_readable_once_there_is_something_to_read(
        self, port: CompletionPort, network: Network, what: str
    ) -> None:
        listener = network.adopt(socket.socket(socket.AF_UNIX))
        listener.bind("")  # any abstract address
        listener.listen()
        sock = network.adopt(socket.socket(socket.AF_UNIX))
        registration = Registration(sock, events=IN | HANGUP)
        port.enable(registration)
        assert report(port, registration) == NONE
        sock.connect(listener.getsockname())
        peer = network.adopt(listener.accept()[0])
        assert report(port, registration) == NONE
        if what == "data":
            peer.send(b"x")
            assert report(port, registration) == IN
        else:
            peer.close()
            assert report(port, registration) & HANGUP


@pytest.mark.never("edges", reason="this provider has edges")
@pytest.mark.parametrize("trigger", [EDGE, EDGE_ONESHOT])
def test_edges_are_refused_where_they_cannot_be_had(port: CompletionPort, network: Network, trigger: Trigger) -> None:
    ours, theirs = network.pair()
    registration = Registration(ours, trigger=trigger)
    with pytest.raises(OSError, match="cannot ENABLE") as caught:
        port.enable(registration)
    assert caught.value.errno == errno.ENOTSUP
    theirs.send(b"x")
    network.until_readable(ours)
    assert port.process() == []
    registration.trigger = ONESHOT
    port.enable(registration)
    assert report(port, registration) == IN


class TestEdge:
    """A condition that becomes true while enabled is reported once; what was true at ENABLE may be, or may not."""

    @staticmethod
    def settle(port: CompletionPort, registration: Registration) -> None:
        """ENABLE, and forget what was true before."""
        port.enable(registration)
        port.process()
        port.enable(registration)
        port.process()

    @edges
    @pytest.mark.parametrize("trigger", [EDGE, EDGE_ONESHOT])
    def test_data(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        ours, theirs = network.pair()
        registration = Registration(ours, trigger=trigger)
        port.enable(registration)
        assert report(port, registration) == NONE
        for _ in range(5):
            theirs.send(b"x")
            network.until_readable(ours)
            assert report(port, registration) == IN
            assert report(port, registration) == NONE
            assert ours.recv(10) == b"x"
            if trigger == EDGE_ONESHOT:
                port.enable(registration)
                assert report(port, registration) == NONE

    @edges
    def test_what_is_not_drained_is_not_reported_again(self, port: CompletionPort, network: Network) -> None:
        ours, theirs = network.pair()
        registration = Registration(ours, trigger=EDGE)
        port.enable(registration)
        theirs.send(b"xyz")
        network.until_readable(ours)
        assert report(port, registration) == IN
        ours.recv(1)
        for _ in range(3):
            assert report(port, registration) == NONE

    @edges
    def test_datagrams_registered_before_bind(self, port: CompletionPort, network: Network) -> None:
        sock = network.adopt(socket.socket(type=socket.SOCK_DGRAM))
        registration = Registration(sock, trigger=EDGE)
        port.enable(registration)
        sock.bind(("127.0.0.1", 0))
        assert report(port, registration) == NONE
        sender = network.udp()
        for _ in range(3):
            for datagram in (b"1", b"2"):
                sender.sendto(datagram, sock.getsockname())
            network.until_readable(sock)
            assert report(port, registration) == IN
            assert [sock.recv(10), sock.recv(10)] == [b"1", b"2"]
            with pytest.raises(BlockingIOError):
                sock.recv(10)
            assert report(port, registration) == NONE

    @edges
    def test_writable_again(self, port: CompletionPort, network: Network) -> None:
        ours, theirs = network.any_pair()
        registration = Registration(ours, events=OUT, trigger=EDGE)
        self.settle(port, registration)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += ours.send(bytes(4096))
        assert report(port, registration) == NONE
        while sent:
            sent -= len(theirs.recv(65536))
        network.until_writable(ours)
        assert report(port, registration) == OUT

    @edges
    @pytest.mark.parametrize("trigger", [EDGE, EDGE_ONESHOT])
    @pytest.mark.parametrize("how", ["end", "reset"])
    def test_the_end(self, port: CompletionPort, network: Network, trigger: Trigger, how: str) -> None:
        ours, theirs = network.pair()
        registration = Registration(ours, events=IN | HANGUP, trigger=trigger)
        self.settle(port, registration)
        if how == "end":
            theirs.shutdown(socket.SHUT_WR)
        else:
            network.reset(theirs)
        network.until_readable(ours)
        assert report(port, registration) & (HANGUP if how == "end" else ERR)
        assert report(port, registration) == NONE

    @edges
    def test_one_shot_holds_further_edges_back(self, port: CompletionPort, network: Network) -> None:
        ours, theirs = network.pair()
        registration = Registration(ours, trigger=EDGE_ONESHOT)
        port.enable(registration)
        for _ in range(3):
            theirs.send(b"x")
            network.until_readable(ours)
        assert report(port, registration) == IN
        theirs.send(b"y")
        network.until_readable(ours)
        assert report(port, registration) == NONE

    @every_trigger
    def test_nothing_while_disabled(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        ours, theirs = network.pair()
        registration = Registration(ours, trigger=trigger)
        port.enable(registration)
        port.disable(registration)
        theirs.send(b"x")
        network.until_readable(ours)
        assert report(port, registration) == NONE
        assert ours.recv(10) == b"x"
        port.enable(registration)
        report(port, registration)  # on Linux perhaps the edge that was
        port.enable(registration)
        theirs.send(b"y")
        network.until_readable(ours)
        assert report(port, registration) == IN

    @pytest.mark.parametrize("first", ALL_TRIGGERS)
    @pytest.mark.parametrize("second", ALL_TRIGGERS)
    def test_changing_the_trigger(
        self, port: CompletionPort, network: Network, first: Trigger, second: Trigger
    ) -> None:
        ours, theirs = network.pair()
        registration = Registration(ours, trigger=first)
        port.enable(registration)
        theirs.send(b"x")
        network.until_readable(ours)
        assert report(port, registration) == IN
        ours.recv(10)
        registration.trigger = second
        port.enable(registration)
        assert report(port, registration) == NONE
        theirs.send(b"yz")
        network.until_readable(ours)
        assert report(port, registration) == IN
        assert report(port, registration) == (IN if second == PERSISTENT else NONE)
        port.enable(registration)
        if second & Trigger.LEVEL:
            assert report(port, registration) == IN
