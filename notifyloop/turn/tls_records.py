"""What TLS does for each record: what came from the transport to the program, what the program writes to the transport.

Reading: OpenSSL says by an exception that it needs more, and that costs as much as all the rest. It is not asked where
nothing can be left: it takes from its BIO no more than the record that it reads, and who asks for more than a record
holds gets all of one. What was received at once is delivered at once, as far as the program has room for it: what is
put off would be lost with the connection.

Writing: each write becomes records, and these go to the transport, at once. While the transport takes no more, what
is written waits as it is, and takes neither time nor room twice. Whoever writes while OpenSSL is asked or the transport
given something, as a finalizer or a signal handler may at any point, only adds to what waits: records go out in the
order of what is in them.

Buffers: a connection has none of its own. What is received is made for it, and given to a BIO, which keeps the size
that it once had for as long as it lives. So no BIO is given more at once than a few records, unless the program
does not read.
"""

from __future__ import annotations

import logging
import ssl
from asyncio.sslproto import SSLProtocolState
from typing import TYPE_CHECKING

from notifyloop.turn.transport import LATE_WRITES

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable

    from notifyloop.turn.tls_state import TLSState, TLSTransportState

    Data = bytes | bytearray | memoryview

__all__ = ["WOULD_BLOCK"]

logger = logging.getLogger("asyncio")

RECORD = 16 * 1024  # bytes: the most that one can hold
ALL_OF_ONE = RECORD + 1  # who asks for so many, and gets fewer, has got all
AT_ONCE = 4 * RECORD  # bytes into one BIO
MOST_SEALED = 16  # times as many, before the transport is asked whether it takes them

WOULD_BLOCK = (ssl.SSLWantReadError, ssl.SSLSyscallError)  # what says that the peer's next words are needed first
ALL_DROPPED = (*WOULD_BLOCK, ssl.SSLZeroReturnError)  # or there was their close_notify, as an empty read says too
WRAPPED = SSLProtocolState.WRAPPED
DO_HANDSHAKE = SSLProtocolState.DO_HANDSHAKE


# ---- reading


def data_received(tls: TLSState, data: Data) -> None:
    if tls._state is WRAPPED:
        read(tls, data)
    else:
        tls._incoming.write(data)
        tls._advance()


def do_read(tls: TLSState) -> None:
    if tls._state is WRAPPED:
        read(tls, b"")


def read(tls: TLSState, data: Data) -> None:
    """Give the program what has come, and the transport what there is to say to that."""
    try:
        if tls._app_reading_paused or (tls._unread and tls._going_on):
            tls._incoming.write(data)
        elif tls._app_protocol_is_buffer:
            read_into_buffer(tls, data)
        elif data or not is_empty(tls):
            read_pieces(tls, data)
        else:
            tls._unread = False
        # Also if the program reads nothing: the end of a handshake may be there to be sent.
        if tls._write_backlog and tls._state is WRAPPED:
            do_write(tls)
        else:
            process_outgoing(tls)
        control_reading(tls)
    except Exception as error:
        tls._fatal_error(error, "Fatal error on SSL protocol")
    if tls._eof_received and not tls._app_reading_paused and not tls._unread:
        tls._peer_ended()


def is_empty(tls: TLSState) -> bool:
    """Nothing of what has come is left, as far as can be known."""
    openssl = tls._openssl
    return tls._true and not tls._incoming.pending and not openssl.pending()


def feed(incoming: ssl.MemoryBIO, data: Data, place: int) -> int:
    """Give OpenSSL a part of what came. Returns where the next one begins."""
    incoming.write(data if len(data) <= AT_ONCE else memoryview(data)[place : place + AT_ONCE])
    return place + AT_ONCE


def read_pieces(tls: TLSState, data: Data) -> None:
    incoming, openssl, is_true = tls._incoming, tls._openssl, tls._true
    size, place = len(data), feed(incoming, data, 0)
    ended, unread = False, True
    pieces: list[bytes] = []
    tls._unread = False
    busy, tls._busy = tls._busy, True
    try:
        while unread:
            try:
                piece = openssl.read(ALL_OF_ONE)
            except WOULD_BLOCK:
                unread = place < size
            else:
                if not piece:
                    ended = True
                    break
                pieces.append(piece)
                if not is_true or incoming.pending or len(piece) == ALL_OF_ONE:
                    continue
                unread = place < size
            if unread:
                place = feed(incoming, data, place)
    finally:
        tls._busy = busy
        if place < size:
            incoming.write(memoryview(data)[place:])
        if pieces:
            protocol = tls._app_protocol
            protocol.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
    if ended:
        tls._peer_ended()


