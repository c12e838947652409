"""The selector: first what every selector does, on the standard one and on ours, then what only ours does."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import sys
import threading
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

import pytest

from notifyloop import NotificationSelector
from notifyloop.port.registration import RENEW
from notifyloop.turn.interest import Interest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Pair = tuple[socket.socket, socket.socket]


SECOND = 1_000_000_000  # ns


@pytest.fixture(params=[selectors.DefaultSelector, NotificationSelector], ids=["standard", "notifyloop"])
def selector(request: pytest.FixtureRequest) -> Iterator[selectors.BaseSelector]:
    with request.param() as selector:
        yield selector


@pytest.fixture
def ours() -> Iterator[NotificationSelector]:
    with NotificationSelector() as selector:
        yield selector


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()


def closed_descriptor() -> int:
    with socket.socket() as sock:
        return sock.fileno()


def beyond_select(selector: selectors.BaseSelector) -> None:
    """Skips what the standard selector of Windows cannot do: it is made of `select`, and looks at nothing before."""
    if isinstance(selector, selectors.SelectSelector):
        pytest.skip("`select` raises for no sockets at all, and for bad ones only when it is called")


def found(selector: selectors.BaseSelector, timeout: float | None = 1.0) -> dict[int, int]:
    return {key.fd: events for key, events in selector.select(timeout)}


class TestEverySelector:
    def test_register_returns_the_key_and_lists_it(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        key = selector.register(pair[0], EVENT_READ, "data")
        assert key == (pair[0], pair[0].fileno(), EVENT_READ, "data")
        assert selector.get_key(pair[0]) == key
        assert selector.get_key(pair[0].fileno()) == key
        assert selector.get_map()[pair[0]] == key
        assert len(selector.get_map()) == 1
        assert list(selector.get_map()) == [pair[0].fileno()]

    def test_readiness_is_a_level(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        selector.register(pair[0], EVENT_READ)
        assert found(selector, 0) == {}
        pair[1].send(b"x")
        for _ in range(3):
            assert found(selector) == {pair[0].fileno(): EVENT_READ}
        pair[0].recv(1)
        assert found(selector, 0) == {}

    def test_reader_and_writer_are_reported_apart(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        selector.register(pair[0], EVENT_READ | EVENT_WRITE)
        for _ in range(2):
            assert found(selector) == {pair[0].fileno(): EVENT_WRITE}
        pair[1].send(b"x")
        assert found(selector) == {pair[0].fileno(): EVENT_READ | EVENT_WRITE}

    def test_the_other_direction_stays_armed_when_one_fired(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        while True:  # fill the buffer: not writable
            try:
                pair[0].send(bytes(65536))
            except BlockingIOError:
                break
        selector.register(pair[0], EVENT_READ | EVENT_WRITE)
        pair[1].send(b"x")
        assert found(selector) == {pair[0].fileno(): EVENT_READ}
        pair[0].recv(1)
        assert found(selector, 0) == {}
        while True:
            try:
                pair[1].recv(1 << 20)
            except BlockingIOError:
                break
        assert found(selector) == {pair[0].fileno(): EVENT_WRITE}

    def test_modify_changes_interest_and_data(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        selector.register(pair[0], EVENT_READ, 1)
        pair[1].send(b"x")
        assert found(selector) == {pair[0].fileno(): EVENT_READ}
        assert selector.modify(pair[0], EVENT_WRITE, 2).data == 2
        assert found(selector) == {pair[0].fileno(): EVENT_WRITE}
        selector.modify(pair[0], EVENT_WRITE, 3)
        assert [(key.data, events) for key, events in selector.select(1)] == [(3, EVENT_WRITE)]
        selector.modify(pair[0], EVENT_READ, 4)
        assert found(selector) == {pair[0].fileno(): EVENT_READ}

    def test_end_of_stream_is_readable(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        selector.register(pair[0], EVENT_READ)
        pair[1].close()
        assert found(selector) == {pair[0].fileno(): EVENT_READ}
        assert pair[0].recv(1) == b""

    def test_a_refused_connection_is_writable(self, selector: selectors.BaseSelector) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            address = closed.getsockname()
        with socket.socket() as client:
            client.setblocking(False)
            assert client.connect_ex(address) in (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.ECONNREFUSED)
            selector.register(client, EVENT_WRITE)
            assert found(selector) == {client.fileno(): EVENT_WRITE}
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (errno.ECONNREFUSED, 0)

    def test_unregister_stops_reports(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        beyond_select(selector)
        pair[1].send(b"x")
        key = selector.register(pair[0], EVENT_READ)
        assert selector.unregister(pair[0]) == key
        assert found(selector, 0) == {}
        with pytest.raises(KeyError):
            selector.get_key(pair[0])
        selector.register(pair[0], EVENT_READ)
        assert found(selector) == {pair[0].fileno(): EVENT_READ}

    def test_a_closed_file_can_be_unregistered_by_object(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        selector.register(pair[0], EVENT_READ)
        pair[0].close()
        selector.unregister(pair[0])
        assert len(selector.get_map()) == 0

    def test_a_reused_descriptor_belongs_to_its_new_owner(self, selector: selectors.BaseSelector) -> None:
        for _ in range(50):
            first, first_peer = socket.socketpair()
            selector.register(first, EVENT_READ, "first")
            first_peer.send(b"x")
            selector.unregister(first)
            descriptor = first.fileno()
            first.close()
            second, second_peer = socket.socketpair()
            if second.fileno() != descriptor:
                second, second_peer = second_peer, second
            selector.register(second, EVENT_READ, "second")
            assert selector.select(0) == []
            second_peer.send(b"y")
            assert [key.data for key, _ in selector.select(1)] == ["second"]
            selector.unregister(second)
            for end in (first_peer, second, second_peer):
                end.close()

    def test_registered_twice(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        selector.register(pair[0], EVENT_READ)
        with pytest.raises(KeyError, match="already registered"):
            selector.register(pair[0].fileno(), EVENT_WRITE)

    def test_not_registered(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        with pytest.raises(KeyError, match="not registered"):
            selector.unregister(pair[0])
        with pytest.raises(KeyError, match="not registered"):
            selector.modify(pair[0], EVENT_READ)

    @pytest.mark.parametrize("events", [0, 4, EVENT_READ | 8])
    def test_invalid_events(self, selector: selectors.BaseSelector, pair: Pair, events: int) -> None:
        with pytest.raises(ValueError, match="Invalid events"):
            selector.register(pair[0], events)

    @pytest.mark.parametrize("fileobj", [-1, "file", None])
    def test_invalid_file_objects(self, selector: selectors.BaseSelector, fileobj: object) -> None:
        with pytest.raises(ValueError, match="Invalid file"):
            selector.register(fileobj, EVENT_READ)  # type: ignore[arg-type]

    def test_a_closed_descriptor(self, selector: selectors.BaseSelector) -> None:
        beyond_select(selector)
        descriptor = closed_descriptor()
        with pytest.raises(OSError) as error:  # noqa: PT011
            selector.register(descriptor, EVENT_READ)
        assert error.value.errno == (errno.ENOTSOCK if sys.platform == "win32" else errno.EBADF)
        assert len(selector.get_map()) == 0

    def test_a_regular_file(self, selector: selectors.BaseSelector, tmp_path: Path) -> None:
        beyond_select(selector)
        with (tmp_path / "file").open("wb") as file, pytest.raises(OSError) as error:  # noqa: PT011
            selector.register(file, EVENT_READ)
        assert error.value.errno == (errno.ENOTSOCK if sys.platform == "win32" else errno.EPERM)
        assert len(selector.get_map()) == 0

    def test_an_error_leaves_the_others_usable(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        selector.register(pair[0], EVENT_READ)
        with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
            selector.register(-1, EVENT_READ)
        pair[1].send(b"x")
        assert found(selector) == {pair[0].fileno(): EVENT_READ}

    @pytest.mark.parametrize("timeout", [0, -1])
    def test_no_waiting(self, selector: selectors.BaseSelector, pair: Pair, timeout: float) -> None:
        selector.register(pair[0], EVENT_READ)
        assert selector.select(timeout) == []

    def test_nothing_registered(self, selector: selectors.BaseSelector) -> None:
        beyond_select(selector)
        assert selector.select(0) == []
        assert selector.select(0.001) == []

    def test_closed(self, pair: Pair, selector: selectors.BaseSelector) -> None:
        beyond_select(selector)
        selector.register(pair[0], EVENT_READ)
        selector.close()
        selector.close()
        with pytest.raises(ValueError, match="closed"):
            selector.register(pair[1], EVENT_READ)
        with pytest.raises(RuntimeError):
            selector.get_key(pair[0])
        assert selector.get_map() is None

    @pytest.mark.only("linux", reason="Windows does not watch pipes")
    def test_pipes(self, selector: selectors.BaseSelector) -> None:
        reader, writer = os.pipe()
        selector.register(reader, EVENT_READ)
        selector.register(writer, EVENT_WRITE)
        assert found(selector) == {writer: EVENT_WRITE}
        os.close(reader)
        assert found(selector) == {writer: EVENT_WRITE}  # broken: a write says so
        os.close(writer)

    @pytest.mark.only("linux", reason="Windows has no signals that come at a time of one's choice")
    def test_a_signal_ends_the_wait_only_for_its_handler(self, selector: selectors.BaseSelector, pair: Pair) -> None:
        import signal  # noqa: PLC0415

        got: list[int] = []
        previous = signal.signal(signal.SIGALRM, lambda number, frame: got.append(number))
        try:
            selector.register(pair[0], EVENT_READ)
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            while not got:
                assert selector.select(5) == []
        finally:
            signal.signal(signal.SIGALRM, previous)


class TestOurs:
    def test_one_foreign_call_re_arms_and_waits(self, ours: NotificationSelector) -> None:
        pairs = [socket.socketpair() for _ in range(20)]
        for end, peer in pairs:
            ours.register(end, EVENT_READ)
            peer.send(b"x")
        before = ours.port.counters()
        for _ in range(100):
            assert len(ours.select(1)) == 20
        after = ours.port.counters()
        assert after.calls - before.calls == 100
        assert after.kernel_waits - before.kernel_waits == 100
        assert after.re_arms - before.re_arms == 99 * 20
        for ends in pairs:
            for end in ends:
                end.close()

    @pytest.mark.only("descriptors", reason="every re-arm is told to Windows")
    def test_re_arming_does_not_tell_the_kernel(self, ours: NotificationSelector, pair: Pair) -> None:
        ours.register(pair[0], EVENT_READ)
        pair[1].send(b"x")
        before = ours.port.counters().kernel_changes
        for _ in range(100):
            assert len(ours.select(1)) == 1
        assert ours.port.counters().kernel_changes == before

    def test_data_alone_stays_in_python(self, ours: NotificationSelector, pair: Pair) -> None:
        ours.register(pair[0], EVENT_READ, 1)
        calls = ours.port.counters().calls
        ours.modify(pair[0], EVENT_READ, 2)
        assert ours.port.counters().calls == calls

    def test_errors_name_descriptor_and_operation(self, ours: NotificationSelector) -> None:
        descriptor = closed_descriptor()
        with pytest.raises(OSError, match=f"ENABLE the registration of descriptor {descriptor}"):
            ours.register(descriptor, EVENT_READ)

    def test_widening_interest_in_a_closed_descriptor_fails_at_once(
        self, ours: NotificationSelector, pair: Pair
    ) -> None:
        ours.register(pair[0], EVENT_READ)
        descriptor = pair[0].fileno()
        pair[0].close()
        with pytest.raises(OSError, match=f"descriptor {descriptor}"):
            ours.modify(descriptor, EVENT_READ | EVENT_WRITE)
        assert len(ours.get_map()) == 0

    def test_wake_up_from_another_thread(self, ours: NotificationSelector) -> None:
        waiting = threading.Event()

        def wake() -> None:
            waiting.wait()
            ours.wake_up()

        thread = threading.Thread(target=wake)
        thread.start()
        waiting.set()
        assert ours.select(None) == []
        thread.join()

    def test_more_ready_than_fit_one_batch(self, ours: NotificationSelector) -> None:
        """What did not fit comes with the next calls; nothing is lost, nothing starves."""
        pairs = [socket.socketpair() for _ in range(700)]
        for end, peer in pairs:
            ours.register(end, EVENT_READ)
            peer.send(b"x")
        seen: set[int] = set()
        for _ in range(4):
            ready = ours.select(1)
            for key, _ in ready:
                seen.add(key.fd)
                socket.socket.recv(key.fileobj, 1)  # type: ignore[arg-type]
        assert len(seen) == 700
        for ends in pairs:
            for end in ends:
                end.close()

    def test_unregistering_between_dequeue_and_re_arm(self, ours: NotificationSelector, pair: Pair) -> None:
        ours.register(pair[0], EVENT_READ)
        pair[1].send(b"x")
        assert len(ours.select(1)) == 1
        ours.unregister(pair[0])
        ours.register(pair[0], EVENT_READ, "again")
        assert [key.data for key, _ in ours.select(1)] == ["again"]

    def test_packets_of_other_origins_are_handed_on_by_their_key(self, ours: NotificationSelector, pair: Pair) -> None:
        found: list[tuple[str, int, int]] = []
        ours.interests.foreign[0] = lambda overlapped, value: found.append(("zero", overlapped, value))
        ours.interests.foreign[5] = lambda overlapped, value: found.append(("five", overlapped, value))
        ours.register(pair[0], EVENT_WRITE)
        for key, value in ((5, 1), (0, 2), (6, 3), (5, 4)):
            ours.port.post(key, value)
        ours.wake_up()
        ready: list[int] = []
        while len(found) < 3 or not ready:
            ready += [key.fd for key, _ in ours.select(1)]
        assert found == [("five", 0, 1), ("zero", 0, 2), ("five", 0, 4)]
        assert pair[0].fileno() in ready
        assert ours.interests.stale_notifications == 1  # nobody wants the key 6

    def test_who_comes_later_is_not_told_what_was_for_who_left(self, ours: NotificationSelector, pair: Pair) -> None:
        """They may have the same place in the list, but not while there may be packets of who had it before."""
        for sock in pair:
            sock.send(b"x")
            ours.register(sock, EVENT_READ, "left")
        words = ours.interests.dequeue(SECOND)
        for sock in pair:
            ours.unregister(sock)
            ours.register(sock, EVENT_WRITE, "later")
        assert (len(words), ours.interests.ready(words)) == (2, [])
        assert ours.interests.stale_notifications == 2
        assert {key.data for key, _ in ours.select(1)} == {"later"}

    def test_what_a_finalizer_wants_while_orders_are_made(self, ours: NotificationSelector, pair: Pair) -> None:
        """It runs in the midst of anything."""

        class Finalizing(Interest):
            def arm(self, enable: int = RENEW) -> bytes:
                if self.events == EVENT_READ and self.fd == first.fd:
                    ours.interests.want(second, EVENT_READ)
                return super().arm(enable)

        first, second = (
            ours.interests.watch(sock, sock.fileno(), EVENT_WRITE, "data", kind=Finalizing) for sock in pair
        )
        ours.interests.want(first, EVENT_READ)
        ours.select(0)
        pair[0].send(b"x")
        assert [(key.fd, events) for key, events in ours.select(1)] == [(second.fd, EVENT_READ)]

    def test_places_are_taken_again(self, ours: NotificationSelector, pair: Pair) -> None:
        keys = set()
        for _ in range(100):
            interest = ours.interests.watch(pair[0], pair[0].fileno(), EVENT_READ, None)
            keys.add(interest.key)
            ours.unregister(pair[0])
            assert ours.select(0) == []
        assert len(keys) == 100
        assert len(ours.interests.places) < 5

    def test_places_are_not_endless(
        self, ours: NotificationSelector, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("notifyloop.turn.interests.LAST_PLACE", 0)
        ours.register(pair[0], EVENT_READ)
        with pytest.raises(OSError, match="cannot watch more than 1 descriptors") as caught:
            ours.register(pair[1], EVENT_READ)
        assert caught.value.errno == errno.EMFILE
        ours.unregister(pair[0])
        ours.select(0)
        ours.register(pair[1], EVENT_READ)

    def test_a_refused_descriptor_takes_no_place(self, ours: NotificationSelector) -> None:
        for _ in range(100):
            with pytest.raises(OSError, match="cannot ENABLE"):
                ours.register(closed_descriptor(), EVENT_READ)
        assert len(ours.interests.places) == 1
