"""The transports of pipes, on files that read and write for the loop: `OverlappedFile`, `BlockingFile`.

Reading: one read is under way at any time, also while reading is paused. Its data are kept until it is resumed;
cancelling the read could lose them.

Writing: one write is under way; what is written meanwhile joins in the buffer and goes with the next. A pipe that is
only written to is read from all the same, where it can be: that is how its other end is seen to close.

Every path ends in `_call_connection_lost`, once.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import asyncio
import logging
import warnings
from asyncio.transports import _FlowControlMixin
from contextvars import copy_context
from typing import TYPE_CHECKING

from notifyloop.turn.stream import feed
from notifyloop.turn.transport import LATE_WRITES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    from notifyloop.turn.surface import Loop
    from notifyloop.windows.blocking import BlockingFile, BlockingOperation
    from notifyloop.windows.overlapped import Operation, OverlappedFile

    File: TypeAlias = OverlappedFile | BlockingFile

__all__ = ["DuplexPipeTransport", "ReadPipeTransport", "WritePipeTransport"]

logger = logging.getLogger("asyncio")

MOST_AT_ONCE = 64 * 1024  # bytes of one read
TO_SEE_IT_CLOSE = 16  # bytes


class PipeTransport(_FlowControlMixin):
    """A pipe that a protocol has been given."""

    _loop: Any

    def __init__(
        self,
        loop: Loop,
        file: File,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(extra, loop)  # type: ignore[arg-type]
        self._extra["pipe"] = file.pipe  # type: ignore[attr-defined]
        self._file: File | None = file
        self._reading: Operation | BlockingOperation | None = None
        self._writing: Operation | BlockingOperation | None = None
        self._closing = False
        self._conn_lost = 0  # then counts writes that come too late
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
        if not self._closing:
            self._read()
        if waiter is not None and not waiter.cancelled():
            waiter.set_result(None)

    def _read(self) -> None:
        raise NotImplementedError

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol: Any = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._closing

    def __repr__(self) -> str:
        state = "closed " if self._file is None else "closing " if self._closing else ""
        return f"<{type(self).__name__} {state}{self._extra['pipe']!r}>"  # type: ignore[attr-defined]

    # ---- the end

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._stop_reading()
        if self._writing is None:
            self._lose(None)

    def abort(self) -> None:
        self._force_close(None)

    def _stop_reading(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()

    def _force_close(self, error: BaseException | None) -> None:
        if self._conn_lost:
            return
        self._closing = True
        self._stop_reading()
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.cancel()
        self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        self._conn_lost += 1
        if self._loop.is_closed():  # nobody is there to be told, but the file must not stay open
            self._release()
        else:
            self._loop.call_soon(self._call_connection_lost, error, context=self._context)

    def _fatal_error(self, error: BaseException, message: str) -> None:
        if not isinstance(error, OSError):
            self._report(error, message)
        elif self._loop.get_debug():
            logger.debug("%r: %s", self, message, exc_info=True)
        self._force_close(error)

    def _report(self, error: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        )

    def _call_connection_lost(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._release()

    def _release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        self._protocol = None
        self._loop = None

    def __del__(self, _warn: Any = warnings.warn) -> None:
        file, self._file = getattr(self, "_file", None), None
        if file is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            file.close()


class _Reads(PipeTransport):
    _paused = False
    _withheld = False  # a read has ended while reading was paused

    def is_reading(self) -> bool:
        return not self._closing and not self._paused

    def pause_reading(self) -> None:
        if not self._closing:
            self._paused = True

    def resume_reading(self) -> None:
        if self._closing or not self._paused:
            return
        self._paused = False
        if self._withheld:
            self._withheld = False
            self._loop.call_soon(self._read_ended, context=self._context)
        else:
            self._read()

    def _read(self) -> None:
        if self._reading is not None or self._closing or self._paused:
            return
        assert self._file is not None
        try:
            self._reading = self._file.read(MOST_AT_ONCE, self._read_ended, self._context)
        except BrokenPipeError:
            self._loop.call_soon(self._at_end, context=self._context)
        except OSError as error:
            self._fatal_error(error, "Fatal read error on pipe transport")

    def _read_ended(self) -> None:
        operation = self._reading
        if operation is None or self._closing or not operation.ended():
            return
        if self._paused:
            self._withheld = True
            return
        try:
            self._take(operation)
        except BaseException:  # an interrupt: the loop may be run again, and the pipe shall go on as a socket does
            if not self._closing:
                self._loop.call_soon(
                    self._read_ended if self._reading is operation else self._read, context=self._context
                )
            raise

    def _take(self, operation: Operation | BlockingOperation) -> None:
        try:
            data = operation.received()
            self._reading = None
        except OSError as error:
            self._reading = None
            self._fatal_error(error, "Fatal read error on pipe transport")
            return
        if data is None:
            self._at_end()
            return
        if data:
            try:
                if isinstance(self._protocol, asyncio.BufferedProtocol):
                    feed(self._protocol, data)
                else:
                    self._protocol.data_received(data)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal_error(error, "Fatal error: protocol.data_received() call failed.")
                return
        self._read()

    def _at_end(self) -> None:
        if self._closing:
            return
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open or not isinstance(self, _Writes):
            self.close()


class _Writes(PipeTransport):
    _protocol_paused: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._buffer: list[bytes] = []
        self._buffered = 0  # bytes, with those under way
        super().__init__(*args, **kwargs)

    def get_write_buffer_size(self) -> int:
        return self._buffered

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"data argument must be a bytes-like object (bytes, bytearray, memoryview), not {type(data).__name__!r}"
            )
        if self._closing:
            if self._conn_lost >= LATE_WRITES:
                logger.warning("pipe closed by peer or os.write(pipe, data) raised exception.")
            self._conn_lost += bool(self._conn_lost)
            return
        data = bytes(data)
        if not data:
            return
        self._buffered += len(data)
        if self._writing is None:
            self._write(data)
        else:
            self._buffer.append(data)
        self._maybe_pause_protocol()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        try:
            self._writing = self._file.write(data, self._written, self._context)
        except OSError as error:
            self._fatal_error(error, "Fatal write error on pipe transport")

    def _written(self) -> None:
        operation = self._writing
        if operation is None or not operation.ended():
            return
        try:
            self._go_on_writing(operation)
        except BaseException:  # an interrupt, likewise
            if self._writing is operation:
                self._loop.call_soon(self._written, context=self._context)
            raise

    def _go_on_writing(self, operation: Operation | BlockingOperation) -> None:
        try:
            operation.result()
        except OSError as error:
            self._writing = None
            self._fatal_error(error, "Fatal write error on pipe transport")
            return
        if self._buffer:
            data = b"".join(self._buffer)
            self._buffered = len(data)
            self._write(data)
            self._buffer.clear()
        else:
            self._buffered = 0
            self._writing = None
            if self._closing:
                self._lose(None)
                return
        self._maybe_resume_protocol()

    # pause_writing() and resume_writing() are called from whoever writes, who may be in our context already: a copy is
    # the same to look at, and can always be entered.

    def _maybe_pause_protocol(self) -> None:
        if not self._protocol_paused and not self._closing and self._buffered > self._high_water:  # type: ignore[attr-defined]
            self._context.copy().run(super()._maybe_pause_protocol)  # type: ignore[misc]

    def _maybe_resume_protocol(self) -> None:
        if self._protocol_paused and self._buffered <= self._low_water:  # type: ignore[attr-defined]
            self._context.copy().run(super()._maybe_resume_protocol)  # type: ignore[misc]

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError

    def _force_close(self, error: BaseException | None) -> None:
        if error is not None and self._buffered and not self._conn_lost:
            self._have_them_wait()
        self._buffer.clear()
        self._buffered = 0
        super()._force_close(error)

    def _have_them_wait(self) -> None:
        """Whoever waits until what he wrote has gone must hear that it never will, and is told with the connection's
        loss. Until then he should go on waiting: a child's protocol is told some turns later than others.
        """
        if not self._protocol_paused:
            self._protocol_paused = True
            try:
                self._context.copy().run(self._protocol.pause_writing)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._report(error, "protocol.pause_writing() failed")


class ReadPipeTransport(_Reads, asyncio.ReadTransport):
    """Made by `connect_read_pipe`."""


class WritePipeTransport(_Writes, asyncio.WriteTransport):
    """Made by `connect_write_pipe`."""

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.close()

    def _read(self) -> None:
        """See it close, where the pipe may be read from."""
        from notifyloop.windows.overlapped import OverlappedFile  # noqa: PLC0415

        if not isinstance(self._file, OverlappedFile):  # its thread is there to write
            return
        try:
            self._reading = self._file.read(TO_SEE_IT_CLOSE, self._read_ended, self._context)
        except PermissionError:
            return
        except OSError as error:
            self._fatal_error(error, "Fatal write error on pipe transport")

    def _read_ended(self) -> None:
        operation = self._reading
        if operation is None or self._closing or not operation.ended():
            return
        try:
            closed = operation.received() is None
        except OSError as error:
            self._fatal_error(error, "Fatal write error on pipe transport")
            return
        if closed:
            self._other_end_closed()
        else:  # nobody has asked for that
            self._read()

    def look_for_its_end(self) -> None:
        """Hear of the other end's now, if that was closed already."""
        from notifyloop.windows.overlapped import OverlappedFile  # noqa: PLC0415

        if isinstance(self._file, OverlappedFile) and self._file.ended():
            self._other_end_closed()

    def _other_end_closed(self) -> None:
        if self._writing is not None:
            self._force_close(BrokenPipeError())
        else:
            self.close()


class DuplexPipeTransport(_Reads, _Writes, asyncio.Transport):
    """Made by `create_pipe_connection` and `start_serving_pipe`."""
