"""What the transports of sockets have in common: who they are, in which context they call back, and how they end.

Contexts: all callbacks of a connection run in one context, a copy of that in which the connection was made;
whoever pauses, resumes, writes or closes does not lend it his own. asyncio lets them leak
(https://github.com/python/cpython/issues/140947): a request that resumes reading is the context of the
connection's next requests.

A socket that its former owner closes stays open below until the transport closes it, as it does for the files that
`socket.makefile` returned: its descriptor cannot become another socket's while the transport reads and writes it.

Closing: a transport that is about to close its socket forgets the registration instead of removing it, for
closing removes it anyway. Every path ends in `_call_connection_lost`, once.
"""

from __future__ import annotations

import asyncio
import socket
import warnings
from asyncio import futures, trsock
from asyncio.log import logger
from asyncio.transports import _FlowControlMixin
from contextvars import copy_context
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from typing import Any

    from notifyloop.loop import NotifyLoop

__all__ = ["SocketTransport", "Writer"]

HIGH_WATER = 64 * 1024  # bytes; asyncio's
LOW_WATER = HIGH_WATER // 4

INTERNET = (int(socket.AF_INET), int(socket.AF_INET6))

# The numbers without their names, of true sockets: to look for one name costs more than to make the socket.
true_family: Callable[[socket.socket], int] = socket.SocketType.family.__get__
true_kind: Callable[[socket.socket], int] = socket.SocketType.type.__get__


def family_of(sock: socket.socket) -> int:
    return true_family(sock) if isinstance(sock, socket.socket) else sock.family


class Writer:
    """What an interest calls when a transport's socket takes more. For its reads it calls the transport itself."""

    __slots__ = ("_cancelled", "_transport")

    # Whatever looks at handles in debug mode finds these.
    _callback = None
    _source_traceback = None

    def __init__(self, transport: SocketTransport) -> None:
        self._cancelled = False
        self._transport = transport

    def cancel(self) -> None:
        self._cancelled = True

    def _run(self) -> None:
        transport = self._transport
        transport._call(transport._write_ready)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._transport!r}>"


