"""What a forked child inherits: a port as it was, and from then on its own; and the parent is not disturbed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from notifyloop.turn.primitives import FREE_THREADED

pytestmark = pytest.mark.only("descriptors", reason="Windows does not fork")

PREAMBLE = """
import gc, os, resource, signal, socket, threading, traceback
from notifyloop.port import CompletionPort, Event, Operation, OwnedSocket, Registration, Trigger
from notifyloop.port.abi import REGISTRATION
from notifyloop.port.provider import provider
from notifyloop.port.registration import FORGET, REGISTERED

EDGE, PERSISTENT = Trigger.EDGE | Trigger.PERSISTENT, Trigger.LEVEL | Trigger.PERSISTENT

def in_child(work):
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the child ended with {status}"

def keys(port, timeout=0):
    return sorted(str(notification.key) for notification in port.process(timeout=timeout))

def sets():
    # What the kernel holds for every epoll set of this process.
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                found[name] = sorted(open(f"/proc/self/fdinfo/{name}").read().splitlines())
        except OSError:
            pass
    return found

def ready():
    ours, theirs = socket.socketpair()
    theirs.send(b"x")
    alive.extend([ours, theirs])
    return ours

alive = []
port = CompletionPort()
"""


def run(program: str) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PREAMBLE + textwrap.dedent(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_child_has_the_port_as_it_was() -> None:
    run("""
        enabled, spent, disabled, removed = (
            Registration(ready(), name) for name in ("enabled", "spent", "disabled", "removed")
        )
        persistent = Registration(ready(), "persistent", trigger=PERSISTENT)
        edge = Registration(ready(), "edge", trigger=EDGE)
        port.process([spent], timeout=10)
        port.process([enabled, disabled, persistent, edge, removed], max_notifications=0)
        port.disable(disabled)
        port.remove(removed)
        port.post(7)

        def look():
            assert keys(port) == ["7", "edge", "enabled", "persistent", "removed"]
            assert keys(port) == ["persistent"]
            for registration in (enabled, spent, disabled):
                port.enable(registration)
            assert keys(port) == ["disabled", "enabled", "persistent", "spent"]
            port.remove(persistent)
            assert keys(port) == ["persistent"]
            port.enable(Registration(ready(), "new"))
            assert keys(port) == ["new"]
            counters = port.counters()
            assert (counters.stale, counters.rebuilds) == (0, 0), counters

        in_child(look)
        look()
    """)


def test_what_the_child_does_changes_nothing_for_the_parent() -> None:
    run("""
        registrations = [Registration(ready(), index, trigger=trigger)
                         for index, trigger in enumerate([Trigger.LEVEL | Trigger.ONESHOT, PERSISTENT, EDGE])]
        port.process(registrations, max_notifications=0)
        before = sets()

        def work():
            assert len(port.process(timeout=10)) == 3
            for registration in registrations:
                port.remove(registration)
                port.process()
            port.post(1)
            port.post(2)
            port.process(max_notifications=1)
            port.close()

        in_child(work)
        in_child(port.close)
        assert sets() == before
        assert keys(port) == ["0", "1", "2"]
    """)


def test_nor_does_it_wake_the_parent_s_threads() -> None:
    run("""
        woken = []
        thread = threading.Thread(target=lambda: woken.extend(port.process(timeout=None)))
        thread.start()
        while not port.counters().waits:
            pass

        def work():
            for _ in range(10):
                port.post(1)
            assert len(port.process(timeout=10)) == 10
            port.close()

        in_child(work)
        assert not woken and thread.is_alive()
        assert port.counters().kernel_waits == 0
        port.post(5)
        thread.join()
        assert [packet.key for packet in woken] == [5]
    """)


def test_a_child_of_a_child() -> None:
    run("""
        registration = Registration(ready(), "ours")
        port.enable(registration)

        def look():
            assert keys(port) == ["ours"]
            port.enable(registration)

        def look_and_fork():
            look()
            in_child(look)
            look()

        in_child(lambda: in_child(look))  # whose parent has never looked
        in_child(look_and_fork)
        look()
    """)


@pytest.mark.only("epoll", reason="what is looked at is the epoll set")
def test_a_child_that_only_inherits_pays_for_nothing() -> None:
    run("""
        port.enable(Registration(ready(), "ours"))
        batch = port.batch()
        before = sets()

        def inherit():
            inherited = len(os.listdir("/proc/self/fd"))
            assert sets() == before
            port.close()
            port.close()
            assert len(os.listdir("/proc/self/fd")) == inherited - 2
            for call in (port.process, port.counters, lambda: port.post(1), lambda: batch.exchange(b"", 0, 1),
                         lambda: batch.turn(None, 0)):
                try:
                    call()
                except ValueError as error:
                    assert str(error) == "the completion port is closed"
                else:
                    raise AssertionError("it is not closed")
            with CompletionPort() as own:
                own.post(5)
                assert keys(own) == ["5"]

        in_child(inherit)
        assert sets() == before
        assert keys(port) == ["ours"]
    """)


def test_what_the_child_has_closed_is_lost() -> None:
    run("""
        closed, kept = Registration(ready(), "closed"), Registration(ready(), "kept")
        port.process([closed, kept], max_notifications=0)

        def close_and_look():
            os.close(closed.socket)
            assert keys(port) == ["kept"]
            try:
                port.enable(closed)
            except OSError as error:
                assert f"descriptor {closed.socket}" in str(error)
            else:
                raise AssertionError("it was closed")

        in_child(close_and_look)
        assert keys(port) == ["closed", "kept"]
    """)


@pytest.mark.only("epoll", reason="a child has no kqueue of its parent's, so nobody can tell which files were in it")
@pytest.mark.parametrize("successor", ["socket", "pipe"])
def test_what_the_child_opened_in_its_place_is_not_taken_for_it(successor: str) -> None:
    run(f"""
        closed, kept = Registration(ready(), "closed"), Registration(ready(), "kept")
        port.process([closed, kept], max_notifications=0)

        def another():
            if {successor!r} == "socket":
                return os.dup(ready().fileno())
            reading, writing = os.pipe()
            alive.append(os.dup(writing))
            os.write(writing, b"x")
            return reading

        def replace_and_look():
            os.dup2(another(), closed.socket)
            assert keys(port) == ["kept"]
            for _ in range(3):
                try:
                    port.enable(closed)
                except FileNotFoundError as error:
                    assert f"descriptor {{closed.socket}}" in str(error)
                else:
                    raise AssertionError("it was closed")
            assert keys(port) == []
            port.enable(Registration(closed.socket, "successor"))
            assert keys(port) == ["successor"]

        in_child(replace_and_look)
        assert keys(port) == ["closed", "kept"]
    """)


def test_what_the_parent_gives_up_the_child_keeps() -> None:
    run("""
        removed, closed = Registration(ready(), "removed"), Registration(ready(), "closed")
        port.process([removed, closed], max_notifications=0)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.read(reading, 1)
            os._exit(keys(port) != ["closed", "removed"])
        port.remove(removed)
        os.close(closed.socket)
        port.close()
        os.write(writing, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)


