"""TLS over our transports. The peer is a blocking `ssl` socket, in a thread."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Pair = tuple[socket.socket, socket.socket]
    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(30)
        yield ours, theirs


class Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.arrived = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.arrived.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)


class OnlyBuffered(asyncio.BaseProtocol):
    """Brings a buffer, but does not say that it is a BufferedProtocol."""

    def __init__(self) -> None:
        self.buffer = bytearray(100)
        self.arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.arrived.set_result(bytes(self.buffer[:nbytes]))

    def eof_received(self) -> None:
        pass


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


async def connect(pair: Pair, tls: Contexts, protocol: Callable[[], Any] = Recorder) -> tuple[Any, ssl.SSLSocket]:
    """A protocol of this loop, and the blocking socket at the other end."""
    server, client = tls
    ours, theirs = pair
    accepting = asyncio.ensure_future(in_thread(lambda: server.wrap_socket(theirs, server_side=True)))
    _, made = await asyncio.get_running_loop().create_connection(
        protocol, sock=ours, ssl=client, server_hostname="localhost"
    )
    return made, await accepting


def read_all(peer: ssl.SSLSocket) -> bytes:
    received = bytearray()
    while data := peer.recv(65536):
        received += data
    peer.unwrap().close()
    return bytes(received)


@pytest.mark.asyncio
async def test_what_was_written_before_closing_arrives(pair: Pair, tls: Contexts) -> None:
    protocol, peer = await connect(pair, tls)
    pieces = [bytes([number]) * 100_000 for number in range(50)]
    for piece in pieces:
        protocol.transport.write(piece)
    protocol.transport.close()
    assert await in_thread(read_all, peer) == b"".join(pieces)
    assert await protocol.lost is None


@pytest.mark.asyncio(loop_factories=["notifyloop", "uvloop"])  # asyncio delivers it, contrary to what it documents
async def test_no_data_arrives_after_closing(pair: Pair, tls: Contexts) -> None:
    protocol, peer = await connect(pair, tls)
    protocol.transport.pause_reading()
    await in_thread(peer.sendall, b"not read before closing")
    protocol.transport.close()
    await in_thread(peer.sendall, b"sent after closing")
    assert await in_thread(read_all, peer) == b""
    assert await protocol.lost is None
    assert protocol.received == b""


@pytest.mark.asyncio(loop_factories=["notifyloop", "uvloop"])  # asyncio never calls connection_lost()
async def test_closing_while_an_end_of_file_waits_to_be_read(pair: Pair, tls: Contexts) -> None:
    protocol, peer = await connect(pair, tls)
    protocol.transport.pause_reading()
    await in_thread(peer.sendall, b"never read")
    await in_thread(peer.shutdown, socket.SHUT_WR)  # without a close_notify
    protocol.transport.close()
    assert await protocol.lost is None
    peer.close()
    assert protocol.received == b""


@pytest.mark.asyncio(loop_factories=["asyncio", "notifyloop"])  # uvloop drops it
async def test_what_came_before_the_end_of_file_waits_until_it_is_read(pair: Pair, tls: Contexts) -> None:
    protocol, peer = await connect(pair, tls)
    protocol.transport.pause_reading()
    await in_thread(peer.sendall, b"the last words")
    await in_thread(peer.shutdown, socket.SHUT_WR)
    protocol.transport.resume_reading()
    assert await protocol.lost is None
    peer.close()
    assert protocol.received == b"the last words"


@pytest.mark.asyncio(loop_factories=["notifyloop", "uvloop"])  # asyncio needs a BufferedProtocol
async def test_a_protocol_that_only_takes_buffers(pair: Pair, tls: Contexts) -> None:
    protocol, peer = await connect(pair, tls, OnlyBuffered)
    await in_thread(peer.sendall, b"data")
    assert await protocol.arrived == b"data"
    protocol.transport.abort()
    peer.close()


@pytest.mark.asyncio(loop_factories=["notifyloop", "uvloop"])  # asyncio's protocol would answer in the clear
async def test_start_tls_returns_before_data_arrives(pair: Pair, tls: Contexts) -> None:
    server, client = tls
    ours, theirs = pair

    def shake_hands_and_send_at_once() -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        peer = client.wrap_bio(incoming, outgoing, server_hostname="localhost")
        while True:
            try:
                peer.do_handshake()
            except ssl.SSLWantReadError:
                theirs.sendall(outgoing.read())
                incoming.write(theirs.recv(65536))
            else:
                peer.write(b"in the same segment as the handshake's end")
                theirs.sendall(outgoing.read())
                return

    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_accepted_socket(Recorder, ours)
    shaking = asyncio.ensure_future(in_thread(shake_hands_and_send_at_once))
    upgraded = await loop.start_tls(transport, protocol, server, server_side=True)
    assert upgraded is not None
    assert protocol.received == b""
    await protocol.arrived.wait()
    assert protocol.received == b"in the same segment as the handshake's end"
    await shaking
    upgraded.abort()
    await protocol.lost
