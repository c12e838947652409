"""CompletionPort: its calls, its errors, its counters, and what a call costs."""

from __future__ import annotations

import errno
import gc
import math
import os
import socket
import subprocess
import sys
import textwrap
import weakref
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort, Event, Notification, Operation, Registration, Trigger
from notifyloop.port.batch import Batch
from notifyloop.port.provider import provider
from notifyloop.port.registration import REGISTERED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Network, Pair

PERSISTENT = Trigger.LEVEL | Trigger.PERSISTENT


def unused_descriptor() -> int:
    """One that was open a moment ago, and too high to be opened again by accident."""
    sockets = [socket.socket() for _ in range(100)]
    descriptors = [sock.fileno() for sock in sockets]
    for sock in sockets:
        sock.close()
    return max(descriptors)


class TestProcess:
    def test_registers_and_dequeues_in_one_foreign_call(self, port: CompletionPort, pair: Pair) -> None:
        pair[1].send(b"x")
        registration = Registration(pair[0], key="ours")
        before = port.counters()
        assert port.process([registration], timeout=10) == [Notification("ours", Event.IN, registration, Event.IN, 0)]
        after = port.counters()
        assert (after.calls - before.calls, after.waits - before.waits) == (1, 1)

    def test_takes_any_iterable(self, port: CompletionPort, pair: Pair) -> None:
        pair[1].send(b"x")
        assert len(port.process((Registration(end) for end in pair), timeout=10)) == 1

    def test_without_room_it_only_registers(self, port: CompletionPort, pair: Pair) -> None:
        pair[1].send(b"x")
        assert port.process([Registration(pair[0], "ours")], max_notifications=0) == []
        assert [notification.key for notification in port.process(timeout=10)] == ["ours"]

    def test_nothing_to_do(self, port: CompletionPort) -> None:
        assert port.process(max_notifications=0) == []
        assert port.process() == []

    def test_returns_no_more_than_asked_for(self, port: CompletionPort) -> None:
        for key in range(10):
            port.post(key)
        assert [len(port.process(max_notifications=4)) for _ in range(4)] == [4, 4, 2, 0]

    def test_withheld_reports_do_not_hide_a_ready_socket(self, port: CompletionPort, network: Network) -> None:
        ready = Registration(network.udp(), "ready", Event.OUT)
        disabled = [Registration(network.udp(), "disabled", Event.OUT) for _ in range(5)]
        for registration in disabled:
            port.enable(registration)
            port.disable(registration)
        port.enable(ready)
        assert [notification.key for notification in port.process(max_notifications=1)] == ["ready"]

    def test_a_key_may_be_any_object(self, port: CompletionPort, pair: Pair) -> None:
        class Client:
            __hash__ = None  # type: ignore[assignment]

        client = Client()
        [notification] = port.process([Registration(pair[0], client, Event.OUT)], timeout=10)
        assert notification.key is client

    def test_timeouts(self, port: CompletionPort) -> None:
        for timeout in (0, 0.0, 1e-9, 1e-4, 0.002):
            assert port.process(timeout=timeout) == []

    @pytest.mark.parametrize("timeout", [None, 3600, 1e12, 10**400, math.inf])
    def test_long_timeouts_end_with_the_first_notification(self, port: CompletionPort, timeout: float | None) -> None:
        port.post(1)
        assert [notification.key for notification in port.process(timeout=timeout)] == [1]

    def test_a_call_within_a_call_disturbs_neither(self, port: CompletionPort, network: Network) -> None:
        """A finalizer or a signal handler may use the port in the midst of a call of the same thread."""
        ours, theirs = (Registration(network.udp(), name, Event.OUT) for name in ("ours", "theirs"))
        calls = 0

        def interrupt(frame: object, event: str, argument: object) -> object:
            nonlocal calls
            if getattr(frame, "f_code", None) in (Batch.exchange.__code__, CompletionPort.process.__code__):
                sys.settrace(None)
                port.enable(theirs)
                assert [notification.key for notification in port.process(timeout=10)] in (["theirs"], ["theirs", 7])
                calls += 1
                sys.settrace(interrupt)
            return interrupt

        trace = sys.gettrace()
        sys.settrace(interrupt)
        try:
            notifications = port.process([ours], max_notifications=1)
        finally:
            sys.settrace(trace)
        assert calls > 10
        assert ours.result == theirs.result == 0
        notifications = notifications or port.process(timeout=10)
        assert [notification.registration for notification in notifications] == [ours]


