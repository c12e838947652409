"""Coroutines for sockets that the program keeps itself: `sock_recv`, `sock_sendall`, `sock_accept` and the others.

Each tries, and where the socket would block, waits for a notification and tries again. Between two waits the
socket's registration rests with the port, and so does the `Wait` in its interest: it is still armed, so a wait that
follows soon orders nothing and makes nothing. If none follows, one notification comes for nobody, and then it is
disarmed. It belongs to the socket object (`Interest.owner`), so that a descriptor that was closed and given away again
is never taken for the one it was.

What is sent is sent as soon as the socket takes it, before the coroutine runs, as in asyncio.

A socket that is closed while a coroutine waits for it stays open below until the wait is over, as it does for
the files that `socket.makefile` returned. Otherwise its descriptor could become somebody else's meanwhile.
"""

from __future__ import annotations

import errno
import socket
from selectors import EVENT_READ, EVENT_WRITE
from ssl import SSLSocket
from typing import TYPE_CHECKING

from notifyloop.turn import primitives
from notifyloop.turn.primitives import TrueSocket
from notifyloop.turn.readiness import begin_wait, end_wait, wait_in
from notifyloop.turn.waits import Wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = [
    "release_waits",
    "sock_accept",
    "sock_connect",
    "sock_recv",
    "sock_recv_into",
    "sock_recvfrom",
    "sock_recvfrom_into",
    "sock_sendall",
    "sock_sendto",
    "when_writable",
]

RESOLVED = (socket.AF_INET, socket.AF_INET6)  # families whose addresses may be names


def check_socket(loop: Loop, sock: socket.socket) -> None:
    loop._check_closed()
    if type(sock) is not TrueSocket and isinstance(sock, SSLSocket):
        raise TypeError("Socket cannot be of type SSLSocket")
    if loop._debug and sock.gettimeout() != 0:
        raise ValueError("the socket must be non-blocking")


def release_waits(loop: Loop) -> None:
    """The loop closes, and with it what the coroutines that still wait would have done."""
    for interest in loop._turn.interests.by_descriptor.copy().values():
        for handle in (interest.reader, interest.writer):
            if isinstance(handle, Wait):
                handle.release()


# What is received is received by the coroutine itself, a turn after the socket was reported: who cancels it in that
# turn loses nothing, where asyncio, which receives before it wakes the coroutine, has the data and forgets it.


async def when_readable(loop: Loop, sock: socket.socket, operation: Callable[[], Any]) -> Any:
    """The operation's result, once the socket does not block."""
    wait = wait_in(loop, sock, EVENT_READ)
    try:
        while True:
            await begin_wait(loop, sock, wait)
            try:
                return operation()
            except (BlockingIOError, InterruptedError):
                continue
    finally:
        end_wait(wait)


async def when_writable(loop: Loop, sock: socket.socket, operation: Callable[[], Any]) -> Any:
    """The operation's result. It is called each time that the socket is reported, until it does not block."""
    wait = wait_in(loop, sock, EVENT_WRITE)
    try:
        return await begin_wait(loop, sock, wait, operation)
    finally:
        end_wait(wait)


async def sock_recv(loop: Loop, sock: socket.socket, n: int) -> bytes:
    """Up to `n` bytes; none at the end of the stream. Raises OSError as `socket.recv`."""
    check_socket(loop, sock)
    data: bytes | None = primitives.receive(sock, n)
    if data is None:
        data = await when_readable(loop, sock, lambda: sock.recv(n))
    return data


async def sock_recv_into(loop: Loop, sock: socket.socket, buf: Any) -> int:
    """Fill `buf`, as far as there is something to receive. Returns the number of bytes. Raises OSError."""
    check_socket(loop, sock)
    count = primitives.receive_into(sock, buf)
    if count < 0:
        count = await when_readable(loop, sock, lambda: sock.recv_into(buf))
    return count


async def sock_recvfrom(loop: Loop, sock: socket.socket, bufsize: int) -> tuple[bytes, Any]:
    """One datagram of up to `bufsize` bytes, and its sender. Raises OSError."""
    check_socket(loop, sock)
    received = primitives.receive_from(sock, bufsize)
    if received is None:
        received = await when_readable(loop, sock, lambda: sock.recvfrom(bufsize))
    return received


async def sock_recvfrom_into(loop: Loop, sock: socket.socket, buf: Any, nbytes: int = 0) -> tuple[int, Any]:
    """One datagram of up to `nbytes` (0: as many as `buf` holds); returns its size and sender. Raises OSError."""
    check_socket(loop, sock)
    nbytes = nbytes or len(buf)
    try:
        return sock.recvfrom_into(buf, nbytes)
    except (BlockingIOError, InterruptedError):
        received: tuple[int, Any] = await when_readable(loop, sock, lambda: sock.recvfrom_into(buf, nbytes))
        return received


async def sock_sendall(loop: Loop, sock: socket.socket, data: Any) -> None:
    """Send all of `data`. Raises OSError; then it is not known how much was sent."""
    check_socket(loop, sock)
    sent = primitives.send(sock, data)
    if type(data) is bytes and sent == len(data):
        return
    view = memoryview(data).cast("B")

    def send_rest() -> None:
        nonlocal sent
        sent += primitives.send(sock, view[sent:])
        if sent < view.nbytes:
            raise BlockingIOError

    if sent < view.nbytes:
        await when_writable(loop, sock, send_rest)


async def sock_sendto(loop: Loop, sock: socket.socket, data: Any, address: Any) -> int:
    """Send a datagram. Returns the number of bytes. Raises OSError."""
    check_socket(loop, sock)
    try:
        return sock.sendto(data, address)
    except (BlockingIOError, InterruptedError):
        count: int = await when_writable(loop, sock, lambda: sock.sendto(data, address))
        return count


async def sock_accept(loop: Loop, sock: socket.socket) -> tuple[socket.socket, Any]:
    """The next connection of a listening socket, non-blocking, and its peer's address. Raises OSError."""
    check_socket(loop, sock)
    try:
        connection, address = sock.accept()
    except (BlockingIOError, InterruptedError):
        connection, address = await when_readable(loop, sock, sock.accept)
    try:
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection, address


async def sock_connect(loop: Loop, sock: socket.socket, address: Any) -> None:
    """Connect, after resolving the address if its host is a name. Raises OSError."""
    check_socket(loop, sock)
    if sock.family in RESOLVED:
        resolved = await loop._ensure_resolved(address, family=sock.family, type=sock.type, proto=sock.proto, loop=loop)
        address = resolved[0][4]
    try:
        sock.connect(address)
        return
    except (BlockingIOError, InterruptedError) as error:
        # It has not begun to connect: the queue of a Unix socket's peer is full, or there is no local port left.
        # Nothing would tell when it could. (Windows says EWOULDBLOCK, another number there, when it has begun.)
        if error.errno == errno.EAGAIN:
            raise
    code = await when_writable(loop, sock, lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    if code:
        raise OSError(code, f"Connect call failed {address}")
