"""How TLS begins: handshakes, those that do not succeed, and those on a connection that was in use before."""

from __future__ import annotations

import asyncio
import ssl
import sys
import weakref
from typing import TYPE_CHECKING

import pytest

from .recorder import some_turns

if TYPE_CHECKING:
    import socket
    from typing import Any

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

pytestmark = pytest.mark.asyncio
RECENT = sys.version_info >= (3, 14, 4) or (3, 13, 13) <= sys.version_info < (3, 14)
ASYNCIO_LOSES_IT = pytest.mark.differs(
    asyncio="3.13.0",
    reason="does not hand to TLS what a reader has: https://github.com/python/cpython/issues/142352",
    when=not RECENT,
    run=False,
)
UVLOOP_WAITS = pytest.mark.differs(
    uvloop="0.23.0", reason="waits for it for ever: https://github.com/MagicStack/uvloop/issues/707", run=False
)


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

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)


async def accept(ours: socket.socket) -> tuple[Any, Recorder]:
    """Our end, still in the clear."""
    return await asyncio.get_running_loop().connect_accepted_socket(Recorder, ours)


# ---- data that comes early


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="its protocol would answer in the clear")
async def test_start_tls_returns_before_data_arrives(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    server, client = tls

    async def send_at_once() -> None:
        peer.speak(client, server_side=False)
        await peer.send(await peer.shake_hands() + peer.encrypt(b"in the same segment"))

    transport, protocol = await accept(ours)
    sending = asyncio.ensure_future(send_at_once())
    upgraded: Any = await asyncio.get_running_loop().start_tls(transport, protocol, server, server_side=True)
    assert protocol.events == ["made"]
    await protocol.arrived.wait()
    assert protocol.events == ["made", b"in the same segment"]
    await sending
    upgraded.abort()
    await protocol.lost


async def test_data_in_one_segment_with_the_end_of_the_handshake(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    server, client = tls
    peer.speak(client, server_side=False)
    protocol = Recorder()
    accepting = asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, ours, ssl=server)
    task = asyncio.ensure_future(accepting)
    await peer.send(await peer.shake_hands() + peer.encrypt(b"first"))
    await task
    await protocol.arrived.wait()
    assert protocol.events == ["made", b"first"]
    protocol.transport.abort()
    await protocol.lost


@pytest.mark.asyncio(loop_factories=["notifyloop"])  # the others subtract None from a time (CPython 3.13, uvloop 0.22)
async def test_debug_mode_begins_in_the_midst_of_a_handshake(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    server, client = tls
    peer.speak(client, server_side=False)
    protocol = Recorder()
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(loop.connect_accepted_socket(lambda: protocol, ours, ssl=server))
    last = await peer.shake_hands()
    loop.set_debug(True)
    await peer.send(last + peer.encrypt(b"hello"))
    await task
    await protocol.arrived.wait()
    assert protocol.events == ["made", b"hello"]
    protocol.transport.abort()
    await protocol.lost


class Stream:
    """A server's stream that starts TLS when it is told to; and what it reads first then."""

    def __init__(self, ours: socket.socket, context: ssl.SSLContext, outer: ssl.SSLContext | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.go = asyncio.Event()
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self.context = context
        reader = asyncio.StreamReader()
        self.accepting = asyncio.ensure_future(
            loop.connect_accepted_socket(lambda: asyncio.StreamReaderProtocol(reader, self.serve), ours, ssl=outer)
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert await reader.readline() == b"PROXY\n"
            await self.go.wait()
            await writer.start_tls(self.context)
            self.answer.set_result(await reader.readline())
        except BaseException as error:
            self.answer.set_exception(error)
        writer.transport.abort()
        await self.accepting


@pytest.mark.asyncio
@ASYNCIO_LOSES_IT
@UVLOOP_WAITS
async def test_start_tls_with_the_client_hello_in_the_reader(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    server, client = tls
    peer.speak(client, server_side=False)
    stream = Stream(ours, server)
    await peer.send(b"PROXY\n" + peer.hello())
    await some_turns()
    stream.go.set()
    await peer.send(await peer.shake_hands() + peer.encrypt(b"hello\n"))
    assert await stream.answer == b"hello\n"


@pytest.mark.asyncio
@ASYNCIO_LOSES_IT
@UVLOOP_WAITS
async def test_start_tls_in_tls_with_the_client_hello_in_the_reader(
    ours: socket.socket, peer: Any, tls: Contexts
) -> None:
    server, client = tls
    peer.speak(client, server_side=False)
    stream = Stream(ours, server, outer=server)
    inner = type(peer)(peer)
    inner.speak(client, server_side=False)
    await peer.send(await peer.shake_hands() + peer.encrypt(b"PROXY\n" + inner.hello()))
    await some_turns()
    stream.go.set()
    while True:
        try:
            inner.tls.do_handshake()
        except ssl.SSLWantReadError:
            inner.incoming.write(await peer.receive())
        else:
            break
    await peer.send(peer.encrypt(inner.outgoing.read() + inner.encrypt(b"hello\n")))
    assert await stream.answer == b"hello\n"


@pytest.mark.asyncio
@ASYNCIO_LOSES_IT
@UVLOOP_WAITS
async def test_more_than_the_reader_wants_before_start_tls(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    """The reader has paused the transport, and what it has is no ClientHello."""
    server, _ = tls
    stream = Stream(ours, server)
    await peer.send(b"PROXY\n" + bytes(200_000))
    await some_turns()
    stream.go.set()
    with pytest.raises(ssl.SSLError):
        await stream.answer


# ---- handshakes that do not succeed


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", uvloop="0.23.0", reason="end the connection without a word")
@pytest.mark.parametrize("upgrade", [False, True])
async def test_a_server_hears_why_it_is_not_trusted(
    ours: socket.socket, peer: Any, tls: Contexts, upgrade: bool
) -> None:
    server, _ = tls
    peer.speak(server, server_side=True)
    distrustful = ssl.create_default_context()
    loop = asyncio.get_running_loop()
    shaking = asyncio.ensure_future(peer.shake_hands())
    with pytest.raises(ssl.SSLCertVerificationError):
        if upgrade:
            await loop.start_tls(*await accept(ours), distrustful, server_hostname="localhost")
        else:
            await loop.create_connection(Recorder, sock=ours, ssl=distrustful, server_hostname="localhost")
    with pytest.raises(ssl.SSLError, match=r"(?i)alert unknown ca"):
        await shaking


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", uvloop="0.23.0", reason="end the connection without a word")
@pytest.mark.parametrize(
    ("version", "words"),
    [(ssl.TLSVersion.TLSv1_2, "handshake failure"), (ssl.TLSVersion.TLSv1_3, "certificate required")],
    ids=["TLSv1.2", "TLSv1.3"],
)
async def test_a_client_hears_that_it_needs_a_certificate(
    ours: socket.socket, peer: Any, tls: Contexts, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion, words: str
) -> None:
    server, client = tls
    peer.speak(client, server_side=False)
    monkeypatch.setattr(server, "maximum_version", version)
    monkeypatch.setattr(server, "verify_mode", ssl.CERT_REQUIRED)
    accepting = asyncio.ensure_future(asyncio.get_running_loop().connect_accepted_socket(Recorder, ours, ssl=server))
    with pytest.raises(ssl.SSLError, match=f"(?i){words}"):
        await peer.send(await peer.shake_hands())
        await peer.receive()
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        await accepting


@pytest.mark.usefixtures("no_collector")
@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="a future, its exception, a frame, the future")
async def test_nothing_of_a_failed_start_tls_is_left(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    server, _ = tls
    peer.speak(server, server_side=True)
    transport, protocol = await accept(ours)
    shaking = asyncio.ensure_future(peer.shake_hands())
    context = ssl.create_default_context()
    remains = [weakref.ref(transport), weakref.ref(context)]
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.get_running_loop().start_tls(transport, protocol, context, server_hostname="localhost")
    await protocol.lost
    remains.append(weakref.ref(protocol))
    del transport, protocol, context
    await asyncio.gather(shaking, return_exceptions=True)
    await some_turns()
    assert [reference() for reference in remains] == [None, None, None]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.asyncio
@pytest.mark.differs(
    asyncio="3.13.0", reason="a future, its exception, a frame, the future", when=sys.version_info < (3, 14, 10)
)
async def test_nothing_of_a_failed_create_connection_is_left(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    server, _ = tls
    peer.speak(server, server_side=True)
    shaking = asyncio.ensure_future(peer.shake_hands())
    context = ssl.create_default_context()
    remains = [weakref.ref(context)]

    def factory() -> Recorder:
        protocol = Recorder()
        remains.append(weakref.ref(protocol))
        return protocol

    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.get_running_loop().create_connection(factory, sock=ours, ssl=context, server_hostname="localhost")
    del context
    await asyncio.gather(shaking, return_exceptions=True)
    await some_turns()
    assert [reference() for reference in remains] == [None, None]


# ---- handshakes that are not waited for any more


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="does not call connection_lost()", run=False)
@pytest.mark.parametrize("turns", range(4))
async def test_start_tls_is_cancelled_at_any_moment(ours: socket.socket, peer: Any, tls: Contexts, turns: int) -> None:
    _, client = tls
    transport, protocol = await accept(ours)
    starting = asyncio.ensure_future(
        asyncio.get_running_loop().start_tls(transport, protocol, client, server_hostname="localhost")
    )
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    if turns:
        assert await protocol.lost is None
    else:  # it had not begun
        transport.abort()
        assert await protocol.lost is None


@pytest.mark.parametrize("turns", range(6))
async def test_create_connection_is_cancelled_at_any_moment(
    ours: socket.socket, peer: Any, tls: Contexts, turns: int
) -> None:
    server, client = tls
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    peer.speak(server, server_side=True)
    connecting = asyncio.ensure_future(
        asyncio.get_running_loop().create_connection(factory, sock=ours, ssl=client, server_hostname="localhost")
    )
    for _ in range(turns):
        await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    if not made:
        ours.close()
    with pytest.raises(EOFError):
        while True:
            await peer.hear()
    assert [protocol.events for protocol in made] in ([], [[]])


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", uvloop="0.23.0", reason="return None")
async def test_start_tls_on_a_connection_that_is_aborted_meanwhile(
    ours: socket.socket, peer: Any, tls: Contexts
) -> None:
    server, _ = tls
    transport, protocol = await accept(ours)
    starting = asyncio.ensure_future(
        asyncio.get_running_loop().start_tls(transport, protocol, server, server_side=True)
    )
    await some_turns()
    transport.abort()
    with pytest.raises(ConnectionAbortedError):
        await starting
    assert await protocol.lost is None


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"])
async def test_the_peer_leaves_during_start_tls(ours: socket.socket, peer: Any, tls: Contexts, said: bytes) -> None:
    server, _ = tls
    transport, protocol = await accept(ours)
    starting = asyncio.ensure_future(
        asyncio.get_running_loop().start_tls(transport, protocol, server, server_side=True)
    )
    await peer.send(said)
    await some_turns()
    peer.sock.close()
    with pytest.raises(ConnectionResetError):
        await starting
    assert isinstance(await protocol.lost, ConnectionResetError)


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="waits for the time-out, and then for ever", run=False)
@pytest.mark.differs(uvloop="0.23.0", reason="returns a transport")
async def test_start_tls_on_a_closed_connection(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    server, _ = tls
    transport, protocol = await accept(ours)
    transport.abort()
    with pytest.raises(ConnectionError):
        await asyncio.get_running_loop().start_tls(transport, protocol, server, server_side=True)
    assert await protocol.lost is None


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="returns None")
async def test_a_connection_that_is_lost_while_start_tls_returns(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    server, client = tls
    peer.speak(client, server_side=False)
    transport, protocol = await accept(ours)
    shaken = asyncio.Event()
    starting = asyncio.get_running_loop().start_tls(transport, protocol, server, server_side=True)
    waiter: Any = starting.send(None)  # driven by hand, to come back late
    waiter._asyncio_future_blocking = False
    waiter.add_done_callback(lambda _: shaken.set())
    await peer.send(await peer.shake_hands())
    await shaken.wait()
    transport.abort()
    await protocol.lost
    with pytest.raises(StopIteration) as stopped:
        starting.send(None)
    upgraded = stopped.value.value
    assert upgraded.is_closing()
    assert upgraded.get_extra_info("ssl_object").version() == "TLSv1.3"


async def test_a_handshake_that_takes_too_long(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    server, _ = tls
    with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer"):
        await asyncio.get_running_loop().connect_accepted_socket(Recorder, ours, ssl=server, ssl_handshake_timeout=0.01)
    with pytest.raises(EOFError):
        await peer.hear()


async def test_what_is_no_connection_is_refused(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    server, _ = tls
    loop = asyncio.get_running_loop()
    transport, protocol = await accept(ours)
    with pytest.raises(TypeError, match="SSLContext"):
        await loop.start_tls(transport, protocol, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is not supported by start_tls"):
        await loop.start_tls(asyncio.Transport(), protocol, server, server_side=True)
    transport.abort()
    await protocol.lost
