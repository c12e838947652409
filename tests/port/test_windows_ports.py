"""What only the ports of Windows must get right: memory that the kernel writes to, interrupts, layered sockets."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort, Event, Operation, Registration, Trigger
from notifyloop.port.abi import REGISTRATION
from notifyloop.port.registration import REGISTERED

if sys.platform == "win32":
    from notifyloop.port import afd, afd_poll, iocp
    from notifyloop.port.provider import provider

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from conftest import Network, Pair

WAIT_TIMEOUT = 258
PERSISTENT = Trigger.LEVEL | Trigger.PERSISTENT

pytestmark = pytest.mark.only("windows", reason="about the ports of Windows")
polls = pytest.mark.only("afd", reason="only this provider polls")


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, stdin=subprocess.DEVNULL, timeout=60)


class TestMemoryInFlight:
    def test_the_interpreter_may_end_with_everything_registered(self) -> None:
        run("""
            import socket
            from notifyloop.port import CompletionPort, Registration

            port = CompletionPort()
            pairs = [socket.socketpair() for _ in range(100)]
            for ends in pairs:
                for end in ends:
                    port.enable(Registration(end))
            for ours, theirs in pairs[:50]:
                theirs.send(b"x")
        """)

    def test_and_while_other_threads_wait(self) -> None:
        run("""
            import socket, threading
            from notifyloop.port import CompletionPort, Registration

            port = CompletionPort()
            ours, theirs = socket.socketpair()
            port.enable(Registration(ours))
            for _ in range(4):
                threading.Thread(target=port.process, kwargs={"timeout": None}, daemon=True).start()
            while port.counters().waits < 4:
                pass
        """)

    @polls
    def test_belongs_to_the_kernel_until_its_packet_was_dequeued(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0])
        port.enable(registration)
        [poll] = port._handle.polls.values()
        port.remove(registration)
        assert list(port._handle.polls.values()) == [poll]
        assert poll not in afd_poll.unused_polls
        assert [notification.events for notification in port.process(timeout=10)] == [Event.REMOVE]
        assert port.process() == []
        assert not port._handle.polls
        assert poll in afd_poll.unused_polls

    @polls
    def test_closing_the_port_gets_all_of_it_back(self, network: Network) -> None:
        port = CompletionPort()
        for _ in range(300):
            port.enable(Registration(network.udp()))
        handle = port._handle
        mine = set(handle.polls.values())
        assert len(mine) == 300
        assert len(handle.helpers) == 3
        port.close()
        assert not handle.polls
        assert mine <= set(afd_poll.unused_polls)

    @polls
    def test_new_helpers_come_only_when_all_are_full(self, port: CompletionPort, network: Network) -> None:
        registrations = [Registration(network.udp()) for _ in range(300)]
        for _ in range(3):
            for registration in registrations:
                port.enable(registration)
            for registration in registrations:
                port.remove(registration)
            while port._handle.polls:
                port.process(timeout=10)
        assert [helper.in_flight for helper in port._handle.helpers] == [0, 0, 0]
        assert sorted(map(id, port._handle.with_room)) == sorted(map(id, port._handle.helpers))

    @polls
    def test_a_poll_outlives_the_thread_that_sent_it(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0])
        thread = threading.Thread(target=port.enable, args=[registration])
        thread.start()
        thread.join()
        assert port.process() == []
        pair[1].send(b"x")
        assert [notification.registration for notification in port.process(timeout=10)] == [registration]


class TestInterrupts:
    """An interrupt that comes when packets have been dequeued must not lose them."""

    @pytest.fixture
    def interrupt(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        """Has the next wait raise KeyboardInterrupt when it is over."""

        def raising(call: Callable[..., int]) -> Callable[..., int]:
            def interrupted(*arguments: Any) -> int:
                monkeypatch.undo()
                call(*arguments)
                raise KeyboardInterrupt

            return interrupted

        class Kernel32:
            def __getattr__(self, name: str) -> Any:
                return getattr(iocp.kernel32, name)

        def arrange() -> None:
            if provider.name == "winsock":
                from notifyloop.port import winsock  # noqa: PLC0415

                native = winsock.ProcessSocketNotifications
                monkeypatch.setattr(winsock, "ProcessSocketNotifications", raising(native))
            else:
                kernel32 = Kernel32()
                kernel32.GetQueuedCompletionStatusEx = raising(iocp.kernel32.GetQueuedCompletionStatusEx)
                monkeypatch.setattr(afd, "kernel32", kernel32)

        return arrange

    def test_nothing_is_lost(self, port: CompletionPort, pair: Pair, interrupt: Callable[[], None]) -> None:
        registration = Registration(pair[0], "socket", Event.OUT)
        port.enable(registration)
        port.post(1, 2)
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            port.process(timeout=10)
        found = port.process(timeout=10)
        while len(found) < 2:
            found += port.process(timeout=10)
        assert {(notification.key, notification.value) for notification in found} == {("socket", Event.OUT), (1, 2)}
        assert port.process() == []
        port.enable(registration)
        assert [notification.key for notification in port.process(timeout=10)] == ["socket"]

    def test_nor_by_a_loop(self, port: CompletionPort, pair: Pair, interrupt: Callable[[], None]) -> None:
        """The next call has what the interrupted one had dequeued, and the one after arms what that has disarmed."""
        batch = port.batch()
        key = REGISTERED | 5 << 8
        order = REGISTRATION.pack(pair[0].fileno(), key, Event.IN, Operation.ENABLE, Trigger.LEVEL | Trigger.ONESHOT, 0)
        assert batch.turn(order, 0) == ()
        for _ in range(3):
            pair[1].send(b"x")
            port.post(1, 2)
            interrupt()
            with pytest.raises(KeyboardInterrupt):
                batch.turn(None, -1)
            assert batch.count == 0
            words = batch.turn(None, -1)
            while len(words) < 2:
                words += batch.turn(None, -1)
            assert sorted(words) == [5, 2 << 32 | 1]
            pair[0].recv(1)
            assert batch.turn(None, 0) == ()


class TestPersistent:
    @polls
    def test_is_polled_again_with_the_next_wait(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.OUT, trigger=PERSISTENT)
        port.enable(registration)
        for turn in range(1, 4):
            assert len(port.process(timeout=10)) == 1
            assert port.counters().kernel_changes == turn

    @polls
    def test_is_not_polled_when_it_was_disabled_meanwhile(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.OUT, trigger=PERSISTENT)
        port.enable(registration)
        assert len(port.process(timeout=10)) == 1
        port.disable(registration)
        assert port.process() == []
        assert port.counters().kernel_changes == 1


@pytest.mark.only("winsock", reason="only this provider makes the native call")
class TestNativeCall:
    """What is passed to it, and what is made of its results."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Filled with what the call returns and the result of its last registration; then with what it was given."""
        from notifyloop.port import winsock  # noqa: PLC0415

        calls: list[Any] = []

        def call(
            handle: Any, count: int, registrations: Any, timeout: int, room: int, entries: Any, received: Any
        ) -> int:
            assert bool(registrations) == bool(count)
            assert bool(entries) == bool(received) == bool(room)
            code, result = calls.pop(0)
            calls.append((count, timeout, room))
            if count:
                registrations[count - 1].registrationResult = result
            return int(code)

        monkeypatch.setattr(winsock, "ProcessSocketNotifications", call)
        return calls

    def test_only_waiting(self, port: CompletionPort, calls: list[Any]) -> None:
        for timeout, milliseconds in ((0, 0), (0.0015, 2), (None, 0xFFFFFFFF)):
            calls[:] = [(WAIT_TIMEOUT, 0)]
            assert port.process(timeout=timeout, max_notifications=5) == []
            assert calls == [(0, milliseconds, 5)]

    def test_only_registering(self, port: CompletionPort, pair: Pair, calls: list[Any]) -> None:
        calls[:] = [(0, 0)]
        port.process([Registration(pair[0]), Registration(pair[1])], timeout=5, max_notifications=0)
        assert calls == [(2, 0, 0)]

    @pytest.mark.parametrize("code", [WAIT_TIMEOUT, 1460])
    def test_both_codes_of_a_timeout_still_bring_results(
        self, port: CompletionPort, pair: Pair, calls: list[Any], code: int
    ) -> None:
        calls[:] = [(code, 10038)]
        good, bad = Registration(pair[0]), Registration(pair[1])
        assert port.process([good, bad]) == []
        assert (good.result, bad.result) == (0, 10038)
        assert port.counters().registrations == 1

    @pytest.mark.parametrize(
        ("code", "exception"), [(8, MemoryError), (10022, OSError), (87, OSError), (6, ValueError), (735, ValueError)]
    )
    def test_where_it_fails_nothing_was_changed(
        self, port: CompletionPort, pair: Pair, calls: list[Any], code: int, exception: type[Exception]
    ) -> None:
        calls[:] = [(code, 1168)]
        registration = Registration(pair[0])
        with pytest.raises(exception):
            port.process([registration])
        assert registration.result == 0
        counters = port.counters()
        assert (counters.registrations, counters.notifications) == (0, 0)


