"""Child processes, on Linux.

The transport is asyncio's. It is told that the child has ended by a pidfd, a descriptor that is readable from
then on: one more registration on the port, and neither a thread for each child, as asyncio has by default on
Python 3.11, nor a handler of SIGCHLD, which is the program's to have.

Nobody but the transport should reap the child. `subprocess.Popen` does when it is asked for something
(`send_signal` looks first whether there is somebody to signal), so its result is looked at; if somebody else
has, the exit status is lost, and as in asyncio it is reported as 255.
"""

from __future__ import annotations

import functools
import os
import sys
from asyncio import unix_events
from asyncio.log import logger
from typing import Any

from notifyloop.children import Child

assert sys.platform != "win32"

__all__ = ["ChildProcess", "can_watch_children"]


@functools.cache
def can_watch_children() -> bool:
    """Whether the system has pidfds: Linux since 5.3, unless a sandbox forbids them."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


Base: Any = unix_events._UnixSubprocessTransport  # type: ignore[attr-defined]


class ChildProcess(Child, Base):  # type: ignore[misc]
    """The transport of a child process; made by the loop's subprocess methods."""

    _pidfd = -1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loop._add_reader(self._pidfd, self._reap)

    def _start(self, *args: Any, **kwargs: Any) -> None:
        super()._start(*args, **kwargs)
        try:
            self._pidfd = os.pidfd_open(self._proc.pid)
        except OSError:  # too many descriptors: no child that nobody watches
            with self._proc:
                self._proc.kill()
            raise

    def _reap(self) -> None:
        self._loop._forget(self._pidfd)
        self._close_pidfd()
        returncode = self._proc.returncode
        if returncode is None:
            try:
                _, status = os.waitpid(self._pid, 0)
            except ChildProcessError:
                returncode = 255
                logger.warning("child process pid %d: somebody else has its exit status, 255 is reported", self._pid)
            else:
                returncode = os.waitstatus_to_exitcode(status)
        self._process_exited(returncode)

    def _close_pidfd(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        os.close(pidfd)

    def __del__(self) -> None:
        super().__del__()
        if self._pidfd != -1:  # the loop was closed before the child ended
            self._close_pidfd()
