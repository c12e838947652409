"""Coroutines for sockets that the program keeps itself: `sock_recv`, `sock_sendall`, `sock_accept` and the others.

Each tries, and where the socket would block, waits for a notification and tries again. Between two waits the
socket's registration rests with the port, disarmed as its one shot left it: a wait that follows costs no more
than the order, which travels with the next poll, to arm it again. It belongs to the socket object (`Interest.owner`),
so that a descriptor that was closed and given away again is never taken for the one it was.

A socket that is closed while a coroutine waits for it stays open below until the wait is over, as it does for
the files that `socket.makefile` returned. Otherwise its descriptor could become somebody else's meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
import weakref
from asyncio import base_events
from asyncio.exceptions import SendfileNotAvailableError
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

from notifyloop.backports import SelectorEventLoop

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    from notifyloop.selector import Interest, NotificationSelector

__all__ = ["SocketOperations", "Wait"]

RESOLVED = (socket.AF_INET, socket.AF_INET6)  # families whose addresses may be names


class Wait:
    """One coroutine that waits for a socket; it stands in an interest where a handle would."""

    __slots__ = ("_cancelled", "event", "future", "interest", "sock")

    # Whatever looks at handles in debug mode finds these.
    _callback = None
    _source_traceback = None

    def __init__(self, future: asyncio.Future[None], sock: Any, interest: Interest, event: int) -> None:
        self.future = future
        self.sock: Any = sock if issubclass(type(sock), socket.socket) else None  # others close as they like
        self.interest = interest
        self.event = event
        self._cancelled = False
        if self.sock is not None:
            self.sock._io_refs += 1

    def _run(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def cancel(self) -> None:
        """Somebody else watches the descriptor now: as in asyncio, the coroutine waits until it is cancelled."""
        self._cancelled = True

    def abort(self) -> None:
        """The transport whose socket it is closes it."""
        self._cancelled = True
        if not self.future.done():
            self.future.set_exception(ConnectionAbortedError(errno.ECONNABORTED, "the transport was closed"))

    def release(self) -> None:
        """Let the socket close, if it is to. May be called twice."""
        sock, self.sock = self.sock, None
        if sock is not None:
            sock._decref_socketios()

    def __repr__(self) -> str:
        return f"<Wait for {'reading' if self.event == EVENT_READ else 'writing'} {self.sock!r}>"


class SocketOperations(SelectorEventLoop):
    """The `sock_*` methods of a loop whose selector is a `NotificationSelector`."""

    _selector: NotificationSelector
    _debug: bool
    _check_closed: Callable[[], None]
    _ensure_fd_no_transport: Callable[[object], None]
    _ensure_resolved: Callable[..., Any]

    def _check_socket(self, sock: socket.socket) -> None:
        self._check_closed()
        base_events._check_ssl_socket(sock)  # type: ignore[attr-defined]
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")

    def _begin_wait(self, sock: socket.socket, event: int) -> Wait:
        selector = self._selector
        fd = sock.fileno()
        interest = selector.interests.get(fd)
        if interest is None or interest.owner is None or interest.owner() is not sock:
            self._ensure_fd_no_transport(sock)
            interest = selector.adopt(sock, weakref.ref(sock))
        wait = Wait(self.create_future(), sock, interest, event)
        reader, writer = interest.data
        if event == EVENT_READ:
            replaced, reader = reader, wait
        else:
            replaced, writer = writer, wait
        selector.want(interest, interest.events | event, (reader, writer))
        if replaced is not None:
            replaced.cancel()
        return wait

    def _end_wait(self, wait: Wait) -> None:
        interest = wait.interest
        reader, writer = interest.data
        if reader is wait:
            self._selector.want(interest, interest.events & ~EVENT_READ, (None, writer))
        elif writer is wait:
            self._selector.want(interest, interest.events & ~EVENT_WRITE, (reader, None))
        wait.release()

    def _release_waits(self) -> None:
        """The loop closes, and with it what the coroutines that still wait would have done."""
        for interest in self._selector.interests.values():
            for handle in interest.data:
                if isinstance(handle, Wait):
                    handle.release()

    async def _when_ready(self, sock: socket.socket, event: int, operation: Callable[[], Any]) -> Any:
        """The operation's result, once the socket does not block."""
        while True:
            wait = self._begin_wait(sock, event)
            try:
                await wait.future
                return operation()
            except (BlockingIOError, InterruptedError):
                continue
            finally:
                self._end_wait(wait)

    def _is_drained(self, sock: socket.socket) -> bool:
        """Whether the last read returned less than there was room for. To try again at once would cost a system call
        and an exception, to learn what is known.
        """
        interest = self._selector.interests.get(sock.fileno())
        return interest is not None and interest.drained and interest.owner is not None and interest.owner() is sock

    def _note_read(self, sock: socket.socket, drained: bool) -> None:
        interest = self._selector.interests.get(sock.fileno())
        if interest is not None:
            interest.drained = drained

    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        """Up to `n` bytes; none at the end of the stream. Raises OSError as `socket.recv`."""
        self._check_socket(sock)
        if not self._is_drained(sock):
            try:
                data: bytes = sock.recv(n)
            except (BlockingIOError, InterruptedError):
                data = await self._when_ready(sock, EVENT_READ, lambda: sock.recv(n))
        else:
            data = await self._when_ready(sock, EVENT_READ, lambda: sock.recv(n))
        self._note_read(sock, 0 < len(data) < n)
        return data

    async def sock_recv_into(self, sock: socket.socket, buf: Any) -> int:
        """Fill `buf`, as far as there is something to receive. Returns the number of bytes. Raises OSError."""
        self._check_socket(sock)
        try:
            return sock.recv_into(buf)
        except (BlockingIOError, InterruptedError):
            count: int = await self._when_ready(sock, EVENT_READ, lambda: sock.recv_into(buf))
            return count

    async def sock_recvfrom(self, sock: socket.socket, bufsize: int) -> tuple[bytes, Any]:
        """One datagram of up to `bufsize` bytes, and its sender. Raises OSError."""
        self._check_socket(sock)
        try:
            return sock.recvfrom(bufsize)
        except (BlockingIOError, InterruptedError):
            received: tuple[bytes, Any] = await self._when_ready(sock, EVENT_READ, lambda: sock.recvfrom(bufsize))
            return received

    async def sock_recvfrom_into(self, sock: socket.socket, buf: Any, nbytes: int = 0) -> tuple[int, Any]:
        """One datagram of up to `nbytes` (0: as many as `buf` holds); returns its size and sender. Raises OSError."""
        self._check_socket(sock)
        nbytes = nbytes or len(buf)
        try:
            return sock.recvfrom_into(buf, nbytes)
        except (BlockingIOError, InterruptedError):
            received: tuple[int, Any] = await self._when_ready(
                sock, EVENT_READ, lambda: sock.recvfrom_into(buf, nbytes)
            )
            return received

    async def sock_sendall(self, sock: socket.socket, data: Any) -> None:
        """Send all of `data`. Raises OSError; then it is not known how much was sent."""
        self._check_socket(sock)
        try:
            sent = sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if type(data) is bytes and sent == len(data):
            return
        view = memoryview(data).cast("B")
        while sent < view.nbytes:
            sent += await self._when_ready(sock, EVENT_WRITE, partial(sock.send, view[sent:]))

    async def sock_sendto(self, sock: socket.socket, data: Any, address: Any) -> int:
        """Send a datagram. Returns the number of bytes. Raises OSError."""
        self._check_socket(sock)
        try:
            return sock.sendto(data, address)
        except (BlockingIOError, InterruptedError):
            count: int = await self._when_ready(sock, EVENT_WRITE, lambda: sock.sendto(data, address))
            return count

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """The next connection of a listening socket, non-blocking, and its peer's address. Raises OSError."""
        self._check_socket(sock)
        try:
            connection, address = sock.accept()
        except (BlockingIOError, InterruptedError):
            connection, address = await self._when_ready(sock, EVENT_READ, sock.accept)
        connection.setblocking(False)
        return connection, address

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect, after resolving the address if its host is a name. Raises OSError."""
        self._check_socket(sock)
        if sock.family in RESOLVED:
            resolved = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = resolved[0][4]
        try:
            sock.connect(address)
            return
        except (BlockingIOError, InterruptedError) as error:
            # A Unix socket whose peer's queue is full has not begun to connect, and nothing would tell when it could.
            if error.errno == errno.EAGAIN and sock.family not in RESOLVED:
                raise
        code = await self._when_ready(sock, EVENT_WRITE, lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        if code:
            raise OSError(code, f"Connect call failed {address}")

    async def _sock_sendfile_native(self, sock: socket.socket, file: IO[bytes], offset: int, count: int | None) -> int:
        if not hasattr(os, "sendfile"):
            raise SendfileNotAvailableError("os.sendfile() is not available")
        try:
            fileno = file.fileno()
            size = os.fstat(fileno).st_size
        except (AttributeError, io.UnsupportedOperation, OSError):
            raise SendfileNotAvailableError("not a regular file") from None
        total = 0
        try:
            while (block := count - total if count else size) > 0:
                chunk = (sock.fileno(), fileno, offset + total, block)
                try:
                    sent = os.sendfile(*chunk)
                except (BlockingIOError, InterruptedError):
                    sent = await self._when_ready(sock, EVENT_WRITE, partial(os.sendfile, *chunk))
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
            if total:
                os.lseek(fileno, offset + total, os.SEEK_SET)
        return total