@pytest.mark.parametrize(
    ("ns", "ms"),
    [(-1, 0xFFFFFFFF), (0, 0), (1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2), (2**62, 0xFFFFFFFE)],
)
def test_timeouts_are_rounded_up(ns: int, ms: int) -> None:
    assert iocp.milliseconds(ns) == ms


class TestLayeredSockets:
    """Programs for virtual networks and filters put layers over Winsock; only what is below them can be polled."""

    @pytest.fixture
    def layers(self, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], int]:
        """What the layers answer, by socket and question."""
        answers: dict[tuple[int, int], int] = {}
        monkeypatch.setattr(afd_poll, "asked_of", lambda sock, code: answers.get((sock, code)))
        monkeypatch.setattr(afd_poll, "is_socket", lambda sock: True)
        return answers

    def test_the_base_is_asked_for(self, layers: dict[tuple[int, int], int]) -> None:
        layers[8, afd_poll.SIO_BASE_HANDLE] = 4
        assert afd_poll.base_socket(8) == 4

    def test_a_layer_that_hides_it_tells_what_it_would_poll(self, layers: dict[tuple[int, int], int]) -> None:
        layers[12, afd_poll.SIO_BSP_HANDLE_POLL] = 8
        layers[8, afd_poll.SIO_BSP_HANDLE_POLL] = 4
        layers[4, afd_poll.SIO_BASE_HANDLE] = 4
        assert afd_poll.base_socket(12) == 4

    @pytest.mark.parametrize("below", [None, 8])
    def test_or_the_socket_is_refused(self, layers: dict[tuple[int, int], int], below: int | None) -> None:
        if below is not None:
            layers[8, afd_poll.SIO_BSP_HANDLE_POLL] = below
        with pytest.raises(afd_poll.RefusalError):
            afd_poll.base_socket(8)
