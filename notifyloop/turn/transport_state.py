"""The state of what must be a class of Python's, because it is a subclass of asyncio's: its attributes have places.

Compiled code reads and writes these places without asking Python, as `layouts.pxd` declares. So this module is not
compiled itself.
"""

from __future__ import annotations

import asyncio
from asyncio.transports import _FlowControlMixin
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import deque
    from contextvars import Context
    from typing import Any

    from notifyloop.turn.interest import Interest
    from notifyloop.turn.surface import Loop

__all__ = ["TransportState"]


class TransportState(_FlowControlMixin, asyncio.Transport):
    """What the transport of a socket keeps. What only one kind has is here, too, so that there is one layout."""

    __slots__ = (
        "__dict__",  # empty, unless somebody replaces a method: tests do
        "__weakref__",
        "_address",
        "_buffer",
        "_buffer_size",
        "_buffered_protocol",
        "_cancelled",
        "_closing",
        "_conn_lost",
        "_context",
        "_direct",
        "_eighths",
        "_empty_waiter",
        "_eof",
        "_interest",
        "_largest",
        "_paused",
        "_peername",
        "_protocol",
        "_server",
        "_sock",
        "_sock_fd",
    )

    # Whatever looks at handles in debug mode finds these.
    _callback = None
    _source_traceback = None

    _address: Any
    _buffer: deque[Any] | tuple[()]
    _buffer_size: int
    _buffered_protocol: bool
    _cancelled: bool
    _closing: bool
    _conn_lost: int
    _context: Context
    _direct: bool
    _eighths: int
    _empty_waiter: asyncio.Future[None] | None
    _eof: bool
    _extra: dict[str, Any] | None
    _high_water: int
    _interest: Interest
    _largest: int
    _loop: Loop
    _low_water: int
    _paused: int
    _peername: Any
    _protocol: Any
    _protocol_paused: bool
    _server: Any
    _sock: Any
    _sock_fd: int
