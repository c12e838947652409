"""Streams that speak TLS on their own descriptor: OpenSSL reads and writes the socket itself.

What asyncio does with two buffers between, `notifyloop.tls` does too, where it must; what both promise stands there.
Who reads and writes when is in `tls_records`. Here is what OpenSSL and its peer say to each other at the beginning and
at the end.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import logging
import ssl
from asyncio import base_events, constants
from contextlib import suppress
from socket import socket
from typing import TYPE_CHECKING

from notifyloop.turn import stream
from notifyloop.turn.primitives import RECEIVE
from notifyloop.turn.sigpipe import unkilled
from notifyloop.turn.stream import keep
from notifyloop.turn.tls_records import ENDS, MOST_AT_ONCE, read, receive, send, send_buffer, take, write, write_ready
from notifyloop.turn.tls_state import (
    DEAF,
    FLUSHING,
    HANDSHAKE,
    OPEN,
    OVER,
    READ_WANTS_WRITE,
    WRITE_WANTS_READ,
    TLSState,
)
from notifyloop.turn.transport import LATE_WRITES
from notifyloop.turn.undeciphered import Undeciphered

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable
    from typing import Any

    from notifyloop.turn.stream import Data

__all__ = ["SSLStreamTransport", "can_speak", "speak"]

logger = logging.getLogger("asyncio")

# Bytes of a closed connection. More than the kernels of both ends hold: who stops sending when he reads our goodbye
# is heard to the end.
MOST_DROPPED = 1024 * 1024

SendfileProtocol: Any = base_events._SendfileFallbackProtocol  # type: ignore[attr-defined]


def can_speak(sock: object, context: object) -> bool:
    """Whether OpenSSL may have the socket, and makes of the context what it would make with buffers between."""
    return (
        type(sock) is socket
        and sock.gettimeout() == 0
        and isinstance(context, ssl.SSLContext)
        and context.sslobject_class is ssl.SSLObject
        and getattr(context.wrap_bio, "__module__", None) == ssl.__name__
        and not context.options & getattr(ssl, "OP_ENABLE_KTLS", 0)
    )


def speak(sock: socket, context: ssl.SSLContext, server_side: bool, server_hostname: str | None) -> ssl.SSLObject:
    """What programs, and callbacks of the context, know a connection by: of the class that asyncio's have."""
    spoken = ssl.SSLObject.__new__(ssl.SSLObject)
    hostname = context._encode_hostname(server_hostname) if server_hostname and not server_side else None  # type: ignore[attr-defined]
    spoken._sslobj = context._wrap_socket(sock, server_side, hostname, owner=spoken)  # type: ignore[attr-defined]
    return spoken


