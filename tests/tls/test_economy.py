"""What a connection with TLS takes of what others need, too: memory, and the turn. And that nothing else is saved."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from .recorder import TURNS, Recorder, some_turns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

pytestmark = pytest.mark.asyncio
KIB = 1024
SOME = 10  # connections
MUCH = 8_000_000  # bytes: more than the kernels of both ends hold


class Buffered(Recorder, asyncio.BufferedProtocol):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = memoryview(bytearray(256 * KIB))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.buffer[:nbytes]))


async def accept(ours: socket.socket, peer: Any, tls: Contexts, factory: Any = Recorder) -> Any:
    """Our server's end, when hands are shaken."""
    peer.speak(tls[1], server_side=False)
    protocol = factory()
    loop = asyncio.get_running_loop()
    accepting = asyncio.ensure_future(loop.connect_accepted_socket(lambda: protocol, ours, ssl=tls[0]))
    await peer.send(await peer.shake_hands())
    await accepting
    return protocol


@pytest.fixture
def traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    yield
    tracemalloc.stop()


# ---- memory


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", uvloop="0.23.0", reason="keep a buffer of 256 KiB for each connection")
@pytest.mark.parametrize("first", [b"", b"a word before"])
async def test_what_an_idle_connection_keeps(peer: Any, tls: Contexts, traced: None, first: bytes) -> None:
    protocols, sockets = [], []
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(SOME):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        other = type(peer)(theirs)
        protocol = await accept(ours, other, tls)
        await other.send(other.encrypt(first) if first else b"")
        await protocol.until(len(first))
        protocols.append(protocol)
        sockets.append(theirs)
    del ours, theirs, other
    await some_turns()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    for protocol, theirs in zip(protocols, sockets, strict=True):
        protocol.transport.abort()
        await protocol.lost
        theirs.close()
    assert (after - before) / SOME < 40 * KIB


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", uvloop="0.23.0", reason="encrypt all at once, and copy it at that")
async def test_what_waits_for_a_peer_is_kept_once(ours: socket.socket, peer: Any, tls: Contexts, traced: None) -> None:
    protocol = await accept(ours, peer, tls)
    data = bytes(range(250)) * (MUCH // 250)
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    protocol.transport.write(data)
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < MUCH // 2
    protocol.transport.close()
    assert await peer.receive_all() == data
    peer.sock.close()
    await protocol.lost


# ---- the turn


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_what_was_received_at_once_is_delivered_at_once(
    ours: socket.socket, peer: Any, tls: Contexts, factory: Any
) -> None:
    """However many records it is: what would be put off would be lost if the connection failed meanwhile."""
    count = 2000
    protocol = await accept(ours, peer, tls, factory)
    await some_turns()
    await peer.send(b"".join(peer.encrypt(b"x") for _ in range(count)))
    await protocol.news.wait()
    assert len(protocol.received) == count
    protocol.transport.abort()
    await protocol.lost


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_what_is_left_of_many_records_comes_before_the_end(
    ours: socket.socket, peer: Any, tls: Contexts, factory: Any
) -> None:
    sent = [bytes([number % 251]) for number in range(1500)]
    protocol = await accept(ours, peer, tls, factory)
    await peer.send(b"".join(map(peer.encrypt, sent)) + peer.goodbye())
    peer.sock.shutdown(socket.SHUT_WR)
    assert await protocol.lost is None
    assert protocol.received == b"".join(sent)


async def test_many_records_and_a_pause_in_their_midst(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    sent = [bytes([number % 251]) for number in range(1500)]
    protocol = await accept(ours, peer, tls, Pausing)
    for number in range(0, 1500, 500):
        await peer.send(b"".join(map(peer.encrypt, sent[number : number + 500])))
        await asyncio.sleep(0)
    await protocol.until(1500)
    assert protocol.received == b"".join(sent)
    protocol.transport.abort()
    await protocol.lost


# ---- records


def records(data: bytes) -> list[int]:
    """The sizes of what is encrypted."""
    sizes = []
    while data:
        size = int.from_bytes(data[3:5], "big")
        sizes.append(size)
        data = data[5 + size :]
    return sizes


@pytest.mark.asyncio(loop_factories=["notifyloop"])  # the others make one of each piece
async def test_small_pieces_that_are_written_together_are_one_record(
    ours: socket.socket, peer: Any, tls: Contexts
) -> None:
    protocol = await accept(ours, peer, tls)
    protocol.transport.write(b"first")
    assert await peer.receive() == b"first"  # behind what follows the handshake
    protocol.transport.writelines([b"one", bytearray(b"two"), b"", memoryview(b"three")])
    data = await asyncio.get_running_loop().sock_recv(peer.sock, 1000)
    assert len(records(data)) == 1
    peer.incoming.write(data)
    assert await peer.receive() == b"onetwothree"
    protocol.transport.abort()
    await protocol.lost


async def test_the_first_words_go_with_the_end_of_the_handshake(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    class Eager(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"first")

    loop = asyncio.get_running_loop()
    peer.speak(tls[0], server_side=True)
    connecting = asyncio.ensure_future(
        loop.create_connection(Eager, sock=ours, ssl=tls[1], server_hostname="localhost")
    )
    await peer.hear()
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.do_handshake()
    await peer.send(peer.outgoing.read())
    await peer.hear()
    peer.tls.do_handshake()
    assert peer.tls.read() == b"first"  # of one segment
    _, protocol = await connecting
    protocol.transport.abort()
    await protocol.lost


async def test_each_write_is_sent_at_once(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await accept(ours, peer, tls)
    protocol.transport.write(b"first")
    assert await peer.receive() == b"first"
    for number in range(3):
        protocol.transport.write(b"%d" % number)
        peer.incoming.write(peer.sock.recv(1000))  # without a turn
        assert peer.tls.read() == b"%d" % number
    protocol.transport.abort()
    await protocol.lost


async def test_what_is_written_may_be_changed_then(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await accept(ours, peer, tls)
    data = bytearray(b"x" * MUCH)
    protocol.transport.write(data)
    data[:] = bytes(MUCH)
    small = bytearray(b"y" * 100)
    protocol.transport.write(small)
    small[:] = bytes(100)
    protocol.transport.close()
    assert await peer.receive_all() == b"x" * MUCH + b"y" * 100
    peer.sock.close()
    await protocol.lost


# ---- the end of what waits


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="takes what comes for an error, and resets the connection")
async def test_a_peer_that_reads_only_when_it_is_heard(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    """Both have much to say. The program does not listen any more: it has closed."""
    protocol = await accept(ours, peer, tls)
    protocol.transport.pause_reading()
    data = bytes(MUCH)
    protocol.transport.write(data)
    sent = peer.encrypt(bytes(700_000))
    sending = asyncio.ensure_future(peer.send(sent))
    await some_turns()
    protocol.transport.close()
    await sending
    assert await peer.receive_all() == data
    peer.sock.close()
    await protocol.lost


async def test_an_end_of_file_while_much_waits(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    protocol = await accept(ours, peer, tls)
    data = bytes(MUCH)
    protocol.transport.write(data)
    protocol.transport.close()
    await some_turns()
    peer.sock.shutdown(socket.SHUT_WR)
    await some_turns()
    received = bytearray()
    while len(received) < MUCH:
        received += await peer.receive()
    assert received == data
    assert await protocol.lost is None


# ---- those that read and write in their own way


@pytest.mark.asyncio
@pytest.mark.differs(uvloop="0.23.0", reason="makes its own", run=False)
async def test_a_connection_that_reads_in_its_own_way(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    """It keeps what it has read, so that nothing is left in the BIO."""
    read: list[bytes] = []

    class Special(ssl.SSLObject):
        def read(self, len: int = 1024, buffer: Any = None) -> Any:
            try:
                while piece := super().read(64 * KIB):
                    read.append(piece)
            except ssl.SSLWantReadError:
                if not read:
                    raise
            return read.pop(0) if read else b""

    tls[0].sslobject_class = Special
    try:
        protocol = await accept(ours, peer, tls)
    finally:
        tls[0].sslobject_class = ssl.SSLObject
    await peer.send(b"".join(map(peer.encrypt, [b"one", b"two", b"three"])))
    await protocol.until(11)
    assert protocol.received == b"onetwothree"
    protocol.transport.abort()
    await protocol.lost


class Below(asyncio.Transport):
    """Somebody else's transport, which knows of BufferedProtocol, and reads into a buffer whenever it likes."""

    _start_tls_compatible = True

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        self.protocol: Any = None
        self.closed = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        asyncio.get_running_loop().add_reader(self.sock, self.receive)

    def receive(self) -> None:
        assert isinstance(self.protocol, asyncio.BufferedProtocol)
        self.buffer = self.protocol.get_buffer(-1)
        asyncio.get_running_loop().remove_reader(self.sock)
        count = self.sock.recv_into(self.buffer)
        self.deliver(count, TURNS)

    def deliver(self, count: int, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self.deliver, count, turns - 1)
        elif not self.closed:
            self.protocol.buffer_updated(count)
            self.resume_reading()

    def write(self, data: Any) -> None:
        self.sock.sendall(data)

    def close(self) -> None:
        self._force_close(None)

    def abort(self) -> None:
        self._force_close(None)

    def _force_close(self, error: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().remove_reader(self.sock)
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, error)


@pytest.mark.asyncio
@pytest.mark.differs(uvloop="0.23.0", reason="waits for it for ever", run=False)
async def test_transports_of_others_read_into_buffers_that_stay_theirs(
    ours: socket.socket, peer: Any, tls: Contexts
) -> None:
    loop = asyncio.get_running_loop()

    async def speak(one: socket.socket, other: Any, word: bytes) -> None:
        one.setblocking(False)
        other.speak(tls[1], server_side=False)
        protocol: Any = Recorder()
        below: Any = Below(one)
        upgrading = asyncio.ensure_future(loop.start_tls(below, protocol, tls[0], server_side=True))
        await other.send(await other.shake_hands())
        protocol.transport = await upgrading
        for number in range(1, 6):
            await other.send(other.encrypt(word))
            await protocol.until(number * len(word))
            protocol.transport.write(word)
            assert await other.receive() == word
        assert protocol.received == word * 5
        protocol.transport.abort()
        await protocol.lost

    second, theirs = socket.socketpair()
    theirs.setblocking(False)
    with second, theirs:
        await asyncio.gather(speak(ours, peer, b"tick" * 9), speak(second, type(peer)(theirs), b"tock" * 9))
