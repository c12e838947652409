"""TLS: asyncio's protocol between a transport and the program's protocol, but for what is said here.

A connection has one context for all callbacks, as every transport of ours has (see `notifyloop.turn.transport`).

The beginning: nobody waits for a handshake that cannot end any more, and a protocol that knew the connection before
`start_tls()` is told of its end however that comes.

Reading: what arrived intact is delivered before an error is, and a protocol's buffer may be anything that can be
written to. An end of file without a close_notify waits until the program has read what came before it; meanwhile, it
can write.

The end: both sides say goodbye with a close_notify. Once the program has closed the connection, nothing more reaches
it; asyncio documents that, and still delivers what was waiting. What the peer sends until it answers is read and
dropped, paused or not: left unread, it would hide the answer, and the system would reset the connection, which may
take from the peer what it has not read yet. A peer that only goes on sending is cut short, as is one that does not
answer in time. Whatever ends the connection goes after what `write()` has accepted, and an alert goes to the peer
before the connection that failed.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from asyncio import base_events, sslproto
from asyncio.sslproto import SSLProtocolState
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from notifyloop.turn.primitives import peer_of
from notifyloop.turn.readiness import ensure_no_transport
from notifyloop.turn.stream import StreamTransport, takes_buffers

if TYPE_CHECKING:
    import socket

    from notifyloop.turn.surface import Loop

__all__ = ["SSL_HANDSHAKE_TIMEOUT", "SSL_SHUTDOWN_TIMEOUT", "TLSProtocol", "make_ssl_transport", "start_tls"]

logger = logging.getLogger("asyncio")

# Bytes of a closed connection. More than the kernels of both ends hold: who stops sending when he reads our goodbye
# is heard to the end.
MOST_DROPPED = 1024 * 1024

SSL_HANDSHAKE_TIMEOUT = 60.0  # seconds, as the next; asyncio's
SSL_SHUTDOWN_TIMEOUT = 30.0

WOULD_BLOCK = (ssl.SSLWantReadError, ssl.SSLSyscallError)  # what says that the peer's next words are needed first

# What typeshed knows of these is from before Python 3.11.
Transport: Any = sslproto._SSLProtocolTransport
Protocol: Any = sslproto.SSLProtocol
SendfileProtocol: Any = base_events._SendfileFallbackProtocol  # type: ignore[attr-defined]


def context_of(transport: Any) -> Context:
    """The context in which a transport calls its protocol."""
    if isinstance(transport, Transport):  # TLS in TLS
        transport = transport._ssl_protocol
    context: Context | None = getattr(transport, "_context", None)
    return context if context is not None else copy_context()  # somebody else's transport


class SSLTransport(Transport):  # type: ignore[misc]
    """What the program writes to. asyncio's forgets its connection when it is closed twice, and then can neither be
    asked nor aborted.
    """

    _closed: bool
    _ssl_protocol: TLSProtocol

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        tls = self._ssl_protocol
        tls._context.copy().run(tls._start_shutdown)

    def is_closing(self) -> bool:
        """Also when what is below is: asyncio's since https://github.com/python/cpython/issues/118950."""
        below = self._ssl_protocol._transport
        return self._closed or (below is not None and below.is_closing())