@pytest.mark.parametrize("end", ["port.close()", "del port; gc.collect()"])
def test_a_child_that_closes_all_descriptors_loses_no_other(end: str) -> None:
    """As daemons do. The numbers of the port's own are other files' then."""
    run(f"""
        port.enable(Registration(ready(), "ours"))

        def close_all():
            global port
            os.closerange(3, 100)
            successors = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
            if os.getpid() % 2:
                port.post(5)
                assert keys(port) == ["5"]
            {end}
            for successor in successors:
                os.fstat(successor)

        def have_another():
            global port
            os.closerange(3, 100)
            other = CompletionPort()  # which has the numbers of the first
            {end}
            other.post(6)
            assert keys(other) == ["6"]

        for _ in range(2):
            in_child(close_all)
        in_child(have_another)
    """)


@pytest.mark.skipif(
    FREE_THREADED,
    reason="without the interpreter's lock a forked child may hang in CPython itself (3.13.5 does): at a dict's or"
    " another object's own lock, which was being handed to a thread that the child does not have",
)
def test_while_other_threads_are_inside() -> None:
    run("""
        stop = False
        sockets = [socket.socketpair() for _ in range(8)]
        registrations = [Registration(ours, index, Event.OUT) for index, (ours, _) in enumerate(sockets)]

        def hammer(index):
            mine = Registration(sockets[index][1], "mine", Event.OUT)
            while not stop:
                port.process([mine, registrations[index]], timeout=0.001)
                port.post(1)

        def look():
            port.process(registrations, max_notifications=512)
            for _ in range(200):
                port.process(max_notifications=512)
            for registration in registrations:
                port.enable(registration)
            assert set(map(str, range(8))) <= set(keys(port))
            Registration(sockets[0][0])  # has a generation of its own
            port.close()

        threads = [threading.Thread(target=hammer, args=[index]) for index in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(30):
                in_child(look)
        finally:
            stop = True
        for thread in threads:
            thread.join()
    """)


