"""Nothing that the port's API can be given crashes the interpreter, or leaves a port that does not work: arguments of
any kind, calls within calls, other threads. What is refused is refused before anything is changed.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import socket
import struct
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notifyloop.port import CompletionPort, Event, Operation, OwnedSocket, Registration, Trigger
from notifyloop.port.abi import ENTRY, REGISTRATION
from notifyloop.port.batch import Batch
from notifyloop.port.registration import FORGET, REGISTERED, next_generation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Network, Pair

EXAMPLES = int(os.environ.get("NOTIFYLOOP_MODEL_EXAMPLES", "300"))
SECOND = 10**9

# What a caller may get for arguments that make no sense. Anything else, as the end of the interpreter, is a fault.
REFUSALS = (TypeError, ValueError, ArithmeticError, OSError, MemoryError, AttributeError, struct.error)

numbers = st.one_of(
    st.integers(-2, 600),
    st.sampled_from([sign * (2**bits + more) for bits in (31, 32, 62, 63, 64) for more in (-1, 0) for sign in (1, -1)]),
    st.integers(),
)
anything = st.one_of(
    numbers,
    st.floats(),
    st.sampled_from([math.inf, -math.inf, math.nan, 1e300, -1e-300, 10**400]),
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.binary(max_size=50),
    st.binary(max_size=50).map(bytearray),
    st.binary(max_size=50).map(memoryview),
    st.fractions().map(Fraction),
    st.decimals().map(Decimal),
    st.sampled_from([Event.IN, Operation.REMOVE, Trigger.EDGE, object(), [], {}, (), print]),
)
operations = st.sampled_from([*Operation, FORGET, 3, 255])
triggers = st.integers(0, 255) | st.sampled_from([5, 6, 9, 10])
hostile = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def descriptors(network: Network) -> list[int]:
    """What can be registered, what cannot, and what is not open."""
    sockets = [network.udp() for _ in range(4)] + [network.tcp()]
    return [*(sock.fileno() for sock in sockets), 0, 1_000_000, 2**31 - 1, 2**31, 2**64 - 1]


def orders(descriptors: list[int]) -> st.SearchStrategy[bytes]:
    order = st.builds(
        REGISTRATION.pack,
        st.sampled_from(descriptors),
        st.integers(REGISTERED, REGISTERED + 3) | st.integers(0, 2**64 - 1),
        st.integers(0, 8) | st.integers(0, 2**16 - 1),
        operations,
        triggers,
        st.just(0),
    )
    return st.lists(order, max_size=80).map(b"".join)


def works(port: CompletionPort) -> None:
    """The port does what it is for, whatever it was told before."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        registration = Registration(ours, "ours")
        port.post(12345, 6)
        port.enable(registration)
        missing = {"ours", 12345}
        while missing:
            missing -= {str_or_int(note.key) for note in port.process(timeout=10, max_notifications=512)}
        port.remove(registration)
        while not any(note.registration is registration for note in port.process(timeout=10)):
            pass


def str_or_int(key: object) -> object:
    """A key may be anything, and need not be hashable."""
    return key if isinstance(key, (str, int)) else None


@contextlib.contextmanager
def refused_or_not() -> Iterator[None]:
    with contextlib.suppress(*REFUSALS):
        yield


