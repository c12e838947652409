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
from asyncio import base_events
from asyncio.sslproto import SSLProtocolState
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from notifyloop.turn.primitives import peer_of
from notifyloop.turn.readiness import ensure_no_transport
from notifyloop.turn.stream import StreamTransport, takes_buffers
from notifyloop.turn.tls_records import (
    WOULD_BLOCK,
    data_received,
    do_read,
    do_write,
    drop_incoming,
    go_on,
    go_on_reading,
    process_outgoing,
    write,
    write_appdata,
)
from notifyloop.turn.tls_state import TLSState, TLSTransportState

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from notifyloop.turn.surface import Loop

    Data = bytes | bytearray | memoryview

__all__ = ["SSL_HANDSHAKE_TIMEOUT", "SSL_SHUTDOWN_TIMEOUT", "TLSProtocol", "make_ssl_transport", "start_tls"]

logger = logging.getLogger("asyncio")

# Bytes of a closed connection. More than the kernels of both ends hold: who stops sending when he reads our goodbye
# is heard to the end.
MOST_DROPPED = 1024 * 1024

SSL_HANDSHAKE_TIMEOUT = 60.0  # seconds, as the next; asyncio's
SSL_SHUTDOWN_TIMEOUT = 30.0

BEFORE = Context()  # of a connection that has no transport yet
BUFFER = 256 * 1024  # bytes, of transports that are not ours; asyncio's

OPEN = (SSLProtocolState.WRAPPED, SSLProtocolState.FLUSHING)
READ, WRITE = ssl.SSLObject.read, ssl.SSLObject.write
SendfileProtocol: Any = base_events._SendfileFallbackProtocol  # type: ignore[attr-defined]


def context_of(transport: Any) -> Context:
    """The context in which a transport calls its protocol."""
    if isinstance(transport, TLSTransportState):  # TLS in TLS
        transport = transport._ssl_protocol
    context: Context | None = getattr(transport, "_context", None)
    return context if context is not None else copy_context()  # somebody else's transport


def is_true(connection: Any) -> bool:
    """Whether that is Python's SSLObject, and reads and writes as it does: then we need not ask by way of it."""
    kind = type(connection)
    return issubclass(kind, ssl.SSLObject) and kind.read is READ and kind.write is WRITE


class SSLTransport(TLSTransportState):
    """What the program writes to. asyncio's forgets its connection when it is closed twice, and then can neither be
    asked nor aborted.
    """

    __slots__ = ()

    _ssl_protocol: TLSProtocol

    write = write

    def writelines(self, list_of_data: Iterable[Data]) -> None:
        write_appdata(self._ssl_protocol, list_of_data)

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


class TLSProtocol(TLSState):
    """What a transport that carries TLS calls, and what calls the program."""

    max_size = 0  # asyncio makes a buffer of so many bytes for each connection

    _app_transport: Any
    _app_transport_created: bool
    _handshake_start_time: float | None
    _handshake_timeout_handle: asyncio.TimerHandle | None
    _ssl_buffer: bytearray | memoryview
    _ssl_buffer_view: memoryview
    _sslobj: Any
    _below: Any = None  # the transport, also when the connection is lost
    _dropped = 0  # bytes

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._context = BEFORE
        self._sealed = []
        self._unread = self._going_on = self._busy = False
        self._true = is_true(self._sslobj)
        self._openssl = self._sslobj._sslobj if self._true else self._sslobj

    def _get_app_transport(self) -> SSLTransport:
        if not self._app_transport_created:
            self._app_transport_created = True
            self._app_transport = SSLTransport(self._loop, self)
        transport: SSLTransport = super()._get_app_transport()
        return transport

    def _set_app_protocol(self, app_protocol: Any) -> None:
        super()._set_app_protocol(app_protocol)
        self._app_protocol_is_buffer = takes_buffers(app_protocol)
        if self._app_protocol_is_buffer:
            self._app_protocol_get_buffer = app_protocol.get_buffer
            self._app_protocol_buffer_updated = app_protocol.buffer_updated

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

    data_received = data_received
    _do_read = do_read
    _go_on = go_on

    def _advance(self) -> None:
        """Something came that is not for the program, or it is time to look again."""
        if self._state is SSLProtocolState.DO_HANDSHAKE:
            self._do_handshake()
        elif self._state is SSLProtocolState.FLUSHING:
            self._do_flush()
        elif self._state is SSLProtocolState.SHUTDOWN:
            self._do_shutdown()

    def get_buffer(self, n: int) -> memoryview:
        """For transports that are not ours."""
        if not self._ssl_buffer:
            self._ssl_buffer = bytearray(BUFFER)
            self._ssl_buffer_view = memoryview(self._ssl_buffer)
        return self._ssl_buffer_view

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(self._ssl_buffer_view[:nbytes])

    def _resume_reading(self) -> None:
        if self._app_reading_paused:
            self._app_reading_paused = False
            go_on_reading(self)

    def eof_received(self) -> bool | None:
        if self._state not in OPEN:
            keep_open: bool | None = super().eof_received()
            return keep_open
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        self._eof_received = True
        if self._state == SSLProtocolState.WRAPPED:
            self._do_read()
        else:
            self._do_flush()
        return self._state in OPEN  # the program has not read all, or the transport has not taken all

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

    _do_write = do_write
    _process_outgoing = process_outgoing
    _write_appdata = write_appdata

    def pause_writing(self) -> None:
        self._ssl_writing_paused = True

    def resume_writing(self) -> None:
        self._ssl_writing_paused = False
        if self._state == SSLProtocolState.FLUSHING:
            self._do_flush()
            return
        try:
            if self._write_backlog and self._state == SSLProtocolState.WRAPPED:
                self._do_write()
            else:
                self._process_outgoing()
        except Exception as error:
            self._fatal_error(error, "Fatal error on SSL protocol")

    def _control_app_writing(self) -> None:
        # Whoever writes may be in our context already; a copy can always be entered.
        size = self._get_write_buffer_size()
        due = size <= self._outgoing_low_water if self._app_writing_paused else size >= self._outgoing_high_water
        if due and self._app_protocol is not None:
            self._context.copy().run(super()._control_app_writing)

    # ---- the end

    def _do_flush(self) -> None:
        """Send what was accepted, then say goodbye. Nothing is for the program any more."""
        if self._busy:  # whoever closes has come in between
            go_on_reading(self)
            return
        try:
            self._drop_incoming()
            self._do_write()
        except ssl.SSLError as error:
            self._on_shutdown_complete(error)
            return
        if self._state != SSLProtocolState.FLUSHING:
            return
        # What waits for the transport will be taken, what waits for a peer that has ended will not.
        if self._write_backlog and (self._ssl_writing_paused or not self._eof_received):
            # Nobody reads who waits until we do; and who only goes on sending is not heard any more.
            if self._dropped <= MOST_DROPPED:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
            return
        self._set_state(SSLProtocolState.SHUTDOWN)
        self._do_shutdown()

    def _do_shutdown(self) -> None:
        answered = self._eof_received
        if not answered:
            try:
                self._drop_incoming()
                self._sslobj.unwrap()
                answered = True
                self._process_outgoing()
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
        self._dropped += drop_incoming(self)

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
        self._sealed = []
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