def test_while_another_thread_holds_a_lock() -> None:
    run("""
        from notifyloop.port import registration as module
        held, forked = threading.Event(), threading.Event()
        owned = OwnedSocket(port, ready(), lambda owned, events: owned.close())

        def hold():
            with port.lock, owned.lock, module._guarded.lock:
                held.set()
                forked.wait()

        def look():
            owned.register()
            [notification] = port.process(timeout=10)
            notification.key.deliver(notification)
            [notification] = port.process(timeout=10)
            notification.key.deliver(notification)
            assert owned.released
            port.close()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            in_child(look)
        finally:
            forked.set()
        thread.join()
        look()
    """)


def test_an_owned_socket_that_another_thread_owns() -> None:
    """The owner exists in the parent only, and the child's copy is nobody's."""
    run("""
        owning, forked = threading.Event(), threading.Event()
        released = []

        def on_ready(owned, events):
            owning.set()
            forked.wait()

        owned = OwnedSocket(port, ready(), on_ready, released.append)
        owned.register()

        def own():
            [notification] = port.process(timeout=10)
            notification.key.deliver(notification)

        def close():
            owned.close()
            [notification] = port.process(timeout=10)
            notification.key.deliver(notification)
            assert owned.released and released == [owned]

        thread = threading.Thread(target=own)
        thread.start()
        owning.wait()
        try:
            in_child(close)
            assert not owned.released
        finally:
            forked.set()
        thread.join()
        close()
    """)


def test_forked_by_its_owner() -> None:
    run("""
        released = []

        def deliver():
            [notification] = port.process(timeout=10)
            notification.key.deliver(notification)

        def on_ready(owned, events):
            if not released:
                in_child(look)

        def look():
            owned.close()  # when we leave, and we do not
            assert not owned.released

        owned = OwnedSocket(port, ready(), on_ready, released.append)
        owned.register()
        deliver()
        owned.close()
        deliver()
        assert released == [owned]
    """)


def test_a_batch() -> None:
    """What its last turn has reported is enabled again, and what was left to the next is ordered, by each process."""
    run("""
        batch = port.batch()
        first, second = ready(), ready()

        def order(sock, key):
            return REGISTRATION.pack(sock.fileno(), REGISTERED | 1 << 40 | key << 8, Event.IN, Operation.ENABLE,
                                     Trigger.LEVEL | Trigger.ONESHOT, 0)

        assert batch.turn(order(first, 1), 10**10) == (1,)
        batch.order(order(second, 2))

        def look():
            assert sorted(batch.turn(None, 10**10)) == [1, 2]
            assert sorted(batch.turn(None, 10**10)) == [1, 2]

        in_child(look)
        look()
    """)


