"""Coroutines for sockets that the program keeps itself: `sock_recv`, `sock_sendall`, `sock_accept` and the others.

Each tries, and where the socket would block, waits for a notification and tries again. Between two waits the
socket's registration rests with the port, and so does the `Wait` in its interest: it is still armed, so a wait that
follows soon orders nothing and makes nothing. If none follows, one notification comes for nobody, and then it is
disarmed. It belongs to the socket object (`Interest.owner`), so that a descriptor that was closed and given away again
is never taken for the one it was.

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
    """What a coroutine waits with for a socket, one after another; it stands in an interest where a handle would."""

    __slots__ = ("_cancelled", "event", "future", "interest", "selector", "sock")

    # Whatever looks at handles in debug mode finds these.
    _callback = None
    _source_traceback = None

    def __init__(self, selector: NotificationSelector, interest: Interest, event: int) -> None:
        self.selector = selector
        self.interest = interest
        self.event = event
        self.future: asyncio.Future[None] | None = None  # None: at rest
        self.sock: Any = None  # the socket that is kept open
        self._cancelled = False

    def begin(self, sock: Any, future: asyncio.Future[None]) -> None:
        self.future = future
        if issubclass(type(sock), socket.socket):  # others close as they like
            self.sock = sock
            sock._io_refs += 1

    def _run(self) -> None:
        """There is something to do. If nobody waits for that any more, let the port know."""
        future, interest = self.future, self.interest
        if future is None:
            self.selector.want(interest, interest.events)
            return
        interest.events &= ~self.event
        if not future.done():
            future.set_result(None)

    def end(self) -> None:
        """Rest. The coroutine was told and has done what it waited for, or does not wait any longer."""
        interest = self.interest
        if interest.events & self.event and not self._cancelled:
            self.selector.want(interest, interest.events & ~self.event)
        self.release()

    def cancel(self) -> None:
        """Somebody else watches the descriptor now: as in asyncio, the coroutine waits until it is cancelled."""
        self._cancelled = True

    def abort(self) -> None:
        """The transport whose socket it is closes it."""
        self._cancelled = True
        if self.future is not None and not self.future.done():
            self.future.set_exception(ConnectionAbortedError(errno.ECONNABORTED, "the transport was closed"))

    def release(self) -> None:
        """Let the socket close, if it is to. May be called twice."""
        sock, self.sock, self.future = self.sock, None, None
        if sock is not None:
            sock._io_refs -= 1
            if sock._closed:
                sock.close()

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

    def _interest_in(self, sock: socket.socket) -> Interest | None:
        """The interest that belongs to this socket, if one was needed yet."""
        interest = self._selector.interests.get(sock.fileno())
        if interest is None or interest.owner is None or interest.owner() is not sock:
            return None
        return interest

    def _begin_wait(self, sock: socket.socket, event: int) -> Wait:
        selector = self._selector
        interest = self._interest_in(sock)
        if interest is None:
            self._ensure_fd_no_transport(sock)
            interest = selector.adopt(sock, sock.fileno(), weakref.ref(sock))
        standing = interest.handle_for(event)
        if type(standing) is Wait and standing.future is None:
            wait = standing
        else:
            wait = Wait(selector, interest, event)
            interest.hand_to(event, wait)
            if standing is not None:
                standing.cancel()
        wait.begin(sock, asyncio.Future(loop=self))
        if interest.armed & event:  # since the last wait
            interest.events |= event
        else:
            selector.want(interest, interest.events | event)
        return wait

    def _release_waits(self) -> None:
        """The loop closes, and with it what the coroutines that still wait would have done."""
        for interest in self._selector.interests.values():
            for handle in (interest.reader, interest.writer):
                if isinstance(handle, Wait):
                    handle.release()

    async def _when_ready(self, sock: socket.socket, event: int, operation: Callable[[], Any]) -> Any:
        """The operation's result, once the socket does not block."""
        while True:
            wait = self._begin_wait(sock, event)
            try:
                await wait.future  # type: ignore[misc]
                return operation()
            except (BlockingIOError, InterruptedError):
                continue
            finally:
                wait.end()

    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        """Up to `n` bytes; none at the end of the stream. Raises OSError as `socket.recv`."""
        self._check_socket(sock)
        interest = self._interest_in(sock)
        # If the last read returned less than there was room for, to try again at once would cost a system call and an
        # exception, to learn what is known.
        if interest is None or not interest.drained:
            try:
                data = sock.recv(n)
            except (BlockingIOError, InterruptedError):
                pass
            else:
                if interest is not None:
                    interest.drained = 0 < len(data) < n
                return data
        while True:
            wait = self._begin_wait(sock, EVENT_READ)
            try:
                await wait.future  # type: ignore[misc]
                data = sock.recv(n)
                wait.interest.drained = 0 < len(data) < n
                return data
            except (BlockingIOError, InterruptedError):
                continue
            finally:
                wait.end()

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
