"""The raw call: bytes in, bytes out, one foreign call each."""

from __future__ import annotations

import errno
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort, Event, Operation, Trigger
from notifyloop.port.abi import ENTRY, FULL_ENTRY, REGISTRATION
from notifyloop.port.provider import provider
from notifyloop.port.registration import REGISTERED, next_generation

if TYPE_CHECKING:
    from conftest import Network, Pair
    from notifyloop.port.batch import Batch

SECOND = 10**9
LEVEL_ONESHOT = Trigger.LEVEL | Trigger.ONESHOT
NO_SOCKET = errno.ENOTSOCK if sys.platform == "win32" else errno.EBADF


def order(sock: socket.socket | int, key: int, events: Event = Event.IN, operation: int = Operation.ENABLE) -> bytes:
    descriptor = sock if isinstance(sock, int) else sock.fileno()
    return REGISTRATION.pack(descriptor, key, events, operation, LEVEL_ONESHOT, 0)


def failures(batch: Batch) -> list[tuple[int, int, int]]:
    """Those of the last call, with an errno in place of the provider's own result."""
    return [(index, key, provider.describe(result)[0]) for index, key, result in batch.failures]


def test_registers_and_dequeues_in_one_foreign_call(port: CompletionPort, pair: Pair) -> None:
    batch = port.batch()
    pair[1].send(b"x")
    key = next_generation()
    before = port.counters().calls
    count = batch.exchange(order(pair[0], key), 10 * SECOND, 8)
    assert port.counters().calls == before + 1
    assert batch.pairs(count) == [(key, Event.IN)]
    [(full_key, _, _, events)] = FULL_ENTRY.iter_unpack(batch.entries[: count * FULL_ENTRY.size])
    assert (full_key, events) == (key, Event.IN)
    assert batch.failures == []


def test_without_room_it_only_registers(port: CompletionPort, pair: Pair) -> None:
    batch = port.batch()
    pair[1].send(b"x")
    assert batch.exchange(order(pair[0], next_generation()), 10 * SECOND, 0) == 0
    assert batch.exchange(b"", 10 * SECOND, 8) == 1


def test_nothing_to_do_is_no_call(port: CompletionPort) -> None:
    before = port.counters().calls
    assert port.batch().exchange(b"", 10 * SECOND, 0) == 0
    assert port.counters().calls == before


def test_a_timeout_dequeues_nothing(port: CompletionPort) -> None:
    batch = port.batch()
    assert batch.exchange(b"", 0, 8) == 0
    assert batch.exchange(b"", 1000, 8) == 0
    assert batch.exchange(b"", 2_000_000, 8) == 0


def test_failures_name_index_key_and_result(port: CompletionPort, pair: Pair) -> None:
    batch = port.batch()
    first, second, third = (next_generation() for _ in range(3))
    unused = socket.socket()
    closed = unused.fileno()
    unused.close()
    pair[1].send(b"x")
    count = batch.exchange(
        order(closed, first) + order(pair[0], second) + order(pair[1], third, operation=Operation.REMOVE),
        10 * SECOND,
        8,
    )
    assert failures(batch) == [(0, first, NO_SOCKET), (2, third, errno.ENOENT)]
    assert batch.pairs(count) == [(second, Event.IN)]


def test_failures_are_those_of_the_last_call(port: CompletionPort) -> None:
    batch = port.batch()
    batch.exchange(order(2**20, next_generation()), 0, 0)
    assert len(batch.failures) == 1
    batch.exchange(b"", 0, 8)
    assert batch.failures == []


def test_none_is_a_slot_without_effect(port: CompletionPort, pair: Pair) -> None:
    batch = port.batch()
    pair[1].send(b"x")
    assert batch.exchange(order(pair[0], 5, operation=Operation.NONE), 0, 8) == 0
    assert batch.failures == []
    assert port.counters().kernel_changes == 0


def test_batches_of_any_length(port: CompletionPort, network: Network) -> None:
    batch = port.batch(512)
    sockets = [network.udp() for _ in range(300)]
    orders = [order(sock, REGISTERED | index, Event.OUT) for index, sock in enumerate(sockets)]
    count = batch.exchange(b"".join(orders), 10 * SECOND, 512)
    assert sorted(batch.pairs(count)) == [(REGISTERED | index, Event.OUT) for index in range(300)]


