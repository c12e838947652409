"""The ends of the connections that programs are about: sockets that the program reads and writes, and transports."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any

from .differences import hint, spare

if TYPE_CHECKING:
    from .language import Step
    from .machine import Machine

STREAM = random.Random(0).randbytes(6_000_000)  # what is sent; each end begins at a place of its own
SMALL_BUFFER = 4096  # bytes, for sending; the kernel doubles it
MOST_TCP = 1000  # bytes in one write, so that all are received at once, whatever the kernel is busy with


def describe(error: BaseException | None) -> str:
    if error is None:
        return "None"
    code = f" {errno.errorcode.get(error.errno, error.errno)}" if isinstance(error, OSError) and error.errno else ""
    return type(error).__name__ + code


def describe_data(data: bytes | bytearray) -> str:
    return f"{len(data)} bytes {zlib.crc32(data):08x}" if data else "nothing"


class End:
    """One end of a connection. It is `plain` if it is a socket that the program reads and writes."""

    def __init__(self, name: str, kind: str, role: str) -> None:
        self.name = name
        self.kind = kind
        self.role = role
        self.peer: End | None = None
        self.sock: Any = None  # also while it is a transport's; None once the program has closed it
        self.transport: Any = None  # once it is connected
        self.descriptor = -1  # the transport's
        self.connected = True
        self.closed = False  # by the program
        self.told_eof = False  # eof_received() was called
        self.lost = False  # connection_lost() was called
        self.keep_open = False  # what eof_received() returns
        self.scripts: dict[str, deque[list[Step]]] = {}  # what callbacks do, by their names
        self.buffer = bytearray(100_000)
        self.buffer_sizes: deque[int] = deque()  # what get_buffer() returns next, if not all of it
        self.sent = (ord(name) - ord("a") + 1) * 100_000  # the place in the stream
        self.doings = 0  # of which the peer may hear
        self.settled = 0  # of those, which the peer has heard
        self.waiting = 0  # coroutines that wait for the socket
        self.receiving: dict[asyncio.Task[Any], int] = {}  # those that receive, and the peer's doings when they began
        self.ended = False  # read to the end

    @property
    def plain(self) -> bool:
        return self.role == "socket"

    @property
    def closing(self) -> bool:
        """It is a transport that is closing or closed."""
        return self.transport is not None and self.transport.is_closing()

    @property
    def unsent(self) -> bool:
        """Something that was written, or is sent by a coroutine, may be on its way."""
        return bool(self.waiting or (self.transport and self.transport.get_write_buffer_size()))

    @property
    def doing(self) -> bool:
        """The peer is yet to hear of something."""
        return self.unsent or self.doings != self.settled

    @property
    def may_have_received(self) -> bool:
        """A coroutine that receives may have been told that there is something."""
        return self.peer is not None and any(self.peer.doings != doings for doings in self.receiving.values())

    def data(self, size: int) -> bytes:
        """What is sent next."""
        self.doings += 1
        if self.kind == "tcp":
            size = min(size, MOST_TCP)
        begin = self.sent % (len(STREAM) - 1_000_000)
        self.sent += size
        return STREAM[begin : begin + size]


class Recorder(asyncio.Protocol):
    """What is called, the machine hears."""

    def __init__(self, machine: Machine, end: End) -> None:
        self.machine = machine
        self.end = end

    def connection_made(self, transport: Any) -> None:
        self.end.transport = transport
        self.end.descriptor = transport.get_extra_info("socket").fileno()
        if self.end.sock is None:  # accepted
            self.machine.waiting.name(self.end.descriptor)
        self.machine.called(self.end, "connection_made")

    def data_received(self, data: bytes) -> None:
        self.machine.called(self.end, "data_received", describe_data(data))

    def eof_received(self) -> bool:
        self.end.doings += 1
        self.end.told_eof = True
        self.machine.called(self.end, "eof_received")
        return self.end.keep_open

    def connection_lost(self, error: Exception | None) -> None:
        self.end.lost = True
        self.machine.waiting.forget(self.end.descriptor)
        self.end.doings += 1
        self.machine.called(self.end, "connection_lost", describe(error))

    def pause_writing(self) -> None:
        self.machine.called(self.end, "pause_writing")

    def resume_writing(self) -> None:
        self.machine.called(self.end, "resume_writing")


class BufferedRecorder(asyncio.BufferedProtocol):
    __init__ = Recorder.__init__
    connection_made = Recorder.connection_made
    eof_received = Recorder.eof_received
    connection_lost = Recorder.connection_lost
    pause_writing = Recorder.pause_writing
    resume_writing = Recorder.resume_writing

    def get_buffer(self, sizehint: int) -> memoryview:
        if spare(self.end, sizehint):
            return memoryview(self.end.buffer)
        self.machine.called(self.end, "get_buffer", hint(self.end, sizehint))
        sizes = self.end.buffer_sizes
        return memoryview(self.end.buffer)[: sizes.popleft() if sizes else None]

    def buffer_updated(self, nbytes: int) -> None:
        self.machine.called(self.end, "data_received", describe_data(self.end.buffer[:nbytes]))


class DatagramRecorder(asyncio.DatagramProtocol):
    __init__ = Recorder.__init__
    connection_made = Recorder.connection_made
    connection_lost = Recorder.connection_lost
    pause_writing = Recorder.pause_writing
    resume_writing = Recorder.resume_writing

    def datagram_received(self, data: bytes, address: object) -> None:
        self.machine.called(self.end, "datagram_received", describe_data(data))

    def error_received(self, error: Exception) -> None:
        self.machine.called(self.end, "error_received", describe(error))


PROTOCOLS = {"protocol": Recorder, "buffered": BufferedRecorder, "datagrams": DatagramRecorder}


def connected(kind: str) -> tuple[socket.socket, socket.socket]:
    """A pair of sockets that do not block. Those of "unix" have little room, those of TCP have much."""
    if kind == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            pair = client, listener.accept()[0]
        for sock in pair:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    elif kind == "unix":
        pair = socket.socketpair()
        for sock in pair:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    elif kind == "tls":
        pair = socket.socketpair()
    else:  # datagrams; asyncio takes a peer without a name for none
        family, address = (socket.AF_INET, ("127.0.0.1", 0)) if kind == "udp" else (socket.AF_UNIX, "")
        pair = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_DGRAM)
        for sock in pair:
            sock.bind(address)
        pair[0].connect(pair[1].getsockname())
        pair[1].connect(pair[0].getsockname())
    for sock in pair:
        sock.setblocking(False)
    return pair
