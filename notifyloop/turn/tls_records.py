"""Records of TLS: bytes of the program's, as OpenSSL reads them from a socket and writes them to it.

Reading: OpenSSL reads a record's head, then the record, and nothing behind it. So what it holds is what `pending()`
says, all else is the kernel's to tell, and while reading is paused nothing is read at all. To find out that there is no
other record costs a call: in one turn as many are read as there were last, and an eighth more each time that there are
so many. An end of file OpenSSL takes for an error, after which it can not even write, and others may have something to
answer: it is kept from seeing one.

Writing: each write is a record at once, as `notifyloop.turn.stream` has it; what waits is joined to full records.

Crossed wants: a read may have to write first, where the peer asks for new keys, and a write to read, where it asks for
a new handshake. Then the one is tried again when the other is possible.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import logging
import ssl
from typing import TYPE_CHECKING

from notifyloop.turn import primitives
from notifyloop.turn.sigpipe import DEADLY, action, unkilled
from notifyloop.turn.stream import keep
from notifyloop.turn.tls_state import OPEN, READ_WANTS_WRITE, WRITE_WANTS_READ

if TYPE_CHECKING:
    from collections import deque
    from typing import Any

    from notifyloop.turn.stream import Data
    from notifyloop.turn.tls_state import TLSState

__all__ = ["ENDS", "MOST_AT_ONCE", "read", "receive", "send", "send_buffer", "take", "write", "write_ready"]

logger = logging.getLogger("asyncio")

RECORD = 16 * 1024  # bytes; the most that a record holds
MOST_AT_ONCE = 256 * 1024  # bytes that are read in one turn; asyncio's
ENDS = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


# ---- receiving


def receive(transport: TLSState) -> None:
    try:
        primitives.call_in(transport._context, take, transport)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._fatal_error(error, "Fatal error on SSL protocol")


def take(transport: TLSState) -> None:
    """What there may be to read, in the connection's context."""
    stage = transport._stage
    if stage != OPEN:
        transport._go_on_talking()
        return
    if not transport._paused:
        if transport._buffered_protocol:
            take_into_protocol(transport)
        else:
            take_bytes(transport)
    crossed = transport._crossed
    if crossed & WRITE_WANTS_READ and transport._stage == OPEN:  # it has, or there is what it has to read
        transport._crossed = crossed & ~WRITE_WANTS_READ
        send_buffer(transport)
        transport._arm()