class TestArguments:
    """A packet is always there, so no call waits for ever."""

    @hostile
    @given(timeout=anything, room=anything, registrations=anything | st.lists(anything, max_size=3))
    def test_process(self, port: CompletionPort, timeout: object, room: object, registrations: object) -> None:
        port.post(1)
        with refused_or_not():
            port.process(registrations, timeout, room)  # type: ignore[arg-type]
        works(port)

    @hostile
    @given(data=st.data())
    def test_registrations(self, port: CompletionPort, network: Network, data: st.DataObject) -> None:
        changes = []
        for _ in range(data.draw(st.integers(1, 3))):
            registration = Registration(network.udp(), data.draw(anything))
            for name in ("socket", "events", "operation", "trigger", "generation"):
                if data.draw(st.booleans()):
                    setattr(registration, name, data.draw(anything))
            changes.append(registration)
        port.post(1)
        with refused_or_not():
            port.process(changes, timeout=0)
        for registration in changes:
            with refused_or_not():
                port.remove(registration)
        works(port)

    @hostile
    @given(call=st.sampled_from(["post", "associate"]), key=anything, value=anything)
    def test_post_and_associate(self, port: CompletionPort, call: str, key: object, value: object) -> None:
        with refused_or_not():
            getattr(port, call)(key, value)
        works(port)

    @hostile
    @given(capacity=anything)
    def test_capacity(self, port: CompletionPort, capacity: object) -> None:
        with refused_or_not():
            port.post(1)
            batch = port.batch(capacity)  # type: ignore[arg-type]
            assert 1 <= capacity <= 512  # type: ignore[operator]
            assert len(batch.turn(None, 10 * SECOND)) == 1
        works(port)

    @hostile
    @given(packed=anything, timeout=anything, room=anything)
    def test_exchange(self, port: CompletionPort, packed: object, timeout: object, room: object) -> None:
        batch = port.batch(16)
        port.post(1)
        with refused_or_not():
            assert batch.exchange(packed, timeout, room) <= 16  # type: ignore[arg-type]
        works(port)

    @hostile
    @given(packed=anything, timeout=anything)
    def test_turn(self, port: CompletionPort, packed: object, timeout: object) -> None:
        batch = port.batch(16)
        port.post(1)
        with refused_or_not():
            batch.turn(packed, timeout)  # type: ignore[arg-type]
        port.post(1)
        assert batch.turn(None, 10 * SECOND)  # it knows its timeout again
        works(port)

    @hostile
    @given(descriptor=anything, key=anything, count=anything)
    def test_the_rest_of_a_batch(self, port: CompletionPort, descriptor: object, key: object, count: object) -> None:
        batch = port.batch(4)
        with refused_or_not():
            batch.forget(descriptor, key)  # type: ignore[arg-type]
        with refused_or_not():
            batch.order(descriptor)  # type: ignore[arg-type]
        with refused_or_not():
            batch.pairs(count)  # type: ignore[arg-type]
        works(port)

    @hostile
    @given(sock=anything, events=anything, callbacks=anything)
    def test_an_owned_socket(
        self, port: CompletionPort, network: Network, sock: object, events: object, callbacks: object
    ) -> None:
        with refused_or_not():
            OwnedSocket(port, sock, callbacks)  # type: ignore[arg-type]
        owned = OwnedSocket(port, network.udp(), callbacks, events=events)  # type: ignore[arg-type]
        with refused_or_not():
            owned.register()
        with refused_or_not():
            owned.watch(events)  # type: ignore[arg-type]
        owned.close()
        works(port)

    def test_more_room_than_there_is(self, port: CompletionPort) -> None:
        batch = port.batch(16)
        for key in range(40):
            port.post(key)
        with pytest.raises(ValueError, match="room must be from 0 to 16, not 40"):
            batch.exchange(b"", 0, 40)
        assert batch.exchange(b"", 0, 16) == 16
        assert [key for key, _ in batch.pairs(16)] == list(range(16))

    @pytest.mark.parametrize("capacity", [0, -1, 513, 10**12, 10**30])
    def test_no_such_capacity(self, port: CompletionPort, capacity: int) -> None:
        with pytest.raises(ValueError, match=f"capacity must be from 1 to 512, not {capacity}"):
            port.batch(capacity)

    @pytest.mark.parametrize("packed", [b"x", bytes(23), bytes(25), bytearray(1)])
    def test_no_registrations(self, port: CompletionPort, packed: bytes) -> None:
        batch = port.batch()
        for call in (lambda: batch.exchange(packed, 0, 0), lambda: batch.turn(packed, 0), lambda: batch.order(packed)):
            with pytest.raises(ValueError, match="packed registrations have"):
                call()
        assert batch.turn(None, 0) == ()
        assert port.counters().registrations == 0

    def test_bytes_that_lie_about_their_length(self, port: CompletionPort, network: Network) -> None:
        class Liar(bytes):
            def __len__(self) -> int:
                return 1000 * REGISTRATION.size

        batch = port.batch()
        lie = Liar(REGISTRATION.pack(network.udp().fileno(), REGISTERED | 1, Event.OUT, Operation.ENABLE, 5, 0))
        assert batch.exchange(lie, 10 * SECOND, 8) == 1
        with pytest.raises(ValueError, match="memoryview assignment"):
            batch.turn(lie, 0)
        assert batch.turn(None, 0) == ()

    @pytest.mark.parametrize("timeout", [10**30, 2**63, 2**63 - 1, -(10**30), -(2**63) - 1])
    def test_timeouts_beyond_what_c_can_count(self, port: CompletionPort, timeout: int) -> None:
        batch = port.batch()
        for wait in (lambda: batch.turn(None, timeout), lambda: batch.exchange(b"", timeout, 8)):
            timer = threading.Timer(0.01, port.post, [1])
            timer.start()
            assert wait()  # until there is something
            timer.join()
        assert batch.turn(None, 0) == ()

    def test_what_is_refused_orders_nothing(self, port: CompletionPort, pair: Pair) -> None:
        batch = port.batch()
        order = REGISTRATION.pack(pair[0].fileno(), REGISTERED | 1, Event.OUT, Operation.ENABLE, 5, 0)
        for wrong in (lambda: batch.exchange(order, 0, -1), lambda: batch.exchange(order, None, 8)):  # type: ignore[arg-type]
            with pytest.raises((ValueError, TypeError)):
                wrong()
        registration = Registration(pair[0])
        for wrong in (
            lambda: port.process([registration], timeout="x"),  # type: ignore[arg-type]
            lambda: port.process([registration], max_notifications=1.5),  # type: ignore[arg-type]
            lambda: port.process([registration, None]),  # type: ignore[list-item]
        ):
            with pytest.raises((ValueError, TypeError, AttributeError)):
                wrong()
            assert "0 sockets" in repr(port)
        assert port.counters().registrations == 0


