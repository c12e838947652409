"""TLS that begins on a connection in use: `start_tls()` hands the socket of one transport to another."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import weakref
from typing import TYPE_CHECKING

from notifyloop.turn.readiness import rest
from notifyloop.turn.stream import StreamTransport
from notifyloop.turn.tls_stream import SSLStreamTransport
from notifyloop.turn.transport import SocketTransport

if TYPE_CHECKING:
    import asyncio
    import ssl
    from typing import Any

    from notifyloop.turn.stream import Data

__all__ = ["can_hand_over", "upgrade"]


class Upgraded(SocketTransport):
    """What a stream transport becomes when TLS begins: another name of the transport that has its socket now, for
    those who know it by this one, as a stream's reader does.
    """

    __slots__ = ()

    @property
    def _successor(self) -> SSLStreamTransport:
        return self._protocol  # type: ignore[no-any-return]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._successor.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._successor.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._successor.set_protocol(protocol)

    def is_closing(self) -> bool:
        return self._successor.is_closing()

    def is_reading(self) -> bool:
        return self._successor.is_reading()

    def pause_reading(self) -> None:
        self._successor.pause_reading()

    def resume_reading(self) -> None:
        self._successor.resume_reading()

    def write(self, data: Data) -> None:
        raise RuntimeError("TLS has begun: write to the transport that start_tls() has returned")

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self._successor.get_write_buffer_size()

    def close(self) -> None:
        self._successor.close()

    def _force_close(self, error: BaseException | None) -> None:
        self._successor._force_close(error)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self._successor!r}>"


def can_hand_over(transport: object) -> bool:
    """Whether nothing stands between a transport and its socket."""
    return (
        type(transport) is StreamTransport
        and not transport.__dict__  # somebody looks at what it does
        and not (transport._buffer or transport._eof or transport._empty_waiter)
    )


def upgrade(
    transport: StreamTransport,
    protocol: asyncio.BaseProtocol,
    spoken: ssl.SSLObject,
    waiter: asyncio.Future[None],
    timeouts: tuple[float, float],
) -> SSLStreamTransport:
    """Have a transport's socket speak TLS from here on. Reading is paused."""
    loop, sock, interest = transport._loop, transport._sock, transport._interest
    owner = interest.owner
    rest(loop, interest)
    interest.owner = weakref.ref(sock)  # in between
    try:
        successor = SSLStreamTransport(
            loop,
            sock,
            protocol,
            spoken,
            waiter,
            timeouts,
            transport._extra,
            None,
            transport._peername,
            transport._context,
            transport,
        )
    except BaseException:
        interest.owner = owner
        if transport.is_reading():
            transport._start_reading()
        raise
    successor._server, transport._server = transport._server, None
    sock._io_refs -= 1
    transport._sock = None
    transport._cancelled = True
    transport.__class__ = Upgraded  # type: ignore[assignment]
    transport._protocol = successor
    return successor