class SocketTransport(_FlowControlMixin, asyncio.Transport):
    """A socket that a protocol has been given. Its kinds receive and send: `_read_ready`, `_write_ready`.

    It is itself the handle that its interest calls when there is something to receive: `_run`, unless `_cancelled`.
    """

    __slots__ = (
        "__dict__",  # empty, unless somebody replaces a method: tests do
        "__weakref__",
        "_buffer",
        "_buffer_size",
        "_cancelled",
        "_closing",
        "_conn_lost",
        "_context",
        "_interest",
        "_peername",
        "_protocol",
        "_sock",
        "_sock_fd",
    )

    # Whatever looks at handles in debug mode finds these.
    _callback = None
    _source_traceback = None

    _loop: NotifyLoop
    _extra: dict[str, Any] | None
    _protocol_paused: bool
    _high_water: int
    _low_water: int
    _read_ready: Callable[[], None]
    _write_ready: Callable[[], None]

    def __init__(
        self,
        loop: NotifyLoop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        extra: dict[str, Any] | None = None,
        peername: Any = None,
    ) -> None:
        self._sock: Any = None  # __del__ looks, also when this fails
        self._loop = loop
        self._extra = extra
        self._interest = loop._adopt(sock)
        self._sock = sock
        if issubclass(type(sock), socket.socket):  # others close as they like
            sock._io_refs += 1  # type: ignore[attr-defined]
        self._sock_fd = sock.fileno()
        self._context = copy_context()
        self._peername = peername  # kept: once the peer is gone, the system does not know it any more
        self._protocol_paused = False
        self._high_water = HIGH_WATER
        self._low_water = LOW_WATER
        self._buffer: deque[Any] | tuple[()] = ()  # a deque only while there is something in it
        self._buffer_size = 0
        self._conn_lost = 0  # then counts writes that come too late
        self._closing = False
        self._cancelled = True  # as a handle: it does not receive
        self.set_protocol(protocol)

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._loop.call_exception_handler(
                {
                    "message": "Exception in callback connection_made",
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
        if self.is_reading():
            self._start_reading()
        if waiter is not None:
            futures._set_result_unless_cancelled(waiter, None)  # type: ignore[attr-defined]

    # ---- what it is

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio's: "socket", "sockname" and "peername", found out when first asked for."""
        extra = self._extra
        if extra is None:
            extra = self._extra = {"peername": self._peername} if self._peername else {}
        if name not in extra and self._sock is not None:
            try:
                if name == "socket":
                    extra[name] = trsock.TransportSocket(self._sock)
                elif name == "sockname":
                    extra[name] = self._sock.getsockname()
                elif name == "peername":
                    extra[name] = self._sock.getpeername()
            except OSError:
                extra[name] = None
        return extra.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol: Any = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._closing

    def get_write_buffer_size(self) -> int:
        return self._buffer_size

    def __repr__(self) -> str:
        state = "closed " if self._sock is None else "closing " if self._closing else ""
        reading = "" if self._sock is None or self.is_reading() else " paused"
        return f"<{type(self).__name__} {state}fd={self._sock_fd}{reading} write_buffer={self.get_write_buffer_size()}>"

    # ---- readiness

    def _start_reading(self) -> None:
        self._cancelled = False
        interest = self._interest
        interest.reader = self
        self._loop._selector.want(interest, interest.events | EVENT_READ)

    def _stop_reading(self) -> None:
        self._cancelled = True
        interest = self._interest
        interest.reader = None
        self._loop._selector.want(interest, interest.events & ~EVENT_READ)

    def _run(self) -> None:
        self._call(self._read_ready)

    def _call(self, callback: Callable[[], None]) -> None:
        """In the connection's context. What it raises is reported."""
        try:
            self._context.run(callback)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._loop.call_exception_handler(
                {"message": f"Exception in {self!r}", "exception": error, "transport": self}
            )

    def _await_writability(self) -> None:
        self._await_nothing()
        interest = self._interest
        interest.writer = Writer(self)
        self._loop._selector.want(interest, interest.events | EVENT_WRITE)

    def _await_nothing(self) -> None:
        interest = self._interest
        if interest.writer is not None:
            interest.writer.cancel()
            interest.writer = None
            self._loop._selector.want(interest, interest.events & ~EVENT_WRITE)

    # pause_writing() and resume_writing() are called from whoever writes, who may be in our context already: a copy is
    # the same to look at, and can always be entered.

    def _maybe_pause_protocol(self) -> None:
        if not self._protocol_paused and self._buffer_size > self._high_water:
            self._context.copy().run(super()._maybe_pause_protocol)  # type: ignore[misc]

    def _maybe_resume_protocol(self) -> None:
        if self._protocol_paused and self._buffer_size <= self._low_water:
            self._context.copy().run(super()._maybe_resume_protocol)  # type: ignore[misc]

    # ---- the end

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._buffer:
            self._stop_reading()
        else:
            self._lose(None)

    def abort(self) -> None:
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:
        if self._conn_lost:
            return
        self._closing = True
        self._buffer = ()
        self._buffer_size = 0
        self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        self._conn_lost += 1
        self._cancelled = True
        self._loop._forget(self._sock_fd)
        self._loop.call_soon(self._call_connection_lost, error, context=self._context)

    def _fatal_error(self, error: BaseException, message: str = "Fatal error on transport") -> None:
        if isinstance(error, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=True)
        else:
            self._loop.call_exception_handler(
                {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
            )
        self._force_close(error)

    def _call_connection_lost(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._release()

    def _release(self) -> None:
        self._close_socket()
        self._protocol = None
        self._loop = None  # type: ignore[assignment]

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._sock is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._loop._forget(self._sock_fd)
            self._close_socket()

    def _close_socket(self) -> None:
        sock, self._sock = self._sock, None
        if issubclass(type(sock), socket.socket):
            sock._io_refs -= 1
        sock.close()