class TestOneRegistration:
    def test_enable_disable_enable(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.OUT)
        port.enable(registration)
        port.disable(registration)
        assert port.process() == []
        port.enable(registration)
        assert len(port.process(timeout=10)) == 1

    def test_disable_twice_and_enable_twice(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.OUT)
        for operation in (port.enable, port.enable, port.disable, port.disable, port.enable, port.enable):
            operation(registration)
        assert len(port.process(timeout=10)) == 1
        assert port.process() == []

    def test_remove_brings_the_last_notification(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], "ours", Event.OUT)
        port.enable(registration)
        port.remove(registration)
        assert port.process(timeout=10) == [Notification("ours", Event.REMOVE, registration, Event.REMOVE, 0)]
        assert port.process() == []

    def test_a_removed_registration_can_be_made_again(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], "ours", Event.OUT)
        for _ in range(3):
            port.enable(registration)
            assert [notification.events for notification in port.process(timeout=10)] == [Event.OUT]
            port.remove(registration)
            assert [notification.events for notification in port.process(timeout=10)] == [Event.REMOVE]

    def test_made_again_before_its_removal_was_dequeued(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], "ours", Event.OUT)
        port.enable(registration)
        port.remove(registration)
        port.enable(registration)
        found = Event.NONE
        while not found & Event.OUT:
            for notification in port.process(timeout=10):
                assert notification.registration is registration
                found |= notification.events
        assert found == Event.REMOVE | Event.OUT

    def test_the_port_keeps_the_key_alive_until_removal_was_dequeued(self, port: CompletionPort, pair: Pair) -> None:
        class Client:
            pass

        client = Client()
        alive = weakref.ref(client)
        registration = Registration(pair[0], client)
        port.enable(registration)
        del client
        port.remove(registration)
        del registration
        gc.collect()
        assert alive() is not None
        assert port.process(timeout=10)[0].key is alive()
        gc.collect()
        assert alive() is None

    def test_the_port_forgets_the_keys_of_registrations_that_failed(self, port: CompletionPort) -> None:
        class Client:
            pass

        client = Client()
        alive = weakref.ref(client)
        with pytest.raises(OSError, match="cannot ENABLE"):
            port.enable(Registration(unused_descriptor(), client))
        del client
        gc.collect()
        assert alive() is None


class TestPost:
    def test_packets_are_returned_verbatim_and_in_order(self, port: CompletionPort) -> None:
        packets = [(0, 0), (1, 2**32 - 1), (REGISTERED - 1, 0), (7, 7), (7, 8)]
        for key, value in packets:
            port.post(key, value)
        assert port.process() == [Notification(key, Event.NONE, None, value, 0) for key, value in packets]

    def test_more_than_one_call_dequeues(self, port: CompletionPort) -> None:
        for key in range(5000):
            port.post(key)
        keys: list[int] = []
        while notifications := port.process(max_notifications=512):
            keys += [notification.key for notification in notifications]
        assert keys == list(range(5000))

    def test_neither_packets_nor_sockets_starve(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], "socket", Event.OUT, PERSISTENT)
        port.enable(registration)
        found = set()
        for key in range(4):
            port.post(key)
            port.post(key)
            found |= {notification.key for notification in port.process(max_notifications=1)}
        assert "socket" in found
        assert 0 in found

    @pytest.mark.parametrize("key", [-1, REGISTERED, 2**64])
    def test_keys_out_of_range(self, port: CompletionPort, key: int) -> None:
        with pytest.raises(ValueError, match=f"key must be from 0 to {REGISTERED - 1}, not {key}"):
            port.post(key)
        assert port.process() == []

    @pytest.mark.parametrize("value", [-1, 2**32])
    def test_values_out_of_range(self, port: CompletionPort, value: int) -> None:
        with pytest.raises(ValueError, match=f"value must be from 0 to 4294967295, not {value}"):
            port.post(1, value)
        assert port.process() == []

    def test_raw_registrations_are_left_to_whoever_made_them(self, port: CompletionPort, pair: Pair) -> None:
        """The key tells whose it is: an integer with the highest bit set is nobody's that this object knows."""
        raw = REGISTERED | 12345
        registration = Registration(pair[0], events=Event.OUT)
        registration.generation = raw
        port.batch().exchange(registration.pack(), 0, 0)
        assert port.process(timeout=10) == [Notification(raw, Event.OUT, None, Event.OUT, 0)]


