"""An interrupt by the keyboard comes in at every line of the port's Python layer, one after another: nothing that was
ordered is lost or done twice, nothing that arrived is lost, and what Python believes is what the port knows.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import notifyloop.port
from notifyloop.port import CompletionPort, Event, Operation, OwnedSocket, Registration, Trigger
from notifyloop.port.abi import REGISTRATION
from notifyloop.port.batch import Batch
from notifyloop.port.registration import REGISTERED, next_generation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from conftest import Network, Pair
    from notifyloop.port import Notification

pytestmark = pytest.mark.only("plain", reason="compiled code has no lines at which an interrupt could come in")

# What is above the providers, which on Windows are Python as well.
MODULES = {
    str(Path(notifyloop.port.__file__).parent / f"{module}.py")
    for module in ("batch", "completion_port", "foreign", "forks", "ownership", "registration")
}
ONESHOT = Trigger.LEVEL | Trigger.ONESHOT
SECOND = 10**9


def isolated(call: Callable[..., object], arguments: tuple[object, ...]) -> Iterator[object]:
    """CPython counts on it that some lines raise nothing. Where they do, what was being handled stays so; but no longer
    than this generator runs.
    """
    yield call(*arguments)


class Interrupt:
    """Raises KeyboardInterrupt before one of the lines of the port's modules, while a call is made with it."""

    def __init__(self, line: int, within: Callable[..., object] | None = None) -> None:
        self.left = line
        self.within = None if within is None else within.__code__
        self.came = False
        self.at = ""

    def __call__(self, call: Callable[..., object], *arguments: object) -> bool:
        """Make a call. Returns whether it was interrupted."""
        if self.came:
            call(*arguments)
            return False
        before = sys.gettrace()
        gc.disable()  # what comes in between by chance is another matter
        sys.settrace(self._trace)
        try:
            deque(isolated(call, arguments))
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
            gc.enable()
        return False

    def _is_within(self, frame: FrameType | None) -> bool:
        while self.within is not None and frame is not None and frame.f_code is not self.within:
            frame = frame.f_back
        return frame is not None

    def _trace(self, frame: FrameType, event: str, argument: object) -> object:
        if frame.f_code.co_filename not in MODULES:
            return None
        if event == "line" and not self.came and self._is_within(frame):
            self.left -= 1
            if self.left < 0:
                self.came = True
                self.at = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                raise KeyboardInterrupt
        return self._trace


def every_line(scenario: Callable[[Interrupt], None], within: Callable[..., object] | None = None) -> None:
    """Run it with an interrupt before the first line, the second, and so on, until there are no more lines; if `within`
    is given, lines of that function and of what it calls.
    """
    lines = 0
    gc.freeze()  # a scenario may collect, and is to look only at its own objects, not at all the tests'
    try:
        while True:
            interrupt = Interrupt(lines, within)
            scenario(interrupt)
            if not interrupt.came:
                break
            lines += 1
    finally:
        gc.unfreeze()
    assert lines > 5


def order(descriptor: int, key: int, operation: int = Operation.ENABLE, events: Event = Event.IN) -> bytes:
    return REGISTRATION.pack(descriptor, key, events, operation, ONESHOT, 0)


@pytest.fixture
def batch(port: CompletionPort) -> Batch:
    return port.batch()


@pytest.fixture
def ready(pair: Pair) -> int:
    """A descriptor that is readable."""
    pair[1].send(b"x")
    return pair[0].fileno()


