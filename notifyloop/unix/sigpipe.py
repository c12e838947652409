"""Writing to what nobody reads from any more, without being killed.

Python ignores SIGPIPE, and a write fails with EPIPE. Command line tools take the default back, to end quietly in a
shell's pipeline, and then the kernel ends the whole process for one connection that was lost.

A socket can be told for each call (MSG_NOSIGNAL), a pipe cannot: there the signal is held back in this thread, which is
the one that gets it, and taken away if the write has failed.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["sendfile", "write"]

SIGPIPE = {signal.SIGPIPE}


def write(fd: int, data: bytes | bytearray | memoryview) -> int:
    """As `os.write`. Raises OSError: BrokenPipeError where the signal would have been."""
    return unkilled(os.write, fd, data)


def sendfile(out_fd: int, in_fd: int, offset: int, count: int) -> int:
    """As `os.sendfile`, likewise."""
    return unkilled(os.sendfile, out_fd, in_fd, offset, count)


def unkilled(write: Callable[..., int], *arguments: Any) -> int:
    if signal.getsignal(signal.SIGPIPE) is not signal.SIG_DFL:
        return write(*arguments)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # first, for an interrupt may come in between
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGPIPE)
        return write(*arguments)
    except BrokenPipeError:
        if signal.SIGPIPE not in mask:
            take_away()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def take_away() -> None:
    """The signal that waits for this thread."""
    if hasattr(signal, "sigtimedwait"):
        signal.sigtimedwait(SIGPIPE, 0)
    elif signal.SIGPIPE in signal.sigpending():  # macOS, OpenBSD
        signal.sigwait(SIGPIPE)
