"""How connections begin: accepted by a server, made of a socket that is connected, and carried on with TLS.

asyncio's servers and connection methods call what is here. A server accepts without a task for each connection, and
nothing that happens to one of them ends the listening.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from asyncio import trsock
from contextvars import copy_context
from functools import wraps
from typing import TYPE_CHECKING

from notifyloop.backports import Asyncio
from notifyloop.factories import Failure, closing, deferring
from notifyloop.tls import SSL_HANDSHAKE_TIMEOUT, SSL_SHUTDOWN_TIMEOUT
from notifyloop.turn.datagram import DatagramTransport
from notifyloop.turn.primitives import peer_of, true_family, true_kind
from notifyloop.turn.readiness import add_reader, ensure_no_transport, remove_reader
from notifyloop.turn.stream import StreamTransport

if TYPE_CHECKING:
    import ssl
    from asyncio import base_events
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = [
    "connect_read_pipe",
    "connect_write_pipe",
    "create_connection_transport",
    "create_datagram_endpoint",
    "create_server",
    "create_unix_server",
    "make_datagram_transport",
    "make_socket_transport",
    "start_serving",
    "stop_serving",
]

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


# ---- servers


def accept_connection(
    loop: Loop,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    sock: socket.socket,
    sslcontext: ssl.SSLContext | None = None,
    server: base_events.Server | None = None,
    backlog: int = 100,
    ssl_handshake_timeout: float | None = SSL_HANDSHAKE_TIMEOUT,
    ssl_shutdown_timeout: float | None = SSL_SHUTDOWN_TIMEOUT,
    context: Context | None = None,
) -> None:
    """Accept what waits, up to `backlog` connections in one turn, and begin with each, in a copy of the context.

    Nothing that happens to one connection ends the listening. Where descriptors or memory are short, it pauses.
    """
    timeouts = (ssl_handshake_timeout, ssl_shutdown_timeout)
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
            arguments: tuple[Any, ...] = (protocol_factory, sock, sslcontext, server, backlog, *timeouts)
            if sys.version_info >= (3, 15):  # as there; before, it is the context that the timer has
                arguments += (context,)
            loop.call_later(ACCEPT_RETRY_DELAY, loop._start_serving, *arguments)
            return
        try:
            connection.setblocking(False)
        except BaseException:
            connection.close()
            raise
        if loop._debug:
            logger.debug("%r got a new connection from %r: %r", server, address, connection)
        begin = begin_connection(loop, protocol_factory, connection, address, sslcontext, server, *timeouts)
        # Not create_task(context=...), which task factories of before Python 3.11 do not take.
        (copy_context() if context is None else context.copy()).run(loop.create_task, begin)


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


@wraps(Asyncio.create_server)
async def create_server(loop: Loop, *arguments: Any, start_serving: bool = True, **options: Any) -> Any:
    """As asyncio's. Whoever is cancelled leaves no server behind."""
    server = await Asyncio.create_server(loop, *arguments, start_serving=False, **options)
    await begin_serving(loop, server, start_serving)
    return server


@wraps(Asyncio.create_unix_server)
async def create_unix_server(loop: Loop, *arguments: Any, start_serving: bool = True, **options: Any) -> Any:
    """As asyncio's, likewise."""
    server = await Asyncio.create_unix_server(loop, *arguments, start_serving=False, **options)
    await begin_serving(loop, server, start_serving)
    return server


async def begin_serving(loop: Loop, server: Any, start_serving: bool) -> None:
    if not start_serving:
        return
    try:
        server._start_serving()
        await asyncio.sleep(0)  # as asyncio has it: programs see a turn go by
    except BaseException:
        server.close()
        raise


def start_serving(
    loop: Loop,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    sock: socket.socket,
    sslcontext: ssl.SSLContext | None = None,
    server: base_events.Server | None = None,
    backlog: int = 100,
    ssl_handshake_timeout: float | None = SSL_HANDSHAKE_TIMEOUT,
    ssl_shutdown_timeout: float | None = SSL_SHUTDOWN_TIMEOUT,
    context: Context | None = None,
) -> None:
    """Servers call this: asyncio's of Python 3.15 and later with the context in which they were made. Before, it is
    the context in which serving begins, which comes to the same.
    """
    if sock.fileno() == -1:
        return  # the server was closed while accepting paused
    timeouts = (ssl_handshake_timeout, ssl_shutdown_timeout)
    serving = copy_context() if context is None else context
    add_reader(
        loop,
        sock.fileno(),
        accept_connection,
        loop,
        protocol_factory,
        sock,
        sslcontext,
        server,
        backlog,
        *timeouts,
        serving,
    )


