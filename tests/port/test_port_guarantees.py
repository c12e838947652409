"""The twelve guarantees that hold on every provider, each by its number in docs/port.md. Where providers may differ, in
further bits beside the one that is guaranteed or in the order across sockets, these tests do not look.
"""

from __future__ import annotations

import errno
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort, Event, Operation, Registration, Trigger
from notifyloop.port.provider import provider

if TYPE_CHECKING:
    from conftest import Network, Pair

ONESHOT = Trigger.LEVEL | Trigger.ONESHOT
PERSISTENT = Trigger.LEVEL | Trigger.PERSISTENT
both_levels = pytest.mark.parametrize("trigger", [ONESHOT, PERSISTENT])
every_filter = pytest.mark.parametrize("events", [Event(events) for events in range(8)])


def events_of(port: CompletionPort, registration: Registration) -> Event:
    """What the next notification says, which must be this registration's."""
    [notification] = port.process(timeout=10)
    assert notification.registration is registration
    return notification.events


class TestP1OneShot:
    """At most one notification per ENABLE, REMOVE apart."""

    def test_more_data_is_no_second_notification(self, port: CompletionPort, network: Network, pair: Pair) -> None:
        registration = Registration(pair[0])
        port.enable(registration)
        for _ in range(3):
            pair[1].send(b"x")
            assert events_of(port, registration) & Event.IN
            pair[1].send(b"y")
            network.until_readable(pair[0])
            for _ in range(3):
                assert port.process() == []
            port.enable(registration)

    def test_a_notification_disarms_both_directions(self, port: CompletionPort, network: Network, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.IN | Event.OUT)
        port.enable(registration)
        assert events_of(port, registration) == Event.OUT
        pair[1].send(b"x")
        network.until_readable(pair[0])
        assert port.process() == []
        port.enable(registration)
        assert events_of(port, registration) & (Event.IN | Event.OUT)

    def test_the_end_of_the_connection_is_no_second_notification(
        self, port: CompletionPort, network: Network, pair: Pair
    ) -> None:
        registration = Registration(pair[0], events=Event.OUT | Event.HANGUP)
        port.enable(registration)
        assert events_of(port, registration) == Event.OUT
        network.reset(pair[1])
        network.until_readable(pair[0])
        assert port.process() == []
        port.enable(registration)
        assert events_of(port, registration) & Event.ERR

    def test_enabled_again_and_again(self, port: CompletionPort, network: Network, pair: Pair) -> None:
        registration = Registration(pair[0])
        pair[1].send(b"x")
        network.until_readable(pair[0])
        for _ in range(100):
            assert [notification.events for notification in port.process([registration], timeout=10)] == [Event.IN]
        assert port.process() == []

    def test_enabling_what_is_enabled_grants_no_more(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.OUT)
        assert len(port.process([registration] * 5, timeout=10)) == 1
        assert port.process() == []


class TestP2Level:
    """If the condition holds at ENABLE, or becomes true, a notification comes."""

    @both_levels
    def test_it_holds_at_enable(self, port: CompletionPort, network: Network, pair: Pair, trigger: Trigger) -> None:
        pair[1].send(b"x")
        network.until_readable(pair[0])
        registration = Registration(pair[0], events=Event.IN, trigger=trigger)
        assert len(port.process([registration])) == 1

    @both_levels
    def test_it_becomes_true(self, port: CompletionPort, network: Network, pair: Pair, trigger: Trigger) -> None:
        registration = Registration(pair[0], trigger=trigger)
        port.enable(registration)
        assert port.process() == []
        pair[1].send(b"x")
        network.until_readable(pair[0])
        assert len(port.process()) == 1

    @both_levels
    def test_it_becomes_true_while_disabled(
        self, port: CompletionPort, network: Network, pair: Pair, trigger: Trigger
    ) -> None:
        registration = Registration(pair[0], trigger=trigger)
        port.enable(registration)
        port.disable(registration)
        pair[1].send(b"x")
        network.until_readable(pair[0])
        assert port.process() == []
        port.enable(registration)
        assert len(port.process()) == 1

    def test_persistent_goes_on_while_it_holds(self, port: CompletionPort, network: Network, pair: Pair) -> None:
        registration = Registration(pair[0], trigger=PERSISTENT)
        port.enable(registration)
        pair[1].send(b"xyz")
        network.until_readable(pair[0])
        for _ in range(3):
            assert events_of(port, registration) == Event.IN
            pair[0].recv(1)
        assert port.process() == []

    @both_levels
    def test_the_filter_is_widened(self, port: CompletionPort, pair: Pair, trigger: Trigger) -> None:
        registration = Registration(pair[0], trigger=trigger)
        port.enable(registration)
        assert port.process() == []
        registration.events = Event.IN | Event.OUT
        port.enable(registration)
        assert len(port.process()) == 1

    @both_levels
    def test_the_filter_is_narrowed(self, port: CompletionPort, pair: Pair, trigger: Trigger) -> None:
        registration = Registration(pair[0], events=Event.IN | Event.OUT, trigger=trigger)
        port.enable(registration)
        registration.events = Event.IN
        port.enable(registration)
        assert port.process() == []

    def test_the_trigger_is_changed(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.OUT, trigger=PERSISTENT)
        port.enable(registration)
        assert [len(port.process(timeout=10)) for _ in range(3)] == [1, 1, 1]
        registration.trigger = ONESHOT
        port.enable(registration)
        assert [len(port.process()) for _ in range(3)] == [1, 0, 0]
        registration.trigger = PERSISTENT
        port.enable(registration)
        assert [len(port.process(timeout=10)) for _ in range(3)] == [1, 1, 1]


