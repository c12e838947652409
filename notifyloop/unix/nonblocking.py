"""Have a descriptor not block, though others share what it names.

That a descriptor does not block is a property of its *open file description*, and descriptors that were inherited or
duplicated have one in common. The terminal's is shared by the shell, by what it starts, and by `print()`: if it does
not block, all of them fail with EAGAIN. asyncio has it so, and leaves it so.

A terminal can be opened a second time, which gives a description of our own. A pseudoterminal's master cannot: that
would make another terminal; nor can sockets. Pipes could, but a FIFO that is opened when its writers are gone does not
tell that they are; it waits for the first (Linux, fs/pipe.c). All these are told not to block, and told otherwise by
the last who needed it, if they had blocked before.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import fcntl
import os
from collections import Counter

from notifyloop.port.forks import Guarded

__all__ = ["NonBlocking"]

MASTER = os.makedev(5, 2)  # /dev/ptmx
ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR

# Who needs what would block without us, by device, inode and access: nearer one does not come to a description.
needed: Counter[tuple[int, int, int]] = Counter()
guarded = Guarded()  # finalizers of transports close, in the midst of whatever their thread does


class NonBlocking:
    """A descriptor that does not block, until it is closed: `fd`, another than the given one if it has to be.

    With `apart` it is another, too, if what it names can be read and written: then somebody may watch it by the given
    number for the other direction. Raises OSError.
    """

    __slots__ = ("_description", "_given", "fd")

    def __init__(self, fd: int, apart: bool = False) -> None:
        self.fd = self._given = fd
        self._description: tuple[int, int, int] | None = None
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        access = flags & ACCESS
        if not flags & os.O_NONBLOCK and self._open_again(access):
            return
        if apart and access == os.O_RDWR:
            self.fd = os.dup(fd)
        status = os.fstat(fd)
        description = status.st_dev, status.st_ino, access
        with guarded.lock:
            if description in needed or not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK:
                # Noted first: a finalizer may come in, and must not take itself for the last.
                needed[description] += 1
                self._description = description
                try:
                    os.set_blocking(fd, False)
                except BaseException:
                    self.close()
                    raise

    def _open_again(self, access: int) -> bool:
        if not os.isatty(self._given) or os.fstat(self._given).st_rdev == MASTER:
            return False
        try:
            self.fd = os.open(f"/proc/self/fd/{self._given}", access | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:  # another user's terminal, or no /proc: then it must be shared
            return False
        return True

    def close(self, given_is_open: bool = True) -> None:
        """Give the descriptor back, before the given one is closed, unless somebody has done that."""
        description, self._description = self._description, None
        apart = self.fd != self._given
        try:
            if description is not None:
                with guarded.lock:
                    needed[description] -= 1
                    last = not needed[description]
                    if last:
                        del needed[description]
                    if last and (apart or given_is_open):
                        os.set_blocking(self.fd, True)
        finally:
            if apart:
                fd, self.fd = self.fd, self._given
                os.close(fd)
