"""What a peer may send that is not what was agreed: records in pieces, records of nobody's, and none at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from . import recorder
from .recorder import some_turns

if TYPE_CHECKING:
    from typing import Any

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

pytestmark = pytest.mark.asyncio
OVERSIZED = b"\x17\x03\x03\xff\xff" + bytes(1000)
ALERT = b"\x15\x03\x03\x00\x02\x02\x28"  # in the clear: the handshake has failed


class Recorder(recorder.Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.events.append("made")

    def eof_received(self) -> None:
        self.events.append("end")

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append("lost")
        super().connection_lost(error)


class Narrow(Recorder, asyncio.BufferedProtocol):
    """With room for one byte."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(1)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.buffer[:nbytes]))


@pytest_asyncio.fixture
async def reports() -> list[dict[str, Any]]:
    """What the exception handler is called with."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    return reports


def accept(ours: socket.socket, tls: Contexts, protocol: Any) -> asyncio.Task[Any]:
    loop = asyncio.get_running_loop()
    return asyncio.ensure_future(loop.connect_accepted_socket(lambda: protocol, ours, ssl=tls[0]))


async def connect(ours: socket.socket, peer: Any, tls: Contexts, factory: Any = Recorder) -> Any:
    """Our server's end, when hands are shaken."""
    peer.speak(tls[1], server_side=False)
    protocol = factory()
    accepting = accept(ours, tls, protocol)
    await peer.send(await peer.shake_hands())
    await accepting
    return protocol


async def send_slowly(peer: Any, data: bytes) -> None:
    for number in range(len(data)):
        await peer.send(data[number : number + 1])
        await some_turns()


# ---- records in pieces


async def test_a_handshake_and_data_that_come_byte_by_byte(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    peer.speak(tls[1], server_side=False)
    protocol = Recorder()
    accepting = accept(ours, tls, protocol)
    await send_slowly(peer, peer.hello())
    await peer.hear()
    await send_slowly(peer, await peer.shake_hands() + peer.encrypt(b"one") + peer.encrypt(b"two"))
    await accepting
    await protocol.until(6)
    assert protocol.received == b"onetwo"
    protocol.transport.abort()
    await protocol.lost


@pytest.mark.asyncio
@pytest.mark.differs(uvloop="0.23.0", reason="does not call eof_received()")
@pytest.mark.parametrize("cut", range(1, 40, 3))
async def test_a_peer_that_ends_in_the_midst_of_a_record(
    ours: socket.socket, peer: Any, tls: Contexts, reports: list[dict[str, Any]], cut: int
) -> None:
    protocol = await connect(ours, peer, tls)
    await peer.send(peer.encrypt(b"whole") + peer.encrypt(bytes(20))[:cut])
    peer.sock.shutdown(socket.SHUT_WR)
    assert await protocol.lost is None
    assert protocol.received == b"whole"
    assert protocol.events == ["made", "end", "lost"]
    assert reports == []


@pytest.mark.parametrize("cut", [0, 1, 5, 6, 60])
async def test_a_peer_that_ends_in_the_midst_of_its_hello(
    ours: socket.socket, peer: Any, tls: Contexts, cut: int
) -> None:
    peer.speak(tls[1], server_side=False)
    accepting = accept(ours, tls, Recorder())
    await peer.send(peer.hello()[:cut])
    await some_turns()
    peer.sock.close()
    with pytest.raises(ConnectionResetError):
        await accepting


async def test_a_large_record_for_a_buffer_of_one_byte(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls, Narrow)
    sent = bytes(range(256)) * 10
    await peer.send(peer.encrypt(sent) + peer.encrypt(b"more") + peer.goodbye())
    await protocol.lost
    assert protocol.received == sent + b"more"


# ---- records of nobody's


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(200),
        b"\xff" * 70_000,
        OVERSIZED,
        ALERT,
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",  # a hello of one byte
    ],
    ids=["http", "zeros", "much", "oversized", "alert", "hello"],
)
async def test_what_is_no_hello(
    ours: socket.socket, peer: Any, tls: Contexts, reports: list[dict[str, Any]], said: bytes
) -> None:
    accepting = accept(ours, tls, Recorder())
    with contextlib.suppress(OSError):  # it is not heard to the end
        await peer.send(said)
    with pytest.raises(ssl.SSLError):
        await accepting
    with contextlib.suppress(OSError), pytest.raises(EOFError):
        peer.speak(tls[1], server_side=False)
        while True:
            await peer.hear()
    await some_turns()
    assert reports == []


@pytest.mark.parametrize(
    "said",
    [OVERSIZED, ALERT, b"\x17\x03\x03\x00\x20" + bytes(32), b"HTTP/1.1 200 OK\r\n\r\n"],
    ids=["oversized", "alert", "not encrypted", "http"],
)
async def test_what_is_no_record(
    ours: socket.socket, peer: Any, tls: Contexts, reports: list[dict[str, Any]], said: bytes
) -> None:
    protocol = await connect(ours, peer, tls)
    await peer.send(said)
    assert isinstance(await protocol.lost, ssl.SSLError)
    assert protocol.events == ["made", "lost"]
    assert reports == []


async def test_an_alert_while_the_program_has_closed(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    protocol.transport.close()
    await peer.send(ALERT)
    assert isinstance(await protocol.lost, ssl.SSLError)


# ---- nothing


async def test_half_open_handshakes_end_and_harm_nobody(tls: Contexts) -> None:
    loop = asyncio.get_running_loop()
    made: list[Any] = []

    class Echo(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            made.append(self)

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=tls[0], ssl_handshake_timeout=0.5)
    address = server.sockets[0].getsockname()
    silent = [socket.create_connection(address) for _ in range(50)]
    for sock in silent[::2]:
        sock.send(b"\x16\x03\x01")
    _, protocol = await loop.create_connection(Recorder, *address, ssl=tls[1], server_hostname="localhost")
    protocol.transport.write(b"echo")
    await protocol.until(4)
    for sock in silent:
        sock.setblocking(False)
        assert await loop.sock_recv(sock, 1) == b""
        sock.close()
    assert len(made) == 1
    protocol.transport.write(b"echo")
    await protocol.until(8)
    protocol.transport.close()
    await protocol.lost
    server.close()
