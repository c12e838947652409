"""TLS where OpenSSL has the socket itself: what is so only there."""

from __future__ import annotations

import asyncio
import ssl
import sys
from typing import TYPE_CHECKING

import pytest

if sys.platform == "win32":
    pytest.skip("OpenSSL has no socket on Windows", allow_module_level=True)

from notifyloop.tls import SSLTransport
from notifyloop.turn.tls_stream import SSLStreamTransport
from notifyloop.turn.undeciphered import Undeciphered

if TYPE_CHECKING:
    import socket
    from typing import Any

    import notifyloop

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

NOTIFYLOOP = pytest.mark.asyncio(loop_factories=["notifyloop"])
TURNS = 20  # more than anything takes that does not wait for the peer


class Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.events: list[str] = []
        self.news = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.news.set()

    def eof_received(self) -> None:
        self.events.append("end")

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)

    async def until(self, size: int) -> None:
        while len(self.received) < size:
            self.news.clear()
            await self.news.wait()


class StandIn:
    """For what is OpenSSL's of a connection, where one method does something else first: once, for each entry."""

    def __init__(self, transport: Any, **first: list[Any]) -> None:
        self.tls, self.first = transport._tls, first
        self.calls: list[str] = []
        transport._tls = self

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.tls, name)

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if self.first.get(name):
                act = self.first[name].pop(0)
                if isinstance(act, BaseException):
                    raise act
                act()
            return method(*arguments)

        return call


async def some_turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def connect(ours: socket.socket, peer: Any, tls: Contexts) -> Recorder:
    """Our server's end, when hands are shaken."""
    peer.speak(tls[1], server_side=False)
    loop = asyncio.get_running_loop()
    accepting = asyncio.ensure_future(loop.connect_accepted_socket(Recorder, ours, ssl=tls[0]))
    await peer.send(await peer.shake_hands())
    _, protocol = await accepting
    assert type(protocol.transport) is SSLStreamTransport
    await some_turns()
    return protocol


async def end(protocol: Recorder) -> None:
    protocol.transport.abort()
    await protocol.lost


# ---- crossed wants