class TestP3Error:
    """ERR comes whatever the filter says."""

    @every_filter
    @both_levels
    def test_a_reset(self, port: CompletionPort, network: Network, pair: Pair, events: Event, trigger: Trigger) -> None:
        registration = Registration(pair[0], events=events & ~Event.OUT, trigger=trigger)
        port.enable(registration)
        assert port.process() == []
        network.reset(pair[1])
        assert events_of(port, registration) & Event.ERR

    @pytest.mark.never("wine", reason="under wine a poll takes the error away")
    def test_its_reason_can_be_read(self, port: CompletionPort, network: Network, pair: Pair) -> None:
        registration = Registration(pair[0])
        port.enable(registration)
        network.reset(pair[1])
        assert events_of(port, registration) & Event.ERR
        with pytest.raises(ConnectionResetError):
            pair[0].recv(1)

    @every_filter
    def test_a_reset_before_enable(self, port: CompletionPort, network: Network, pair: Pair, events: Event) -> None:
        network.reset(pair[1])
        network.until_readable(pair[0])
        registration = Registration(pair[0], events=events)
        port.enable(registration)
        assert events_of(port, registration) & Event.ERR


class TestP4Remove:
    """Exactly one REMOVE for each successful removal, and nothing after it for that key."""

    @both_levels
    @pytest.mark.parametrize("enabled", [True, False])
    @pytest.mark.parametrize("ready", [True, False])
    def test_once_and_last(
        self, port: CompletionPort, network: Network, pair: Pair, trigger: Trigger, enabled: bool, ready: bool
    ) -> None:
        registration = Registration(pair[0], "ours", trigger=trigger)
        port.enable(registration)
        if not enabled:
            port.disable(registration)
        if ready:
            pair[1].send(b"x")
            network.until_readable(pair[0])
        port.remove(registration)
        found: list[Event] = []
        while not found or not found[-1] & Event.REMOVE:
            found += [notification.events for notification in port.process(timeout=10) if notification.key == "ours"]
        pair[1].send(b"more")
        network.until_readable(pair[0])
        assert port.process() == []
        assert sum(bool(events & Event.REMOVE) for events in found) == 1

    def test_after_a_notification(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.OUT)
        port.enable(registration)
        assert events_of(port, registration) == Event.OUT
        port.remove(registration)
        assert events_of(port, registration) == Event.REMOVE
        assert port.process() == []

    def test_in_one_batch(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.OUT)
        port.enable(registration)
        registration.operation = Operation.REMOVE
        assert [notification.events for notification in port.process([registration], timeout=10)] == [Event.REMOVE]

    def test_many_come_in_their_order(self, port: CompletionPort, network: Network) -> None:
        registrations = [Registration(network.udp(), index) for index in range(100)]
        port.process(registrations, max_notifications=0)
        for registration in registrations:
            registration.operation = Operation.REMOVE
        notifications = port.process(registrations, timeout=10, max_notifications=512)
        assert [(notification.key, notification.events) for notification in notifications] == [
            (index, Event.REMOVE) for index in range(100)
        ]

    def test_the_socket_registered_again_before_the_notice(self, port: CompletionPort, pair: Pair) -> None:
        first, second = Registration(pair[0], "first", Event.OUT), Registration(pair[0], "second", Event.OUT)
        port.enable(first)
        port.remove(first)
        port.enable(second)
        found: dict[object, Event] = {}
        while len(found) < 2:
            for notification in port.process(timeout=10):
                assert notification.key not in found
                found[notification.key] = notification.events
        assert found == {"first": Event.REMOVE, "second": Event.OUT}

    def test_removed_and_registered_again_in_one_batch(self, port: CompletionPort, pair: Pair) -> None:
        first, second = Registration(pair[0], "first"), Registration(pair[0], "second", Event.OUT)
        port.enable(first)
        first.operation = Operation.REMOVE
        found = {n.key: n.events for n in port.process([first, second], timeout=10)}
        found |= {n.key: n.events for n in port.process()}
        assert found == {"first": Event.REMOVE, "second": Event.OUT}