def test_without_descriptors_left_the_child_says_so_and_tries_again() -> None:
    run("""
        registration = Registration(ready(), "ours")
        port.enable(registration)
        batch = port.batch()
        batch.order(REGISTRATION.pack(ready().fileno(), REGISTERED | 2 << 8, Event.IN, Operation.ENABLE, 5, 0))

        def look():
            while (plug := os.dup(0)) <= max(map(int, os.listdir("/proc/self/fd"))) - 2:
                pass  # the number of a kqueue is free in the child
            os.close(plug)
            used = len(os.listdir("/proc/self/fd")) - 1
            for free in range({"epoll": 3, "kqueue": 1}[provider.name]):
                resource.setrlimit(resource.RLIMIT_NOFILE, (used + free, 4096))
                for call in (port.process, port.counters, lambda: port.post(1), lambda: port.enable(registration),
                             lambda: batch.exchange(b"", 0, 1), lambda: batch.turn(None, 0)):
                    try:
                        call()
                    except OSError as error:
                        assert error.strerror.startswith("Too many open files: ") and "fork" in error.strerror, error
                    else:
                        raise AssertionError(f"a child needs more than {free} descriptors")
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            assert len(os.listdir("/proc/self/fd")) - 1 == used
            assert keys(port) == ["ours"]
            assert batch.turn(None, 10**10) == (2,)
            port.close()

        in_child(look)
    """)


class TestForget:
    """A descriptor is about to be closed. Where a child has a duplicate of it, to close it would not be enough."""

    def test_what_a_child_holds_is_not_reported_again(self) -> None:
        run("""
            sockets = [ready() for _ in range(50)]
            keys = {sock: REGISTERED | index << 8 for index, sock in enumerate(sockets)}
            batch = port.batch()
            for sock, key in keys.items():
                batch.exchange(REGISTRATION.pack(sock.fileno(), key, Event.IN, Operation.ENABLE, 5, 0), 0, 0)
            before = provider.lib.fork_count
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            assert provider.lib.fork_count == before + 1
            for sock, key in keys.items():
                batch.forget(sock.fileno(), key)
                sock.close()
            for _ in range(50):
                assert batch.exchange(b"", 0, 100) == 0
            counters = port.counters()
            assert (counters.stale, counters.rebuilds) == (0, 0), counters
            os.close(writing)
            os.waitpid(child, 0)
        """)

    def test_no_system_call_for_what_no_child_can_hold(self) -> None:
        run("""
            batch = port.batch()
            in_child(lambda: None)
            before = port.counters().kernel_changes
            for index in range(10):
                sock = ready()
                key = REGISTERED | index << 8
                batch.exchange(REGISTRATION.pack(sock.fileno(), key, Event.IN, Operation.ENABLE, 5, 0), 0, 0)
                batch.forget(sock.fileno(), key)
                sock.close()
            assert port.counters().kernel_changes == before + 10
            assert batch.exchange(b"", 0, 10) == 0
        """)

    @pytest.mark.only("epoll", reason="what is looked at is the epoll set")
    def test_a_child_that_only_closes_what_it_has_inherited_needs_no_set(self) -> None:
        run("""
            batch, sockets = port.batch(), [ready() for _ in range(3)]
            for index, sock in enumerate(sockets):
                packed = REGISTRATION.pack(sock.fileno(), REGISTERED | index << 8, Event.IN, Operation.ENABLE, 5, 0)
                batch.exchange(packed, 0, 0)
            before = sets()

            def close():
                for index, sock in enumerate(sockets[:2]):
                    batch.forget(sock.fileno(), REGISTERED | index << 8)
                assert sets() == before
                assert batch.exchange(b"", 0, 10) == 1  # the third

            in_child(close)
            assert sets() == before
            assert batch.exchange(b"", 0, 10) == 3
        """)

    def test_in_the_child_the_parent_has_the_duplicate(self) -> None:
        run("""
            sock, key, batch = ready(), REGISTERED | 256, port.batch()
            batch.exchange(REGISTRATION.pack(sock.fileno(), key, Event.IN, Operation.ENABLE, 5, 0), 0, 0)

            def close():
                assert batch.exchange(b"", 0, 10) == 1
                batch.exchange(REGISTRATION.pack(sock.fileno(), key, Event.IN, Operation.ENABLE, 5, 0), 0, 0)
                batch.forget(sock.fileno(), key)
                sock.close()
                for _ in range(20):
                    assert batch.exchange(b"", 0, 10) == 0
                assert port.counters().stale == 0

            in_child(close)
            assert batch.exchange(b"", 0, 10) == 1
        """)
