"""Files that are sent: `sendfile` and `sock_sendfile`, by the system where it can.

The documentation has the file's position always updated, so that it tells how much was sent. asyncio leaves it alone if
that was nothing, and it moves the descriptor only, which a file that has read ahead does not notice. Where the file is
read and written, it took an offset of 0 for "where the file stands" (https://github.com/python/cpython/issues/150107).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import weakref
from asyncio import SendfileNotAvailableError, base_events
from functools import partial
from typing import TYPE_CHECKING

from notifyloop.backports import Asyncio
from notifyloop.turn.sockets import when_writable

if sys.platform == "win32":
    sendfile = None
else:
    from notifyloop.unix.sigpipe import sendfile

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import IO, Any

    from notifyloop.turn.stream import StreamTransport
    from notifyloop.turn.surface import Loop

__all__ = ["sendfile_fallback", "sendfile_native", "sock_sendfile_fallback", "sock_sendfile_native"]

MOST_AT_ONCE = 1 << 30  # bytes
BLOCK = 16 * 1024  # bytes that are read and written together; asyncio's


class Position:
    """A file for asyncio to read, which is not moved before the end: to where asyncio would have it."""

    def __init__(self, file: Any, offset: int) -> None:
        self._readinto: Callable[[Any], int] = file.readinto
        self._end = offset
        self._read_to = offset
        self._move: Callable[[int], object] | None = getattr(file, "seek", None)
        if not offset and hasattr(file, "seekable") and not file.seekable():
            self._move = None
        if self._move is not None:
            self._move(offset)

    def readinto(self, buffer: Any) -> int:
        read = self._readinto(buffer)
        self._read_to += read
        return read

    def seek(self, position: int) -> None:
        self._end = position

    def seek_what_was_read(self) -> None:
        self._end = self._read_to

    def __enter__(self) -> Position:
        return self

    def __exit__(self, *error: object) -> None:
        if self._move is not None:
            self._move(self._end)


async def sock_sendfile_native(loop: Loop, sock: socket.socket, file: IO[bytes], offset: int, count: int | None) -> int:
    if sendfile is None:
        raise SendfileNotAvailableError("os.sendfile() is not available")
    try:
        fileno = file.fileno()
        os.fstat(fileno)
    except (AttributeError, io.UnsupportedOperation, OSError):
        raise SendfileNotAvailableError("not a regular file") from None
    total = 0
    try:
        # Not as much as the file is said to hold, as in asyncio: that is nothing for what is not on a disk.
        while block := min(count - total, MOST_AT_ONCE) if count else MOST_AT_ONCE:
            send = partial(sendfile, sock.fileno(), fileno, offset + total, block)
            try:
                sent = send()
            except (BlockingIOError, InterruptedError):
                sent = await when_writable(loop, sock, send)
            if not sent:
                break
            total += sent
    except OSError as error:
        if not total:  # the file is of a kind that cannot be sent so
            raise SendfileNotAvailableError("os.sendfile call failed") from error
        if error.errno == errno.ENOTCONN and type(error) is not ConnectionError:
            raise ConnectionError("socket is not connected", errno.ENOTCONN) from error
        raise
    finally:
        with contextlib.suppress(OSError, ValueError):  # a pipe has no position, nor has what was closed meanwhile
            if isinstance(file, io.IOBase):
                file.seek(offset + total)
            else:  # its seek() may be a coroutine
                os.lseek(fileno, offset + total, os.SEEK_SET)
    return total


async def sock_sendfile_fallback(loop: Loop, sock: socket.socket, file: Any, offset: int, count: int | None) -> int:
    with Position(file, offset) as position:
        sent: int = await Asyncio._sock_sendfile_fallback(loop, sock, position, offset, count)
        return sent


async def sendfile_fallback(loop: Loop, transp: Any, file: Any, offset: int, count: int | None) -> int:
    with Position(file, offset) as position:
        total = 0
        buffer = memoryview(bytearray(BLOCK))
        protocol = base_events._SendfileFallbackProtocol(transp)  # type: ignore[attr-defined]
        try:
            while wanted := min(count - total, BLOCK) if count else BLOCK:
                read = await loop.run_in_executor(None, position.readinto, buffer[:wanted])
                if not read:
                    break
                transp.write(buffer[:read])
                # The last block, too: else it is the program's protocol that is told to go on, and was not told to
                # pause. asyncio's has it so since Python 3.13.5, or some release before that.
                await protocol.drain()
                total += read
                position.seek(offset + total)
            return total
        except ConnectionError:
            position.seek_what_was_read()  # of what the transport took last, some has arrived
            raise
        finally:
            await protocol.restore()


async def sendfile_native(loop: Any, transp: StreamTransport, file: Any, offset: int, count: int | None) -> int:
    reading = transp.is_reading()
    interest = transp._interest
    owner = interest.owner
    empty = transp._make_empty_waiter()
    transp.pause_reading()
    try:
        await empty
        interest.owner = weakref.ref(transp._sock)  # while it sends, it is not the transport's
        return await loop.sock_sendfile(transp._sock, file, offset, count, fallback=False)  # type: ignore[no-any-return]
    finally:
        interest.owner = owner
        transp._reset_empty_waiter()
        if reading:
            transp.resume_reading()
