"""How connections begin: accepted by a server, made of a socket that is connected, and carried on with TLS.

asyncio's servers and connection methods call what is here. What is done when
somebody connects to a server stands in `notifyloop.turn.listener`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextvars import copy_context
from functools import wraps
from typing import TYPE_CHECKING

from notifyloop.backports import Asyncio
from notifyloop.factories import Failure, closing, deferring
from notifyloop.tls import SSL_HANDSHAKE_TIMEOUT, SSL_SHUTDOWN_TIMEOUT
from notifyloop.turn.datagram import DatagramTransport
from notifyloop.turn.listener import accept_connection
from notifyloop.turn.primitives import peer_of
from notifyloop.turn.readiness import add_reader, ensure_no_transport
from notifyloop.turn.stream import StreamTransport

if TYPE_CHECKING:
    import socket
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


# ---- servers


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
        ssl_handshake_timeout,
        ssl_shutdown_timeout,
        copy_context() if context is None else context,
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
        transport: StreamTransport = StreamTransport(
            loop, sock, protocol, waiter, extra, server, peer_of(sock), context
        )
    except BaseException:
        sock.close()
        raise
    return transport


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
