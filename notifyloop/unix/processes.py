"""Child processes, where the system has pidfds: on Linux. Elsewhere they are watched as in asyncio.

The transport is asyncio's. It is told that the child has ended by a pidfd, a descriptor that is readable from
then on: one more registration on the port, and neither a thread for each child, as asyncio has by default on
Python 3.11, nor a handler of SIGCHLD, which is the program's to have. Signals go by way of it, too: they are for the
child, and not for who has its number by then.

Nobody but the transport should reap the child. `subprocess.Popen` does when it is asked for something, others do who
wait for any child, and the kernel does where SIGCHLD is ignored. Then Linux, since 6.15, can be asked how the child
ended, by the pidfd. Before that Popen's word is taken, and if it has none, the exit status is lost, and as in asyncio
it is reported as 255.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import fcntl
import functools
import logging
import os
import select
import signal
import struct
import warnings
from asyncio import unix_events
from signal import SIGKILL, SIGTERM
from typing import TYPE_CHECKING, Any

from notifyloop.children import Child
from notifyloop.turn.readiness import add_reader, remove_reader

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ChildProcess", "can_watch_children"]

logger = logging.getLogger("asyncio")

pidfd_send_signal: Any = getattr(signal, "pidfd_send_signal", None)  # there is none where there are no pidfds

P_PIDFD = 3  # os.P_PIDFD, also where Python was built before the kernel had it: Linux 5.4

# linux/pidfd.h: struct pidfd_info and its ioctl, on most processors. On the others no kernel answers to it.
INFO = struct.Struct("=QQ11Ii")
GET_INFO = 3 << 30 | INFO.size << 16 | 0xFF << 8 | 11
EXIT = 1 << 3


@functools.cache
def can_watch_children() -> bool:
    """Whether the system has pidfds one can wait for: Linux since 5.4, unless a sandbox forbids them."""
    try:
        pidfd = os.pidfd_open(os.getpid())
    except (AttributeError, OSError):
        return False
    try:
        os.waitid(P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # type: ignore[arg-type, unused-ignore]
    except ChildProcessError:
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return False


def told_by_the_kernel(pidfd: int) -> int | None:
    """The wait status of a process that somebody has reaped; None if the kernel does not tell."""
    info = bytearray(INFO.pack(EXIT, *[0] * 13))
    for _ in range(2):
        try:
            fcntl.ioctl(pidfd, GET_INFO, info)
        except OSError:
            return None
        mask, *_, status = INFO.unpack(info)
        if mask & EXIT:
            return int(status)
        reaped = select.poll()  # nearly: whoever does it says so by hang-up
        reaped.register(pidfd, 0)
        reaped.poll(100)
    return None


@contextlib.contextmanager
def leaving_children_to_us() -> Iterator[None]:
    """Where SIGCHLD is ignored, a child may be gone before there is a pidfd of it. Let it wait for us that long.

    The child inherits what a signal does, so it will have the default itself.
    """
    ignored = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    if ignored:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except ValueError:  # not the main thread
            ignored = False
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)


Base: Any = unix_events._UnixSubprocessTransport  # type: ignore[attr-defined]


class ChildProcess(Child, Base):  # type: ignore[misc]
    """The transport of a child process; made by the loop's subprocess methods."""

    _pidfd = -1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._pidfd != -1:
            add_reader(self._loop, self._pidfd, self._reap)
        else:
            self._loop.call_soon(self._process_exited, self._unknown())

    def _start(self, *args: Any, **kwargs: Any) -> None:
        with leaving_children_to_us():
            super()._start(*args, **kwargs)
            try:
                self._pidfd = os.pidfd_open(self._proc.pid)
            except ProcessLookupError:  # it is gone already
                self._pidfd = -1
            except OSError:  # too many descriptors: no child that nobody watches
                with self._proc:
                    self._proc.kill()
                raise

    def _reap(self) -> None:
        returncode = self._proc.returncode
        try:
            ended = os.waitid(P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except OSError:  # ChildProcessError, nearly always: somebody has reaped it
            status = told_by_the_kernel(self._pidfd)
            if status is not None:
                returncode = os.waitstatus_to_exitcode(status)
            elif returncode is None:
                returncode = self._unknown()
        else:
            if ended is None:
                return
            returncode = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        remove_reader(self._loop, self._pidfd)
        self._close_pidfd()
        self._proc.returncode = returncode
        # A turn later, as in asyncio: what the child has written is seen first, if both are seen together.
        self._loop.call_soon(self._process_exited, returncode)

    def _unknown(self) -> int:
        logger.warning("child process pid %d: its exit status cannot be had, 255 is reported", self._pid)
        return 255

    def send_signal(self, signal: int) -> None:
        self._check_proc()
        if self._pidfd != -1:  # or it has ended
            with contextlib.suppress(ProcessLookupError):
                pidfd_send_signal(self._pidfd, signal)

    def terminate(self) -> None:
        self.send_signal(SIGTERM)

    def kill(self) -> None:
        self.send_signal(SIGKILL)

    def _close_pidfd(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        os.close(pidfd)

    def __del__(self, _warn: Any = warnings.warn) -> None:
        super().__del__(_warn)
        if self._pidfd != -1:  # the loop was closed before the child ended
            self._close_pidfd()