class TestP5Close:
    """Closing brings no REMOVE, and whoever gets the descriptor next is not disturbed."""

    @both_levels
    @pytest.mark.parametrize("delivered", [True, False])
    def test_no_notice(
        self, port: CompletionPort, network: Network, pair: Pair, trigger: Trigger, delivered: bool
    ) -> None:
        registration = Registration(pair[0], events=Event.OUT, trigger=trigger)
        port.enable(registration)
        if delivered:
            assert events_of(port, registration) == Event.OUT
        pair[0].close()
        network.until_readable(pair[1])
        for notification in port.process():  # one that was on its way
            assert notification.events == Event.OUT
        assert port.process() == []

    def test_the_descriptor_is_reused_unregistered(self, port: CompletionPort, network: Network) -> None:
        for turn in range(20):
            with network.any_pair()[0] as ours:
                registration = Registration(ours, turn, Event.OUT)
                port.enable(registration)
                assert events_of(port, registration) == Event.OUT
                descriptor = ours.fileno()
            successor = network.reuse(descriptor)
            network.until_writable(successor)
            assert port.process() == []
            successor.close()

    @both_levels
    def test_the_descriptor_is_reused_registered(
        self, port: CompletionPort, network: Network, trigger: Trigger
    ) -> None:
        sock = network.udp()
        descriptor = sock.fileno()
        for turn in range(20):
            registration = Registration(sock, turn, Event.OUT, trigger)
            port.enable(registration)
            assert events_of(port, registration) == Event.OUT
            sock.close()
            sock = network.reuse(descriptor)

    def test_removing_what_was_closed_fails(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.OUT)
        port.enable(registration)
        descriptor = pair[0].fileno()
        pair[0].close()
        with pytest.raises(OSError, match=f"cannot REMOVE the registration of descriptor {descriptor}"):
            port.remove(registration)
        assert port.process() == []

    def test_removing_what_was_closed_after_a_report_was_withheld_fails(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.OUT)
        port.enable(registration)
        assert events_of(port, registration) == Event.OUT
        assert port.process() == []
        pair[0].close()
        with pytest.raises(OSError, match="cannot REMOVE"):
            port.remove(registration)
        assert port.process() == []


class TestP6FailedConnect:
    """ERR."""

    @every_filter
    @both_levels
    @pytest.mark.parametrize("registered", ["before", "after"])
    def test_refused(
        self, port: CompletionPort, network: Network, events: Event, trigger: Trigger, registered: str
    ) -> None:
        sock = network.tcp()
        registration = Registration(sock, events=events, trigger=trigger)
        if registered == "before":
            port.enable(registration)
            assert port.process() == []
        network.connect(sock, network.refusing())
        port.enable(registration)
        assert events_of(port, registration) & Event.ERR
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


class TestP7End:
    """The peer has finished sending: HANGUP, if the filter has it."""

    @both_levels
    @pytest.mark.parametrize("events", [Event.HANGUP, Event.HANGUP | Event.IN, Event.HANGUP | Event.IN | Event.OUT])
    @pytest.mark.parametrize("how", ["shutdown", "close"])
    def test_hang_up(
        self, port: CompletionPort, network: Network, pair: Pair, trigger: Trigger, events: Event, how: str
    ) -> None:
        if how == "shutdown":
            pair[1].shutdown(socket.SHUT_WR)
        else:
            pair[1].close()
        network.until_readable(pair[0])
        registration = Registration(pair[0], events=events, trigger=trigger)
        port.enable(registration)
        assert events_of(port, registration) & Event.HANGUP

    def test_data_before_the_end(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], events=Event.IN | Event.HANGUP)
        pair[1].send(b"x")
        pair[1].shutdown(socket.SHUT_WR)
        received = b""
        found = Event.NONE
        while not found & Event.HANGUP:
            port.enable(registration)
            found |= events_of(port, registration)
            received += pair[0].recv(1)
        assert received == b"x"