class TestOrders:
    @hostile
    @given(data=st.data())
    def test_of_any_kind(self, port: CompletionPort, descriptors: list[int], data: st.DataObject) -> None:
        batch = port.batch(data.draw(st.integers(1, 20)))
        packed = orders(descriptors)
        for _ in range(data.draw(st.integers(1, 5))):
            port.post(1)
            if data.draw(st.booleans()):
                batch.turn(data.draw(packed), 0)
            else:
                batch.exchange(data.draw(packed), 0, data.draw(st.integers(0, 1)))
            if data.draw(st.booleans()):  # the memory may be written to by anybody who likes
                noise = random.Random(data.draw(st.integers(0, 100))).randbytes(len(batch.entries))
                batch.entries[:] = noise
                batch.words[:] = noise[: len(batch.words)]
            if data.draw(st.booleans()):
                batch.count = data.draw(st.integers(-5, 1000))
        removals = [
            REGISTRATION.pack(descriptor, key, 0, Operation.REMOVE, 5, 0)
            for descriptor in descriptors
            for key in range(REGISTERED, REGISTERED + 4)
        ]
        batch.exchange(b"".join(removals), 0, 0)
        works(port)
        port.close()
        port.__init__()  # type: ignore[misc]

    def test_many_that_fail_at_once(self, port: CompletionPort) -> None:
        """There is memory for each failure, also beside those of what is enabled again."""
        batch = port.batch(512)
        sockets = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(512)]
        packed = [
            REGISTRATION.pack(sock.fileno(), REGISTERED | index << 8, Event.OUT, Operation.ENABLE, 5, 0)
            for index, sock in enumerate(sockets)
        ]
        assert len(batch.turn(b"".join(packed), 10 * SECOND)) == 512
        assert len(batch.turn(None, 10 * SECOND)) == 512
        for sock in sockets:
            sock.close()
        wrong = [REGISTRATION.pack(1_000_000 + index, index, 0, Operation.ENABLE, 5, 0) for index in range(3000)]
        batch.turn(b"".join(wrong), 0)
        assert len(batch.failures) >= 3000
        works(port)