@NOTIFYLOOP
async def test_a_read_that_has_to_write_first(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    tls_calls = StandIn(protocol.transport, read=[ssl.SSLWantWriteError()])
    await peer.send(peer.encrypt(b"data"))
    await protocol.until(4)
    assert tls_calls.calls.count("read") == 2
    await peer.send(peer.encrypt(b"more"))
    await protocol.until(8)
    assert protocol.received == b"datamore"
    await end(protocol)


@NOTIFYLOOP
async def test_a_pause_while_a_read_has_to_write_first(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    transport = protocol.transport

    def pause() -> None:
        transport.pause_reading()
        raise ssl.SSLWantWriteError

    tls_calls = StandIn(transport, read=[pause])
    await peer.send(peer.encrypt(b"data"))
    while not tls_calls.calls.count("read"):
        await asyncio.sleep(0)
    await some_turns()
    assert not protocol.received
    assert tls_calls.calls.count("read") == 1
    transport.resume_reading()
    await protocol.until(4)
    await end(protocol)


@NOTIFYLOOP
@pytest.mark.parametrize("paused", [False, True])
async def test_a_write_that_has_to_read_first(ours: socket.socket, peer: Any, tls: Contexts, paused: bool) -> None:
    protocol = await connect(ours, peer, tls)
    transport = protocol.transport
    StandIn(transport, write=[ssl.SSLWantReadError() for _ in range(1 + paused)])
    if paused:
        transport.pause_reading()
    transport.write(b"one")
    transport.write(b"two")
    transport.writelines([b"thr", b"ee"])
    assert transport.get_write_buffer_size() == 11
    await some_turns()
    assert transport.get_write_buffer_size() == 11
    await peer.send(peer.encrypt(b"data"))
    while transport.get_write_buffer_size():
        await asyncio.sleep(0)
    assert await peer.receive() == b"onetwothree"
    transport.resume_reading()
    await protocol.until(4)
    assert protocol.received == b"data"
    await end(protocol)


@NOTIFYLOOP
async def test_a_handshake_that_has_to_write(
    ours: socket.socket, peer: Any, tls: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.speak(tls[1], server_side=False)
    steps: list[StandIn] = []
    begin = SSLStreamTransport._begin

    def begin_otherwise(transport: Any, waiter: Any) -> None:
        steps.append(StandIn(transport, do_handshake=[ssl.SSLWantWriteError(), ssl.SSLWantWriteError()]))
        begin(transport, waiter)

    monkeypatch.setattr(SSLStreamTransport, "_begin", begin_otherwise)
    protocol = Recorder()
    accepting = asyncio.ensure_future(
        asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, ours, ssl=tls[0])
    )
    await peer.send(await peer.shake_hands())
    await accepting
    assert steps[0].calls.count("do_handshake") > 2
    await end(protocol)


def test_an_interrupt_in_connection_made(
    notify_loop: notifyloop.NotifyLoop, ours: socket.socket, peer: Any, tls: Contexts
) -> None:
    class Interrupted(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise KeyboardInterrupt

    async def accept() -> Any:
        return await notify_loop.connect_accepted_socket(Interrupted, ours, ssl=tls[0])

    async def shake_hands() -> None:
        await peer.send(await peer.shake_hands())

    async def hear() -> None:
        await peer.send(peer.encrypt(b"data"))
        await protocol.until(4)
        await end(protocol)

    peer.speak(tls[1], server_side=False)
    accepting, shaking = notify_loop.create_task(accept()), notify_loop.create_task(shake_hands())
    with pytest.raises(KeyboardInterrupt):
        notify_loop.run_until_complete(accepting)
    notify_loop.run_until_complete(shaking)
    _, protocol = notify_loop.run_until_complete(accepting)
    notify_loop.run_until_complete(hear())


# ---- what waits to be sent


def fill(transport: Any) -> int:
    """Write until something waits. Returns how much was written."""
    written = 0
    while not transport.get_write_buffer_size():
        transport.write(bytes(16_384))
        written += 16_384
    return written


@NOTIFYLOOP
async def test_small_writes_that_wait_become_full_records(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    before = fill(protocol.transport)
    small = [bytes([number % 256]) * 10 for number in range(4000)]
    for piece in small:
        protocol.transport.write(piece)
    received, records = bytearray(), 0
    while len(received) < before + 40_000:
        received += await peer.receive()
        records += 1
    assert received[before:] == b"".join(small)
    assert records <= before / 16_384 + 4
    await end(protocol)


@NOTIFYLOOP
async def test_what_is_written_can_be_changed_afterwards(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await connect(ours, peer, tls)
    before = fill(protocol.transport)
    mutable = bytearray(b"x" * 100_000)
    protocol.transport.write(mutable)
    protocol.transport.write(memoryview(mutable)[:10])
    mutable[:] = b"y" * 100_000
    received = bytearray()
    while len(received) < before + 100_010:
        received += await peer.receive()
    assert received[before:] == b"x" * 100_010
    await end(protocol)


# ---- the goodbye


@NOTIFYLOOP
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("answers", [False, True])
async def test_data_that_comes_with_our_goodbye(
    ours: socket.socket,
    peer: Any,
    tls: Contexts,
    monkeypatch: pytest.MonkeyPatch,
    version: ssl.TLSVersion,
    answers: bool,
) -> None:
    """OpenSSL does not read behind that, and nothing tells a goodbye from other records but its size."""
    monkeypatch.setattr(tls[0], "maximum_version", version)
    protocol = await connect(ours, peer, tls)
    StandIn(protocol.transport, shutdown=[lambda: peer.sock.send(peer.encrypt(bytes(5000)))])
    protocol.transport.write(b"the last words")
    protocol.transport.close()
    await peer.send(peer.encrypt(bytes(10_000)))
    assert await peer.receive() == b"the last words"
    assert await peer.receive() == b""
    await some_turns()
    assert not protocol.lost.done()
    if answers:
        await peer.send(peer.goodbye())
    else:
        peer.sock.close()
    assert await protocol.lost is None
    assert not protocol.received
    assert protocol.events == ["end"]


def test_where_undeciphered_records_end() -> None:
    record, goodbye = b"\x17\x03\x03\x03\xe8" + bytes(1000), b"\x17\x03\x03\x00\x13" + bytes(19)
    old = b"\x15\x03\x03\x00\x1a" + bytes(26)
    assert not Undeciphered().ends_with_goodbye(record)
    assert Undeciphered().ends_with_goodbye(goodbye)
    assert Undeciphered().ends_with_goodbye(record + old)
    assert not Undeciphered().ends_with_goodbye(goodbye + record)
    assert not Undeciphered().ends_with_goodbye(goodbye + record[:3])
    stream = Undeciphered()
    told = [stream.ends_with_goodbye(bytes([byte])) for byte in record + goodbye]
    assert told == [False] * (len(told) - 1) + [True]


# ---- a connection in use


async def upgrade(ours: socket.socket, peer: Any, tls: Contexts) -> tuple[Any, Any, Recorder]:
    peer.speak(tls[1], server_side=False)
    loop = asyncio.get_running_loop()
    before, protocol = await loop.connect_accepted_socket(Recorder, ours)
    starting = asyncio.ensure_future(loop.start_tls(before, protocol, tls[0], server_side=True))
    await peer.send(await peer.shake_hands())
    upgraded = await starting
    assert type(upgraded) is SSLStreamTransport
    return before, upgraded, protocol


@NOTIFYLOOP
async def test_the_old_name_of_a_transport(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    before, upgraded, protocol = await upgrade(ours, peer, tls)
    for name in ("socket", "peername", "sockname", "ssl_object"):
        assert before.get_extra_info(name) is upgraded.get_extra_info(name)
        assert before.get_extra_info(name) is not None
    with pytest.raises(RuntimeError, match="TLS has begun"):
        before.write(b"in the clear")
    before.pause_reading()
    assert not upgraded.is_reading()
    await peer.send(peer.encrypt(b"data"))
    await some_turns()
    assert not protocol.received
    before.resume_reading()
    await protocol.until(4)
    assert before.get_protocol() is protocol
    assert before.get_write_buffer_size() == 0
    assert not before.is_closing()
    assert repr(upgraded) in repr(before)
    before.close()
    assert upgraded.is_closing()
    assert before.is_closing()
    assert await peer.receive() == b""
    await peer.send(peer.goodbye())
    assert await protocol.lost is None
    assert before.get_extra_info("peername") == upgraded.get_extra_info("peername") is not None
    before.abort()


@NOTIFYLOOP
async def test_aborting_by_the_old_name(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    before, upgraded, protocol = await upgrade(ours, peer, tls)
    before.abort()
    assert await protocol.lost is None
    assert upgraded.is_closing()
    with pytest.raises(EOFError):
        await peer.receive()


@NOTIFYLOOP
async def test_what_waits_to_be_sent_in_the_clear_comes_first(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    loop = asyncio.get_running_loop()
    before, protocol = await loop.connect_accepted_socket(Recorder, ours)
    written = 0
    while not before.get_write_buffer_size():
        before.write(b"x" * 100_000)
        written += 100_000
    starting = asyncio.ensure_future(loop.start_tls(before, protocol, tls[0], server_side=True))
    received = b""
    while len(received) < written:
        received += await loop.sock_recv(peer.sock, written - len(received))
    assert received == b"x" * written
    peer.speak(tls[1], server_side=False)
    await peer.send(await peer.shake_hands())
    upgraded = await starting
    assert type(upgraded) is SSLTransport
    await end(protocol)


@NOTIFYLOOP
async def test_a_server_counts_a_connection_that_was_upgraded(tls: Contexts) -> None:
    loop = asyncio.get_running_loop()
    upgraded: asyncio.Queue[Any] = asyncio.Queue()

    class Upgrading(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.task = loop.create_task(self.upgrade())

        async def upgrade(self) -> None:
            await upgraded.put(await loop.start_tls(self.transport, self, tls[0], server_side=True))

    server = await loop.create_server(Upgrading, "127.0.0.1", 0)
    transport, protocol = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
    client = await loop.start_tls(transport, protocol, tls[1], server_hostname="localhost")
    theirs = await upgraded.get()
    server.close()
    closing = asyncio.ensure_future(server.wait_closed())
    await some_turns()
    if sys.version_info >= (3, 12, 1):
        assert not closing.done()
    if sys.version_info >= (3, 13):
        server.close_clients()
    else:
        theirs.close()
    await closing
    await protocol.lost
    client.close()  # type: ignore[union-attr]


@NOTIFYLOOP
@pytest.mark.skipif(not hasattr(ssl, "OP_ENABLE_KTLS"), reason="of Python 3.12 and later")
async def test_tls_of_the_kernel_is_left_to_the_buffers(
    ours: socket.socket, peer: Any, tls: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls[0], "options", tls[0].options | ssl.OP_ENABLE_KTLS)
    peer.speak(tls[1], server_side=False)
    loop = asyncio.get_running_loop()
    accepting = asyncio.ensure_future(loop.connect_accepted_socket(Recorder, ours, ssl=tls[0]))
    await peer.send(await peer.shake_hands())
    transport, protocol = await accepting
    assert type(transport) is SSLTransport
    await end(protocol)