def test_room_for_one_packet_at_a_time(port: CompletionPort) -> None:
    batch = port.batch(1)
    for key in range(5):
        port.post(key)
    assert [batch.exchange(b"", 0, 1) and batch.pairs(1)[0][0] for _ in range(6)] == [0, 1, 2, 3, 4, 0]


def test_entries_are_a_view_of_the_buffer(port: CompletionPort) -> None:
    batch = port.batch(2)
    assert len(batch.entries) == 2 * ENTRY.size == 2 * FULL_ENTRY.size


def test_keys_are_returned_verbatim(port: CompletionPort, network: Network) -> None:
    batch = port.batch()
    keys = [0, 1, REGISTERED - 1, REGISTERED, 2 * REGISTERED - 1]
    orders = [order(network.udp(), key, Event.OUT) for key in keys]
    count = batch.exchange(b"".join(orders), 10 * SECOND, 8)
    assert sorted(key for key, _ in batch.pairs(count)) == keys


def test_a_closed_port_is_a_value_error(port: CompletionPort, pair: Pair) -> None:
    batch = port.batch()
    port.close()
    with pytest.raises(ValueError, match="the completion port is closed"):
        batch.exchange(b"", 0, 8)
    with pytest.raises(ValueError, match="the completion port is closed"):
        batch.exchange(order(pair[0], 5), 0, 0)
    with pytest.raises(ValueError, match="the completion port is closed"):
        port.batch()


def test_the_buffers_of_a_closed_port_do_not_reach_its_successor(port: CompletionPort, pair: Pair) -> None:
    batch = port.batch()
    port.close()
    with CompletionPort() as successor:
        successor.post(1)
        with pytest.raises(ValueError, match="the completion port is closed"):
            batch.exchange(b"", 0, 8)
        assert [notification.key for notification in successor.process()] == [1]


@pytest.mark.parametrize(
    "trigger",
    [0, Trigger.LEVEL, Trigger.EDGE, Trigger.ONESHOT, Trigger.LEVEL | Trigger.EDGE | Trigger.ONESHOT, 0x0F, 0x14],
)
def test_a_trigger_is_one_of_each_kind(port: CompletionPort, pair: Pair, trigger: int) -> None:
    batch = port.batch()
    batch.exchange(REGISTRATION.pack(pair[0].fileno(), 1, Event.IN, Operation.ENABLE, trigger, 0), 0, 0)
    assert failures(batch) == [(0, 1, errno.EINVAL)]


@pytest.mark.parametrize("operation", [3, 5, 6, 7, 8])
def test_operations_are_no_mask(port: CompletionPort, pair: Pair, operation: int) -> None:
    batch = port.batch()
    batch.exchange(order(pair[0], 1, operation=operation), 0, 0)
    assert failures(batch) == [(0, 1, errno.EINVAL)]


@pytest.mark.parametrize("events", [Event.ERR, Event.REMOVE, Event.IN | Event.ERR, 0x08])
def test_a_filter_takes_in_out_and_hangup(port: CompletionPort, pair: Pair, events: int) -> None:
    batch = port.batch()
    batch.exchange(order(pair[0], 1, events), 0, 0)
    assert failures(batch) == [(0, 1, errno.EINVAL)]


def test_disable_and_remove_need_no_filter_and_no_trigger(port: CompletionPort, pair: Pair) -> None:
    batch = port.batch()
    batch.exchange(order(pair[0], 9), 0, 0)
    count = batch.exchange(
        REGISTRATION.pack(pair[0].fileno(), 9, 0, Operation.DISABLE, 0, 0)
        + REGISTRATION.pack(pair[0].fileno(), 9, 0, Operation.REMOVE, 0, 0),
        10 * SECOND,
        8,
    )
    assert batch.failures == []
    assert batch.pairs(count) == [(9, Event.REMOVE)]


