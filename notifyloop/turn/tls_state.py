"""What a stream transport keeps that speaks TLS, and what it wants of its socket."""

from __future__ import annotations

from asyncio.constants import FLOW_CONTROL_HIGH_WATER_SSL_READ
from asyncio.sslproto import add_flowcontrol_defaults
from selectors import EVENT_READ
from typing import TYPE_CHECKING

from notifyloop.turn.stream import StreamTransport

if TYPE_CHECKING:
    import asyncio
    import ssl
    from asyncio import base_events
    from collections.abc import Callable
    from contextvars import Context
    from socket import socket
    from typing import Any

    from notifyloop.turn.surface import Loop
    from notifyloop.turn.undeciphered import Undeciphered

__all__ = ["DEAF", "FLUSHING", "HANDSHAKE", "OPEN", "OVER", "READ_WANTS_WRITE", "WRITE_WANTS_READ", "TLSState"]

HIGH_WATER = 512 * 1024  # bytes; asyncio's

HANDSHAKE, OPEN, FLUSHING, DEAF, OVER = range(5)  # the stages of a connection; in the third it says goodbye, too
READ_WANTS_WRITE, WRITE_WANTS_READ = 1, 2


class TLSState(StreamTransport):
    """A stream transport and its half of a TLS connection. What they do is the affair of its kind."""

    __slots__ = (
        "_before",
        "_cut",
        "_dropped",
        "_known",
        "_late",
        "_read_limits",
        "_since",
        "_spoken",
        "_timeouts",
        "_timer",
        "_told",
        "_undeciphered",
        "_waiter",
    )

    _go_on_talking: Callable[[], None]
    _peer_ended: Callable[[], None]
    _write_carefully: Callable[[Any], None]
    _shakes_too_long: Callable[[], None]

    def __init__(
        self,
        loop: Loop,
        sock: socket,
        protocol: asyncio.BaseProtocol,
        spoken: ssl.SSLObject,
        waiter: asyncio.Future[None] | None,
        timeouts: tuple[float, float],
        extra: dict[str, Any] | None = None,
        server: base_events.Server | None = None,
        peername: Any = None,
        context: Context | None = None,
        before: StreamTransport | None = None,
    ) -> None:
        self._sock = self._server = None  # __del__ looks, also when this fails
        self._spoken = spoken
        self._tls: Any = spoken._sslobj  # type: ignore[attr-defined]
        self._waiter = waiter  # who waits for the end of the handshake
        self._timeouts = timeouts  # of the handshake, and of the end
        self._timer: asyncio.TimerHandle | None = None
        self._before = before  # the transport that had the socket before TLS began; its protocol knows the connection
        self._known = before is not None  # to the protocol
        self._since = 0.0
        self._stage = HANDSHAKE
        self._crossed = 0  # which of reading and writing waits for what the other would
        self._ended = False  # there is nothing to read any more
        self._cut = False  # and there was no close_notify
        self._told = False  # of that
        self._dropped = 0  # bytes
        self._undeciphered: Undeciphered | None = None
        self._late = 0  # writes
        self._eighths = 8  # of a record, to be read in one turn
        self.set_read_buffer_limits()
        super().__init__(loop, sock, protocol, None, extra, server, peername, context)
        self._direct = False
        self._paused = int(self._known)
        self._high_water, self._low_water = HIGH_WATER, HIGH_WATER // 4
        if extra is None:
            self._extra = {} if peername is None else {"peername": peername}
        else:
            self._extra = dict(extra)
        self._extra["sslcontext"] = spoken.context
        self._timer = loop.call_later(timeouts[0], self._shakes_too_long, context=self._context)

    # ---- what it is

    @property
    def _sslcontext(self) -> ssl.SSLContext:
        """uvloop's transports have it, and programs ask for it."""
        return self._spoken.context

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("TLS has no end of one direction alone")

    def _set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        super()._set_write_buffer_limits(HIGH_WATER if high is None and low is None else high, low)  # type: ignore[misc]

    def set_read_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As asyncio's, and for nothing: what the program does not read is the kernel's to keep, not ours."""
        self._read_limits = add_flowcontrol_defaults(high, low, FLOW_CONTROL_HIGH_WATER_SSL_READ)

    def get_read_buffer_limits(self) -> tuple[int, int]:
        """The lower one first."""
        high, low = self._read_limits
        return low, high

    def get_read_buffer_size(self) -> int:
        """As asyncio's: of what has arrived and is not delivered, what the kernel does not hold."""
        return 0 if self._stage != OPEN else self._tls.pending()

    def _arm(self) -> None:
        """Want of the socket what is needed next."""
        if self._conn_lost:
            return
        reads, writes = not self._ended, bool(self._buffer) and self._stage != HANDSHAKE
        if self._stage == OPEN and self._paused:
            reads = False
        elif self._crossed & READ_WANTS_WRITE:
            reads, writes = False, True
        if self._crossed & WRITE_WANTS_READ:
            reads, writes = True, self._crossed & READ_WANTS_WRITE != 0
        if reads != (self._interest.events & EVENT_READ != 0 and self._interest.reader is not None):
            self._start_reading() if reads else self._stop_reading()
        if writes != self._awaits_writability():
            self._await_writability() if writes else self._await_nothing()