class TestTurn:
    def test_an_order_is_applied_once(self, port: CompletionPort, batch: Batch, ready: int) -> None:
        def scenario(interrupt: Interrupt) -> None:
            key = REGISTERED | next_generation() << 32 & REGISTERED - 1 | 5 << 8
            before = port.counters().registrations
            while interrupt(batch.order, order(ready, key)):
                pass  # what raises has ordered nothing
            words: list[int] = []
            while not words:
                interrupt(lambda: words.extend(batch.turn(None, 10 * SECOND)))
            assert words == [5]
            assert port.counters().registrations == before + 1
            # Another removal would fail.
            batch.order(order(ready, key, Operation.REMOVE))
            assert batch.turn(None, 10 * SECOND) == (2**32 | 5 << 8 | Event.REMOVE,)
            assert batch.failures == []

        every_line(scenario)

    def test_orders_of_a_turn_are_applied_by_it_or_not_at_all(self, batch: Batch, ready: int) -> None:
        """Whoever was interrupted may have ordered something else since, and the old order would undo it."""

        def scenario(interrupt: Interrupt) -> None:
            key = REGISTERED | next_generation() << 32 & REGISTERED - 1 | 5 << 8
            batch.exchange(order(ready, key), 0, 0)
            interrupt(batch.turn, order(ready, key, Operation.DISABLE), 0)
            batch.exchange(order(ready, key), 0, 0)
            assert batch.turn(None, 10 * SECOND) == (5,)
            batch.exchange(order(ready, key, Operation.REMOVE), 0, 8)

        every_line(scenario)

    def test_a_removal_is_applied_once(self, batch: Batch, ready: int, network: Network) -> None:
        beside = network.udp()

        def scenario(interrupt: Interrupt) -> None:
            key, other = next_generation(), next_generation()
            batch.turn(order(ready, key) + order(beside.fileno(), other, events=Event.NONE), 0)
            batch.order(order(ready, key, Operation.REMOVE))
            for _ in range(2):
                interrupt(batch.turn, None, 0)
            batch.turn(order(beside.fileno(), other, Operation.REMOVE), 0)
            assert batch.failures == []

        every_line(scenario)

    def test_failures_are_told(self, batch: Batch) -> None:
        def scenario(interrupt: Interrupt) -> None:
            key = next_generation()
            while interrupt(batch.order, order(1_000_000, key)):
                pass
            for _ in range(2):
                interrupt(batch.turn, None, 0)
            assert {failed for _, failed, _ in batch.failures} == {key}
            batch.failures = []
            assert batch.turn(None, 0) == ()
            assert batch.failures == []

        every_line(scenario)

    def test_memory_for_more_orders(self, port: CompletionPort, network: Network) -> None:
        sockets = [network.udp() for _ in range(100)]

        def scenario(interrupt: Interrupt) -> None:
            batch = port.batch()
            keys = [next_generation() for _ in sockets]
            batch.order(order(sockets[0].fileno(), keys[0], events=Event.OUT))
            packed = [order(sock.fileno(), key, events=Event.OUT) for sock, key in zip(sockets, keys, strict=True)]
            while interrupt(batch.order, b"".join(packed[1:])):
                pass
            assert len(batch.turn(None, 10 * SECOND)) == 100
            assert batch.failures == []
            removals = [order(sock.fileno(), key, Operation.REMOVE) for sock, key in zip(sockets, keys, strict=True)]
            assert len(batch.turn(b"".join(removals), 10 * SECOND)) == 100

        every_line(scenario)

    def test_the_timeout_is_the_one_that_was_asked_for(self, port: CompletionPort, batch: Batch) -> None:
        def scenario(interrupt: Interrupt) -> None:
            batch.turn(None, 0)
            port.post(1)
            interrupt(batch.turn, None, -1)
            port.process()
            assert batch.turn(None, 0) == ()  # not for ever

        every_line(scenario)


class TestExchange:
    def test_packets_are_not_lost(self, port: CompletionPort, batch: Batch, ready: int) -> None:
        def scenario(interrupt: Interrupt) -> None:
            key = next_generation()
            batch.exchange(order(ready, key), 0, 0)
            for packet in range(3):
                port.post(packet)
            found: list[tuple[int, int]] = []
            while len(found) < 4:
                interrupt(lambda: found.extend(batch.pairs(batch.exchange(b"", 10 * SECOND, 8))))
            assert [packet for packet, _ in found if packet < 3] == [0, 1, 2]
            assert (key, Event.IN) in found
            batch.exchange(order(ready, key, Operation.REMOVE), 0, 8)

        every_line(scenario, Batch.exchange)  # and not of `pairs`, which has them then