def take_bytes(transport: TLSState) -> None:
    pieces: list[bytes] = []
    error: BaseException | None = None
    eighths = transport._eighths
    try:
        for count in range(eighths // 8):
            data = read(transport)
            if not data:
                transport._eighths = 8 * max(count, 1)
                break
            pieces.append(data)
        else:
            transport._eighths = min(eighths + eighths // 8, 8 * MOST_AT_ONCE // RECORD)
    except OSError as caught:
        error = caught
    finally:  # an interrupt, too
        delivered = not pieces or deliver(transport, pieces[0] if len(pieces) == 1 else b"".join(pieces))
    if delivered:
        after_reading(transport, error)


def deliver(transport: TLSState, data: bytes) -> bool:
    try:
        transport._protocol.data_received(data)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._fatal_error(error, "Fatal error: protocol.data_received() call failed.")
        return False
    return True


def take_into_protocol(transport: TLSState) -> None:
    try:
        buffer = memoryview(transport._protocol.get_buffer(-1)).cast("B")
        if not buffer:
            raise RuntimeError("get_buffer() returned an empty buffer")
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._fatal_error(error, "Fatal error: protocol.get_buffer() call failed.")
        return
    size = len(buffer)
    received = 0
    error_of_read: BaseException | None = None
    try:
        while received < size:
            count = read_into(transport, buffer[received:] if received else buffer)
            received += count
            if not count:
                break
    except OSError as caught:
        error_of_read = caught.with_traceback(None)  # which has the buffer
    finally:
        buffer.release()  # the program may change its size
        delivered = not received or update(transport, received)
    if not delivered:
        return
    after_reading(transport, error_of_read)
    if transport._stage == OPEN and transport._tls.pending():  # of which the kernel does not tell
        context = transport._context
        transport._loop.call_soon(take, transport, context=context)


def update(transport: TLSState, received: int) -> bool:
    try:
        transport._protocol.buffer_updated(received)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        transport._fatal_error(error, "Fatal error: protocol.buffer_updated() call failed.")
        return False
    return True


def after_reading(transport: TLSState, error: BaseException | None) -> None:
    """What is told once the program has what came before."""
    if error is not None:
        transport._fatal_error(error, "Fatal read error on SSL transport")
    elif transport._ended and not transport._paused and transport._stage == OPEN:
        transport._peer_ended()


def read(transport: TLSState) -> bytes:
    """The next record. Nothing if there is none yet, or no more: `_ended`. Raises OSError."""
    try:
        if not there_is_something(transport):
            return b""
        data: bytes = transport._tls.read(RECORD) if action() != DEADLY else unkilled(transport._tls.read, RECORD)
    except ssl.SSLError as error:
        not_read(transport, error)
        return b""
    if not data:
        transport._ended = True
    return data


def read_into(transport: TLSState, buffer: memoryview) -> int:
    """Likewise, into a buffer. Returns the number of bytes."""
    try:
        if not there_is_something(transport):
            return 0
        count: int = unkilled(transport._tls.read, len(buffer), buffer)
    except ssl.SSLError as error:
        not_read(transport, error)
        return 0
    if not count:
        transport._ended = True
    return count


def there_is_something(transport: TLSState) -> bool:
    """For OpenSSL to read, other than an end of file."""
    if transport._ended:
        return False
    crossed = transport._crossed
    if crossed & READ_WANTS_WRITE:  # it has read what made it so
        transport._crossed = crossed & ~READ_WANTS_WRITE
        return True
    there_is = primitives.peek(transport._sock)
    if there_is > 0 or transport._tls.pending():
        return True
    if there_is:
        return False
    if transport._loop.get_debug():
        logger.debug("%r received EOF", transport)
    transport._ended = transport._cut = True
    return False


def not_read(transport: TLSState, error: ssl.SSLError) -> None:
    """Take note of why there is nothing. Raises what is an error."""
    if isinstance(error, ssl.SSLWantReadError):
        return
    if isinstance(error, ssl.SSLWantWriteError):
        transport._crossed |= READ_WANTS_WRITE
        transport._arm()
    elif isinstance(error, ENDS):
        transport._ended = True
    else:
        raise error


# ---- sending


def write(transport: TLSState, data: Data) -> None:
    if not transport._direct or not data or type(data) is not bytes or len(data) > RECORD:
        transport._write_carefully(data)
        return
    try:
        sent: int = transport._tls.write(data) if action() != DEADLY else unkilled(transport._tls.write, data)
    except BaseException as error:
        sent = not_sent(transport, error)
    if sent != len(data):
        keep_rest(transport, memoryview(data), sent)


def send(transport: TLSState, data: memoryview) -> None:
    """Send what the socket takes now, and keep the rest."""
    size, sent = len(data), 0
    try:
        while sent < size:  # a record each time
            sent += unkilled(transport._tls.write, data[sent:])
    except BaseException as error:
        not_sent(transport, error)
        keep_rest(transport, data, sent)


def keep_rest(transport: TLSState, data: memoryview, sent: int) -> None:
    if transport._conn_lost:
        return
    keep(transport, data[sent:])
    transport._arm()
    transport._maybe_pause_protocol()


def not_sent(transport: TLSState, error: BaseException) -> int:
    """How much of a record was accepted, which is nothing. The connection is lost unless that was to be expected."""
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        raise error
    if isinstance(error, ssl.SSLWantReadError):
        transport._crossed |= WRITE_WANTS_READ
    elif not isinstance(error, ssl.SSLWantWriteError):
        transport._fatal_error(what_the_system_says(transport, error), "Fatal write error on SSL transport")
    return 0


def what_the_system_says(transport: TLSState, error: BaseException) -> BaseException:
    """Why nothing could be written. Python 3.11, and early 3.12, take every such error for an end of file."""
    if isinstance(error, ssl.SSLEOFError):
        try:
            primitives.send(transport._sock, b"")
        except OSError as said:
            return said
    return error


def send_buffer(transport: TLSState) -> None:
    """Send what the socket takes. What OpenSSL has begun with, it must be given again: that stands first."""
    buffer = transport._buffer
    if TYPE_CHECKING:
        assert isinstance(buffer, deque)
    try:
        while buffer:
            data = first_of(buffer)
            sent: int = unkilled(transport._tls.write, data)
            transport._buffer_size -= sent
            if sent == len(data):
                buffer.popleft()
            else:
                buffer[0] = memoryview(data)[sent:]
    except BaseException as error:
        not_sent(transport, error)
        if transport._conn_lost:
            return
    if not buffer:
        transport._buffer = ()
        transport._direct = transport._stage == OPEN
    transport._maybe_resume_protocol()  # may write more, or end it


def first_of(buffer: deque[Any]) -> Any:
    """What stands first there, with what goes into the same record."""
    first = buffer[0]
    size = len(first)
    if size >= RECORD or len(buffer) == 1:
        return first
    count = 0
    for data in buffer:
        if count and size + len(data) > RECORD:
            break
        size += len(data) if count else 0
        count += 1
    if count > 1:
        joined = b"".join([buffer[place] for place in range(count)])
        for _ in range(count - 1):
            buffer.popleft()
        buffer[0] = joined
    return buffer[0]


def write_ready(transport: TLSState) -> None:
    if transport._conn_lost:
        return
    if transport._stage != OPEN:
        transport._go_on_talking()
        return
    if transport._buffer:
        send_buffer(transport)
    if transport._crossed & READ_WANTS_WRITE and not transport._conn_lost:
        take(transport)
    transport._arm()