class SSLStreamTransport(TLSState):
    """A connected stream socket over which TLS is spoken; made by the loop's methods where `can_speak`."""

    __slots__ = ()

    _sendfile_compatible = constants._SendfileMode.FALLBACK

    # ---- the handshake

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        try:
            if self._loop.get_debug() and not self._conn_lost:
                logger.debug("%r starts SSL handshake", self)
            self._since = self._loop.time()
            self._go_on_talking()
        except (SystemExit, KeyboardInterrupt):
            self._loop.call_soon(self._begin, waiter, context=self._context)
            raise

    def _shakes_too_long(self) -> None:
        if self._stage == HANDSHAKE:
            message = f"SSL handshake is taking longer than {self._timeouts[0]} seconds: aborting the connection"
            self._fatal_error(ConnectionAbortedError(message))

    def _go_on_talking(self) -> None:
        """Of what is between OpenSSL and its peer alone: a step of the handshake, or of the goodbye."""
        if self._stage == OVER:
            return
        try:
            if self._stage == HANDSHAKE:
                self._shake_hands()
            elif self._stage == OPEN:  # since an interrupt, in connection_made() perhaps
                self._wake_up(None)
            else:
                self._say_goodbye()
            self._arm()
        except (SystemExit, KeyboardInterrupt):  # come again: nothing may tell
            self._loop.call_soon(self._go_on_talking, context=self._context)
            raise
        except BaseException as error:
            self._fatal_error(error)

    def _shake_hands(self) -> None:
        self._crossed = 0
        try:
            unkilled(self._tls.do_handshake)
            certificate = self._tls.getpeercert(False)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            self._crossed = READ_WANTS_WRITE
        except (SystemExit, KeyboardInterrupt):
            raise
        except ENDS:
            self._shake_no_hands(ConnectionResetError())
        except BaseException as error:
            self._shake_no_hands(error)
        else:
            self._have_shaken_hands(certificate)

    def _shake_no_hands(self, error: BaseException) -> None:
        certificate = " on verifying the certificate" if isinstance(error, ssl.CertificateError) else ""
        self._fatal_error(error, f"SSL handshake failed{certificate}")
        self._wake_up(error)

    def _have_shaken_hands(self, certificate: Any) -> None:
        self._stop_timer()
        if self._loop.get_debug():
            logger.debug("%r: SSL handshake took %.1f ms", self, (self._loop.time() - self._since) * 1e3)
        if TYPE_CHECKING:
            assert self._extra is not None
        self._extra.update(
            peercert=certificate,
            cipher=self._tls.cipher(),
            compression=self._tls.compression(),
            ssl_object=self._spoken,
        )
        self._stage = OPEN
        self._direct = not self._buffer
        if not self._known:
            self._known = True
            try:
                self._protocol.connection_made(self)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal_error(error, "Fatal error: protocol.connection_made() call failed.")
                self._wake_up(error)
        self._wake_up(None)

    def _wake_up(self, error: BaseException | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)

    # ---- receiving

    _run = receive

    def pause_reading(self) -> None:
        if self._stage == HANDSHAKE:
            self._paused = 1
        else:
            stream.pause_reading(self)
            self._arm_if_crossed()

    def resume_reading(self) -> None:
        if self._stage == HANDSHAKE:
            self._paused = 0
            return
        stream.resume_reading(self)
        self._arm_if_crossed()
        if self._stage == OPEN and (self._ended or self._tls.pending()):
            self._arm()
            self._loop.call_soon(take, self, context=self._context)

    def _arm_if_crossed(self) -> None:
        if self._crossed:
            self._arm()

    def _peer_ended(self) -> None:
        if self._call_eof_received():
            self._arm()  # TLS in TLS ends it when its program has read all
        elif self._stage == OPEN:
            self._start_shutdown()

    def _call_eof_received(self) -> bool:
        """Returns whether the protocol ends the connection itself."""
        # sendfile() puts a protocol before the program's that takes it for an error to be told
        if self._told or isinstance(self._protocol, SendfileProtocol):
            return False
        self._told = True
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, "Error calling eof_received()")
            return False
        if keep_open and not getattr(self._protocol, "ends_the_connection", False):
            logger.warning("returning true from eof_received() has no effect when using ssl")
            return False
        return bool(keep_open)

    # ---- sending

    write = write
    _write_ready = write_ready

    def _write_carefully(self, data: Data) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data: expecting a bytes-like instance, got {type(data).__name__}")
        if not data:
            return
        if self._stage not in (HANDSHAKE, OPEN):
            self._too_late()
        elif self._direct:
            send(self, memoryview(data).cast("B"))
        else:
            keep(self, data)
            self._arm()
            self._maybe_pause_protocol()

    def writelines(self, list_of_data: Iterable[Data]) -> None:
        pieces = [data for data in list_of_data if memoryview(data).nbytes]
        if not pieces:
            return
        if self._stage not in (HANDSHAKE, OPEN):
            self._too_late()
            return
        for data in pieces:
            keep(self, data)
        if self._stage == OPEN and not self._crossed & WRITE_WANTS_READ:
            send_buffer(self)
        self._arm()
        self._maybe_pause_protocol()

    def _too_late(self) -> None:
        if self._late >= LATE_WRITES:
            logger.warning("SSL connection is closed")
        self._late += 1

    # ---- the end

    def close(self) -> None:
        if self._closing:
            return
        if self._stage == HANDSHAKE:
            self._force_close(None)
        else:
            self._context.copy().run(self._start_shutdown)

    def _start_shutdown(self) -> None:
        self._closing = True
        self._direct = False
        self._stage = FLUSHING
        self._timer = self._loop.call_later(self._timeouts[1], self._ends_too_late, context=self._context)
        self._go_on_talking()

    def _ends_too_late(self) -> None:
        self._force_close(TimeoutError("SSL shutdown timed out"))

    def _say_goodbye(self) -> None:
        """Send what was accepted, and then a close_notify; read, and drop, until the peer's comes."""
        if self._stage == DEAF:
            self._wait_for_the_end()
            return
        there_is_more = self._drop()
        if self._buffer:
            self._crossed &= ~WRITE_WANTS_READ
            send_buffer(self)
        enough = self._dropped > MOST_DROPPED
        if self._conn_lost or self._buffer:
            return
        if there_is_more and not enough:
            self._loop.call_soon(self._go_on_talking, context=self._context)
            return
        if self._cut:  # nobody is there; asyncio says nothing, either
            self._have_said_goodbye()
            return
        try:
            unkilled(self._tls.shutdown)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            if enough:
                self._lose(None)
            elif isinstance(error, ssl.SSLWantWriteError):
                self._crossed |= READ_WANTS_WRITE
            return
        except OSError as error:
            if getattr(error, "reason", None) == "APPLICATION_DATA_AFTER_CLOSE_NOTIFY" and not enough:
                # In between something has come, and OpenSSL reads no more. Our goodbye is sent.
                self._stage = DEAF
                self._undeciphered = Undeciphered()
                self._wait_for_the_end()
                return
            if not (self._ended or enough or isinstance(error, ENDS)):
                raise
        self._have_said_goodbye()

    def _drop(self) -> bool:
        """What arrived after the end. Returns whether there may be more."""
        dropped = 0
        while data := read(self):
            dropped += len(data)
            if dropped >= MOST_AT_ONCE:
                break
        self._dropped += dropped
        return bool(data)

    def _wait_for_the_end(self) -> None:
        if TYPE_CHECKING:
            assert self._undeciphered is not None
        try:
            data = self._sock.recv(RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        self._dropped += len(data)
        if not data or self._dropped > MOST_DROPPED or self._undeciphered.ends_with_goodbye(data):
            self._have_said_goodbye()

    def _have_said_goodbye(self) -> None:
        self._call_eof_received()
        if not self._conn_lost:
            self._lose(None)

    def _fatal_error(self, error: BaseException, message: str = "Fatal error on transport") -> None:
        if isinstance(error, ssl.SSLError) and not self._conn_lost:
            # OpenSSL has said why. What is left unread would have the kernel reset the connection, which may take that
            # from the peer.
            with suppress(OSError):
                self._sock.recv(RECEIVE)
        super()._fatal_error(error, message)

    def _leave(self) -> None:
        self._stage = OVER
        self._stop_timer()
        super()._leave()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _call_connection_lost(self, error: BaseException | None) -> None:
        self._wake_up(error or ConnectionAbortedError("the connection was closed before the TLS handshake ended"))
        if self._known:
            super()._call_connection_lost(error)
        else:
            self._release()

    def _detach(self) -> None:
        before, self._before = self._before, None
        server, self._server = self._server, None
        stream.detach(server, before or self)
