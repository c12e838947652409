"""Stream transports, for TCP and Unix sockets.

Receiving: each read asks for as much as the C library allocates without mapping memory; Python gives back of that
what did not arrive. A larger block, as asyncio's, is mapped, faulted in and unmapped for every message, and that
costs more than all the rest together; one buffer for all, as uvloop's, is copied from. A `BufferedProtocol` brings
its own.

Sending: each write goes to the socket at once, and what the socket does not take is sent, in one vectored call, when it
is writable. Nothing is held back to be joined with what may come: who writes and then ends the process, blocks, or
shuts down the socket himself has sent what asyncio would have sent.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import socket
from asyncio import base_events, constants
from collections import deque
from typing import TYPE_CHECKING

from notifyloop.turn import primitives
from notifyloop.turn.primitives import INTERNET, RECEIVE, TCP, family_of, send_many
from notifyloop.turn.tls_state import TLSState
from notifyloop.turn.transport import LATE_WRITES, Reader, SocketTransport, begin, start_reading, stop_reading
from notifyloop.turn.transport import release as release_socket

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextvars import Context
    from typing import Any

    from notifyloop.turn.surface import Loop

    Data = bytes | bytearray | memoryview

__all__ = ["StreamTransport"]

logger = logging.getLogger("asyncio")

SERVER_COUNTS_TRANSPORTS = len(inspect.signature(base_events.Server._attach).parameters) == 2  # type: ignore[attr-defined]


def takes_buffers(protocol: object) -> bool:
    """Whether a protocol brings its own buffer: as asyncio has it, or because it can do nothing else. Our own TLS is
    one by class, as asyncio's is, and has none.
    """
    if isinstance(protocol, TLSState):
        return False
    return isinstance(protocol, asyncio.BufferedProtocol) or (
        hasattr(protocol, "get_buffer") and not hasattr(protocol, "data_received")
    )


def feed(protocol: Any, data: bytes) -> None:
    """Give a protocol that brings its own buffer what was received elsewhere. Raises RuntimeError if the buffer is
    empty.
    """
    left = memoryview(data)
    while left:
        buffer = protocol.get_buffer(len(left))
        size = min(len(buffer), len(left))
        if not size:
            raise RuntimeError("get_buffer() returned an empty buffer")
        buffer[:size] = left[:size]
        protocol.buffer_updated(size)
        left = left[size:]


def send_without_delay(sock: socket.socket) -> None:
    """Set TCP_NODELAY, also for sockets that were made without naming TCP, which asyncio leaves out."""
    if sock.proto == TCP or (not sock.proto and family_of(sock) in INTERNET):
        sock.setsockopt(TCP, socket.TCP_NODELAY, 1)


def take(
    transport: StreamTransport,
    loop: Loop,
    sock: socket.socket,
    protocol: asyncio.BaseProtocol,
    waiter: asyncio.Future[None] | None = None,
    extra: dict[str, Any] | None = None,
    server: base_events.Server | None = None,
    peername: Any = None,
    context: Context | None = None,
) -> None:
    """A connection's socket, for its protocol, whose `connection_made` is called in the next turn."""
    transport._server = None  # __del__ looks, also when this fails
    transport._sock = None
    send_without_delay(sock)  # first: if it fails, nothing has been taken yet
    begin(transport, loop, sock, protocol, extra, peername, context)
    transport._direct = True  # a write goes to the socket: nothing stands before it, and it is not too late
    transport._paused = 0  # in which turn
    transport._eof = False
    transport._empty_waiter = None
    transport._server = server
    if server is not None:
        if SERVER_COUNTS_TRANSPORTS:
            server._attach(transport)  # type: ignore[attr-defined]
        else:
            server._attach()  # type: ignore[attr-defined]
    chosen = transport._context
    loop.call_soon(transport._begin, waiter, context=chosen)


def set_protocol(transport: StreamTransport, protocol: asyncio.BaseProtocol) -> None:
    transport._protocol = protocol
    transport._buffered_protocol = takes_buffers(protocol)


def pause_reading(transport: StreamTransport) -> None:
    if transport._closing or transport._paused:
        return
    transport._paused = transport._loop._turn.iterations or 1
    stop_reading(transport)


