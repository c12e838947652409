"""The state of TLS, which must be classes of Python's, because they are subclasses of asyncio's: what each record needs
has places.

Compiled code reads and writes these places without asking Python, as `layouts.pxd` declares. So this module is not
compiled itself. All else that asyncio's classes keep is where they put it.
"""

from __future__ import annotations

from asyncio import sslproto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections import deque
    from contextvars import Context
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = ["TLSState", "TLSTransportState"]

# What typeshed knows of these is from before Python 3.11.
Transport: Any = sslproto._SSLProtocolTransport
Protocol: Any = sslproto.SSLProtocol


class TLSState(Protocol):  # type: ignore[misc]
    """What stands between a transport and the program's protocol. It takes bytes, so our own transports give it what
    they receive as it is: `data_received()`. To those of others it is a BufferedProtocol.
    """

    __slots__ = (
        "_app_protocol",
        "_app_protocol_is_buffer",
        "_app_reading_paused",
        "_app_writing_paused",
        "_busy",
        "_conn_lost",
        "_context",
        "_eof_received",
        "_going_on",
        "_incoming",
        "_incoming_high_water",
        "_incoming_low_water",
        "_openssl",
        "_outgoing",
        "_outgoing_high_water",
        "_sealed",
        "_ssl_reading_paused",
        "_ssl_writing_paused",
        "_state",
        "_transport",
        "_true",
        "_unread",
        "_write_backlog",
        "_write_buffer_size",
    )

    _app_protocol: Any
    _app_protocol_buffer_updated: Any
    _app_protocol_get_buffer: Any
    _app_protocol_is_buffer: bool
    _app_reading_paused: bool
    _app_writing_paused: bool
    _busy: bool  # OpenSSL is asked, or the transport is given something
    _conn_lost: int
    _context: Context
    _eof_received: bool
    _going_on: bool  # a callback will read on
    _incoming: ssl.MemoryBIO
    _incoming_high_water: int
    _incoming_low_water: int
    _loop: Loop
    _openssl: Any  # whose read() and write() are called: below Python's SSLObject, if it is a true one
    _outgoing: ssl.MemoryBIO
    _outgoing_high_water: int
    _sealed: list[bytes]  # records
    _ssl_reading_paused: bool
    _ssl_writing_paused: bool
    _state: sslproto.SSLProtocolState
    _transport: Any
    _true: bool  # it is
    _unread: bool  # the program has not been given all that is there
    _write_backlog: deque[bytes | memoryview]
    _write_buffer_size: int


class TLSTransportState(Transport):  # type: ignore[misc]
    """What the program writes to."""

    __slots__ = ("_closed", "_ssl_protocol")

    _closed: bool
    _ssl_protocol: Any
