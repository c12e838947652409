"""How connections begin: accepted by a server, made of a socket that is connected, and carried on with TLS.

asyncio's servers and connection methods call what is here. A server accepts without a task for each connection, and
nothing that happens to one of them ends the listening.
"""

from __future__ import annotations

import errno
import socket
import ssl
import sys
from asyncio import constants, trsock
from asyncio.log import logger
from sys import intern
from typing import TYPE_CHECKING

from notifyloop.transports import DatagramTransport, StreamTransport, TLSProtocol
from notifyloop.transports.base import INTERNET, family_of, true_family, true_kind

if sys.platform == "win32":
    from notifyloop.windows.system import System
else:
    from notifyloop.unix import System

if TYPE_CHECKING:
    import asyncio
    from asyncio import base_events
    from collections.abc import Callable, Coroutine
    from typing import Any

__all__ = ["Connections"]

# What accept() says of a connection that came to nothing, besides ConnectionErrors: Linux passes on the network's
# errors, wine says that it is not connected.
GONE = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EPROTO, errno.ENOTCONN)
ERROR_NETNAME_DELETED = 64
SHORT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def peer_of(sock: socket.socket) -> Any:
    """The peer's address, or None. Asked while there is a peer: once it is gone, the system does not know it."""
    try:
        return sock.getpeername()
    except OSError:
        return None


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


class Connections(System):
    """The methods of a `NotifyLoop` that make connections."""

    _accept_connection2: Callable[..., Coroutine[Any, Any, None]]
    _remove_reader: Callable[[int], bool]
    _debug: bool

    # ---- servers

    def _accept_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: ssl.SSLContext | None = None,
        server: base_events.Server | None = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
    ) -> None:
        """Accept what waits, up to `backlog` connections in one turn, and begin with each at once.

        Nothing that happens to one connection ends the listening. Where descriptors or memory are short, it pauses.
        """
        timeouts = (ssl_handshake_timeout, ssl_shutdown_timeout)
        internet = family_of(sock) in INTERNET
        for _ in range(backlog):
            try:
                connection, address = accept(sock)
                connection.setblocking(False)
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
                self.call_exception_handler(
                    {
                        "message": "socket.accept() out of system resource",
                        "exception": error,
                        "socket": trsock.TransportSocket(sock),
                    }
                )
                self._remove_reader(sock.fileno())
                arguments: tuple[Any, ...] = (protocol_factory, sock, sslcontext, server, backlog, *timeouts)
                self.call_later(constants.ACCEPT_RETRY_DELAY, self._start_serving, *arguments)
                return
            if self._debug:
                logger.debug("%r got a new connection from %r: %r", server, address, connection)
            if sslcontext is not None:
                extra = {"peername": address}
                begin = self._accept_connection2(protocol_factory, connection, extra, sslcontext, server, *timeouts)
                self.create_task(begin)
                continue
            protocol = None
            try:
                protocol = protocol_factory()
                if internet:  # a proxy's many connections share its address: sixty bytes each
                    address = (intern(address[0]), *address[1:])
                StreamTransport(self, connection, protocol, None, None, server, address, at_once=True)  # type: ignore[arg-type]
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                connection.close()
                self.call_exception_handler(
                    {
                        "message": "Error on transport creation for incoming connection",
                        "exception": error,
                        "protocol": protocol,
                    }
                )

    def _start_serving(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], sock: socket.socket, *arguments: Any
    ) -> None:
        if sock.fileno() != -1:  # or the server was closed while accepting paused
            super()._start_serving(protocol_factory, sock, *arguments)  # type: ignore[misc]

    # ---- transports

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: base_events.Server | None = None,
    ) -> StreamTransport:
        return StreamTransport(self, sock, protocol, waiter, extra, server, peer_of(sock))  # type: ignore[arg-type]

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> DatagramTransport:
        return DatagramTransport(self, sock, protocol, address, waiter, extra, peer_of(sock))  # type: ignore[arg-type]

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: base_events.Server | None = None,
        **timeouts: Any,
    ) -> asyncio.Transport:
        tls = TLSProtocol(self, protocol, sslcontext, waiter, server_side, server_hostname, **timeouts)
        StreamTransport(self, rawsock, tls, None, extra, server, peer_of(rawsock))  # type: ignore[arg-type]
        transport: asyncio.Transport = tls._app_transport
        return transport

    async def start_tls(
        self,
        transport: Any,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport:
        """As asyncio's: speak TLS on a transport from here on. Returns the transport that the protocol is to
        use now; no data reaches the protocol before it can know it.
        """
        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        waiter = self.create_future()
        tls = TLSProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            call_connection_made=False,
        )
        tls._pause_reading()
        # The handshake's first bytes must not come before connection_made().
        transport.pause_reading()
        transport.set_protocol(tls)
        begin = self.call_soon(tls.connection_made, transport)
        go_on = self.call_soon(transport.resume_reading)
        try:
            await waiter
        except BaseException:
            transport.close()
            begin.cancel()
            go_on.cancel()
            raise
        tls._resume_reading()
        upgraded: asyncio.Transport = tls._app_transport
        return upgraded