def resume_reading(transport: StreamTransport) -> None:
    if transport._closing or not transport._paused:
        return
    start_reading(transport, Reader(transport) if transport._paused == transport._loop._turn.iterations else None)
    transport._paused = 0  # last: whom an interrupt keeps from it calls again


def receive(transport: StreamTransport) -> None:
    """Receive, because there is something to receive. Only the protocol is called in the connection's context."""
    if transport._buffered_protocol:
        primitives.call_in(transport._context, receive_into_protocol, transport)
        return
    try:
        data = primitives.receive(transport._sock, RECEIVE)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._fatal_error(error, "Fatal read error on socket transport")
        return
    if not data:
        if data is not None:
            transport._context.run(transport._read_eof)
        return
    try:
        primitives.call_method_in(transport._context, transport._protocol, "data_received", data)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._fatal_error(error, "Fatal error: protocol.data_received() call failed.")


def receive_into_protocol(transport: StreamTransport) -> None:
    try:
        buffer = transport._protocol.get_buffer(-1)
        if not len(buffer):
            raise RuntimeError("get_buffer() returned an empty buffer")
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._fatal_error(error, "Fatal error: protocol.get_buffer() call failed.")
        return
    try:
        count = primitives.receive_into(transport._sock, buffer)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._fatal_error(error, "Fatal read error on socket transport")
        return
    if count <= 0:
        if not count:
            transport._read_eof()
        return
    try:
        transport._protocol.buffer_updated(count)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._fatal_error(error, "Fatal error: protocol.buffer_updated() call failed.")


def read_eof(transport: StreamTransport) -> None:
    if transport._loop._debug:
        logger.debug("%r received EOF", transport)
    try:
        keep_open = transport._protocol.eof_received()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._fatal_error(error, "Fatal error: protocol.eof_received() call failed.")
        return
    if not keep_open:
        transport.close()
    elif not transport._closing:
        transport._stop_reading()  # there is nothing more to read; writing goes on


def write(transport: StreamTransport, data: Data) -> None:
    if not transport._direct or not data or type(data) is not bytes:
        write_carefully(transport, data)
        return
    try:
        sent = primitives.send(transport._sock, data)
    except BaseException as error:
        sent = not_sent(transport, error)
    if sent != len(data):
        keep_rest(transport, memoryview(data), sent)