# Windows does not tell what is no socket from what is nothing.
NO_SOCKET = errno.ENOTSOCK if sys.platform == "win32" else errno.EBADF
NOT_TO_BE_WATCHED = errno.ENOTSOCK if sys.platform == "win32" else errno.EPERM

BAD_DESCRIPTORS: dict[str, Callable[[], int]] = {
    "closed": unused_descriptor,
    "never opened": lambda: 1_000_000,
    "the greatest int": lambda: 2**31 - 1,
    "more than an int": lambda: 2**31,
    "the greatest SOCKET": lambda: 2**64 - 1,
}


knows_sockets = pytest.mark.only("descriptors", reason="nowhere else it is known that a socket is registered already")


class TestBadInput:
    @pytest.mark.parametrize("kind", BAD_DESCRIPTORS)
    def test_descriptors(self, port: CompletionPort, network: Network, kind: str) -> None:
        self.refused(port, network, Registration(BAD_DESCRIPTORS[kind]()), NO_SOCKET)

    def test_a_regular_file(self, port: CompletionPort, network: Network, tmp_path: Path) -> None:
        with (tmp_path / "file").open("wb") as file:
            self.refused(port, network, Registration(file), NOT_TO_BE_WATCHED)

    @knows_sockets
    def test_a_socket_registered_twice(self, port: CompletionPort, network: Network, pair: Pair) -> None:
        first, second = Registration(pair[0], "first", Event.OUT), Registration(pair[0], "second", Event.OUT)
        port.enable(first)
        self.refused(port, network, second, errno.EEXIST)
        port.enable(first)
        assert [notification.key for notification in port.process(timeout=10)] == ["first"]

    @knows_sockets
    def test_a_socket_registered_twice_in_one_batch(self, port: CompletionPort, pair: Pair) -> None:
        first, second = Registration(pair[0], "first", Event.OUT), Registration(pair[0], "second", Event.OUT)
        assert [notification.key for notification in port.process([first, second], timeout=10)] == ["first"]
        assert (first.result, second.result) == (0, errno.EEXIST)
        port.remove(first)
        assert [notification.key for notification in port.process(timeout=10)] == ["first"]

    @knows_sockets
    def test_a_socket_registered_twice_while_the_first_is_disarmed(
        self, port: CompletionPort, network: Network, pair: Pair
    ) -> None:
        first, second = Registration(pair[0], "first", Event.OUT), Registration(pair[0], "second", Event.OUT)
        assert len(port.process([first], timeout=10)) == 1
        assert port.process() == []  # the kernel reported it, which was withheld
        self.refused(port, network, second, errno.EEXIST)
        port.enable(first)
        assert [notification.key for notification in port.process(timeout=10)] == ["first"]

    @pytest.mark.parametrize("operation", ["disable", "remove"])
    def test_what_is_not_registered(self, port: CompletionPort, pair: Pair, operation: str) -> None:
        registration = Registration(pair[0])
        with pytest.raises(
            FileNotFoundError, match=f"{operation.upper()} the .* descriptor {pair[0].fileno()}"
        ) as caught:
            getattr(port, operation)(registration)
        assert caught.value.errno == errno.ENOENT
        assert port.process() == []

    def test_removing_twice(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0])
        port.enable(registration)
        port.remove(registration)
        with pytest.raises(FileNotFoundError, match="cannot REMOVE"):
            port.remove(registration)
        assert [notification.registration for notification in port.process(timeout=10)] == [registration]
        assert port.process() == []

    @pytest.mark.parametrize("trigger", [Trigger(0), Trigger.LEVEL, Trigger.LEVEL | Trigger.EDGE | Trigger.ONESHOT])
    def test_triggers(self, port: CompletionPort, network: Network, pair: Pair, trigger: Trigger) -> None:
        self.refused(port, network, Registration(pair[0], trigger=trigger), errno.EINVAL)

    @pytest.mark.parametrize("events", [Event.ERR, Event.IN | Event.REMOVE])
    def test_filters(self, port: CompletionPort, network: Network, pair: Pair, events: Event) -> None:
        self.refused(port, network, Registration(pair[0], events=events), errno.EINVAL)

    @pytest.mark.only("descriptors", reason="Windows' own call waits all the same")
    def test_a_registration_that_fails_ends_the_wait(self, port: CompletionPort, network: Network) -> None:
        """With what is ready, or with nothing; these calls have no other end."""
        failing = Registration(1_000_000)
        assert port.process([failing], timeout=None) == []
        assert failing.result == errno.EBADF
        ready = Registration(network.udp(), "ready", Event.OUT)
        assert [note.key for note in port.process([failing, ready], timeout=None)] == ["ready"]

    @pytest.mark.parametrize("timeout", [-1, -1e-9, math.nan, -math.inf])
    def test_negative_timeouts(self, port: CompletionPort, pair: Pair, timeout: float) -> None:
        registration = Registration(pair[0], "ours", Event.OUT)
        with pytest.raises(ValueError, match="timeout must be None or not negative, not"):
            port.process([registration], timeout=timeout)
        assert port.process() == []
        assert len(port.process([registration], timeout=10)) == 1

    @pytest.mark.parametrize("count", [-1, 513, 10**10])
    def test_max_notifications(self, port: CompletionPort, pair: Pair, count: int) -> None:
        registration = Registration(pair[0], "ours", Event.OUT)
        with pytest.raises(ValueError, match=f"max_notifications must be from 0 to 512, not {count}"):
            port.process([registration], max_notifications=count)
        assert port.process() == []
        assert len(port.process([registration], timeout=10)) == 1

    def test_a_closed_port(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0])
        port.enable(registration)
        port.close()
        for call in (
            lambda: port.process(),
            lambda: port.process([registration], timeout=None),
            lambda: port.enable(registration),
            lambda: port.disable(registration),
            lambda: port.remove(registration),
            lambda: port.post(1),
            lambda: port.counters(),
            lambda: port.batch(),
        ):
            with pytest.raises(ValueError, match="the completion port is closed"):
                call()

    @staticmethod
    def refused(port: CompletionPort, network: Network, registration: Registration, number: int) -> None:
        """The registration fails with this error; a batch around it goes through, and the port stays usable."""
        what = f"cannot ENABLE the registration of descriptor {registration.socket}"
        with pytest.raises(type(OSError(number, "")), match=what) as caught:
            port.enable(registration)
        assert caught.value.errno == number
        other = Registration(network.udp(), "other", Event.OUT)
        assert "other" in {notification.key for notification in port.process([registration, other], timeout=10)}
        assert (provider.describe(registration.result)[0], other.result) == (number, 0)
        port.remove(other)
        assert "other" in {notification.key for notification in port.process(timeout=10)}