class TestProcess:
    def test_what_python_believes_is_what_the_port_knows(
        self, port: CompletionPort, network: Network, ready: int
    ) -> None:
        class Client:
            pass

        def scenario(interrupt: Interrupt) -> None:
            added = Registration(ready, Client())
            removed = Registration(network.udp(), Client())
            failing = Registration(1_000_000, Client())
            freed = [weakref.ref(registration.key) for registration in (added, removed, failing)]
            port.enable(removed)
            removed.operation = Operation.REMOVE
            port.post(1)
            port.post(2)
            notifications: list[Notification] = []

            changes = [added, removed, failing]
            if interrupt(lambda: notifications.extend(port.process(changes, timeout=10))):
                # Whether it was applied is not said, but what follows fits either.
                if removed.generation in port._live and port._by_socket.get(removed.socket) is removed:
                    port.remove(removed)
                port.enable(added)
            assert failing.generation not in port._live
            while {*notified(notifications)} < {added, removed, None}:
                more = port.process(timeout=10)
                assert more, f"after {interrupt.at}: {notifications}"
                notifications += more
            assert [packet.key for packet in notifications if packet.registration is None] == [1, 2]
            assert [note.events for note in notifications if note.registration is removed] == [Event.REMOVE]
            port.remove(added)
            notifications += port.process(timeout=10)
            assert notifications[-1].registration is added
            assert not port._live
            assert not port._by_socket
            notifications.clear()
            more = []
            changes.clear()
            del added, removed, failing
            gc.collect()
            assert [reference() for reference in freed] == [None] * 3

        every_line(scenario)

    def test_one_registration(self, port: CompletionPort, ready: int) -> None:
        def scenario(interrupt: Interrupt) -> None:
            registration = Registration(ready, "ours")
            for change in (port.enable, port.disable, port.enable):
                while interrupt(change, registration):
                    pass
            assert [note.key for note in port.process(timeout=10)] == ["ours"]
            if interrupt(port.remove, registration) and registration.generation in port._live:
                with suppress(FileNotFoundError):  # it may have been removed already
                    port.remove(registration)
            assert [note.events for note in port.process(timeout=10)] == [Event.REMOVE]
            assert not port._live

        every_line(scenario)


def notified(notifications: list[Notification]) -> Iterator[Registration | None]:
    return (notification.registration for notification in notifications)


class TestOwnedSocket:
    @pytest.mark.parametrize("ends", ["by itself", "by us", "by the port"])
    def test_is_released_once(self, network: Network, ends: str) -> None:
        def scenario(interrupt: Interrupt) -> None:
            port = CompletionPort()
            ours, theirs = network.any_pair()
            theirs.send(b"x")
            released: list[OwnedSocket] = []

            def on_ready(owned: OwnedSocket, events: Event) -> None:
                owned.socket.recv(10)
                if ends == "by itself":
                    owned.close()

            owned = OwnedSocket(port, ours, on_ready, released.append)
            while owned._state.name == "NEW":
                interrupt(owned.register)
            notifications = port.process(timeout=10)
            assert notifications, f"after {interrupt.at}"
            [notification] = notifications
            interrupt(owned.deliver, notification)
            if ends == "by the port":
                port.close()
            # What was interrupted is to be done again, and what was done may be.
            interrupt(owned.close)
            owned.close()
            while not owned.released:
                assert not port.closed
                for last in port.process(timeout=10):
                    if interrupt(owned.deliver, last):
                        owned.deliver(last)
            owned.close()
            assert released == [owned]
            assert ours.fileno() == -1
            port.close()

        every_line(scenario)

    def test_goes_on(self, port: CompletionPort, network: Network) -> None:
        """One that was interrupted while it changed its events is armed, with the old or with the new."""

        def scenario(interrupt: Interrupt) -> None:
            ours, theirs = network.any_pair()
            found: list[Event] = []
            owned = OwnedSocket(port, ours, lambda owned, events: found.append(events))
            owned.register()
            interrupt(owned.watch, Event.IN | Event.OUT)
            theirs.send(b"x")
            while not found or not found[-1] & Event.IN:
                for notification in port.process(timeout=10):
                    owned.deliver(notification)
            owned.close()
            for notification in port.process(timeout=10):
                owned.deliver(notification)
            assert owned.released

        every_line(scenario)