def write_carefully(transport: StreamTransport, data: Data) -> None:
    """What is not bytes, or cannot go to the socket at once."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"data argument must be a bytes-like object (bytes, bytearray, memoryview), not {type(data).__name__!r}"
        )
    check_writing(transport, "write")
    if not data:
        return
    if transport._conn_lost:
        transport._too_late()
    elif transport._buffer:
        keep(transport, data)
        if not transport._awaits_writability():
            transport._await_writability()
        transport._maybe_pause_protocol()
    else:
        view = memoryview(data).cast("B")
        try:
            sent = primitives.send(transport._sock, view)
        except BaseException as error:
            sent = not_sent(transport, error)
        if sent != len(view):
            keep_rest(transport, view, sent)


def check_writing(transport: StreamTransport, method: str) -> None:
    if transport._eof:
        raise RuntimeError(f"Cannot call {method}() after write_eof()")
    if transport._empty_waiter is not None:
        raise RuntimeError(f"unable to {method}; sendfile is in progress")


def keep_rest(transport: StreamTransport, data: memoryview, sent: int) -> None:
    """Of what the socket did not take all."""
    if transport._conn_lost:
        return
    keep(transport, data[sent:])
    transport._await_writability()
    transport._maybe_pause_protocol()


def keep(transport: StreamTransport, data: Data) -> None:
    """Keep data until it is sent. What its owner may change meanwhile is copied."""
    if type(data) is not bytes and not (type(data) is memoryview and type(data.obj) is bytes and data.c_contiguous):
        data = bytes(data)
    elif type(data) is memoryview:
        data = data.cast("B")
    if transport._buffer:
        transport._buffer.append(data)
    else:
        transport._direct = False
        transport._buffer = deque((data,))
    transport._buffer_size += len(data)


def write_ready(transport: StreamTransport) -> None:
    if transport._conn_lost:
        return
    if (not transport._buffer or send_buffer(transport)) and not transport._buffer:
        transport._await_nothing()


def send_buffer(transport: StreamTransport) -> bool:
    """Send what the socket takes, and do what was waiting for it. Returns False if that ended the
    connection.
    """
    buffer = transport._buffer
    if TYPE_CHECKING:
        assert isinstance(buffer, deque)
    try:
        sock = transport._sock
        sent = primitives.send(sock, buffer[0]) if len(buffer) == 1 else send_many(sock, buffer)
    except BaseException as error:
        not_sent(transport, error)
        if transport._empty_waiter is not None and not transport._empty_waiter.done():  # or who waits is cancelled
            transport._empty_waiter.set_exception(error)
        return False
    transport._buffer_size -= sent
    while sent:
        data = buffer.popleft()
        if len(data) > sent:
            buffer.appendleft(memoryview(data)[sent:])
            break
        sent -= len(data)
    if not buffer:
        transport._buffer = ()
        allow_direct_writes(transport)
    transport._maybe_resume_protocol()  # may write more, or end it
    if transport._conn_lost:
        return False
    if not transport._buffer:
        if transport._empty_waiter is not None and not transport._empty_waiter.done():
            transport._empty_waiter.set_result(None)
        if transport._closing:
            transport._end(None)
            return False
        if transport._eof:
            transport._shut_down_writing()
    return not transport._conn_lost


def allow_direct_writes(transport: StreamTransport) -> None:
    transport._direct = not (
        transport._buffer or transport._eof or transport._conn_lost or transport._empty_waiter is not None
    )


def not_sent(transport: StreamTransport, error: BaseException) -> int:
    """The connection is lost. Returns how much was sent, which is nothing."""
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        raise error
    transport._fatal_error(error, "Fatal write error on socket transport")
    return 0


def release(transport: StreamTransport) -> None:
    waiter = transport._empty_waiter
    try:
        release_socket(transport)
    finally:
        detach(transport)
        if waiter is not None and not waiter.done():
            waiter.set_exception(ConnectionError("Connection is closed by peer"))


def detach(transport: StreamTransport) -> None:
    server = transport._server
    transport._server = None
    if server is not None:
        if SERVER_COUNTS_TRANSPORTS:
            server._detach(transport)
        else:
            server._detach()


class StreamTransport(SocketTransport):
    """A connected stream socket; made by the loop's connection and server methods."""

    __slots__ = ()

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.TRY_NATIVE

    __init__ = take
    set_protocol = set_protocol

    def is_reading(self) -> bool:
        return not self._closing and not self._paused

    def can_write_eof(self) -> bool:
        return True

    # ---- receiving

    pause_reading = pause_reading
    resume_reading = resume_reading
    _run = receive

    _read_eof = read_eof

    # ---- sending

    write = write
    _write_ready = write_ready

    def writelines(self, list_of_data: Iterable[Data]) -> None:
        check_writing(self, "writelines")
        pieces = [data for data in list_of_data if memoryview(data).nbytes]
        if not pieces:
            return
        if self._conn_lost:
            self._too_late()
            return
        for data in pieces:
            keep(self, data)
        if send_buffer(self):
            if self._buffer:
                self._await_writability()
            else:
                self._await_nothing()
        self._maybe_pause_protocol()

    def _too_late(self) -> None:
        if self._conn_lost >= LATE_WRITES:
            logger.warning("socket.send() raised exception.")
        self._conn_lost += 1

    def write_eof(self) -> None:
        if self._closing or self._eof:
            return
        self._eof = True
        self._direct = False
        if not self._buffer:
            self._shut_down_writing()

    def _shut_down_writing(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            # Reset by the peer, which whoever reads is told; asyncio raises it in whoever calls write_eof(), too.
            if error.errno != errno.ENOTCONN:
                raise

    # ---- sendfile: the loop waits until the buffer is empty, and then owns the socket for a while

    def _make_empty_waiter(self) -> asyncio.Future[None]:
        if self._empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self._empty_waiter = self._loop.create_future()
        self._direct = False
        if not self._buffer:
            self._empty_waiter.set_result(None)
        return self._empty_waiter

    def _reset_empty_waiter(self) -> None:
        self._empty_waiter = None
        allow_direct_writes(self)

    # ---- the end

    _release = release

    def _let_go(self) -> None:
        super()._let_go()
        detach(self)
