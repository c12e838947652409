"""Stream transports, for TCP and Unix sockets.

Receiving: each read asks for as much as the C library allocates without mapping memory; Python gives back of that
what did not arrive. A larger block, as asyncio's, is mapped, faulted in and unmapped for every message, and that
costs more than all the rest together; one buffer for all, as uvloop's, is copied from. A `BufferedProtocol` brings
its own.

Sending: the first write of a turn goes to the socket at once. Later writes of the same turn join in the
buffer, which is sent in one vectored call when the turn ends: a program that writes a header and then a
body pays for two calls, not for as many as it has pieces. What the socket does not take is sent when it is
writable. Nothing that was accepted stays unsent while the loop sleeps without waiting for the socket.

Where many callbacks are ready, the first write is held, too, if it is small, until all have run or a millisecond has
passed: then one send follows the other, and a peer on another processor is woken for many answers, not for each. To
wake it takes the kernel longer than all else that it does to send.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import sys
import warnings
from asyncio import base_events, constants
from asyncio.log import logger
from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING

from notifyloop.transports.base import INTERNET, SocketTransport, family_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from notifyloop.loop import NotifyLoop

    Data = bytes | bytearray | memoryview

__all__ = ["StreamTransport"]

# Bytes to make room for. Until a program has freed a block that large, glibc's malloc() maps every one of 128 KiB and
# more, and gives the end of the heap back as soon as as much is free there: both cost page faults for each message. The
# first mapped block that is freed teaches it what is usual here (see M_MMAP_THRESHOLD in mallopt(3)), so let it learn
# that from the start. Other C libraries do not learn.
if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()):
    RECEIVE = 256 * 1024
    bytes(4 * RECEIVE)
else:
    RECEIVE = 64 * 1024
TCP = int(socket.IPPROTO_TCP)
NEVER = sys.maxsize  # a turn that does not come
MOST_BUFFERS = 1024  # of one vectored send; Linux' IOV_MAX
MOST_JOINED = 64 * 1024  # bytes
MOST_HELD = 4 * 1024  # bytes

SERVER_COUNTS_TRANSPORTS = len(inspect.signature(base_events.Server._attach).parameters) == 2  # type: ignore[attr-defined]


# Where a socket is known by a descriptor, to read and write that costs less than to receive and send by way of the
# object, whose methods take more arguments. `SocketTransport` sees to it that the descriptor stays the socket's.
if sys.platform == "win32":

    def receive(sock: socket.socket, size: int) -> bytes:
        """The object's method, not that of its class: what only acts as a socket has no other."""
        return sock.recv(size)

    def send(sock: socket.socket, data: Data) -> int:
        return sock.send(data)

else:
    receive, send = os.read, os.write


if sys.platform != "win32":

    def send_many(sock: socket.socket, pieces: deque[Any]) -> int:
        """Send of several pieces what the socket takes. Returns the number of bytes; raises OSError."""
        return sock.sendmsg(islice(pieces, MOST_BUFFERS))

else:  # Python has no vectored send there: what is sent together is copied together

    def send_many(sock: socket.socket, pieces: deque[Any]) -> int:
        """Send of several pieces what the socket takes. Returns the number of bytes; raises OSError."""
        joined: list[Any] = []
        size = 0
        for piece in pieces:
            size += len(piece)
            if joined and size > MOST_JOINED:
                break
            joined.append(piece)
        return sock.send(b"".join(joined) if len(joined) > 1 else joined[0])


def takes_buffers(protocol: object) -> bool:
    """Whether a protocol brings its own buffer: as asyncio has it, or because it can do nothing else."""
    return isinstance(protocol, asyncio.BufferedProtocol) or (
        hasattr(protocol, "get_buffer") and not hasattr(protocol, "data_received")
    )


def send_without_delay(sock: socket.socket) -> None:
    """Set TCP_NODELAY, also for sockets that were made without naming TCP, which asyncio leaves out."""
    if sock.proto == TCP or (not sock.proto and family_of(sock) in INTERNET):
        sock.setsockopt(TCP, socket.TCP_NODELAY, 1)


def pass_on(protocol: Any, data: bytes) -> None:
    """For protocols whose data_received() is no method written in Python."""
    protocol.data_received(data)


