"""Sockets that are closed, duplicated, inherited and replaced while they are registered."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import textwrap
import weakref
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort, Event, Registration, Trigger

if TYPE_CHECKING:
    from conftest import Network

ONESHOT = Trigger.LEVEL | Trigger.ONESHOT
PERSISTENT = Trigger.LEVEL | Trigger.PERSISTENT
WAITS = 30  # more than it takes to recognise an orphan


def keys(port: CompletionPort, timeout: float = 0) -> list[object]:
    return [notification.key for notification in port.process(timeout=timeout)]


def make_orphan(port: CompletionPort, network: Network) -> int:
    """A socket that was closed while registered and is still reported, because of the duplicate that is returned."""
    ours, theirs = network.unix_pair()
    registration = Registration(ours, "orphan")
    port.enable(registration)
    duplicate = os.dup(ours.fileno())
    ours.close()
    theirs.send(b"x")
    assert keys(port) == ["orphan"]  # what is on its way when the socket is closed may still come
    return duplicate


class TestChangeOfKey:
    def test_takes_a_removal(self, port: CompletionPort, network: Network) -> None:
        sock = network.udp()
        for key in range(5):
            registration = Registration(sock, key, Event.OUT)
            port.enable(registration)
            assert keys(port) == [key]
            port.remove(registration)
            assert keys(port) == [key]

    def test_and_so_does_a_change_of_port(self, network: Network) -> None:
        sock = network.udp()
        registration = Registration(sock, "ours", Event.OUT)
        for _ in range(3):
            with CompletionPort() as port:
                port.enable(registration)
                assert keys(port) == ["ours"]
                port.remove(registration)
                assert keys(port) == ["ours"]


class TestClosed:
    @pytest.mark.parametrize("trigger", [ONESHOT, PERSISTENT])
    def test_the_key_is_freed_when_the_descriptor_is_registered_again(
        self, port: CompletionPort, network: Network, trigger: Trigger
    ) -> None:
        class Client:
            pass

        client = Client()
        alive = weakref.ref(client)
        sock = network.udp()
        port.enable(Registration(sock, client, trigger=trigger))
        del client
        descriptor = sock.fileno()
        sock.close()
        port.enable(Registration(network.reuse(descriptor), "successor"))
        gc.collect()
        assert alive() is None

    @pytest.mark.only("epoll", reason="Windows knows a socket by its number alone")
    def test_re_arming_a_closed_socket_does_not_register_its_successor(
        self, port: CompletionPort, network: Network
    ) -> None:
        sock = network.udp()
        registration = Registration(sock, "closed", Event.OUT)
        port.enable(registration)
        assert keys(port) == ["closed"]
        assert keys(port) == []  # withheld: the kernel no longer reports it
        descriptor = sock.fileno()
        sock.close()
        successor = network.reuse(descriptor)
        with pytest.raises(OSError, match=f"cannot ENABLE the registration of descriptor {descriptor}"):
            port.enable(registration)
        assert keys(port) == []
        port.enable(Registration(successor, "successor", Event.OUT))
        assert keys(port) == ["successor"]

    def test_the_successor_of_a_disabled_socket(self, port: CompletionPort, network: Network) -> None:
        sock = network.udp()
        registration = Registration(sock, "closed", Event.OUT)
        port.enable(registration)
        port.disable(registration)
        descriptor = sock.fileno()
        sock.close()
        port.enable(Registration(network.reuse(descriptor), "successor", Event.OUT))
        assert keys(port) == ["successor"]


@pytest.mark.only("epoll", reason="epoll watches descriptors, Windows sockets")
class TestDuplicates:
    """epoll goes on reporting a closed descriptor as long as a duplicate of it lives; the port does not."""

    def test_a_surviving_duplicate_does_not_spin(self, port: CompletionPort, network: Network) -> None:
        duplicate = make_orphan(port, network)
        for _ in range(WAITS):
            assert keys(port) == []
        counters = port.counters()
        assert counters.rebuilds == 1
        assert port.process(timeout=0.001) == []
        assert port.counters().kernel_waits == counters.kernel_waits + 1
        os.close(duplicate)

    def test_others_are_not_disturbed(self, port: CompletionPort, network: Network) -> None:
        ours, theirs = network.pair()
        enabled, disabled = Registration(ours, "enabled"), Registration(theirs, "disabled", Event.OUT)
        spent = Registration(network.udp(), "spent", Event.OUT)
        assert len(port.process([enabled, spent])) == 1
        port.enable(disabled)
        port.disable(disabled)
        duplicate = make_orphan(port, network)
        for _ in range(WAITS):
            assert keys(port) == []
        assert port.counters().rebuilds == 1
        theirs.send(b"x")
        network.until_readable(ours)
        assert keys(port) == ["enabled"]
        port.enable(disabled)
        assert keys(port) == ["disabled"]
        port.enable(spent)
        assert keys(port) == ["spent"]
        port.post(5)
        assert keys(port) == [5]
        os.close(duplicate)

    def test_a_reused_descriptor_is_not_registered_by_the_way(self, port: CompletionPort, network: Network) -> None:
        """Building the set anew must not take a file for the one that was registered under its descriptor."""
        sock = network.udp()
        port.enable(Registration(sock, "closed", Event.IN))
        descriptor = sock.fileno()
        sock.close()
        successor = network.reuse(descriptor)
        duplicate = make_orphan(port, network)
        for _ in range(WAITS):
            assert keys(port) == []
        assert port.counters().rebuilds == 1
        network.udp().sendto(b"x", successor.getsockname())
        network.until_readable(successor)
        assert keys(port) == []
        port.enable(Registration(successor, "successor"))
        assert keys(port) == ["successor"]
        os.close(duplicate)

    def test_many_orphans(self, port: CompletionPort, network: Network) -> None:
        duplicates = [make_orphan(port, network) for _ in range(20)]
        for _ in range(WAITS):
            assert keys(port) == []
        assert port.counters().rebuilds > 0
        for duplicate in duplicates:
            os.close(duplicate)

    def test_a_persistent_registration_ends_with_its_removal(self, port: CompletionPort, network: Network) -> None:
        """Nobody has told the port that it was closed: a registration belongs to the open socket, which lives."""
        ours, theirs = network.unix_pair()
        registration = Registration(ours, "ours", trigger=PERSISTENT)
        port.enable(registration)
        duplicate = os.dup(ours.fileno())
        ours.close()
        theirs.send(b"x")
        assert keys(port) == ["ours"]
        with pytest.raises(OSError, match="cannot REMOVE"):
            port.remove(registration)
        for _ in range(WAITS):
            assert keys(port) == []
        assert port.counters().rebuilds == 1
        os.close(duplicate)

    def test_its_descriptor_is_reused(self, port: CompletionPort, network: Network) -> None:
        ours, theirs = network.unix_pair()
        port.enable(Registration(ours, "closed", trigger=PERSISTENT))
        descriptor, duplicate = ours.fileno(), os.dup(ours.fileno())
        ours.close()
        successor = network.reuse(descriptor)
        port.enable(Registration(successor, "successor", trigger=PERSISTENT))
        theirs.send(b"x")
        for _ in range(WAITS):
            assert keys(port) == []
        network.udp().sendto(b"x", successor.getsockname())
        network.until_readable(successor)
        assert keys(port) == ["successor"]
        os.close(duplicate)

    def test_its_descriptor_is_reused_and_asked_about_its_hang_up(self, port: CompletionPort, network: Network) -> None:
        """epoll calls it a hang-up that a socket was never connected. Whether it was, another socket would tell."""
        sock = socket.socket()
        port.enable(Registration(sock, "closed", Event.IN))
        descriptor, duplicate = sock.fileno(), os.dup(sock.fileno())
        sock.close()
        network.reuse(descriptor)
        for _ in range(WAITS):
            assert port.process(max_notifications=1) == []
        assert port.counters().rebuilds == 1
        os.close(duplicate)

    def test_the_duplicate_may_be_registered_beside_it(self, port: CompletionPort, network: Network) -> None:
        ours, theirs = network.unix_pair()
        with ours.dup() as duplicate:
            port.enable(Registration(ours, "ours"))
            port.enable(Registration(duplicate, "duplicate"))
            theirs.send(b"x")
            assert sorted(map(str, keys(port))) == ["duplicate", "ours"]
            ours.close()
            assert keys(port) == []

    def test_the_duplicate_comes_back_under_the_old_descriptor(self, port: CompletionPort, network: Network) -> None:
        ours, theirs = network.unix_pair()
        registration = Registration(ours, "closed")
        port.enable(registration)
        descriptor, duplicate = ours.fileno(), os.dup(ours.fileno())
        ours.close()
        with pytest.raises(OSError, match="cannot REMOVE"):
            port.remove(registration)
        os.dup2(duplicate, descriptor)
        os.close(duplicate)
        with socket.socket(fileno=descriptor) as again:
            port.enable(Registration(again, "again"))
            theirs.send(b"x")
            assert keys(port) == ["again"]

    def test_a_forked_child_holds_the_duplicate(self) -> None:
        program = """
            import os, socket
            from notifyloop.port import CompletionPort, Registration

            ours, theirs = socket.socketpair()
            other, peer = socket.socketpair()
            port = CompletionPort()
            port.enable(Registration(other, "other"))
            port.enable(Registration(ours, "ours"))
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            ours.close()
            theirs.send(b"x")
            assert [notification.key for notification in port.process()] == ["ours"]
            for _ in range(30):
                assert port.process() == []
            counters = port.counters()
            assert counters.rebuilds == 1, counters
            assert port.process(timeout=0.001) == []
            assert port.counters().kernel_waits == counters.kernel_waits + 1
            peer.send(b"x")
            assert [notification.key for notification in port.process()] == ["other"]
            os.close(writing)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            port.close()
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)

    def test_without_descriptors_left_it_is_tried_again(self) -> None:
        program = """
            import os, resource, socket
            from notifyloop.port import CompletionPort, Registration

            ours, theirs = socket.socketpair()
            port = CompletionPort()
            port.enable(Registration(ours, "ours"))
            duplicate = os.dup(ours.fileno())
            ours.close()
            theirs.send(b"x")
            assert [notification.key for notification in port.process()] == ["ours"]
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 4096))
            for _ in range(30):
                assert port.process() == []
            assert port.counters().rebuilds == 0
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            for _ in range(30):
                assert port.process() == []
            assert port.counters().rebuilds == 1
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
