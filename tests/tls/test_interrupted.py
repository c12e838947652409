"""Ctrl-C may come at any point in what TLS does between OpenSSL and the program, too: the connection lives on, or ends
and says so. No more is promised of one that was interrupted in the midst of a write: what OpenSSL has begun with must
be given to it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import notifyloop

if sys.platform == "win32":
    pytest.skip("OpenSSL has no socket on Windows", allow_module_level=True)

from notifyloop.turn import tls_records, tls_state, tls_stream

if TYPE_CHECKING:
    from types import CodeType, FrameType

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
    Place = tuple[CodeType, int]

pytestmark = pytest.mark.only("plain", reason="compiled code has no lines at which an interrupt could come in")
FILES = {str(module.__file__) for module in (tls_records, tls_state, tls_stream)}
PATIENCE = 3000  # turns
BEGIN = tls_stream.SSLStreamTransport._begin.__code__
FIRST = (BEGIN, BEGIN.co_firstlineno + 1)


class Interrupter:
    """Sees each line that is about to run, and raises KeyboardInterrupt before one of them."""

    def __init__(self, place: Place | None = None) -> None:
        self.place = place
        self.seen: dict[Place, None] = {}

    def __enter__(self) -> Interrupter:
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter_frame(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._trace_line if frame.f_code.co_filename in FILES else None

    def _trace_line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            place = (frame.f_code, frame.f_lineno)
            self.seen[place] = None
            if place == self.place:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace_line


class Echo(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: Any = None
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True


class Life:
    """Of one connection: it begins, answers, waits for room, pauses."""

    def __init__(self, tls: Contexts, peer_class: Any) -> None:
        self.loop = notifyloop.NotifyLoop()
        self.loop.set_exception_handler(lambda loop, context: None)
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.protocol = Echo()
        self.tls = tls
        self.peer = peer_class(self.theirs)
        self.peer.speak(tls[1], server_side=False)
        self.heard = bytearray()

    def step(self) -> None:
        """One turn of the loop, and what the peer hears."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        with contextlib.suppress(BlockingIOError):
            self.peer.incoming.write(self.theirs.recv(1 << 20))
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            self.peer.tls.do_handshake()
            while data := self.peer.tls.read(1 << 20):
                self.heard += data
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            self.theirs.send(self.peer.outgoing.read())

    def say(self, data: bytes) -> None:
        self.peer.tls.write(data)
        self.flush()

    def begin(self) -> None:
        accepting = self.loop.connect_accepted_socket(lambda: self.protocol, self.ours, ssl=self.tls[0])
        self.accepting = self.loop.create_task(accepting)

    def live(self) -> None:
        for _ in range(20):
            self.step()
        self.say(b"one")
        self.say(b"two")
        for _ in range(5):
            self.step()
        transport = self.protocol.transport
        if transport is None:
            return
        for size in (10, 400_000, 10):
            transport.write(bytes(size))
        transport.writelines([b"three", bytearray(b"four")])
        transport.pause_reading()
        for _ in range(3):
            self.step()
        transport.resume_reading()
        for _ in range(20):
            self.step()

    def answers(self) -> bool:
        """Whether it does, or has ended and said so."""
        for _ in range(20):
            self.step()
        if self.protocol.transport is not None:
            self.protocol.transport.resume_reading()
        with contextlib.suppress(ssl.SSLError):
            self.say(b"?!")
        for _ in range(PATIENCE):
            with contextlib.suppress(ssl.SSLError):
                self.step()
            if self.heard.endswith(b"?!"):
                return True
            if self.protocol.ended or (self.protocol.transport is None and self.accepting.done()):
                return True
        return False

    def close(self) -> None:
        if self.protocol.transport is not None:
            self.protocol.transport.abort()
        self.accepting.cancel()
        for _ in range(3):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        self.loop.close()
        self.ours.close()
        self.theirs.close()


@pytest.mark.filterwarnings("ignore:.*was never awaited", "ignore:Exception ignored in", "ignore:unclosed")
def test_an_interrupt_at_any_line(tls: Contexts, peer: Any) -> None:
    life = Life(tls, type(peer))
    life.begin()
    with Interrupter() as interrupter:
        life.live()
    assert life.answers()
    assert life.heard.startswith(b"onetwo")
    life.close()
    failures = []
    lives_on = 0
    for place in interrupter.seen:
        life = Life(tls, type(peer))
        life.begin()
        with contextlib.suppress(KeyboardInterrupt, ssl.SSLError), Interrupter(place):
            life.live()
        if not life.answers() and place != FIRST:  # that one ends with its time-out
            failures.append(f"{Path(place[0].co_filename).name}:{place[1]} in {place[0].co_name}")
        lives_on += not life.protocol.ended
        life.close()
    gc.collect()  # what is to be warned of
    print(*failures, sep="\n")
    print(f"{lives_on} of {len(interrupter.seen)} connections live on")
    assert failures == []
    assert lives_on > 0.8 * len(interrupter.seen)