class TLSProtocol(Protocol):  # type: ignore[misc]
    """What a transport that carries TLS calls, and what calls the program."""

    _context = Context()  # until there is a transport
    _transport: Any
    _app_transport: Any
    _app_transport_created: bool
    _app_reading_paused: bool
    _eof_received: bool
    _handshake_start_time: float | None
    _handshake_timeout_handle: asyncio.TimerHandle | None
    _state: SSLProtocolState
    _below: Any = None  # the transport, also when the connection is lost
    _unread = False  # the program's buffer was full
    _dropped = 0  # bytes

    def _get_app_transport(self) -> SSLTransport:
        if not self._app_transport_created:
            self._app_transport_created = True
            self._app_transport = SSLTransport(self._loop, self)
        transport: SSLTransport = super()._get_app_transport()
        return transport

    def _set_app_protocol(self, app_protocol: Any) -> None:
        super()._set_app_protocol(app_protocol)
        if takes_buffers(app_protocol):
            self._app_protocol_get_buffer = app_protocol.get_buffer
            self._app_protocol_buffer_updated = app_protocol.buffer_updated
            self._app_protocol_is_buffer = True

    def _get_extra_info(self, name: str, default: Any = None) -> Any:
        if name in self._extra or self._below is None:
            return self._extra.get(name, default)
        return self._below.get_extra_info(name, default)

    # ---- the beginning

    def take_over(self, protocol: asyncio.BaseProtocol) -> None:
        """What a stream's reader has received belongs to TLS, if the peer spoke first
        (https://github.com/python/cpython/issues/142352).
        """
        streams = isinstance(protocol, asyncio.StreamReaderProtocol)
        reader: Any = protocol._stream_reader if streams else None  # type: ignore[attr-defined]
        if reader is not None and reader._buffer:
            self._incoming.write(reader._buffer)
            reader._buffer.clear()
            reader._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._context = context_of(transport)
        self._below = transport
        super().connection_made(transport)

    def _on_handshake_complete(self, handshake_exc: Any) -> None:
        if handshake_exc is None:
            if self._handshake_start_time is None:  # debug mode, which asks, may have begun since
                self._handshake_start_time = self._loop.time()
            super()._on_handshake_complete(None)
            return
        if self._handshake_timeout_handle is not None:
            self._handshake_timeout_handle.cancel()
            self._handshake_timeout_handle = None
        self._set_state(SSLProtocolState.UNWRAPPED)
        try:
            raise handshake_exc
        except Exception as error:
            del handshake_exc  # else the exception keeps this frame, and this frame the exception
            certificate = " on verifying the certificate" if isinstance(error, ssl.CertificateError) else ""
            self._fatal_error(error, f"SSL handshake failed{certificate}")
            self._wakeup_waiter(error)

    # ---- reading

    def _resume_reading(self) -> None:
        if self._app_reading_paused:
            self._app_reading_paused = False
            self._go_on_reading()

    def _go_on_reading(self) -> None:
        self._loop.call_soon(self.buffer_updated, 0, context=self._context)

    def _do_read(self) -> None:
        super()._do_read()
        if self._eof_received and not self._app_reading_paused and not self._unread:
            self._peer_ended()

    def _do_read__copied(self) -> None:
        pieces: list[bytes] = []
        ended = self._unread = False
        try:
            while piece := self._sslobj.read(self.max_size):
                pieces.append(piece)
            ended = True
        except WOULD_BLOCK:
            pass
        finally:
            if pieces:
                self._app_protocol.data_received(b"".join(pieces))
        if ended:
            self._peer_ended()

    def _do_read__buffered(self) -> None:
        buffer = memoryview(self._app_protocol_get_buffer(self._get_read_buffer_size())).cast("B")
        size = len(buffer)
        if not size:
            raise RuntimeError("get_buffer() returned an empty buffer")
        received = 0
        ended = False
        try:
            while received < size and not ended:
                count = self._sslobj.read(size - received, buffer[received:])
                received += count
                ended = not count
        except WOULD_BLOCK:
            pass
        finally:
            buffer.release()  # the program may change its size
            self._unread = received == size
            if received:
                self._app_protocol_buffer_updated(received)
        if ended:
            self._peer_ended()
        elif self._unread:
            self._go_on_reading()

    def eof_received(self) -> bool | None:
        if self._state != SSLProtocolState.WRAPPED:
            keep_open: bool | None = super().eof_received()
            return keep_open
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        self._eof_received = True
        self._do_read()
        return self._state == SSLProtocolState.WRAPPED  # the program has not read all

    def _peer_ended(self) -> None:
        if self._state != SSLProtocolState.WRAPPED or self._transport.is_closing():
            return
        if isinstance(self._app_protocol, TLSProtocol):  # TLS in TLS
            if self._app_protocol.eof_received():
                return  # it ends the connection when its program has read all
        else:
            self._call_eof_received()
        self._start_shutdown()

    def _call_eof_received(self) -> None:
        # sendfile() puts a protocol before the program's that takes it for an error to be told
        if not isinstance(self._app_protocol, SendfileProtocol):
            super()._call_eof_received()

    # ---- writing

    def _control_app_writing(self) -> None:
        # Whoever writes may be in our context already; a copy can always be entered.
        size = self._get_write_buffer_size()
        due = size <= self._outgoing_low_water if self._app_writing_paused else size >= self._outgoing_high_water
        if due and self._app_protocol is not None:
            self._context.copy().run(super()._control_app_writing)

    # ---- the end

    def _do_flush(self) -> None:
        """Send what was accepted, then say goodbye. Nothing is for the program any more."""
        try:
            self._drop_incoming()
            self._do_write()
        except ssl.SSLError as error:
            self._on_shutdown_complete(error)
            return
        if self._state == SSLProtocolState.FLUSHING and (self._eof_received or not self._write_backlog):
            self._set_state(SSLProtocolState.SHUTDOWN)
            self._do_shutdown()

    def _do_shutdown(self) -> None:
        answered = self._eof_received
        if not answered:
            try:
                self._drop_incoming()
                self._sslobj.unwrap()
                answered = True
            except WOULD_BLOCK:
                self._process_outgoing()
                if self._dropped <= MOST_DROPPED:
                    self._transport.resume_reading()
                    return
            except ssl.SSLError as error:
                self._on_shutdown_complete(error)
                return
        if answered:
            self._call_eof_received()
        self._on_shutdown_complete(None)

    def _drop_incoming(self) -> None:
        """What arrived after the end. The receive buffer is free to write to: what was in it is in the BIO."""
        try:
            while count := self._sslobj.read(self.max_size, self._ssl_buffer_view):
                self._dropped += count
        except (*WOULD_BLOCK, ssl.SSLZeroReturnError):
            pass  # that was all so far, or, as an empty read says too, their close_notify

    def _on_shutdown_complete(self, shutdown_exc: BaseException | None) -> None:
        if shutdown_exc is not None:
            super()._on_shutdown_complete(shutdown_exc)
            return
        # The transport sends what it has first, and asks for what we have. A peer that does not read delays that, until
        # the time-out, which asyncio stops here before Python 3.14.5.
        self._loop.call_soon(self._transport.close)

    def _abort(self, exc: BaseException | None = None) -> None:
        self._set_state(SSLProtocolState.UNWRAPPED)
        if self._transport is not None:
            self._transport._force_close(exc)

    def _fatal_error(self, exc: BaseException, message: str = "Fatal error on transport") -> None:
        if self._transport is not None and isinstance(exc, ssl.SSLError) and self._outgoing.pending:
            self._transport.write(self._outgoing.read())  # the alert
        super()._fatal_error(exc, message)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._state == SSLProtocolState.DO_HANDSHAKE:
            self._set_state(SSLProtocolState.UNWRAPPED)  # for asyncio keeps it from a protocol that is in a handshake
        if exc is None:
            self._wakeup_waiter(ConnectionAbortedError("the connection was closed before the TLS handshake ended"))
        super().connection_lost(exc)
        self._ssl_buffer = self._ssl_buffer_view = memoryview(b"")


