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

from notifyloop.port import CompletionPort, Event, Operation, Registration, Trigger
from notifyloop.port.abi import REGISTRATION
from notifyloop.port.registration import FORGET, next_generation

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

    @pytest.mark.only("descriptors", reason="Windows knows a socket by its number alone")
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


@pytest.mark.only("epoll", reason="only epoll goes on reporting what was closed while a duplicate lives")
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

    @pytest.mark.parametrize("told", ["before", "after", "at once"])
    def test_it_comes_back_and_who_closed_it_has_said_so(
        self, port: CompletionPort, network: Network, told: str
    ) -> None:
        """Nobody else could know that it is not registered any more: it is the same file under the same number."""
        batch = port.batch()
        ours, theirs = network.unix_pair()
        descriptor, first, second = ours.fileno(), next_generation(), next_generation()

        def order(key: int, operation: int) -> bytes:
            return REGISTRATION.pack(descriptor, key, Event.IN, operation, ONESHOT, 0)

        batch.exchange(order(first, Operation.ENABLE), 0, 0)
        if told == "before":
            batch.exchange(order(first, FORGET), 0, 0)
        elif told == "at once":
            batch.forget(descriptor, first)
        spare = ours.dup()
        ours.close()
        again = network.adopt(socket.socket(fileno=os.dup2(spare.fileno(), descriptor)))
        spare.close()
        batch.exchange(order(second, Operation.ENABLE), 0, 0)
        if told == "after":
            assert [failed[1] for failed in batch.failures] == [second]  # it is registered, as far as the port knows
            batch.exchange(order(first, FORGET) + order(second, Operation.ENABLE), 0, 0)
        assert batch.failures == []
        theirs.send(b"x")
        assert batch.pairs(batch.exchange(b"", 10**10, 8)) == [(second, Event.IN)]
        assert again.recv(1) == b"x"
        batch.exchange(order(first, FORGET), 0, 0)  # again, and too late: it is another's
        assert batch.failures == []
        theirs.send(b"y")
        batch.exchange(order(second, Operation.ENABLE), 0, 0)
        assert batch.pairs(batch.exchange(b"", 10**10, 8)) == [(second, Event.IN)]

    def test_a_closed_socket_s_successor_is_not_registered_under_its_key(
        self, port: CompletionPort, network: Network
    ) -> None:
        """Its orphan was reported and silenced, so the port knows that it was closed; its owner does not."""
        ours, theirs = network.unix_pair()
        registration = Registration(ours, "closed")
        port.enable(registration)
        descriptor, duplicate = ours.fileno(), os.dup(ours.fileno())
        ours.close()
        theirs.send(b"x")
        assert keys(port) == ["closed"]
        for _ in range(WAITS):
            assert keys(port) == []
        successor = network.reuse(descriptor)
        for operation in (port.enable, port.disable, port.enable, port.remove):
            with pytest.raises(FileNotFoundError, match=f"descriptor {descriptor}"):
                operation(registration)
        network.udp().sendto(b"x", successor.getsockname())
        network.until_readable(successor)
        assert keys(port) == []
        port.enable(Registration(successor, "successor"))
        assert keys(port) == ["successor"]
        os.close(duplicate)

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

    @pytest.mark.parametrize("threads", [1, 3])
    def test_meanwhile_signals_are_handled(self, threads: int) -> None:
        """A call that waits returns, so that Python sees them."""
        program = f"""
            import os, resource, signal, socket, threading
            from notifyloop.port import CompletionPort, Registration, Trigger

            ours, theirs = socket.socketpair()
            port = CompletionPort()
            registration = Registration(ours, "ours", trigger=Trigger.LEVEL | Trigger.PERSISTENT)
            port.enable(registration)
            duplicate = os.dup(ours.fileno())
            ours.close()
            try:
                port.remove(registration)
            except FileNotFoundError:
                pass
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 4096))
            theirs.send(b"x")
            handled = []
            signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))

            def wait():
                packets = []
                while not packets:
                    packets = port.process(timeout=None, max_notifications=1)

            others = [threading.Thread(target=wait) for _ in range({threads - 1})]
            for thread in others:
                thread.start()
            killer = threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGUSR1))
            killer.start()
            while not handled:
                assert port.process(timeout=None) == []
            killer.join()
            assert port.counters().rebuilds == 0
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            while not port.counters().rebuilds:
                assert port.process(timeout=0) == []
            for _ in others:
                port.post(1)
            for thread in others:
                thread.join()
            assert port.process(timeout=0.001) == []
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)

    def test_the_limit_of_descriptors_is_below_the_port_s_own(self) -> None:
        program = """
            import os, resource, socket
            from notifyloop.port import CompletionPort, Registration

            low = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)]
            port = CompletionPort()
            for descriptor in low:
                os.close(descriptor)
            ours, theirs = socket.socketpair()
            port.enable(Registration(ours, "ours"))
            duplicate = os.dup(ours.fileno())
            ours.close()
            theirs.send(b"x")
            assert [notification.key for notification in port.process()] == ["ours"]
            resource.setrlimit(resource.RLIMIT_NOFILE, (20, 4096))
            for _ in range(30):
                assert port.process() == []
            assert port.counters().rebuilds == 1
            waits = port.counters().kernel_waits
            assert port.process(timeout=0.001) == []
            assert port.counters().kernel_waits == waits + 1
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
