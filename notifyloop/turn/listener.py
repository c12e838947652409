"""What it means that a listening socket is readable: connections are there to be accepted, and each is begun.

Nothing that happens to one of them ends the listening.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from asyncio import trsock
from typing import TYPE_CHECKING

from notifyloop.turn import primitives
from notifyloop.turn.primitives import true_family, true_kind
from notifyloop.turn.readiness import remove_reader
from notifyloop.turn.stream import StreamTransport

if TYPE_CHECKING:
    import ssl
    from asyncio import base_events
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = ["accept_connection"]

logger = logging.getLogger("asyncio")

# What accept() says of a connection that came to nothing, besides ConnectionErrors: Linux passes on the network's
# errors, wine says that it is not connected.
GONE = (
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    getattr(errno, "ENONET", errno.EHOSTDOWN),
    errno.ENOPROTOOPT,
    errno.EPROTO,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
)
ERROR_NETNAME_DELETED = 64
ACCEPT_RETRY_DELAY = 1  # seconds, as those below; asyncio's
SHORT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def accept(sock: socket.socket) -> tuple[socket.socket, Any]:
    """As `sock.accept()`, without looking for the names of what a connection has in common with its listener."""
    if type(sock) is not socket.socket:
        return sock.accept()
    descriptor, address = sock._accept()  # type: ignore[attr-defined]
    try:
        return socket.socket(true_family(sock), true_kind(sock), sock.proto, descriptor), address
    except BaseException:
        socket.close(descriptor)
        raise


def accept_connection(
    loop: Loop,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    sock: socket.socket,
    sslcontext: ssl.SSLContext | None,
    server: base_events.Server | None,
    backlog: int,
    handshake_timeout: float | None,
    shutdown_timeout: float | None,
    context: Context,
) -> None:
    """Accept what waits, up to `backlog` connections in one turn, and begin with each, in a copy of the context.

    Nothing that happens to one connection ends the listening. Where descriptors or memory are short, it pauses.
    """
    for _ in range(backlog + 1):  # listen(0) lets one wait
        try:
            connection, address = accept(sock)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:  # aborted before we came to it
            continue
        except OSError as error:
            if sock.fileno() == -1:
                return  # somebody who came has closed it
            if error.errno in GONE or getattr(error, "winerror", None) == ERROR_NETNAME_DELETED:
                continue
            if error.errno not in SHORT_OF_RESOURCES:
                raise  # reported by the handle that called this
            loop.call_exception_handler(
                {
                    "message": "socket.accept() out of system resource",
                    "exception": error,
                    "socket": trsock.TransportSocket(sock),
                }
            )
            remove_reader(loop, sock.fileno())
            settings: tuple[Any, ...] = (sslcontext, server, backlog, handshake_timeout, shutdown_timeout)
            if sys.version_info >= (3, 15):  # as there; before, it is the context that the timer has
                settings += (context,)
            loop.call_later(ACCEPT_RETRY_DELAY, loop._start_serving, protocol_factory, sock, *settings)
            return
        try:
            connection.setblocking(False)
        except BaseException:
            connection.close()
            raise
        if loop._debug:
            logger.debug("%r got a new connection from %r: %r", server, address, connection)
        begin = begin_connection(
            loop, protocol_factory, connection, address, sslcontext, server, handshake_timeout, shutdown_timeout
        )
        # Not create_task(context=...), which task factories of before Python 3.11 do not take.
        primitives.call_in(context.copy(), loop.create_task, begin)


async def begin_connection(
    loop: Loop,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    connection: socket.socket,
    address: Any,
    sslcontext: ssl.SSLContext | None,
    server: base_events.Server | None,
    handshake_timeout: float | None,
    shutdown_timeout: float | None,
) -> None:
    """A task, as in asyncio: whoever cancels all tasks before `connection_made()` ends this connection, too."""
    protocol: asyncio.BaseProtocol | None = None
    transport: asyncio.Transport | None = None
    try:
        protocol = protocol_factory()
        if server is not None and not server.sockets:  # closed since it was accepted
            connection.close()
            return
        waiter = loop.create_future()
        if sslcontext is None:
            transport = StreamTransport(loop, connection, protocol, waiter, None, server, address)
        else:
            transport = loop._make_ssl_transport(
                connection,
                protocol,
                sslcontext,
                waiter,
                server_side=True,
                extra={"peername": address},
                server=server,
                ssl_handshake_timeout=handshake_timeout,
                ssl_shutdown_timeout=shutdown_timeout,
            )
        try:
            await waiter
        finally:
            waiter = None  # type: ignore[assignment]  # its exception has this frame
    except BaseException as error:
        if transport is not None:
            transport.close()
        else:
            connection.close()
        if isinstance(error, (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)):
            raise
        if transport is None or loop._debug:  # what ends a handshake, clients do every day
            loop.call_exception_handler(
                {
                    "message": "Error on transport creation for incoming connection",
                    "exception": error,
                    "protocol": protocol,
                    "transport": transport,
                }
            )