class TestClose:
    def test_a_context_closes(self) -> None:
        with CompletionPort() as port:
            assert not port.closed
        assert port.closed

    def test_closing_twice_is_no_error(self, port: CompletionPort) -> None:
        port.close()
        port.close()

    def test_leaves_sockets_open(self, port: CompletionPort, pair: Pair) -> None:
        port.enable(Registration(pair[0]))
        port.close()
        pair[0].send(b"x")

    def test_frees_keys(self, port: CompletionPort, pair: Pair) -> None:
        class Client:
            pass

        client = Client()
        alive = weakref.ref(client)
        port.enable(Registration(pair[0], client))
        del client
        port.close()
        gc.collect()
        assert alive() is None

    def test_drops_packets(self, port: CompletionPort) -> None:
        port.post(1)
        port.close()
        with CompletionPort() as successor:
            assert successor.process() == []

    @pytest.mark.only("linux", reason="only there are a process's descriptors listed")
    def test_gives_back_its_descriptors(self) -> None:
        before = os.listdir("/proc/self/fd")
        for _ in range(100):
            CompletionPort().close()
        forgotten = [CompletionPort() for _ in range(10)]
        del forgotten
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == len(before)

    def test_many_ports_at_once(self, network: Network) -> None:
        sock = network.udp()
        ports = [CompletionPort() for _ in range(50)]
        for index, port in enumerate(ports):
            port.enable(Registration(sock, index, Event.OUT))
        assert [port.process(timeout=10)[0].key for port in ports] == list(range(50))
        for port in ports:
            port.close()

    @pytest.mark.only("linux", reason="Windows does not run out of handles")
    def test_without_descriptors_left_there_is_no_port(self) -> None:
        program = """
            import errno, os, resource
            from notifyloop.port import CompletionPort
            from notifyloop.port.provider import provider
            CompletionPort().close()  # what is opened once stays open
            used = len(os.listdir("/proc/self/fd")) - 1
            for free in range({"epoll": 2, "kqueue": 1}[provider.name]):
                resource.setrlimit(resource.RLIMIT_NOFILE, (used + free, 4096))
                try:
                    CompletionPort()
                except OSError as error:
                    assert error.errno == errno.EMFILE, error
                    assert str(error) == f"[Errno {errno.EMFILE}] cannot create a completion port: Too many open files"
                else:
                    raise AssertionError("a port needs descriptors")
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            assert len(os.listdir("/proc/self/fd")) - 1 == used
            CompletionPort().close()
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)

    def test_repr(self, port: CompletionPort, pair: Pair) -> None:
        port.enable(Registration(pair[0]))
        assert "1 socket" in repr(port)
        port.close()
        assert "closed" in repr(port)


class TestCounters:
    def test_begin_with_zero(self, port: CompletionPort) -> None:
        counters = port.counters()
        assert {name for name in counters.__slots__ if getattr(counters, name)} == set()

    def test_count_what_happened(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.OUT)
        port.process([registration], timeout=10)
        port.process()
        port.process([registration], timeout=10)
        port.post(1)
        port.process(timeout=10)
        counters = port.counters()
        assert counters.calls == 4
        assert counters.waits == 4
        assert counters.registrations == 1
        assert counters.re_arms == 1
        assert counters.posted == 1
        assert counters.notifications == 3
        assert counters.stale == 0
        assert counters.rebuilds == 0
        assert counters.waiting_ns > 0
        assert counters.busy_ns > 0
        assert counters.busy_longest_ns <= counters.busy_ns

    @pytest.mark.only("epoll", reason="only epoll leaves armed what was reported")
    def test_count_what_was_withheld(self, port: CompletionPort, pair: Pair) -> None:
        port.process([Registration(pair[0], events=Event.OUT)], timeout=10)
        port.process()
        port.process()
        counters = port.counters()
        assert (counters.notifications, counters.withheld) == (1, 1)

    def test_are_each_port_s_own(self, port: CompletionPort) -> None:
        port.post(1)
        with CompletionPort() as other:
            assert other.counters().posted == 0


class TestCost:
    """Counted, not timed."""

    @staticmethod
    def exchange(port: CompletionPort, pair: Pair, messages: int) -> tuple[int, int, int, int]:
        """Foreign calls, waits, changes in the kernel and notifications that so many messages cost."""
        before = port.counters()
        registration = Registration(pair[0], "ours")
        for _ in range(messages):
            pair[1].send(b"x")
            [notification] = port.process([registration], timeout=10)
            assert notification.registration is registration
            assert pair[0].recv(10) == b"x"
        after = port.counters()
        return (
            after.calls - before.calls,
            after.kernel_waits - before.kernel_waits,
            after.kernel_changes - before.kernel_changes,
            after.notifications - before.notifications,
        )

    @pytest.mark.only("descriptors", reason="every re-arm is told to Windows")
    def test_re_arming_does_not_tell_the_kernel(self, port: CompletionPort, pair: Pair) -> None:
        """Or it tells it with the wait, as registering does."""
        changes = 1 if provider.name == "epoll" else 0
        assert self.exchange(port, pair, 1000) == (1000, 1000, changes, 1000)

    def test_does_not_depend_on_how_many_are_registered(self, port: CompletionPort, network: Network) -> None:
        few = self.exchange(port, network.pair(), 100)
        for _ in range(500):
            port.enable(Registration(network.udp()))
        assert self.exchange(port, network.pair(), 100) == few

    def test_a_batch_is_one_call(self, port: CompletionPort, network: Network) -> None:
        registrations = [Registration(network.udp(), events=Event.OUT) for _ in range(100)]
        before = port.counters()
        assert len(port.process(registrations, timeout=10, max_notifications=512)) == 100
        after = port.counters()
        assert (after.calls - before.calls, after.kernel_waits - before.kernel_waits) == (1, 1)

    @pytest.mark.only("descriptors", reason="every enabling is told to Windows")
    def test_disabling_what_does_not_fire_does_not_tell_the_kernel(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0])
        port.enable(registration)
        before = port.counters().kernel_changes
        for _ in range(10):
            port.disable(registration)
            port.enable(registration)
        assert port.counters().kernel_changes == before


def test_operations_may_be_plain_integers(port: CompletionPort, pair: Pair) -> None:
    registration = Registration(pair[0], "ours", Event.OUT)
    registration.operation = 1  # type: ignore[assignment]
    assert [notification.key for notification in port.process([registration], timeout=10)] == ["ours"]
    registration.operation = Operation.REMOVE
    assert [notification.key for notification in port.process([registration], timeout=10)] == ["ours"]
