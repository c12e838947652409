"""Datagram transports, for UDP and Unix sockets.

Receiving: a readable socket may have many datagrams waiting, and each costs its own call. So several are taken
for one notification, but not so many that other sockets have to wait long. To find out that there are no more costs a
call as well, so as many are asked for as there were last, and an eighth more each time that there are so many.

Sending: each datagram goes to the socket at once; what it does not take is kept, and sent in order when it is
writable. Errors of single datagrams, such as that a peer's port is closed, are the protocol's to hear of
(`error_received`) and never end the transport. As in asyncio, an endpoint that has no one peer sends also what it is
given after `close()`, while there is a socket.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from notifyloop.turn import primitives
from notifyloop.turn.primitives import INTERNET
from notifyloop.turn.transport import LATE_WRITES, SocketTransport

if TYPE_CHECKING:
    import socket
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = ["DatagramTransport"]

logger = logging.getLogger("asyncio")

# Bytes to make room for. malloc() maps what has 128 KiB, and more, which costs more than to receive; no Internet
# datagram has so many, those of Unix sockets may.
LARGEST = 64 * 1024
LARGEST_UNIX = 256 * 1024
MOST_AT_ONCE = 64  # datagrams received for one notification
OVERHEAD = 8  # bytes that a datagram kept counts beside its own: many empty ones are not nothing


def receive(transport: DatagramTransport) -> None:
    """Receive, because there is something to receive."""
    try:
        primitives.call_in(transport._context, receive_in_context, transport)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._report(error)


def receive_in_context(transport: DatagramTransport) -> None:
    eighths = transport._eighths
    for count in range(eighths // 8):
        if transport._conn_lost or transport._closing:
            return
        try:
            received = primitives.receive_from(transport._sock, transport._largest)
        except OSError as error:
            transport._protocol.error_received(error)
            return
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            transport._fatal_error(error, "Fatal read error on datagram transport")
            return
        if received is None:
            transport._eighths = 8 * max(count, 1)
            return
        transport._protocol.datagram_received(received[0], received[1])
    transport._eighths = min(eighths + eighths // 8, 8 * MOST_AT_ONCE)


def sendto(transport: DatagramTransport, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"data argument must be a bytes-like object (bytes, bytearray, memoryview), not {type(data).__name__!r}"
        )
    if transport._address and addr is not None and not is_peer(transport._address, addr):
        raise ValueError(f"Invalid address: must be None or {transport._address}")
    if transport._conn_lost and (transport._address or transport._sock is None):
        if transport._conn_lost >= LATE_WRITES:
            logger.warning("socket.send() raised exception.")
        transport._conn_lost += 1
        return
    if transport._buffer or not send(transport, data, addr):
        transport._keep(data, addr)


def is_peer(peer: Any, addr: Any) -> bool:
    """IPv6 has four numbers for what is known by two."""
    if isinstance(addr, tuple) and len(addr) in (2, 3) and isinstance(peer, tuple):
        return addr == peer[: len(addr)]
    return bool(addr == peer)


def send(transport: DatagramTransport, data: bytes | bytearray | memoryview, addr: Any) -> bool:
    """Returns whether this datagram is done with, sent or not; False if the socket would block."""
    try:
        if transport._peername is not None:  # it is connected; "" is a Unix socket without a name
            return primitives.send_to(transport._sock, data, None)
        address = addr or transport._address
        if address is None:
            transport._sock.sendto(data, None)  # raises what says that there must be one
        return primitives.send_to(transport._sock, data, address)
    except OSError as error:
        transport._protocol.error_received(error)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._fatal_error(error, "Fatal write error on datagram transport")
    return True


class DatagramTransport(SocketTransport, asyncio.DatagramTransport):
    """A datagram socket; made by `create_datagram_endpoint`."""

    __slots__ = ()

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        peername: Any = None,
    ) -> None:
        super().__init__(loop, sock, protocol, extra, peername)
        # The one peer, of a transport that was made with remote_addr. Its socket is connected, unless it broadcasts.
        self._address = address
        self._eighths = 8  # of a datagram, to be received at once
        self._largest = LARGEST if sock.family in INTERNET else LARGEST_UNIX
        loop.call_soon(self._begin, waiter, context=self._context)

    _run = receive
    sendto = sendto

    def _keep(self, data: bytes | bytearray | memoryview, addr: Any) -> None:
        """Until the socket takes it."""
        if not self._buffer:
            if self._conn_lost:
                logger.warning("%r: a datagram sent after close() is lost, for the socket takes no more now", self)
                return
            self._await_writability()
            self._buffer = deque()
        data = bytes(data)
        self._buffer.append((data, addr))
        self._buffer_size += len(data) + OVERHEAD
        self._maybe_pause_protocol()

    def _write_ready(self) -> None:
        while self._buffer:
            data, addr = self._buffer[0]
            size = len(data) + OVERHEAD
            self._buffer.popleft()  # first, for error_received() may raise
            self._buffer_size -= size
            if not send(self, data, addr):
                self._buffer.appendleft((data, addr))
                self._buffer_size += size
                break
            if self._conn_lost:
                return
        self._maybe_resume_protocol()  # may send more, or end it
        if not self._buffer and not self._conn_lost:
            self._buffer = ()
            self._await_nothing()
            if self._closing:
                self._end(None)