def read_into_buffer(tls: TLSState, data: Data) -> None:
    incoming, openssl, is_true = tls._incoming, tls._openssl, tls._true
    try:
        buffer = memoryview(tls._app_protocol_get_buffer(incoming.pending + len(data))).cast("B")
    except BaseException as error:
        incoming.write(data)
        if isinstance(error, (SystemExit, KeyboardInterrupt)):  # after which it is asked again
            tls._unread = True
            go_on_reading(tls)
        raise
    if tls._state is not WRAPPED:  # who was asked has closed the connection
        data_received(tls, data)
        return
    room, received = len(buffer), 0
    if not room:
        raise RuntimeError("get_buffer() returned an empty buffer")
    size, place = len(data), feed(incoming, data, 0)
    ended, unread = False, True
    busy, tls._busy = tls._busy, True
    try:
        while unread and received < room:
            try:
                count = openssl.read(room - received, buffer[received:])
            except WOULD_BLOCK:
                unread = place < size
            else:
                if not count:
                    ended = True
                    break
                received += count
                if not is_true or incoming.pending or received == room:
                    continue
                unread = place < size
            if unread:
                place = feed(incoming, data, place)
    finally:
        tls._busy = busy
        buffer.release()  # the program may change its size
        if place < size:
            incoming.write(memoryview(data)[place:])
        tls._unread = unread and not ended
        if tls._unread:
            go_on_reading(tls)  # first, for the program may raise what ends no connection
        if received:
            tls._app_protocol_buffer_updated(received)
    if ended:
        tls._peer_ended()


def drop_incoming(tls: TLSState) -> int:
    """Read what is for nobody any more. Returns how many bytes that was; raises ssl.SSLError."""
    openssl = tls._openssl
    count = 0
    try:
        while dropped := openssl.read(RECORD):
            count += len(dropped)
    except ALL_DROPPED:
        pass
    return count


def go_on_reading(tls: TLSState) -> None:
    """In another turn."""
    if not tls._going_on:
        tls._going_on = True
        context = tls._context
        tls._loop.call_soon(tls._go_on, context=context)


def go_on(tls: TLSState) -> None:
    tls._going_on = False
    data_received(tls, b"")


def control_reading(tls: TLSState) -> None:
    """Have the transport wait for the program."""
    size = tls._incoming.pending
    transport = tls._transport
    if transport is None:
        return
    if tls._ssl_reading_paused:
        if size <= tls._incoming_low_water:
            tls._ssl_reading_paused = False
            transport.resume_reading()
    elif size >= tls._incoming_high_water:
        tls._ssl_reading_paused = True
        transport.pause_reading()


# ---- writing


def write(transport: TLSTransportState, data: Data) -> None:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data: expecting a bytes-like instance, got {type(data).__name__}")
    tls = transport._ssl_protocol
    if TYPE_CHECKING:
        assert isinstance(tls, TLSState)
    if (
        type(data) is not bytes
        or len(data) > RECORD
        or not data
        or tls._state is not WRAPPED
        or tls._write_backlog
        or tls._ssl_writing_paused
        or tls._busy
    ):
        write_appdata(tls, (data,))
        return
    openssl = tls._openssl
    tls._busy = True
    try:
        try:
            sent = openssl.write(data)
        except WOULD_BLOCK:
            put_back(tls, data)
        except BaseException:
            if not tls._outgoing.pending:  # an interrupt came before OpenSSL had it
                put_back(tls, data)
            raise
        else:
            if sent < len(data):
                put_back(tls, memoryview(data)[sent:])
        finally:
            send(tls)
    except Exception as error:
        tls._fatal_error(error, "Fatal error on SSL protocol")
        return
    finally:
        tls._busy = False
    try:
        if tls._write_backlog:
            do_write(tls)
        else:
            control_writing(tls)
    except Exception as error:
        tls._fatal_error(error, "Fatal error on SSL protocol")


