"""How a connection with TLS ends: what was accepted is sent first, and no peer can delay the end for longer than the
time-out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from .recorder import some_turns

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import Any

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

pytestmark = pytest.mark.asyncio
NEVER = 3600.0  # seconds: a test that waits for it fails
MUCH = bytes(5_000_000)  # more than a socket and asyncio's limits hold


class Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.arrived = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.events.append(data)
        self.arrived.set()

    def eof_received(self) -> None:
        self.events.append("end")

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)


async def connect(
    ours: socket.socket,
    peer: Any,
    tls: Contexts,
    protocol: Callable[[], Any] = Recorder,
    ssl_shutdown_timeout: float = NEVER,
) -> Any:
    """A protocol of this loop, which has shaken hands with the peer."""
    server, client = tls
    peer.speak(server, server_side=True)
    connecting = asyncio.ensure_future(
        asyncio.get_running_loop().create_connection(
            protocol, sock=ours, ssl=client, server_hostname="localhost", ssl_shutdown_timeout=ssl_shutdown_timeout
        )
    )
    with contextlib.suppress(EOFError, OSError):  # which the connection says itself
        await peer.send(await peer.shake_hands())
    _, made = await connecting
    await some_turns()  # what a server sends after the handshake has arrived, too
    return made


@pytest_asyncio.fixture
async def reports() -> list[dict[str, Any]]:
    """What the exception handler is called with."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    return reports


# ---- nothing is for the program any more


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="delivers it, contrary to what it documents")
async def test_no_data_arrives_after_closing(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    protocol.transport.pause_reading()
    await peer.send(peer.encrypt(b"not read before closing"))
    await some_turns()
    protocol.transport.close()
    await peer.send(peer.encrypt(b"sent after closing") + peer.goodbye())
    assert await peer.receive_all() == b""
    assert await protocol.lost is None
    assert protocol.events == ["made", "end"]


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="never calls connection_lost()", run=False)
async def test_closing_while_an_end_of_file_waits_to_be_read(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    protocol.transport.pause_reading()
    await peer.send(peer.encrypt(b"never read"))
    peer.sock.shutdown(socket.SHUT_WR)
    await some_turns()
    protocol.transport.close()
    assert await protocol.lost is None
    assert b"never read" not in protocol.events


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="ends the connection with an error")
@pytest.mark.parametrize("size", [1_000, 262_144, 300_000, 900_000])  # 256 KiB are read at once
async def test_closing_while_reading_is_paused(ours: socket.socket, peer: Any, tls: Contexts, size: int) -> None:
    """What was sent does not hide the answer, nor is the connection reset: the peer can read what it was sent."""
    protocol = await connect(ours, peer, tls)
    protocol.transport.pause_reading()
    sending = asyncio.ensure_future(peer.send(peer.encrypt(bytes(size))))
    await some_turns()
    protocol.transport.write(b"too large")
    protocol.transport.close()
    await sending
    assert await peer.receive_all() == b"too large"
    peer.tls.unwrap()
    await peer.send(peer.outgoing.read())
    assert await protocol.lost is None
    assert [event for event in protocol.events if isinstance(event, bytes)] == []


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", uvloop="0.23.0", reason="wait for the time-out", run=False)
async def test_closing_a_stream_whose_reader_has_enough(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    """After start_tls() it pauses what is below, before Python 3.14 also if the stream has started TLS itself
    (https://github.com/python/cpython/issues/152431).
    """
    server, client = tls
    peer.speak(client, server_side=False)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1000)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, ours)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    starting = loop.start_tls(transport, protocol, server, server_side=True, ssl_shutdown_timeout=NEVER)
    upgrading = asyncio.ensure_future(starting)
    await peer.send(await peer.shake_hands() + peer.encrypt(bytes(100_000)))
    writer._transport = await upgrading  # type: ignore[attr-defined]
    await some_turns()
    writer.close()
    assert await peer.receive_all() == b""
    peer.tls.unwrap()
    await peer.send(peer.outgoing.read())
    await writer.wait_closed()


# ---- a peer cannot keep a connection that was closed


@pytest.mark.asyncio
@pytest.mark.differs(uvloop="0.23.0", reason="reads on until the time-out", run=False)
@pytest.mark.parametrize("paused", [False, True])
async def test_a_peer_that_goes_on_sending(ours: socket.socket, peer: Any, tls: Contexts, paused: bool) -> None:
    protocol = await connect(ours, peer, tls)
    if paused:
        protocol.transport.pause_reading()

    async def send_for_ever() -> None:
        while True:
            await peer.send(peer.encrypt(bytes(100_000)))

    sending = asyncio.ensure_future(send_for_ever())
    await some_turns()
    protocol.transport.close()
    with pytest.raises(ConnectionError):
        await sending
    await protocol.lost


async def test_a_peer_that_does_not_answer(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls, ssl_shutdown_timeout=0.01)
    protocol.transport.close()
    error = await protocol.lost
    assert isinstance(error, TimeoutError)
    assert "SSL shutdown timed out" in str(error)