def stop_serving(loop: Loop, sock: socket.socket) -> None:
    """Servers call this, for one listener after the other."""
    try:
        Asyncio._stop_serving(loop, sock)
    except OSError as error:  # it is closed; and the server, whose others are not yet, must come to its end
        loop.call_exception_handler(
            {"message": "Error on closing a listening socket", "exception": error, "socket": sock}
        )


# ---- what is given to a protocol, and closed if there is none


async def create_connection_transport(
    loop: Loop,
    sock: socket.socket,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    ssl: bool | ssl.SSLContext | None,
    server_hostname: str | None,
    server_side: bool = False,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    context: Context | None = None,
) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
    waiter = loop.create_future()
    transport: asyncio.Transport
    try:
        sock.setblocking(False)
        options: dict[str, Any] = {}
        if sys.version_info >= (3, 15):  # as there; before, a transport takes it itself
            options["context"] = copy_context() if context is None else context
        protocol = protocol_factory()
        if ssl:
            transport = loop._make_ssl_transport(
                sock,
                protocol,
                None if isinstance(ssl, bool) else ssl,
                waiter,
                server_side=server_side,
                server_hostname=server_hostname,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
                **options,
            )
        else:
            transport = loop._make_socket_transport(sock, protocol, waiter, **options)
    except BaseException:
        sock.close()
        raise
    try:
        await waiter
    except BaseException:
        transport.close()
        del waiter  # it keeps the exception, and the exception keeps this frame
        raise
    return transport, protocol


async def create_datagram_endpoint(
    loop: Loop,
    protocol_factory: Callable[[], Any],
    local_addr: Any = None,
    remote_addr: Any = None,
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    reuse_port: bool | None = None,
    allow_broadcast: bool | None = None,
    sock: socket.socket | None = None,
) -> tuple[Any, Any]:
    """As asyncio's."""
    endpoint: tuple[Any, Any] = await Asyncio.create_datagram_endpoint(
        loop,
        deferring(protocol_factory),
        local_addr,
        remote_addr,
        family=family,
        proto=proto,
        flags=flags,
        reuse_port=reuse_port,
        allow_broadcast=allow_broadcast,
        sock=sock,
    )
    return endpoint


async def connect_read_pipe(loop: Loop, protocol_factory: Callable[[], Any], pipe: Any) -> tuple[Any, Any]:
    """As asyncio's."""
    connected: tuple[Any, Any] = await Asyncio.connect_read_pipe(loop, closing(protocol_factory, pipe), pipe)
    return connected


async def connect_write_pipe(loop: Loop, protocol_factory: Callable[[], Any], pipe: Any) -> tuple[Any, Any]:
    """As asyncio's."""
    connected: tuple[Any, Any] = await Asyncio.connect_write_pipe(loop, closing(protocol_factory, pipe), pipe)
    return connected


# ---- transports


def make_socket_transport(
    loop: Loop,
    sock: socket.socket,
    protocol: asyncio.BaseProtocol,
    waiter: asyncio.Future[None] | None = None,
    *,
    extra: dict[str, Any] | None = None,
    server: base_events.Server | None = None,
    context: Context | None = None,
) -> StreamTransport:
    ensure_no_transport(loop, sock)
    try:
        return StreamTransport(loop, sock, protocol, waiter, extra, server, peer_of(sock), context)
    except BaseException:
        sock.close()
        raise


def make_datagram_transport(
    loop: Loop,
    sock: socket.socket,
    protocol: asyncio.BaseProtocol,
    address: Any = None,
    waiter: asyncio.Future[None] | None = None,
    extra: dict[str, Any] | None = None,
) -> DatagramTransport:
    if isinstance(protocol, Failure):
        sock.close()
        raise protocol.error
    return DatagramTransport(loop, sock, protocol, address, waiter, extra, peer_of(sock))