def write_appdata(tls: TLSState, list_of_data: Iterable[Data]) -> None:
    pieces = [piece for piece in map(kept, list_of_data) if piece]
    if not pieces:
        return
    if tls._state is not WRAPPED and tls._state is not DO_HANDSHAKE:
        if tls._conn_lost >= LATE_WRITES:
            logger.warning("SSL connection is closed")
        tls._conn_lost += 1
        return
    for piece in pieces:
        keep(tls, piece)
    try:
        if tls._state is WRAPPED:
            do_write(tls)
    except Exception as error:
        tls._fatal_error(error, "Fatal error on SSL protocol")


def kept(data: Data) -> bytes | memoryview:
    """What its owner may change is copied. Raises TypeError for what is not contiguous bytes."""
    if type(data) is bytes:
        return data
    view = memoryview(data).cast("B")
    return view if type(view.obj) is bytes else bytes(view)


def keep(tls: TLSState, piece: bytes | memoryview) -> None:
    tls._write_backlog.append(piece)
    tls._write_buffer_size += len(piece)


def do_write(tls: TLSState) -> None:
    """Make records of what waits, as long as the transport takes them. Raises ssl.SSLError."""
    if tls._busy:
        return  # whoever does so comes to all that waits
    again = True
    tls._busy = True
    try:
        while again:
            try:
                again = seal(tls)
            finally:
                send(tls)
            again = again and bool(tls._write_backlog) and not tls._ssl_writing_paused
    finally:
        tls._busy = False
    control_writing(tls)


def seal(tls: TLSState) -> bool:
    """Make records of what waits. Returns whether OpenSSL would make more of them."""
    backlog, openssl, outgoing = tls._write_backlog, tls._openssl, tls._outgoing
    while backlog and not tls._ssl_writing_paused:
        if len(backlog) > 1:
            join_small(backlog)
        piece, before = backlog[0], outgoing.pending
        if len(piece) > RECORD:
            view = memoryview(piece)
            piece, backlog[0] = view[:RECORD], view[RECORD:]
        else:
            backlog.popleft()
        tls._write_buffer_size -= len(piece)
        try:
            count = openssl.write(piece)
        except WOULD_BLOCK:
            put_back(tls, piece)
            return False
        except BaseException:
            if outgoing.pending == before:  # an interrupt came before OpenSSL had it
                put_back(tls, piece)
            raise
        if count < len(piece):
            put_back(tls, memoryview(piece)[count:])
        if backlog and outgoing.pending >= AT_ONCE:
            tls._sealed.append(outgoing.read())
            if len(tls._sealed) == MOST_SEALED:
                send(tls)
    return True


def put_back(tls: TLSState, piece: bytes | memoryview) -> None:
    tls._write_backlog.appendleft(piece)
    tls._write_buffer_size += len(piece)


def join_small(backlog: deque[bytes | memoryview]) -> None:
    """Make one piece of the first ones, if they fit into one record."""
    size = 0
    pieces: list[bytes | memoryview] = []
    while backlog and size + len(backlog[0]) <= RECORD:
        size += len(backlog[0])
        pieces.append(backlog.popleft())
    if pieces:
        backlog.appendleft(pieces[0] if len(pieces) == 1 else b"".join(pieces))


def send(tls: TLSState) -> None:
    """Give the transport what OpenSSL has to say, and what it says meanwhile."""
    outgoing = tls._outgoing
    while not tls._ssl_writing_paused:
        transport = tls._transport
        if transport is None:
            return
        data = outgoing.read()
        sealed = tls._sealed
        if sealed:
            tls._sealed = []
            sealed.append(data)
            transport.writelines(sealed)
        elif data:
            transport.write(data)
        else:
            return


def process_outgoing(tls: TLSState) -> None:
    if tls._busy:
        return  # whoever writes sends that, too
    tls._busy = True
    try:
        send(tls)
    finally:
        tls._busy = False
    if tls._write_backlog and tls._state is WRAPPED:  # what came in between
        do_write(tls)
    else:
        control_writing(tls)


def control_writing(tls: TLSState) -> None:
    if tls._app_writing_paused or tls._write_backlog or tls._ssl_writing_paused or not tls._outgoing_high_water:
        tls._control_app_writing()
