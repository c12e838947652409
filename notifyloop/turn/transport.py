"""What the transports of sockets have in common: who they are, in which context they call back, and how they end.

Contexts: all callbacks of a connection run in one context, a copy of that in which the connection was made;
whoever pauses, resumes, writes or closes does not lend it his own. asyncio lets them leak
(https://github.com/python/cpython/issues/140947): a request that resumes reading is the context of the
connection's next requests.

A socket that its former owner closes stays open below until the transport closes it, as it does for the files that
`socket.makefile` returned: its descriptor cannot become another socket's while the transport reads and writes it.

Closing: from close() on a transport wants nothing more of its socket, and when it closes that, it forgets the
registration instead of removing it, for closing removes it anyway. Every path ends in `_call_connection_lost`, once.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from asyncio import trsock
from contextvars import copy_context
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

from notifyloop.turn.primitives import TrueSocket
from notifyloop.turn.readiness import adopt, forget, rest
from notifyloop.turn.scheduling import finalize
from notifyloop.turn.transport_state import TransportState

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = ["SocketTransport", "Writer"]

logger = logging.getLogger("asyncio")

HIGH_WATER = 64 * 1024  # bytes; asyncio's
LOW_WATER = HIGH_WATER // 4
LATE_WRITES = 5  # that are taken in silence, for the program may not know yet; asyncio's


class Reader:
    """What an interest calls instead of a transport that has paused and resumed reading in one turn: what stands in the
    queue for the time before the pause is not called any more, as in asyncio.
    """

    __slots__ = ("_transport",)

    # Whatever looks at handles finds these.
    _callback = None
    _cancelled = False
    _source_traceback = None

    def __init__(self, transport: SocketTransport) -> None:
        self._transport = transport

    def _run(self) -> None:
        if self._transport._interest.reader is self:
            self._transport._run()

    def fail(self, error: OSError) -> None:
        self._transport.fail(error)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._transport!r}>"


class Writer:
    """What an interest calls when a transport's socket takes more. For its reads it calls the transport itself."""

    __slots__ = ("_cancelled", "_transport")

    # Whatever looks at handles finds these.
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

    def fail(self, error: OSError) -> None:
        self._transport.fail(error)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._transport!r}>"


# What is called for each message or each connection is a function here, and a method below: compiled, a function knows
# where a transport keeps what it has, and a method would have to ask.


def is_closing(transport: SocketTransport) -> bool:
    return transport._closing


def get_write_buffer_size(transport: SocketTransport) -> int:
    return transport._buffer_size


# ---- the beginning


def begin(
    transport: SocketTransport,
    loop: Loop,
    sock: socket.socket,
    protocol: asyncio.BaseProtocol,
    extra: dict[str, Any] | None = None,
    peername: Any = None,
    context: Context | None = None,
) -> None:
    """Raises RuntimeError if the socket is another transport's, ValueError if it is closed."""
    transport._sock = None  # __del__ looks, also when this fails
    transport._loop = loop
    transport._extra = extra
    transport._interest = adopt(loop, sock, transport)
    transport._sock = sock
    if issubclass(type(sock), TrueSocket):  # others close as they like
        sock._io_refs += 1  # type: ignore[attr-defined]
    transport._sock_fd = sock.fileno()
    transport._context = copy_context() if context is None else context
    transport._peername = peername  # kept: once the peer is gone, the system does not know it any more
    transport._protocol_paused = False
    transport._high_water = HIGH_WATER
    transport._low_water = LOW_WATER
    transport._buffer = ()  # a deque only while there is something in it
    transport._buffer_size = 0
    transport._conn_lost = 0  # then counts writes that come too late
    transport._closing = False
    transport._cancelled = True  # as a handle: it does not receive
    transport.set_protocol(protocol)


def connect(transport: SocketTransport, waiter: asyncio.Future[None] | None) -> None:
    """Tell the protocol of the connection, and whoever waits."""
    try:
        transport._protocol.connection_made(transport)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._loop.call_exception_handler(
            {
                "message": "Exception in callback connection_made",
                "exception": error,
                "transport": transport,
                "protocol": transport._protocol,
            }
        )
    finally:
        go_on(transport, waiter)


def go_on(transport: SocketTransport, waiter: asyncio.Future[None] | None) -> None:
    """The second step, of which an interrupt must not rob a connection."""
    try:
        if transport.is_reading():
            start_reading(transport)
        if waiter is not None and not waiter.cancelled():
            waiter.set_result(None)
    except BaseException:
        loop, context = transport._loop, transport._context
        loop.call_soon(transport._go_on, waiter, context=context)
        raise


def get_extra_info(transport: SocketTransport, name: str, default: Any = None) -> Any:
    """As asyncio's: "socket", "sockname" and "peername", found out when first asked for."""
    extra = transport._extra
    if extra is None:
        extra = transport._extra = {"peername": transport._peername} if transport._peername else {}
    sock = transport._sock
    if name not in extra and sock is not None:
        try:
            if name == "socket":
                extra[name] = trsock.TransportSocket(sock)
            elif name == "sockname":
                extra[name] = sock.getsockname()
            elif name == "peername":
                extra[name] = sock.getpeername()
        except OSError:
            extra[name] = None
    return extra.get(name, default)


# ---- readiness


def start_reading(transport: SocketTransport, reader: Reader | None = None) -> None:
    interest = transport._interest
    if reader is None:
        transport._cancelled = False
        interest.reader = transport
    else:
        interest.reader = reader
    want(transport, interest.events | EVENT_READ)


