"""TLS: asyncio's protocol between a transport and the program's protocol, but for three things.

A connection has one context for all callbacks, as every transport of ours has (see `notifyloop.transports.stream`).

When the program has closed the connection, no more data reaches it: asyncio documents that, and still delivers
what was waiting. What the peer sends from then on, until it answers the close_notify, is read and dropped; left
unread, it would end the connection with "application data after close notify".

And closing works also while an end of file waits for a program that does not read.
"""

from __future__ import annotations

import ssl
from asyncio import sslproto
from asyncio.sslproto import SSLProtocolState
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from notifyloop.transports.stream import takes_buffers

if TYPE_CHECKING:
    import asyncio
    from contextvars import Context

__all__ = ["TLSProtocol"]


def context_of(transport: Any) -> Context:
    """The context in which a transport calls its protocol."""
    if isinstance(transport, sslproto._SSLProtocolTransport):  # TLS in TLS
        transport = transport._ssl_protocol
    context: Context | None = getattr(transport, "_context", None)
    return context if context is not None else copy_context()  # somebody else's transport


Base: Any = sslproto.SSLProtocol  # what typeshed knows of it is from before Python 3.11


class TLSProtocol(Base):  # type: ignore[misc]
    """What a transport that carries TLS calls, and what calls the program."""

    _context: Context
    _app_reading_paused: bool

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._context = context_of(transport)
        super().connection_made(transport)

    def _set_app_protocol(self, app_protocol: Any) -> None:
        super()._set_app_protocol(app_protocol)
        if takes_buffers(app_protocol):
            self._app_protocol_get_buffer = app_protocol.get_buffer
            self._app_protocol_buffer_updated = app_protocol.buffer_updated
            self._app_protocol_is_buffer = True

    def _resume_reading(self) -> None:
        if self._app_reading_paused:
            self._app_reading_paused = False
            self._loop.call_soon(self.buffer_updated, 0, context=self._context)  # goes on where it stopped

    def _control_app_writing(self) -> None:
        # Whoever writes may be in our context already; a copy can always be entered.
        size = self._get_write_buffer_size()
        if size <= self._outgoing_low_water if self._app_writing_paused else size >= self._outgoing_high_water:
            self._context.copy().run(super()._control_app_writing)

    # ---- the end

    def _start_shutdown(self) -> None:
        if self._state == SSLProtocolState.FLUSHING and self._app_reading_paused:
            self._do_flush()  # the peer has ended the connection, and what it sent nobody will read
        else:
            super()._start_shutdown()

    def _do_flush(self) -> None:
        if self._app_transport is not None and self._app_transport._closed:
            self._context.copy().run(self._flush)
        else:  # the peer has ended the connection: what it sent before is still for the program
            super()._do_flush()

    def _flush(self) -> None:
        try:
            self._do_write()
        except ssl.SSLError as error:
            self._on_shutdown_complete(error)
            return
        self._set_state(SSLProtocolState.SHUTDOWN)
        self._do_shutdown()

    def _do_shutdown(self) -> None:
        try:
            if not self._eof_received:
                self._drop_incoming()
        except ssl.SSLError as error:
            self._on_shutdown_complete(error)
        else:
            super()._do_shutdown()

    def _drop_incoming(self) -> None:
        try:
            while self._sslobj.read(self.max_size):
                pass
        except sslproto.SSLAgainErrors:
            return  # that was all so far
        except ssl.SSLZeroReturnError:
            pass  # as an empty read says: their close_notify, and we have sent ours
        self._call_eof_received()