class TestCallsWithinCalls:
    @pytest.mark.only("plain", reason="compiled code has no lines at which an interrupt could come in")
    @pytest.mark.parametrize("order", [b"", bytes(REGISTRATION.size), bytes(REGISTRATION.size * 100)])
    def test_a_turn_within_a_turn(self, port: CompletionPort, order: bytes) -> None:
        """As a signal handler or a finalizer may do. It is not said what each of them gets."""
        batch = port.batch()
        calls = 0

        def interrupt(frame: object, event: str, argument: object) -> object:
            nonlocal calls
            if frame.f_code.co_filename == Batch.turn.__code__.co_filename:  # type: ignore[attr-defined]
                sys.settrace(None)
                port.post(1)
                batch.turn(order, 0)
                batch.exchange(order, 0, 1)
                calls += 1
                sys.settrace(interrupt)
            return interrupt

        trace = sys.gettrace()
        sys.settrace(interrupt)
        try:
            batch.turn(order, 0)
        finally:
            sys.settrace(trace)
        assert calls > 3
        works(port)

    def test_registrations_that_use_the_port_as_they_are_listed(self, port: CompletionPort, network: Network) -> None:
        def listed() -> Iterator[Registration]:
            inner = Registration(network.udp(), "inner", Event.OUT)
            assert [note.key for note in port.process([inner], timeout=10)] == ["inner"]
            yield Registration(network.udp(), "outer", Event.OUT)

        assert [note.key for note in port.process(listed(), timeout=10)] == ["outer"]

        def closing() -> Iterator[Registration]:
            port.close()
            yield Registration(network.udp())

        with pytest.raises(ValueError, match="closed"):
            port.process(closing())

    def test_a_descriptor_that_uses_the_port(self, port: CompletionPort, network: Network) -> None:
        class Odd:
            def fileno(self) -> int:
                port.post(1)
                return network.udp().fileno()

        assert len(port.process([Registration(Odd(), "odd", Event.OUT)], timeout=10)) == 2

    def test_a_key_that_closes_the_port_when_it_is_freed(self, network: Network) -> None:
        port = CompletionPort()

        class Last:
            def __del__(self) -> None:
                port.close()

        registration = Registration(network.udp(), Last())
        port.enable(registration)
        port.remove(registration)
        del registration
        port.process(timeout=10)  # the last that refers to it
        assert port.closed

    @pytest.mark.only("linux", reason="there are no timers that send signals")
    def test_a_signal_handler_that_uses_the_port(self, port: CompletionPort, pair: Pair) -> None:
        """A thousand of them, wherever they hit."""
        registration = Registration(pair[0], "ours")
        other = Registration(pair[1], "other", Event.OUT)
        batch = port.batch()
        handled = 0
        keys: list[object] = []

        def handle(number: int, frame: object) -> None:
            nonlocal handled
            handled += 1
            port.post(handled)
            keys.extend(note.key for note in port.process([other], max_notifications=3))
            port.counters()
            if handled < 1000:  # else the last might come when nobody handles it any more
                signal.setitimer(signal.ITIMER_REAL, 0.0001)  # the next comes when this one is done

        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        try:
            while handled < 1000:
                pair[1].send(b"x")
                found = False
                while not found:
                    notes = port.process([registration], timeout=10)
                    keys.extend(note.key for note in notes)
                    found = any(note.registration is registration for note in notes) or "ours" in keys
                keys = [key for key in keys if key != "ours"]
                pair[0].recv(100)
                batch.turn(None, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        works(port)


class TestThreads:
    @pytest.mark.parametrize("call", ["turn", "exchange", "order", "forget"])
    def test_a_batch_that_several_use_at_once(self, port: CompletionPort, network: Network, call: str) -> None:
        """It is one thread's. Who does not heed that gets nonsense, no more."""
        sockets = [network.udp() for _ in range(60)]
        packed = [
            REGISTRATION.pack(sock.fileno(), REGISTERED | index << 8, Event.OUT, Operation.ENABLE, 5, 0)
            for index, sock in enumerate(sockets)
        ]
        batch = port.batch()
        calls: dict[str, Callable[[int], object]] = {
            "turn": lambda index: batch.turn(packed[index], 0),
            "exchange": lambda index: batch.exchange(packed[index] * (index + 1), 0, 64),
            "order": lambda index: batch.order(packed[index]),
            "forget": lambda index: batch.forget(sockets[index].fileno(), REGISTERED | index << 8),
        }

        def use(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(300):
                with contextlib.suppress(ValueError, KeyError, OverflowError, struct.error):
                    calls[chance.choice(["turn", call])](chance.randrange(60))

        threads = [threading.Thread(target=use, args=[seed]) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        works(port)

    def test_closed_by_another_in_the_midst(self, network: Network) -> None:
        sock = network.udp()
        ports: list[CompletionPort] = []

        def use() -> None:
            while (port := ports[-1]) is not None:
                with contextlib.suppress(ValueError):
                    batch = port.batch(8)
                    key = next_generation()
                    packed = REGISTRATION.pack(sock.fileno(), key, Event.OUT, Operation.ENABLE, 5, 0)
                    while True:
                        batch.turn(packed, 0)
                        batch.exchange(packed, 0, 8)
                        batch.forget(sock.fileno(), key)
                        port.process([Registration(sock)])
                        port.counters()

        ports.append(CompletionPort())
        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(200):
            port = CompletionPort()
            ports.append(port)
            ports[-2].close()
        ports.append(None)  # type: ignore[arg-type]
        ports[-2].close()
        for thread in threads:
            thread.join()


def test_a_batch_outlives_its_port(network: Network) -> None:
    port = CompletionPort()
    batch, entries = port.batch(), port.batch(4).entries
    port.close()
    del port
    for call in (lambda: batch.turn(None, -1), lambda: batch.exchange(b"", -1, 8)):
        with pytest.raises(ValueError, match="closed"):
            call()
    batch.forget(network.udp().fileno(), 1)
    assert bytes(entries) == bytes(4 * ENTRY.size)