class TestTurn:
    """What an event loop does again and again: go on as before, but for what it orders."""

    KEY: int
    INPUT = 5  # its word
    OTHER = 2**32 | 5 << 8  # with other events

    @pytest.fixture(autouse=True)
    def set_key(self) -> None:
        """Keys come once."""
        self.KEY = REGISTERED | next_generation() << 32 & REGISTERED - 1 | 5 << 8

    def test_a_packet_is_one_number(self, port: CompletionPort, pair: Pair) -> None:
        batch = port.batch()
        port.post(7, 2**32 - 1)
        assert batch.turn(b"", 10 * SECOND) == (2**33 | 7,)
        port.post(REGISTERED - 1, 1)
        assert batch.turn(b"", 10 * SECOND) == (2**33 | 2**32 - 1,)
        pair[1].send(b"x")
        assert batch.turn(order(pair[0], self.KEY), 10 * SECOND) == (self.INPUT,)
        remove = order(pair[0], self.KEY, operation=Operation.REMOVE)
        assert batch.turn(remove, 10 * SECOND) == (self.OTHER | Event.REMOVE,)
        assert batch.turn(b"", 0) == ()

    def test_that_there_will_be_no_more_is_not_told_before_all_is_received(
        self, port: CompletionPort, pair: Pair
    ) -> None:
        batch = port.batch()
        pair[1].send(b"x")
        pair[1].close()
        assert batch.turn(order(pair[0], self.KEY, Event.IN | Event.HANGUP), 10 * SECOND) == (self.INPUT,)
        assert pair[0].recv(100) == b"x"
        assert batch.turn(order(pair[0], self.KEY, Event.HANGUP), 10 * SECOND) == (self.OTHER | Event.HANGUP,)

    def test_what_was_reported_is_enabled_again(self, port: CompletionPort, pair: Pair) -> None:
        batch = port.batch()
        pair[1].send(b"x")
        reported = batch.turn(order(pair[0], self.KEY), 10 * SECOND)
        before = port.counters()
        for _ in range(3):  # nobody reads it, and it is level-triggered
            assert batch.turn(b"", 10 * SECOND) == reported
        after = port.counters()
        assert after.re_arms == before.re_arms + 3
        assert after.registrations == before.registrations == 1
        pair[0].recv(100)
        assert batch.turn(b"", 0) == ()
        pair[1].send(b"x")
        assert batch.turn(b"", 10 * SECOND) == reported

    def test_not_by_other_calls(self, port: CompletionPort, pair: Pair) -> None:
        batch = port.batch()
        pair[1].send(b"x")
        assert batch.turn(order(pair[0], self.KEY), 10 * SECOND)
        assert port.batch().exchange(b"", 0, 8) == 0
        assert batch.exchange(order(pair[1], self.KEY + 256, Event.IN), 0, 0) == 0
        assert batch.turn(b"", 10 * SECOND) == (self.INPUT,)

    @pytest.mark.parametrize("at_once", [False, True])
    def test_what_is_ordered_comes_first(self, port: CompletionPort, pair: Pair, at_once: bool) -> None:
        batch = port.batch()
        pair[1].send(b"x")
        batch.turn(order(pair[0], self.KEY), 10 * SECOND)

        def turn(change: bytes, timeout: int) -> tuple[int, ...]:
            if at_once:
                batch.exchange(change, 0, 0)
            return batch.turn(b"" if at_once else change, timeout)

        more = order(pair[0], self.KEY, Event.IN | Event.OUT)
        assert turn(more, 10 * SECOND) == (self.OTHER | Event.IN | Event.OUT,)
        assert turn(order(pair[0], self.KEY, Event.OUT), 10 * SECOND) == (self.OTHER | Event.OUT,)
        assert turn(order(pair[0], self.KEY, operation=Operation.DISABLE), 0) == ()
        assert turn(b"", 0) == ()
        assert turn(order(pair[0], self.KEY), 10 * SECOND) == (self.INPUT,)
        remove = order(pair[0], self.KEY, operation=Operation.REMOVE)
        assert turn(remove, 10 * SECOND) == (self.OTHER | Event.REMOVE,)
        assert turn(b"", 0) == ()

    @pytest.mark.never("winsock", reason="Windows' own call waits all the same")
    def test_what_fails_ends_the_wait(self, port: CompletionPort, pair: Pair) -> None:
        """These turns have no other end."""
        batch = port.batch()
        assert batch.turn(order(1_000_000, self.KEY), -1) == ()
        assert failures(batch) == [(0, self.KEY, NO_SOCKET)]
        batch.failures = []
        pair[1].send(b"x")
        assert batch.turn(order(1_000_000, self.KEY + 256) + order(pair[0], self.KEY), -1) == (self.INPUT,)
        assert failures(batch) == [(0, self.KEY + 256, NO_SOCKET)]

    @pytest.mark.only("descriptors", reason="on Windows there is nobody to ask whether a socket was closed")
    def test_and_so_does_what_cannot_be_enabled_again(self, port: CompletionPort, pair: Pair) -> None:
        batch = port.batch()
        waiting = threading.Thread(target=lambda: port.process(timeout=None, max_notifications=1))
        waiting.start()
        while not port.counters().waits:
            pass
        batch.exchange(order(pair[0], self.KEY), 0, 0)  # now the kernel is told of each enabling
        port.post(1)
        waiting.join()
        pair[1].send(b"x")
        assert batch.turn(None, 10 * SECOND) == (self.INPUT,)
        pair[0].close()
        assert batch.turn(None, -1) == ()
        assert failures(batch) == [(0, self.KEY, errno.EBADF)]

    @pytest.mark.only("plain", reason="compiled code has no lines at which an interrupt could come in")
    def test_failures_that_an_interrupt_hid_do_not_hold_up_the_next_orders(
        self, port: CompletionPort, pair: Pair
    ) -> None:
        """Whoever ordered believes that they were applied: by the next turn the descriptor may be another file's."""
        batch = port.batch()
        unused = socket.socket()
        closed = unused.fileno()
        unused.close()
        process = batch._process_call

        def interrupted(call: object) -> int:
            process(call)
            raise KeyboardInterrupt

        failing, key = next_generation(), next_generation()
        batch._process_call = interrupted
        with pytest.raises(KeyboardInterrupt):
            batch.turn(order(closed, failing), 0)
        batch._process_call = process
        assert batch.turn(order(pair[0], key), 10 * SECOND) == ()
        assert failures(batch) == [(0, failing, NO_SOCKET)]
        assert port.counters().registrations == 1
        pair[1].send(b"x")
        assert len(batch.turn(None, 10 * SECOND)) == 1
        assert batch.pairs(batch.count)[0][0] == key

    def test_persistent_registrations_are_left_alone(self, port: CompletionPort, pair: Pair) -> None:
        batch = port.batch()
        persistent = Trigger.LEVEL | Trigger.PERSISTENT
        pair[1].send(b"x")
        batch.turn(
            REGISTRATION.pack(pair[0].fileno(), self.KEY, Event.IN, Operation.ENABLE, persistent, 0), 10 * SECOND
        )
        batch.exchange(order(pair[0], self.KEY, operation=Operation.DISABLE), 0, 0)
        assert batch.turn(b"", 0) == ()
        assert port.counters().re_arms == 0

    def test_a_socket_that_was_closed(self, port: CompletionPort, pair: Pair, network: Network) -> None:
        """Whoever closes it orders that it is not enabled again; whoever gets its descriptor has a key of his own."""
        batch = port.batch()
        pair[1].send(b"x")
        batch.turn(order(pair[0], self.KEY), 10 * SECOND)
        descriptor = pair[0].fileno()
        pair[0].close()
        successor = network.reuse(descriptor)
        forget = order(descriptor, self.KEY, operation=Operation.DISABLE)
        assert batch.turn(forget + order(successor, self.KEY + 256, Event.OUT), 10 * SECOND) == (
            self.OTHER + 256 | Event.OUT,
        )
        assert batch.turn(b"", 10 * SECOND) == (self.OTHER + 256 | Event.OUT,)

    def test_many_at_once(self, port: CompletionPort, network: Network) -> None:
        batch = port.batch(512)
        sockets = [network.udp() for _ in range(300)]
        keys = [REGISTERED | (index + 1) << 8 for index in range(300)]
        orders = [order(sock, key, Event.OUT) for sock, key in zip(sockets, keys, strict=True)]
        expected = [2**32 | (index + 1) << 8 | Event.OUT for index in range(300)]
        assert sorted(batch.turn(b"".join(orders), 10 * SECOND)) == expected
        disable = [order(sock, key, operation=Operation.DISABLE) for sock, key in zip(sockets, keys, strict=True)]
        assert sorted(batch.turn(b"".join(disable[:100]), 10 * SECOND)) == expected[100:]
        assert sorted(batch.turn(b"", 10 * SECOND)) == expected[100:]
