"""The stand-in for kqueue keeps the rules of the manual pages: each test has one, with its source.

FreeBSD: kqueue(2) of FreeBSD 14. macOS: kqueue(2) of macOS 14. Kernel: what FreeBSD's sys/kern/kern_event.c does where
the pages are silent. What the stand-in cannot prove its source says.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Network

pytestmark = [
    pytest.mark.only("linux", reason="other systems have a kqueue, or nothing to make one of"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler (cc) is here to build the stand-in"),
]

HERE = Path(__file__).parent / "kqueue_standin"
READ, WRITE, PROC, USER = -1, -2, -5, -11
ADD, DELETE, ENABLE, DISABLE, ONESHOT, CLEAR, RECEIPT, DISPATCH = 1, 2, 4, 8, 16, 32, 64, 128
ERROR, EOF = 0x4000, 0x8000
NOTE_TRIGGER, NOTE_EXIT = 0x01000000, 0x80000000


class Kevent(ctypes.Structure):
    _fields_ = (
        ("ident", ctypes.c_size_t),
        ("filter", ctypes.c_short),
        ("flags", ctypes.c_ushort),
        ("fflags", ctypes.c_uint),
        ("data", ctypes.c_int64),
        ("udata", ctypes.c_void_p),
    )

    @property
    def told(self) -> tuple[int, int, int]:
        """What it is about: ident, filter and udata."""
        return self.ident, self.filter, self.udata or 0


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def change(ident: int, filter_: int, flags: int, fflags: int = 0, udata: int = 0) -> Kevent:
    return Kevent(ident, filter_, flags, fflags, 0, udata)


class Queue:
    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.descriptor = library.kqueue()
        assert self.descriptor >= 0

    def __call__(self, *changes: Kevent, room: int = 16, timeout: float | None = 0) -> list[Kevent]:
        """One call of kevent. Raises OSError if it fails as a whole."""
        listed, events = (Kevent * len(changes))(*changes), (Kevent * room)()
        limit = None if timeout is None else Timespec(int(timeout), int(timeout % 1 * 10**9))
        count = self.library.kevent(
            self.descriptor, listed, len(changes), events, room, None if limit is None else ctypes.byref(limit)
        )
        if count < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return events[:count]

    def fails(self, one: Kevent) -> int:
        """The errno of a change that is told by itself."""
        try:
            self(one, room=0)
        except OSError as error:
            return error.errno or 0
        return 0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("standin") / "kqueue.so"
    source = HERE / "kqueue.c"
    subprocess.run(
        ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-O1", source, "-o", path, "-pthread"],
        check=True,
    )
    return ctypes.CDLL(str(path), use_errno=True)


@pytest.fixture
def queue(library: ctypes.CDLL) -> Iterator[Queue]:
    queue = Queue(library)
    yield queue
    os.close(queue.descriptor)


@pytest.fixture
def ours(network: Network) -> tuple[socket.socket, socket.socket]:
    return network.unix_pair()


Pair = tuple[socket.socket, socket.socket]


class TestChanges:
    def test_add_and_report(self, queue: Queue, ours: Pair) -> None:
        """EV_ADD adds the event to the kqueue; udata is passed through unchanged (FreeBSD, macOS)."""
        number = ours[0].fileno()
        assert queue(change(number, READ, ADD, udata=7)) == []
        ours[1].send(b"abc")
        [event] = queue()
        assert event.told == (number, READ, 7)
        assert event.data == 3  # the number of bytes available

    def test_changes_are_applied_before_events_are_read(self, queue: Queue, ours: Pair) -> None:
        """All changes are applied before any pending events are read from the queue (FreeBSD, macOS)."""
        ours[1].send(b"x")
        assert len(queue(change(ours[0].fileno(), READ, ADD))) == 1
        assert queue(change(ours[0].fileno(), READ, DELETE)) == []

    def test_one_knote_for_each_ident_and_filter(self, queue: Queue, ours: Pair) -> None:
        """They identify the event; adding it again modifies it, and makes no other (FreeBSD, macOS)."""
        ours[1].send(b"x")
        number = ours[0].fileno()
        events = queue(
            change(number, READ, ADD, udata=1), change(number, READ, ADD, udata=2), change(number, WRITE, ADD, udata=3)
        )
        assert sorted(event.told for event in events) == [(number, WRITE, 3), (number, READ, 2)]

    def test_modes_are_those_that_it_was_added_with(self, queue: Queue, ours: Pair) -> None:
        """Flags of an existing knote are not changed (Kernel: kqueue_register sets kn_flags for a new one only)."""
        ours[1].send(b"x")
        number = ours[0].fileno()
        assert len(queue(change(number, READ, ADD))) == 1
        assert len(queue(change(number, READ, ADD | DISPATCH))) == 1
        assert len(queue()) == 1  # a level still

    @pytest.mark.parametrize("flags", [DELETE, ENABLE, DISABLE])
    def test_what_is_not_there(self, queue: Queue, ours: Pair, flags: int) -> None:
        """ENOENT: the event could not be found to be modified or deleted (FreeBSD, macOS)."""
        assert queue.fails(change(ours[0].fileno(), READ, flags)) == errno.ENOENT

    @pytest.mark.parametrize("flags", [ADD, DELETE, ENABLE])
    def test_a_closed_descriptor(self, queue: Queue, network: Network, flags: int) -> None:
        """EBADF: the specified descriptor is invalid (FreeBSD, macOS)."""
        sock = network.udp()
        number = sock.fileno()
        sock.close()
        assert queue.fails(change(number, READ, flags)) == errno.EBADF

    def test_an_unknown_filter(self, queue: Queue, ours: Pair) -> None:
        """EINVAL: the specified filter is invalid (FreeBSD, macOS)."""
        assert queue.fails(change(ours[0].fileno(), -90, ADD)) == errno.EINVAL

    def test_an_invalid_time(self, queue: Queue) -> None:
        """EINVAL: the specified time limit is invalid (FreeBSD, macOS)."""
        with pytest.raises(OSError, match=f"Errno {errno.EINVAL}]"):
            queue(timeout=-1)

    def test_a_change_that_fails_is_told_in_its_place(self, queue: Queue, ours: Pair) -> None:
        """With room, EV_ERROR is set in flags and the error in data, and the others are applied (FreeBSD, macOS)."""
        number = ours[0].fileno()
        [refused] = queue(change(number, WRITE, DELETE, udata=5), change(number, READ, ADD))
        assert (refused.told, refused.flags & ERROR, refused.data) == ((number, WRITE, 5), ERROR, errno.ENOENT)
        ours[1].send(b"x")
        assert [event.filter for event in queue()] == [READ]

    def test_who_hears_of_a_failure_hears_of_nothing_else(self, queue: Queue, ours: Pair) -> None:
        """And does not wait (Kernel: kern_kevent returns if there were errors)."""
        number = ours[0].fileno()
        ours[1].send(b"x")
        [refused] = queue(change(number, READ, ADD), change(number, WRITE, DELETE), timeout=None)
        assert refused.flags & ERROR

    def test_without_room_the_call_fails_and_stops(self, queue: Queue, ours: Pair) -> None:
        """-1 is returned, with errno (FreeBSD, macOS); what comes after is not applied (Kernel)."""
        number = ours[0].fileno()
        with pytest.raises(FileNotFoundError):
            queue(change(number, WRITE, DELETE), change(number, READ, ADD), room=0)
        assert queue.fails(change(number, READ, DELETE)) == errno.ENOENT

    def test_receipts(self, queue: Queue, ours: Pair) -> None:
        """EV_RECEIPT: bulk changes without draining events; EV_ERROR always, with 0 for success (FreeBSD, macOS)."""
        number = ours[0].fileno()
        ours[1].send(b"x")
        events = queue(change(number, READ, ADD | RECEIPT), change(number, WRITE, DELETE | RECEIPT))
        assert [(event.flags & ERROR, event.data) for event in events] == [(ERROR, 0), (ERROR, errno.ENOENT)]
        assert [event.filter for event in queue()] == [READ]

    def test_an_interrupted_wait_has_applied_them(self, queue: Queue, ours: Pair) -> None:
        """When kevent() fails with EINTR, all changes in the changelist have been applied (FreeBSD)."""
        queue.library.kqueue_standin_interrupt()
        with pytest.raises(InterruptedError):
            queue(change(ours[0].fileno(), READ, ADD), timeout=None)
        ours[1].send(b"x")
        assert len(queue()) == 1


class TestModes:
    def test_level(self, queue: Queue, ours: Pair) -> None:
        """The filter is run again when the event is retrieved: what holds no more is not (FreeBSD, macOS)."""
        ours[1].send(b"x")
        assert len(queue(change(ours[0].fileno(), READ, ADD))) == 1
        assert len(queue()) == 1
        ours[0].recv(1)
        assert queue() == []

    def test_clear(self, queue: Queue, ours: Pair) -> None:
        """EV_CLEAR: after the event is retrieved, its state is reset (FreeBSD, macOS)."""
        ours[1].send(b"x")
        assert len(queue(change(ours[0].fileno(), READ, ADD | CLEAR))) == 1
        assert queue() == []
        ours[1].send(b"x")
        assert len(queue()) == 1

    @pytest.mark.parametrize("flags", [ADD | ENABLE, ENABLE])
    def test_a_change_looks_again(self, queue: Queue, ours: Pair, flags: int) -> None:
        """Whatever is told of a knote, its filter is run (Kernel: kqueue_register calls f_event)."""
        ours[1].send(b"x")
        assert len(queue(change(ours[0].fileno(), READ, ADD | CLEAR))) == 1
        assert len(queue(change(ours[0].fileno(), READ, flags))) == 1

    def test_oneshot(self, queue: Queue, ours: Pair) -> None:
        """EV_ONESHOT: after the user retrieves the event from the kqueue, it is deleted (FreeBSD, macOS)."""
        ours[1].send(b"x")
        number = ours[0].fileno()
        assert len(queue(change(number, READ, ADD | ONESHOT))) == 1
        assert queue.fails(change(number, READ, ENABLE)) == errno.ENOENT

    def test_dispatch(self, queue: Queue, ours: Pair) -> None:
        """EV_DISPATCH: disable the event source immediately after delivery (FreeBSD, macOS); EV_ENABLE has it back."""
        ours[1].send(b"x")
        number = ours[0].fileno()
        assert len(queue(change(number, READ, ADD | DISPATCH))) == 1
        assert queue() == []
        ours[1].send(b"x")
        assert queue() == []
        assert [event.data for event in queue(change(number, READ, ENABLE))] == [2]

    def test_dispatch_disables_its_filter_only(self, queue: Queue, ours: Pair) -> None:
        """READ and WRITE are two events (FreeBSD, macOS)."""
        number = ours[0].fileno()
        queue(change(number, READ, ADD | DISPATCH))
        assert [event.filter for event in queue(change(number, WRITE, ADD | DISPATCH))] == [WRITE]
        ours[1].send(b"x")
        assert [event.filter for event in queue()] == [READ]

    def test_disable(self, queue: Queue, ours: Pair) -> None:
        """EV_DISABLE: kevent() will not return it; the filter itself is not disabled (FreeBSD, macOS)."""
        number = ours[0].fileno()
        queue(change(number, READ, ADD), change(number, READ, DISABLE))
        ours[1].send(b"x")
        assert queue() == []
        assert len(queue(change(number, READ, ENABLE))) == 1

    def test_no_more_than_there_is_room_for(self, queue: Queue, ours: Pair) -> None:
        """At most nevents are returned (FreeBSD, macOS); the others have their turn (Kernel: those go to the tail)."""
        numbers = [sock.fileno() for sock in ours]
        queue(*(change(number, WRITE, ADD) for number in numbers), room=0)
        assert sorted(event.ident for _ in range(2) for event in queue(room=1)) == sorted(numbers)


class TestStreams:
    def test_the_end_comes_with_what_is_left(self, queue: Queue, ours: Pair) -> None:
        """EV_EOF may be set while there is still data in the socket buffer (FreeBSD, macOS)."""
        ours[1].send(b"abc")
        ours[1].shutdown(socket.SHUT_WR)
        [event] = queue(change(ours[0].fileno(), READ, ADD))
        assert (event.flags & EOF, event.fflags, event.data) == (EOF, 0, 3)

    def test_an_error_is_in_fflags(self, queue: Queue, network: Network) -> None:
        """With EV_EOF, the socket error, if any, is returned in fflags (FreeBSD, macOS)."""
        sock = network.tcp()
        network.connect(sock, network.refusing())
        network.until_writable(sock)
        events = queue(change(sock.fileno(), READ, ADD), change(sock.fileno(), WRITE, ADD))
        assert [(event.flags & EOF, event.fflags != 0) for event in events] == [(EOF, True)] * 2

    def test_a_listener(self, queue: Queue, network: Network) -> None:
        """A listening socket is returned when there is an incoming connection pending (FreeBSD, macOS)."""
        listener = network.listener()
        assert queue(change(listener.fileno(), READ, ADD)) == []
        network.connect(network.tcp(), listener.getsockname())
        network.until_readable(listener)
        assert [event.flags & EOF for event in queue()] == [0]

    def test_a_fresh_socket_is_silent_until_it_is_connected(self, queue: Queue, network: Network) -> None:
        """Kernel: filt_sowrite wants SS_ISCONNECTED of sockets that need a connection."""
        sock = network.tcp()
        number = sock.fileno()
        assert queue(change(number, READ, ADD), change(number, WRITE, ADD)) == []
        network.connect(sock, network.listener().getsockname())
        network.until_writable(sock)
        assert [event.filter for event in queue(timeout=10)] == [WRITE]

    def test_pipes(self, queue: Queue, network: Network) -> None:
        """EV_EOF when the last writer disconnects, and for the writer when the reader does (FreeBSD, macOS)."""
        (first, writing), (reading, second) = network.pipe(), network.pipe()
        os.close(writing)
        os.close(reading)
        events = queue(change(first, READ, ADD), change(second, WRITE, ADD))
        assert [(event.ident, event.flags & EOF, event.fflags) for event in events] == [
            (first, EOF, 0),
            (second, EOF, 0),
        ]


class TestClosing:
    """Calling close() on a file descriptor will remove any kevents that reference the descriptor (FreeBSD, macOS)."""

    def test_it_reports_no_more(self, queue: Queue, ours: Pair) -> None:
        ours[1].send(b"x")
        queue(change(ours[0].fileno(), READ, ADD), room=0)
        ours[0].close()
        assert queue() == []

    def test_also_while_a_duplicate_lives(self, queue: Queue, ours: Pair) -> None:
        """Kernel: knote_fdclose goes by the descriptor."""
        queue(change(ours[0].fileno(), READ, ADD), room=0)
        duplicate = ours[0].dup()
        ours[0].close()
        ours[1].send(b"x")
        assert queue() == []
        duplicate.close()

    def test_its_successor_is_not_there(self, queue: Queue, network: Network, ours: Pair) -> None:
        number = ours[0].fileno()
        queue(change(number, READ, ADD), change(number, WRITE, ADD | DISPATCH), room=0)
        duplicate = ours[0].dup()
        ours[0].close()
        successor = network.reuse(number)
        assert queue() == []
        assert queue.fails(change(number, WRITE, ENABLE)) == errno.ENOENT
        assert [event.told for event in queue(change(successor.fileno(), WRITE, ADD, udata=9))] == [(number, WRITE, 9)]
        duplicate.close()


class TestOthers:
    def test_user(self, queue: Queue) -> None:
        """EVFILT_USER is triggered by NOTE_TRIGGER, by whoever wants to (FreeBSD, macOS); EV_CLEAR resets it."""
        assert queue(change(1, USER, ADD | CLEAR, udata=4)) == []
        for _ in range(2):
            queue(change(1, USER, 0, NOTE_TRIGGER, udata=4), change(1, USER, 0, NOTE_TRIGGER, udata=4), room=0)
            assert [event.told for event in queue()] == [(1, USER, 4)]
            assert queue() == []

    def test_user_ends_a_wait(self, queue: Queue) -> None:
        queue(change(1, USER, ADD | CLEAR))
        thread = threading.Thread(target=lambda: queue(change(1, USER, 0, NOTE_TRIGGER), room=0))
        thread.start()
        assert len(queue(timeout=None)) == 1
        thread.join()

    def test_proc(self, queue: Queue) -> None:
        """EVFILT_PROC with NOTE_EXIT: the process has exited (FreeBSD, macOS)."""
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert queue(change(child.pid, PROC, ADD | ONESHOT, NOTE_EXIT)) == []
        child.communicate(b"\n")
        assert [(event.ident, event.fflags) for event in queue(timeout=10)] == [(child.pid, NOTE_EXIT)]

    def test_proc_of_nobody(self, queue: Queue) -> None:
        """ESRCH: the specified process to attach to does not exist (FreeBSD, macOS)."""
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        assert queue.fails(change(child.pid, PROC, ADD, NOTE_EXIT)) == errno.ESRCH

    def test_a_child_has_no_queue(self, queue: Queue, ours: Pair) -> None:
        """The queue is not inherited by a child created with fork(2) (FreeBSD, macOS)."""
        queue(change(ours[0].fileno(), READ, ADD), room=0)
        program = f"""
import ctypes, errno, os, sys
sys.path[:0] = {sys.path!r}
library = ctypes.CDLL({queue.library._name!r}, use_errno=True)
queue = library.kqueue()
child = os.fork()
if not child:
    failed = library.kevent(queue, None, 0, None, 0, None) < 0 and ctypes.get_errno() == errno.EBADF
    try:
        os.fstat(queue)
    except OSError:
        os._exit(0 if failed else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert library.kevent(queue, None, 0, None, 0, None) == 0
"""
        subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)

    def test_a_closed_queue(self, library: ctypes.CDLL) -> None:
        """EBADF: the specified descriptor is invalid (FreeBSD, macOS)."""
        queue = Queue(library)
        os.close(queue.descriptor)
        with pytest.raises(OSError, match=f"Errno {errno.EBADF}]"):
            queue()

    def test_calls_are_counted(self, queue: Queue) -> None:
        before = queue.library.kqueue_standin_calls()
        queue()
        assert queue.library.kqueue_standin_calls() == before + 1
