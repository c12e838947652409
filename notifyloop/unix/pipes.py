"""The transports of pipes, and of what is read and written like one: terminals, sockets, files, /dev/null.

Reading: one read for each notification. What cannot be waited for, as files, is read by a thread of the default
executor, one block after the other.

Writing: at once, and what the pipe does not take when it is writable. The other end is seen to close by what comes
unasked, errors and hang-up. asyncio waits for something to read, and takes that for the end: something typed into a
terminal, an answer of a socket's peer.

All callbacks run in one context, as those of sockets do (`notifyloop.turn.transport`). Every path ends in
`_call_connection_lost`, once.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import asyncio
import errno
import logging
import os
import stat
import warnings
from asyncio.transports import _FlowControlMixin
from contextvars import copy_context
from typing import TYPE_CHECKING

from notifyloop.turn.readiness import add_reader, add_writer, remove_reader, remove_writer, watch_the_end
from notifyloop.turn.stream import feed, takes_buffers
from notifyloop.turn.transport import LATE_WRITES
from notifyloop.unix.nonblocking import NonBlocking
from notifyloop.unix.sigpipe import write

if TYPE_CHECKING:
    from typing import Any

__all__ = ["ReadPipeTransport", "WritePipeTransport"]

logger = logging.getLogger("asyncio")

MOST_AT_ONCE = 256 * 1024  # bytes of one read; asyncio's


def is_open(file: Any) -> bool:
    try:
        return int(file.fileno()) >= 0
    except ValueError:
        return False


class PipeTransport(asyncio.BaseTransport):
    """A pipe that a protocol has been given."""

    _extra: dict[str, Any]
    _wrong_kind: str
    _apart = False

    def __init__(
        self,
        loop: Any,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self._pipe: Any = None  # __del__ looks, also when this fails
        self._extra = {} if extra is None else extra
        self._extra["pipe"] = pipe
        self._loop = loop
        self._fileno: int = pipe.fileno()
        mode = os.fstat(self._fileno).st_mode
        self._device = stat.S_ISCHR(mode)
        self._shared: NonBlocking | None = None  # a file's never blocks, or always
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or self._device:
            self._shared = NonBlocking(self._fileno, apart=self._apart)
            self._fileno = self._shared.fd
        elif not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise ValueError(self._wrong_kind)
        self._pipe = pipe
        self._closing = False
        self._lost = False
        self._context = copy_context()
        self.set_protocol(protocol)
        loop.call_soon(self._begin, waiter, context=self._context)

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._report(error, "Exception in callback connection_made")
        self._watch()
        if waiter is not None and not waiter.cancelled():
            waiter.set_result(None)

    def _watch(self) -> None:
        """Begin to wait for what the other end does."""
        raise NotImplementedError

    def _unwatch(self) -> None:
        raise NotImplementedError

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol: Any = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._closing

    def __repr__(self) -> str:
        state = "closed" if self._pipe is None else "closing" if self._closing else "open"
        return f"<{type(self).__name__} {state} fd={self._fileno}{self._details()}>"

    def _details(self) -> str:
        raise NotImplementedError

    # ---- the end

    def abort(self) -> None:
        """Close it without waiting for anything."""
        self._lose(None)

    def _fatal_error(self, error: BaseException, message: str, expected: bool) -> None:
        if not expected:
            self._report(error, message)
        elif self._loop.get_debug():
            logger.debug("%r: %s", self, message, exc_info=True)
        self._lose(error)

    def _report(self, error: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        )

    def _lose(self, error: BaseException | None) -> None:
        self._closing = True
        if self._lost:
            return
        self._lost = True
        if self._loop.is_closed():  # nobody is there to be told, but the pipe must not stay open
            self._close_pipe()
        else:
            self._unwatch()
            self._loop.call_soon(self._call_connection_lost, error, context=self._context)

    def _call_connection_lost(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._protocol = None
            self._loop = None
            self._close_pipe()  # last, for what the file has buffered may not be written any more

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is None:  # a finalizer has closed it, and another one closes the transport
            return
        try:
            if self._shared is not None:
                self._shared.close(given_is_open=is_open(pipe))
        finally:
            pipe.close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._pipe is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._close_pipe()


class ReadPipeTransport(PipeTransport, asyncio.ReadTransport):
    """Made by `connect_read_pipe`."""

    _wrong_kind = "Pipe transport is for pipes/sockets only."

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._paused = False
        self._reading: asyncio.Future[bytes] | None = None  # in a thread
        super().__init__(*args, **kwargs)

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        if not self.is_reading():
            return
        self._paused = True
        self._unwatch()
        if self._loop.get_debug():
            logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        if self._closing or not self._paused:
            return
        self._paused = False
        self._watch()
        if self._loop.get_debug():
            logger.debug("%r resumes reading", self)

    def _watch(self) -> None:
        if not self.is_reading():
            return
        try:
            try:
                add_reader(self._loop, self._fileno, self._read_ready)
            except PermissionError:
                self._read_in_thread()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # no memory, or no executor any more
            self._fatal_error(error, "Fatal read error on pipe transport", expected=False)

    def _unwatch(self) -> None:
        remove_reader(self._loop, self._fileno)

    def _read_ready(self) -> None:
        try:
            data = os.read(self._fileno, MOST_AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._failed(error)
        else:
            self._context.run(self._received, data)

    def _failed(self, error: OSError) -> None:
        if self._device and error.errno == errno.EIO:
            # Linux says this of a terminal whose other side is gone; other systems that its end was reached.
            self._context.run(self._received, b"")
        else:
            self._fatal_error(error, "Fatal read error on pipe transport", expected=False)

    def _received(self, data: bytes) -> None:
        if not data:
            if self._loop.get_debug():
                logger.debug("%r was closed by peer", self)
            self._loop.call_soon(self._protocol.eof_received, context=self._context)
            self._lose(None)
        elif takes_buffers(self._protocol):
            feed(self._protocol, data)
        else:
            self._protocol.data_received(data)

    # ---- what cannot be waited for

    def _read_in_thread(self) -> None:
        if self._reading is None:
            self._reading = self._loop.run_in_executor(None, os.read, self._fileno, MOST_AT_ONCE)
            self._reading.add_done_callback(self._read_ended, context=self._context)
        elif self._reading.done():  # while reading was paused
            self._loop.call_soon(self._read_ended, self._reading, context=self._context)

    def _read_ended(self, reading: asyncio.Future[bytes]) -> None:
        if reading is not self._reading or self._paused:
            return
        self._reading = None
        try:
            if not self._closing:
                self._received(reading.result())
        except OSError as error:
            self._fatal_error(error, "Fatal read error on pipe transport", expected=False)
        finally:
            self._watch()

    # ---- the end

    def close(self) -> None:
        self._lose(None)

    def _call_connection_lost(self, error: BaseException | None) -> None:
        reading, self._reading = self._reading, None
        if reading is None or reading.done():
            super()._call_connection_lost(error)
        else:  # the descriptor is still in use
            end = super()._call_connection_lost
            reading.add_done_callback(lambda _: end(error), context=self._context)

    def _details(self) -> str:
        return "" if self._closing else " reading" if self.is_reading() else " paused"


class WritePipeTransport(PipeTransport, _FlowControlMixin):
    """Made by `connect_write_pipe`."""

    _wrong_kind = "Pipe transport is only for pipes, sockets and character devices"
    _apart = True  # somebody else may read from it

    _high_water: int
    _low_water: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._buffer = bytearray()
        self._late = 0  # writes
        self._protocol_paused = False
        self._set_write_buffer_limits()  # type: ignore[attr-defined]
        super().__init__(*args, **kwargs)

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def _watch(self) -> None:
        if self._closing or self._device or self._shared is None:
            return
        try:
            watch_the_end(self._loop, self._fileno, self._other_end_closed)
        except OSError as error:
            self._fatal_error(error, "Fatal write error on pipe transport", expected=False)

    def _unwatch(self) -> None:
        remove_reader(self._loop, self._fileno)
        remove_writer(self._loop, self._fileno)

    def _other_end_closed(self) -> None:
        if self._loop.get_debug():
            logger.debug("%r was closed by peer", self)
        self._lose(BrokenPipeError() if self._buffer else None)

    # ---- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"data argument must be a bytes-like object (bytes, bytearray, memoryview), not {type(data).__name__!r}"
            )
        view = memoryview(data)
        view = view.cast("B") if view.c_contiguous else memoryview(bytes(view))
        if not view:
            return
        if self._closing:
            if self._late >= LATE_WRITES:
                logger.warning("pipe closed by peer or os.write(pipe, data) raised exception.")
            self._late += 1
            return
        if not self._buffer:
            written = self._write(view)
            if written == len(view) or self._closing:
                return
            view = view[written:]
            self._await_writability()
        self._buffer += view
        self._maybe_pause_protocol()

    def _write(self, data: memoryview | bytearray) -> int:
        """How much was written. The pipe is lost unless it only had no room."""
        try:
            return write(self._fileno, data)
        except (BlockingIOError, InterruptedError):
            return 0
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal write error on pipe transport", expected=isinstance(error, OSError))
            return 0

    def _await_writability(self) -> None:
        try:
            add_writer(self._loop, self._fileno, self._write_ready)
        except PermissionError:  # a file, which cannot be waited for
            self._loop.call_soon(self._write_ready)

    def _write_ready(self) -> None:
        if not self._buffer:
            return
        written = self._write(self._buffer)
        if self._lost:
            return
        del self._buffer[:written]
        if not self._buffer:
            remove_writer(self._loop, self._fileno)
        elif self._shared is None:
            self._await_writability()
        self._maybe_resume_protocol()  # may write more, or end it
        if self._closing and not self._buffer:
            self._lose(None)

    # pause_writing() and resume_writing() are called from whoever writes, who may be in our context already: a copy is
    # the same to look at, and can always be entered.

    def _maybe_pause_protocol(self) -> None:
        if not self._protocol_paused and len(self._buffer) > self._high_water:
            self._context.copy().run(super()._maybe_pause_protocol)  # type: ignore[misc]

    def _maybe_resume_protocol(self) -> None:
        if self._protocol_paused and len(self._buffer) <= self._low_water:
            self._context.copy().run(super()._maybe_resume_protocol)  # type: ignore[misc]

    # ---- the end

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """As asyncio's: closing the pipe is all there is to do."""
        self.close()

    def close(self) -> None:
        self._closing = True
        if not self._buffer:
            self._lose(None)

    def _lose(self, error: BaseException | None) -> None:
        self._buffer.clear()
        super()._lose(error)

    def _details(self) -> str:
        return f" write_buffer={len(self._buffer)}"