def make_ssl_transport(
    loop: Loop,
    rawsock: socket.socket,
    protocol: asyncio.BaseProtocol,
    sslcontext: ssl.SSLContext | None,
    waiter: asyncio.Future[None] | None = None,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
    extra: dict[str, Any] | None = None,
    server: base_events.Server | None = None,
    ssl_handshake_timeout: float | None = SSL_HANDSHAKE_TIMEOUT,
    ssl_shutdown_timeout: float | None = SSL_SHUTDOWN_TIMEOUT,
    context: Context | None = None,
) -> asyncio.Transport:
    ensure_no_transport(loop, rawsock)
    tls: TLSProtocol | None = None
    try:
        tls = TLSProtocol(
            loop,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        StreamTransport(loop, rawsock, tls, None, extra, server, peer_of(rawsock), context)
    except BaseException:
        rawsock.close()
        if tls is not None:
            tls._app_transport._closed = True  # it was nobody's
        raise
    transport: asyncio.Transport = tls._app_transport
    return transport


async def start_tls(
    loop: Loop,
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
    use now; no data reaches the protocol before it can know it. Raises ConnectionError if there is nobody to
    speak to, and ssl.SSLError if the two do not agree.
    """
    if not isinstance(sslcontext, ssl.SSLContext):
        raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
    if not getattr(transport, "_start_tls_compatible", False):
        raise TypeError(f"transport {transport!r} is not supported by start_tls()")
    if transport.is_closing():
        raise ConnectionResetError(f"start_tls() on a closed transport: {transport!r}")
    waiter = loop.create_future()
    tls = TLSProtocol(
        loop,
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
    upgraded: asyncio.Transport = tls._app_transport
    # The handshake's first bytes must not come before connection_made().
    transport.pause_reading()
    transport.set_protocol(tls)
    if server_side:
        tls.take_over(protocol)
    begin = loop.call_soon(tls.connection_made, transport)
    go_on = loop.call_soon(transport.resume_reading)
    try:
        await waiter
    except BaseException:
        transport.close()
        begin.cancel()
        go_on.cancel()
        del waiter, protocol  # both keep the exception, and the exception keeps this frame
        raise
    tls._resume_reading()
    return upgraded