def stop_reading(transport: SocketTransport) -> None:
    interest = transport._interest
    transport._cancelled = True
    interest.reader = None
    want(transport, interest.events & ~EVENT_READ)


def want(transport: SocketTransport, events: int) -> None:
    """Raises RuntimeError if that is more than before and the loop is closed, as in asyncio."""
    interest, loop = transport._interest, transport._loop
    if events & ~interest.events:
        loop._check_closed()
    elif loop._closed:
        return
    loop._turn.interests.want(interest, events)


# ---- the end


def close(transport: SocketTransport) -> None:
    if transport._closing:
        return
    transport._closing = True
    if transport._buffer:
        stop_reading(transport)
    else:
        lose(transport, None)


def leave(transport: SocketTransport) -> None:
    """Neither receive nor send any more."""
    transport._conn_lost += 1
    transport._cancelled = True
    transport._direct = False
    loop, interest = transport._loop, transport._interest
    rest(loop, interest)


def lose(transport: SocketTransport, error: BaseException | None) -> None:
    leave(transport)
    loop, context = transport._loop, transport._context
    loop.call_soon(transport._call_connection_lost, error, context=context)


def call_connection_lost(transport: SocketTransport, error: BaseException | None) -> None:
    try:
        transport._protocol.connection_lost(error)
    finally:
        transport._release()


def release(transport: SocketTransport) -> None:
    try:
        close_socket(transport)
    finally:  # it is closed, also if that has raised
        transport._protocol = None
        transport._loop = None  # type: ignore[assignment]


def close_socket(transport: SocketTransport) -> None:
    for name in ("socket", "sockname", "peername"):  # it may be asked later, when the system has forgotten
        get_extra_info(transport, name)
    loop, interest = transport._loop, transport._interest
    forget(loop, interest)
    sock = transport._sock
    transport._sock = None
    if issubclass(type(sock), TrueSocket):
        sock._io_refs -= 1
    sock.close()


class SocketTransport(TransportState):
    """A socket that a protocol has been given. Its kinds receive and send: `_run`, `_write_ready`.

    It is itself the handle that its interest calls when there is something to receive: `_run`, unless `_cancelled`.
    """

    __slots__ = ()

    _run: Callable[[], None]
    _write_ready: Callable[[], None]

    __init__ = begin
    _begin = connect
    _go_on = go_on

    # ---- what it is

    get_extra_info = get_extra_info

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol: Any = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    is_closing = is_closing
    get_write_buffer_size = get_write_buffer_size

    def is_reading(self) -> bool:
        return not self._closing

    def __repr__(self) -> str:
        state = "closed " if self._sock is None else "closing " if self._closing else ""
        reading = "" if self._sock is None or self.is_reading() else " paused"
        return f"<{type(self).__name__} {state}fd={self._sock_fd}{reading} write_buffer={self.get_write_buffer_size()}>"

    # ---- readiness

    _start_reading = start_reading
    _stop_reading = stop_reading
    _want = want

    def _call(self, callback: Callable[[], None]) -> None:
        """In the connection's context. What it raises is reported."""
        try:
            self._context.run(callback)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._report(error)

    def _report(self, error: BaseException) -> None:
        self._loop.call_exception_handler({"message": f"Exception in {self!r}", "exception": error, "transport": self})

    def _await_writability(self) -> None:
        self._await_nothing()
        self._interest.writer = Writer(self)
        self._want(self._interest.events | EVENT_WRITE)

    def _awaits_writability(self) -> bool:
        """It should where there is something to send, unless an interrupt came in between."""
        return self._interest.writer is not None and self._interest.events & EVENT_WRITE != 0

    def _await_nothing(self) -> None:
        interest = self._interest
        writer = interest.writer
        if writer is not None:
            self._want(interest.events & ~EVENT_WRITE)
            interest.writer = None
            writer.cancel()

    # pause_writing() and resume_writing() are called from whoever writes, who may be in our context already: a copy is
    # the same to look at, and can always be entered.

    def _maybe_pause_protocol(self) -> None:
        if not self._protocol_paused and self._buffer_size > self._high_water:
            self._context.copy().run(super()._maybe_pause_protocol)  # type: ignore[misc]

    def _maybe_resume_protocol(self) -> None:
        if self._protocol_paused and self._buffer_size <= self._low_water:
            self._context.copy().run(super()._maybe_resume_protocol)  # type: ignore[misc]

    # ---- the end

    close = close

    def abort(self) -> None:
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:
        if self._conn_lost:
            return
        self._closing = True
        self._buffer = ()
        self._buffer_size = 0
        self._lose(error)

    _leave = leave
    _lose = lose
    _call_connection_lost = call_connection_lost
    _release = release

    def _end(self, error: BaseException | None) -> None:
        """As the last of what was to be sent has been sent, in the connection's context."""
        self._leave()
        self._call_connection_lost(error)

    def fail(self, error: OSError) -> None:
        """The port cannot watch the socket any more."""
        if self._conn_lost:
            return
        self._loop.call_exception_handler(
            {
                "message": "The socket of a transport cannot be watched",
                "exception": error,
                "transport": self,
                "protocol": self._protocol,
            }
        )
        self._force_close(error)

    def _fatal_error(self, error: BaseException, message: str = "Fatal error on transport") -> None:
        if isinstance(error, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=True)
        else:
            self._loop.call_exception_handler(
                {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
            )
        self._force_close(error)

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._sock is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            finalize(self._loop, self._let_go)

    def _let_go(self) -> None:
        close_socket(self)