class TestP8Datagrams:
    """Never HANGUP."""

    @staticmethod
    def never(port: CompletionPort, registration: Registration) -> Event:
        found = Event.NONE
        for _ in range(5):
            for notification in port.process([registration]):
                found |= notification.events
        assert not found & Event.HANGUP
        return found

    @both_levels
    def test_idle_and_with_data(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        ours, theirs = network.udp(), network.udp()
        registration = Registration(ours, events=Event.IN | Event.OUT | Event.HANGUP, trigger=trigger)
        assert self.never(port, registration) == Event.OUT
        for datagram in (b"x", b""):
            theirs.sendto(datagram, ours.getsockname())
            network.until_readable(ours)
            assert self.never(port, registration) == Event.IN | Event.OUT
            assert ours.recv(10) == datagram

    @pytest.mark.never("wine", reason="wine tells nobody that a datagram was refused")
    @both_levels
    def test_an_unreachable_peer(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        ours, theirs = network.udp(), network.udp()
        ours.connect(theirs.getsockname())
        theirs.close()
        ours.send(b"x")
        network.until_readable(ours)
        registration = Registration(ours, events=Event.IN | Event.OUT | Event.HANGUP, trigger=trigger)
        assert self.never(port, registration) & (Event.IN | Event.ERR)

    @every_filter
    @both_levels
    @pytest.mark.parametrize("direction", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
    def test_shut_down_here(
        self, port: CompletionPort, network: Network, events: Event, trigger: Trigger, direction: int
    ) -> None:
        ours, theirs = network.udp(), network.udp()
        ours.connect(theirs.getsockname())
        registration = Registration(ours, events=events, trigger=trigger)
        port.enable(registration)
        ours.shutdown(direction)
        assert not self.never(port, registration) & ~events
        withheld = port.counters().kernel_waits
        if events in (Event.NONE, Event.HANGUP):
            assert port.process(timeout=0.001) == []
            assert port.counters().kernel_waits <= withheld + 2  # it is not reported all the time

    @pytest.mark.only("unix sockets", reason="this Python has no Unix sockets")
    @both_levels
    def test_unix_datagrams(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        ours, theirs = network.unix_pair(socket.SOCK_DGRAM)
        registration = Registration(ours, events=Event.IN | Event.OUT | Event.HANGUP, trigger=trigger)
        port.enable(registration)
        theirs.close()
        self.never(port, registration)


class TestP9Listener:
    """A pending connection: IN, until it is accepted."""

    @both_levels
    def test_pending(self, port: CompletionPort, network: Network, trigger: Trigger) -> None:
        listener = network.listener()
        registration = Registration(listener, events=Event.IN | Event.OUT | Event.HANGUP, trigger=trigger)
        port.enable(registration)
        assert port.process() == []
        network.connect(network.tcp(), listener.getsockname())
        for _ in range(3):
            port.enable(registration)
            assert events_of(port, registration) == Event.IN
        network.adopt(listener.accept()[0])
        port.enable(registration)
        assert port.process() == []


class TestP10Posted:
    """Packets come back as they were posted, in their order."""

    def test_among_sockets(self, port: CompletionPort, network: Network) -> None:
        sent = [(index * 2**32, index) for index in range(200)]
        received = []
        registrations = [Registration(network.udp(), events=Event.OUT, trigger=PERSISTENT) for _ in range(5)]
        port.process(registrations, max_notifications=0)
        for key, value in sent:
            port.post(key, value)
        while len(received) < len(sent):
            for notification in port.process(timeout=10, max_notifications=7):
                if notification.registration is None:
                    assert notification.events is Event.NONE
                    assert notification.overlapped == 0
                    received.append((notification.key, notification.value))
        assert received == sent


class TestP11Timeout:
    """A timeout returns nothing; none at all does not block."""

    def test_without_registrations(self, port: CompletionPort) -> None:
        assert port.process(timeout=0) == []
        assert port.process(timeout=0.001) == []

    def test_with_a_silent_socket(self, port: CompletionPort, pair: Pair) -> None:
        assert port.process([Registration(pair[0])], timeout=0) == []
        assert port.process(timeout=0.001) == []

    def test_what_is_there_comes_without_waiting(self, port: CompletionPort, pair: Pair) -> None:
        port.post(1)
        assert len(port.process([Registration(pair[0], events=Event.OUT)], timeout=0)) == 2


class TestP12Results:
    """A registration that fails has its own result, and the others of the batch go through."""

    def test_in_the_middle_of_a_batch(self, port: CompletionPort, network: Network) -> None:
        good = [Registration(network.udp(), "good", Event.OUT) for _ in range(4)]
        bad = [
            Registration(1_000_000, "bad"),
            Registration(network.udp(), "bad", trigger=Trigger.LEVEL),
            Registration(network.udp(), "bad", operation=Operation.REMOVE),
        ]
        batch = [good[0], bad[0], good[1], bad[1], good[2], bad[2], good[3]]
        assert [notification.key for notification in port.process(batch, timeout=10)] == ["good"] * 4
        assert [registration.result != 0 for registration in batch] == [False, True, False, True, False, True, False]
        for registration in bad:
            with pytest.raises(OSError, match=f"descriptor {registration.socket}"):
                registration.check()

    def test_results_are_those_of_the_last_call(self, port: CompletionPort, pair: Pair) -> None:
        registration = Registration(pair[0], operation=Operation.REMOVE)
        port.process([registration])
        assert provider.describe(registration.result)[0] == errno.ENOENT
        registration.operation = Operation.ENABLE
        port.process([registration])
        assert registration.result == 0
        registration.check()

    def test_nothing_but_failures_does_not_shorten_the_wait(self, port: CompletionPort) -> None:
        port.post(1)
        assert len(port.process([Registration(1_000_000)], timeout=10)) == 1


class TestSocketsEnabledTogether:
    """A provider may ask for several sockets at once; what becomes of one is nothing to the others."""

    @pytest.fixture
    def pairs(self, network: Network) -> list[Pair]:
        return [network.pair() for _ in range(4)]

    @pytest.fixture(params=[ONESHOT, PERSISTENT])
    def together(self, port: CompletionPort, pairs: list[Pair], request: pytest.FixtureRequest) -> list[Registration]:
        """Enabled in one call, and waited for."""
        together = [Registration(ours, index, trigger=request.param) for index, (ours, _) in enumerate(pairs)]
        assert port.process(together, timeout=0.001) == []
        return together

    @staticmethod
    def send(network: Network, pair: Pair) -> None:
        pair[1].send(b"x")
        network.until_readable(pair[0])

    @staticmethod
    def reported(port: CompletionPort, *changes: Registration) -> list[object]:
        """The keys of those who are ready, and stay so."""
        return sorted(notification.key for notification in port.process(changes, timeout=10))

    def test_the_others_are_still_enabled(
        self, port: CompletionPort, network: Network, pairs: list[Pair], together: list[Registration]
    ) -> None:
        for index in (2, 0, 3, 1):
            self.send(network, pairs[index])
            assert self.reported(port) == [index]
            pairs[index][0].recv(1)
        assert port.process() == []

    def test_two_are_ready_in_every_turn(
        self, port: CompletionPort, network: Network, pairs: list[Pair], together: list[Registration]
    ) -> None:
        for _ in range(30):
            for index in (1, 2):
                self.send(network, pairs[index])
            found: set[object] = set()
            while found != {1, 2}:
                found.update(self.reported(port))
            for index in (1, 2):
                pairs[index][0].recv(1)
            assert port.process([together[1], together[2]]) == []
        self.send(network, pairs[0])
        assert self.reported(port) == [0]

    def test_all_are_reported_however_little_room_there_is(
        self, port: CompletionPort, network: Network, pairs: list[Pair], together: list[Registration]
    ) -> None:
        for pair in pairs:
            self.send(network, pair)
        found = [notification.key for _ in range(20) for notification in port.process(max_notifications=1)]
        assert set(found) == {0, 1, 2, 3}

    def test_one_is_removed(
        self, port: CompletionPort, network: Network, pairs: list[Pair], together: list[Registration]
    ) -> None:
        port.remove(together[1])
        assert [(notification.key, notification.events) for notification in port.process(timeout=10)] == [
            (1, Event.REMOVE)
        ]
        self.send(network, pairs[1])
        assert port.process() == []
        self.send(network, pairs[2])
        assert self.reported(port) == [2]

    def test_one_is_removed_when_it_has_something_to_report(
        self, port: CompletionPort, network: Network, pairs: list[Pair], together: list[Registration]
    ) -> None:
        for index in (0, 1, 2):
            self.send(network, pairs[index])
        [first] = port.process(timeout=10, max_notifications=1)
        other, third = (registration for registration in together[:3] if registration is not first.registration)
        port.remove(other)
        found = {}
        while not found.get(other.key, Event.NONE) & Event.REMOVE or third.key not in found:
            for notification in port.process(timeout=10):
                assert not found.get(notification.key, Event.NONE) & Event.REMOVE
                found[notification.key] = notification.events
        assert found[third.key] == Event.IN

    def test_one_is_enabled_with_another_filter(
        self, port: CompletionPort, network: Network, pairs: list[Pair], together: list[Registration]
    ) -> None:
        together[1].events = Event.OUT
        together[1].trigger = ONESHOT
        assert self.reported(port, together[1]) == [1]
        self.send(network, pairs[1])
        assert port.process() == []
        self.send(network, pairs[3])
        assert self.reported(port) == [3]

    def test_one_is_disabled(
        self, port: CompletionPort, network: Network, pairs: list[Pair], together: list[Registration]
    ) -> None:
        port.disable(together[0])
        self.send(network, pairs[0])
        assert port.process() == []
        self.send(network, pairs[1])
        assert self.reported(port) == [1]
        pairs[1][0].recv(1)
        port.enable(together[0])
        assert self.reported(port) == [0]

    @pytest.mark.parametrize("ready", [False, True])
    def test_one_is_closed(
        self, port: CompletionPort, network: Network, pairs: list[Pair], together: list[Registration], ready: bool
    ) -> None:
        if ready:
            self.send(network, pairs[0])
        pairs[0][0].close()
        network.until_readable(pairs[0][1])
        for notification in port.process():  # one that was on its way
            assert notification.key == 0
        assert port.process() == []
        self.send(network, pairs[1])
        assert self.reported(port) == [1]

    def test_one_is_closed_and_its_descriptor_used_again(
        self, port: CompletionPort, network: Network, pairs: list[Pair], together: list[Registration]
    ) -> None:
        descriptor = pairs[0][0].fileno()
        pairs[0][0].close()
        successor = Registration(network.reuse(descriptor), "successor", Event.OUT)
        assert self.reported(port, successor) == ["successor"]
        self.send(network, pairs[1])
        assert self.reported(port) == [1]

    def test_one_is_in_error(
        self, port: CompletionPort, network: Network, pairs: list[Pair], together: list[Registration]
    ) -> None:
        network.reset(pairs[2][1])
        [notification] = port.process(timeout=10)
        assert notification.key == 2
        assert notification.events & Event.ERR
        port.disable(together[2])
        self.send(network, pairs[0])
        assert self.reported(port) == [0]

    def test_one_of_those_that_are_enabled_again_was_closed(
        self, port: CompletionPort, network: Network, pairs: list[Pair], together: list[Registration]
    ) -> None:
        pairs[1][0].close()
        self.send(network, pairs[3])
        assert self.reported(port, *together) == [3]
        assert [together[index].result for index in (0, 2, 3)] == [0, 0, 0]

    def test_the_thread_that_enabled_them_has_ended(
        self, port: CompletionPort, network: Network, pairs: list[Pair]
    ) -> None:
        together = [Registration(ours, index) for index, (ours, _) in enumerate(pairs)]
        thread = threading.Thread(target=port.process, args=[together])
        thread.start()
        thread.join()
        for index in (1, 0):
            self.send(network, pairs[index])
            assert self.reported(port) == [index]

    def test_the_silent_are_heard_beside_one_that_is_often_ready(self, port: CompletionPort, network: Network) -> None:
        pairs = [network.any_pair() for _ in range(100)]
        together = [Registration(ours, index) for index, (ours, _) in enumerate(pairs)]
        port.process(together[:50], max_notifications=0)
        for registration in together[50:]:
            port.enable(registration)
        for _ in range(20):
            self.send(network, pairs[7])
            assert self.reported(port) == [7]
            pairs[7][0].recv(1)
            port.enable(together[7])
        for index in (99, 50, 0, 98):
            self.send(network, pairs[index])
            assert self.reported(port) == [index]