@pytest.mark.parametrize(
    "polite",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.differs(
                asyncio="3.13.0",
                reason="stops the clock when the peer has said goodbye",
                when=sys.version_info < (3, 14, 5),
                run=False,
            ),
        ),
    ],
)
async def test_a_peer_that_does_not_read(ours: socket.socket, peer: Any, tls: Contexts, polite: bool) -> None:
    protocol = await connect(ours, peer, tls, ssl_shutdown_timeout=0.01)
    protocol.transport.write(MUCH)
    if polite:
        await peer.send(peer.goodbye())
    else:
        protocol.transport.close()
    assert isinstance(await protocol.lost, TimeoutError)


# ---- what was accepted is sent


async def test_what_was_written_before_closing_arrives(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    pieces = [bytes([number]) * 100_000 for number in range(50)]
    for piece in pieces:
        protocol.transport.write(piece)
    protocol.transport.close()
    assert await peer.receive_all() == b"".join(pieces)
    peer.tls.unwrap()
    await peer.send(peer.outgoing.read())
    assert await protocol.lost is None


async def test_what_was_written_before_aborting_arrives(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    for piece in (b"header", b"body", b"trailer"):
        protocol.transport.write(piece)
    protocol.transport.abort()
    assert await peer.receive() + await peer.receive() + await peer.receive() == b"headerbodytrailer"
    with pytest.raises(EOFError):
        await peer.receive()
    assert await protocol.lost is None


async def test_what_was_written_arrives_when_the_peer_has_said_goodbye(
    ours: socket.socket, peer: Any, tls: Contexts
) -> None:
    protocol = await connect(ours, peer, tls)
    pieces = [bytes([number]) * 100_000 for number in range(50)]
    for piece in pieces:
        protocol.transport.write(piece)
    await peer.send(peer.goodbye())
    assert await peer.receive_all() == b"".join(pieces)
    assert await protocol.lost is None


async def test_write_limits(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    transport = protocol.transport
    assert not transport.can_write_eof()
    with pytest.raises(NotImplementedError):
        transport.write_eof()
    transport.set_write_buffer_limits(high=100_000, low=0)
    assert transport.get_write_buffer_limits() == (0, 100_000)
    written = 0
    while "pause" not in protocol.events:
        transport.write(bytes(50_000))
        written += 50_000
    assert transport.get_write_buffer_size() >= 100_000
    received = 0
    while received < written:
        received += len(await peer.receive())
    await some_turns()
    assert protocol.events == ["made", "pause", "resume"]
    assert transport.get_write_buffer_size() == 0
    transport.abort()
    await protocol.lost


# ---- whatever a callback does


def at(callback: str, act: Callable[[Any], None]) -> Callable[[], Recorder]:
    """A protocol that does something in one callback."""

    def acting(self: Any, *arguments: Any) -> Any:
        try:
            return getattr(Recorder, callback)(self, *arguments)
        finally:
            act(self)

    return type("Acting", (Recorder,), {callback: acting})


CALLBACKS = ["connection_made", "data_received", "eof_received", "pause_writing", "resume_writing", "connection_lost"]


async def live(ours: socket.socket, peer: Any, tls: Contexts, protocol: Callable[[], Any], politely: bool) -> Recorder:
    """A life that comes by all callbacks, unless one ends it."""
    made: list[Any] = []

    def make() -> Any:
        made.append(protocol())
        return made[-1]

    with contextlib.suppress(EOFError, OSError):
        with contextlib.suppress(OSError, ZeroDivisionError):
            await connect(ours, peer, tls, make, ssl_shutdown_timeout=0.5)
        await peer.send(peer.encrypt(b"data"))
        await asyncio.wait([asyncio.ensure_future(made[0].arrived.wait()), made[0].lost], return_when="FIRST_COMPLETED")
        left = 0
        while "pause" not in made[0].events and not made[0].transport.is_closing():
            made[0].transport.write(bytes(100_000))
            left += 100_000
        # All of it, or closing the peer's socket resets the connection. On Windows that takes from us what is not read.
        while left and (received := await peer.receive()):
            left -= len(received)
        if politely:
            await peer.send(peer.encrypt(b"more") + peer.goodbye())
        else:
            await peer.send(peer.encrypt(b"more"))
            peer.sock.shutdown(socket.SHUT_WR)
        while await peer.receive():
            pass
    return made[0]


@pytest.mark.differs(
    asyncio="3.13.0", reason="aborted in resume_writing(), it is lost twice", when=sys.version_info < (3, 15)
)
@pytest.mark.parametrize("politely", [False, True])
@pytest.mark.parametrize("act", ["close", "abort"])
@pytest.mark.parametrize("callback", CALLBACKS)
async def test_ending_in_a_callback(
    ours: socket.socket,
    peer: Any,
    tls: Contexts,
    reports: list[dict[str, Any]],
    callback: str,
    act: str,
    politely: bool,
) -> None:
    factory = at(callback, lambda protocol: getattr(protocol.transport, act)())
    protocol = await live(ours, peer, tls, factory, politely)
    peer.sock.close()
    await protocol.lost
    await some_turns()
    assert reports == []


@pytest.mark.parametrize("callback", CALLBACKS)
async def test_raising_in_a_callback(
    ours: socket.socket, peer: Any, tls: Contexts, reports: list[dict[str, Any]], callback: str
) -> None:
    protocol = await live(ours, peer, tls, at(callback, lambda _: 1 / 0), politely=True)  # type: ignore[arg-type]
    peer.sock.close()
    error = await protocol.lost
    await some_turns()
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]
    if callback in {"connection_made", "data_received", "eof_received"}:
        assert isinstance(error, ZeroDivisionError)
    else:  # the connection lives on
        assert not isinstance(error, ZeroDivisionError)


# ---- afterwards

ANSWERS = ["sslcontext", "ssl_object", "peercert", "cipher", "compression"]


async def test_what_a_closed_transport_can_be_asked(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    before = {name: protocol.transport.get_extra_info(name) for name in ANSWERS}
    protocol.transport.close()
    await peer.send(peer.goodbye())
    await protocol.lost
    await some_turns()
    assert {name: protocol.transport.get_extra_info(name) for name in ANSWERS} == before
    assert protocol.transport.get_extra_info("unknown", 7) == 7
    assert protocol.transport.is_closing()


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="raises AttributeError")
@pytest.mark.differs(uvloop="0.23.0", reason="it is None")
async def test_a_transport_that_was_closed_twice_can_still_be_asked(tls: Contexts) -> None:
    server, client = tls
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(asyncio.Protocol, "localhost", 0, ssl=server)
    address = listening.sockets[0].getsockname()
    transport, protocol = await loop.create_connection(Recorder, *address[:2], ssl=client, server_hostname="localhost")
    names = ["sockname", "peername", *ANSWERS]
    before = {name: transport.get_extra_info(name) for name in names}
    assert before["peername"] == address
    transport.close()
    transport.close()
    await protocol.lost
    await some_turns()
    assert {name: transport.get_extra_info(name) for name in names} == before
    assert transport.get_extra_info("socket") is not None
    listening.close()


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="does nothing", run=False)
async def test_aborting_what_was_closed_twice(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    protocol.transport.close()
    protocol.transport.close()
    protocol.transport.abort()
    with pytest.raises(EOFError):
        while True:
            await peer.hear()
    assert await protocol.lost is None


@pytest.mark.asyncio
@pytest.mark.differs(
    asyncio="3.13.0",
    reason="it is since 3.12.8 and 3.13.1",
    when=sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1),
)
@pytest.mark.differs(uvloop="0.23.0", reason="it is not")
async def test_a_transport_is_closing_when_what_is_below_is(
    ours: socket.socket, peer: Any, tls: Contexts, caplog: pytest.LogCaptureFixture
) -> None:
    protocol = await connect(ours, peer, tls)
    peer.sock.close()
    written = 0
    while not protocol.transport.is_closing():
        protocol.transport.write(b"data")
        written += 1
        assert written < 10
    assert isinstance(await protocol.lost, ConnectionError)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# ---- sendfile


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="may drop the rest in silence")
@pytest.mark.differs(uvloop="0.23.0", reason="has no sendfile", run=False)
@pytest.mark.parametrize("politely", [False, True])
async def test_the_peer_leaves_while_a_file_is_sent(
    ours: socket.socket,
    peer: Any,
    tls: Contexts,
    reports: list[dict[str, Any]],
    tmp_path: Any,
    politely: bool,
) -> None:
    protocol = await connect(ours, peer, tls)
    path = tmp_path / "file"
    path.write_bytes(MUCH)
    with path.open("rb") as file:
        sending = asyncio.ensure_future(asyncio.get_running_loop().sendfile(protocol.transport, file))
        await peer.receive()
        if politely:
            await peer.send(peer.goodbye())
        peer.sock.close()
        with pytest.raises(ConnectionError):
            await sending
    assert isinstance(await protocol.lost, ConnectionError)
    await some_turns()
    assert reports == []


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="reports that eof_received() failed")
@pytest.mark.differs(uvloop="0.23.0", reason="has no sendfile", run=False)
async def test_the_program_leaves_while_a_file_is_sent(
    ours: socket.socket, peer: Any, tls: Contexts, reports: list[dict[str, Any]], tmp_path: Any
) -> None:
    protocol = await connect(ours, peer, tls)
    path = tmp_path / "file"
    path.write_bytes(MUCH)
    with path.open("rb") as file:
        sending = asyncio.ensure_future(asyncio.get_running_loop().sendfile(protocol.transport, file))
        await peer.receive()
        await peer.send(peer.goodbye())  # which waits until reading is resumed
        await some_turns()
        protocol.transport.close()
        peer.sock.close()
        with pytest.raises(ConnectionError):
            await sending
    await protocol.lost
    await some_turns()
    assert reports == []