class StreamTransport(SocketTransport):
    """A connected stream socket; made by the loop's connection and server methods."""

    __slots__ = (
        "_buffered_protocol",
        "_direct_after",
        "_empty_waiter",
        "_eof",
        "_held",
        "_paused",
        "_received",
        "_server",
        "_target",
        "_turn",
    )

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.TRY_NATIVE

    def __init__(
        self,
        loop: NotifyLoop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        server: base_events.Server | None = None,
        peername: Any = None,
        at_once: bool = False,
    ) -> None:
        self._server: Any = None  # __del__ looks, also when this fails
        super().__init__(loop, sock, protocol, extra, peername)
        self._target: Any = sock if sys.platform == "win32" else self._sock_fd
        self._turn = loop._turn
        # The turn after which a write goes to the socket at once: that of the last write that did. NEVER while
        # something stands before it, or it is too late.
        self._direct_after = -1
        self._held: bytes | None = None  # what was written, and is sent when the turn ends
        self._paused = False
        self._eof = False
        self._empty_waiter: asyncio.Future[None] | None = None
        self._server = server
        if server is not None:
            if SERVER_COUNTS_TRANSPORTS:
                server._attach(self)  # type: ignore[attr-defined]
            else:
                server._attach()  # type: ignore[attr-defined]
        send_without_delay(sock)
        if at_once:
            self._context.run(self._begin, waiter)
        else:
            loop.call_soon(self._begin, waiter, context=self._context)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._buffered_protocol = takes_buffers(protocol)
        # What takes what arrives, as a function: to make a method of it each time costs more than to call it, and to
        # keep one costs memory.
        self._received: Any = StreamTransport._receive_into_protocol
        if not self._buffered_protocol:
            method = getattr(protocol, "data_received", None)
            own = getattr(method, "__self__", None) is protocol and hasattr(method, "__func__")
            self._received = method.__func__ if own else pass_on  # type: ignore[union-attr]

    def is_reading(self) -> bool:
        return not self._closing and not self._paused

    def can_write_eof(self) -> bool:
        return True

    # ---- receiving

    def pause_reading(self) -> None:
        if self._closing or self._paused:
            return
        self._paused = True
        self._stop_reading()

    def resume_reading(self) -> None:
        if self._closing or not self._paused:
            return
        self._paused = False
        self._start_reading()

    def _run(self) -> None:
        """Receive, because there is something to receive. Only the protocol is called in the connection's context."""
        if self._buffered_protocol:
            self._context.run(self._received, self)
            return
        try:
            data = receive(self._target, RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal read error on socket transport")
            return
        if not data:
            self._context.run(self._read_eof)
            return
        try:
            self._context.run(self._received, self._protocol, data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.data_received() call failed.")

    def _receive_into_protocol(self) -> None:
        try:
            buffer = self._protocol.get_buffer(-1)
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.get_buffer() call failed.")
            return
        try:
            count = self._sock.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal read error on socket transport")
            return
        if not count:
            self._read_eof()
            return
        try:
            self._protocol.buffer_updated(count)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.buffer_updated() call failed.")

    def _read_eof(self) -> None:
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.close()
        elif not self._closing:
            self._stop_reading()  # there is nothing more to read; writing goes on

    # ---- sending

    def write(self, data: Data) -> None:
        turn = self._turn
        if turn.iterations <= self._direct_after or type(data) is not bytes:
            self._write_carefully(data)
            return
        self._direct_after = turn.iterations
        if turn.hold_until and len(data) <= self._high_water and len(data) <= MOST_HELD:
            if monotonic() < turn.hold_until:
                self._held = data
                turn.to_flush.append(self)
                return
            self._loop._hold_no_more()
        self._send(data)

    def _write_carefully(self, data: Data) -> None:
        """What is not bytes, or cannot go to the socket at once."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"data argument must be a bytes-like object (bytes, bytearray, memoryview), not {type(data).__name__!r}"
            )
        self._check_writing("write")
        if not data:
            return
        self._join_held()
        if self._conn_lost:
            self._too_late()
        elif self._buffer:
            self._append(data)
            self._maybe_pause_protocol()
        elif self._turn.iterations <= self._direct_after:
            self._append(data)
            self._turn.to_flush.append(self)
            self._maybe_pause_protocol()
        else:
            self._direct_after = self._turn.iterations
            self._send(memoryview(data).cast("B"))

    def _send(self, data: bytes | memoryview) -> None:
        """Send what the socket takes now, and keep the rest. A view is one of bytes."""
        try:
            sent = send(self._target, data)
        except BaseException as error:
            sent = self._not_sent(error)
        if sent != len(data):
            self._keep_rest(memoryview(data), sent)

    def _not_sent(self, error: BaseException) -> int:
        """How much was sent, which is nothing. The connection is lost unless the socket only had no room."""
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise error
        if not isinstance(error, (BlockingIOError, InterruptedError)):
            self._fatal_error(error, "Fatal write error on socket transport")
        return 0

    def _keep_rest(self, data: memoryview, sent: int) -> None:
        """Of what the socket did not take all."""
        if self._conn_lost:
            return
        self._append(data[sent:])
        self._await_writability()
        self._maybe_pause_protocol()

    def _check_writing(self, method: str) -> None:
        if self._eof:
            raise RuntimeError(f"Cannot call {method}() after write_eof()")
        if self._empty_waiter is not None:
            raise RuntimeError(f"unable to {method}; sendfile is in progress")

    def writelines(self, list_of_data: Iterable[Data]) -> None:
        self._check_writing("writelines")
        pieces = [data for data in list_of_data if memoryview(data).nbytes]
        if not pieces:
            return
        if self._conn_lost:
            self._too_late()
            return
        self._join_held()
        waiting = bool(self._buffer)
        for data in pieces:
            self._append(data)
        if not waiting:
            self._flush()
        self._maybe_pause_protocol()

    def _join_held(self) -> None:
        """Let what is held stand in the buffer, before what is to follow it."""
        if self._held is not None:
            data, self._held = self._held, None
            if data:
                self._append(data)

    def get_write_buffer_size(self) -> int:
        return self._buffer_size + len(self._held or b"")

    def _append(self, data: Data) -> None:
        """Keep data until it is sent. What its owner may change meanwhile is copied."""
        if type(data) is not bytes and not (type(data) is memoryview and type(data.obj) is bytes and data.c_contiguous):
            data = bytes(data)
        elif type(data) is memoryview:
            data = data.cast("B")
        if self._buffer:
            self._buffer.append(data)
        else:
            self._buffer = deque((data,))
            self._direct_after = NEVER
        self._buffer_size += len(data)

    def _too_late(self) -> None:
        if self._conn_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("socket.send() raised exception.")
        self._conn_lost += 1

    def _flush(self) -> None:
        """Send what was held or has joined; wait for the socket if it does not take all."""
        data = self._held
        if data is not None:
            self._held = None
            self._send(data)
            return
        if self._buffer and not self._conn_lost and self._send_buffer() and self._buffer:
            self._await_writability()

    def _write_ready(self) -> None:
        if not self._conn_lost and self._send_buffer() and not self._buffer:
            self._await_nothing()

    def _send_buffer(self) -> bool:
        """Send what the socket takes, and do what was waiting for it. Returns False if that ended the
        connection.
        """
        buffer = self._buffer
        if TYPE_CHECKING:
            assert isinstance(buffer, deque)
        try:
            sent = send(self._target, buffer[0]) if len(buffer) == 1 else send_many(self._sock, buffer)
        except BaseException as error:
            sent = self._not_sent(error)
            if self._conn_lost:
                if self._empty_waiter is not None:
                    self._empty_waiter.set_exception(error)
                return False
        self._buffer_size -= sent
        while sent:
            data = buffer.popleft()
            if len(data) > sent:
                buffer.appendleft(memoryview(data)[sent:])
                break
            sent -= len(data)
        if not buffer:
            self._buffer = ()
            self._allow_direct_writes()
        self._maybe_resume_protocol()  # may write more, or end it
        if self._conn_lost:
            return False
        if not self._buffer:
            if self._empty_waiter is not None:
                self._empty_waiter.set_result(None)
            if self._closing:
                self._lose(None)
                return False
            if self._eof:
                self._shut_down_writing()
        return not self._conn_lost

    def _allow_direct_writes(self) -> None:
        stopped = self._buffer or self._eof or self._conn_lost or self._empty_waiter is not None
        self._direct_after = NEVER if stopped else -1

    def write_eof(self) -> None:
        if self._closing or self._eof:
            return
        self._join_held()
        self._eof = True
        self._direct_after = NEVER
        if not self._buffer:
            self._shut_down_writing()

    def _shut_down_writing(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # reset by the peer; asyncio raises this in whoever calls write_eof()
            self._fatal_error(error, "Fatal write error on socket transport")

    # ---- sendfile: the loop waits until the buffer is empty, and then owns the socket for a while

    def _make_empty_waiter(self) -> asyncio.Future[None]:
        if self._empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self._join_held()
        self._empty_waiter = self._loop.create_future()
        self._direct_after = NEVER
        if not self._buffer:
            self._empty_waiter.set_result(None)
        return self._empty_waiter

    def _reset_empty_waiter(self) -> None:
        self._empty_waiter = None
        self._allow_direct_writes()

    # ---- the end

    def close(self) -> None:
        if self._held is not None:
            self._join_held()
        super().close()

    def _lose(self, error: BaseException | None) -> None:
        self._held = None
        self._direct_after = NEVER
        super()._lose(error)

    def _release(self) -> None:
        super()._release()
        self._detach()
        if self._empty_waiter is not None and not self._empty_waiter.done():
            self._empty_waiter.set_exception(ConnectionError("Connection is closed by peer"))

    def _detach(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            if SERVER_COUNTS_TRANSPORTS:
                server._detach(self)
            else:
                server._detach()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._sock is not None:
            super().__del__(_warn)
            self._detach()
