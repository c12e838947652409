"""Stream transports, where they differ from asyncio's."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typing import Any


class OnlyBuffered(asyncio.BaseProtocol):
    """Brings a buffer, but does not say that it is a BufferedProtocol."""

    def __init__(self) -> None:
        self.buffer = bytearray(100)
        self.arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.arrived.set_result(bytes(self.buffer[:nbytes]))

    def eof_received(self) -> None:
        pass


@pytest.mark.asyncio(loop_factories=["notifyloop", "uvloop"])  # asyncio needs a BufferedProtocol
async def test_a_protocol_that_only_takes_buffers() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        transport, protocol = await asyncio.get_running_loop().create_connection(OnlyBuffered, sock=ours)
        theirs.send(b"data")
        assert await protocol.arrived == b"data"
        transport.close()


@pytest.mark.asyncio(loop_factories=["notifyloop", "uvloop"])  # asyncio does it for sockets that name TCP
async def test_small_writes_are_not_held_back() -> None:
    """On sockets that the program made itself, without naming TCP, too."""
    accepted: asyncio.Queue[Any] = asyncio.Queue()
    listener = socket.create_server(("127.0.0.1", 0))
    server = await asyncio.start_server(lambda *streams: accepted.put_nowait(streams), sock=listener)
    async with server:
        client = socket.socket()
        client.connect(listener.getsockname())
        _, writer = await asyncio.open_connection(sock=client)
        _, at_server = await accepted.get()
        for end in (writer, at_server):
            assert end.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            end.close()
        await writer.wait_closed()


@pytest.mark.asyncio(loop_factories=["notifyloop", "uvloop"])  # https://github.com/python/cpython/issues/156512
async def test_closing_from_resume_writing_loses_the_connection_once() -> None:
    class Closing(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost: list[Exception | None] = []
            self.gone = asyncio.Event()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def resume_writing(self) -> None:
            self.transport.close()

        def connection_lost(self, error: Exception | None) -> None:
            self.lost.append(error)
            self.gone.set()

    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context))
    ours, theirs = socket.socketpair()
    with theirs:
        transport, protocol = await loop.create_connection(Closing, sock=ours)
        transport.set_write_buffer_limits(high=1)
        for _ in range(2):  # what is written later in a turn waits in the buffer, however much the socket takes
            transport.write(bytes(2_000_000))
        theirs.setblocking(False)
        while await loop.sock_recv(theirs, 1_000_000):
            pass
    await protocol.gone.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    assert protocol.lost == [None]
    assert reported == []


@pytest.mark.asyncio
async def test_the_address_of_a_peer_that_is_gone() -> None:
    """Though it was never asked for before."""

    class Late(asyncio.Protocol):
        def __init__(self) -> None:
            self.peer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def connection_lost(self, error: Exception | None) -> None:
            self.peer.set_result(self.transport.get_extra_info("peername"))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        _, protocol = await asyncio.get_running_loop().create_connection(Late, *listener.getsockname())
        peer, _ = listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        peer.close()
        assert await protocol.peer == listener.getsockname()


@pytest.mark.asyncio(loop_factories=["notifyloop", "uvloop"])  # asyncio's transports lose their connection
async def test_a_socket_that_its_former_owner_closes() -> None:
    """Its descriptor stays the transport's, and does not become that of the next socket that is opened."""
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours)
        descriptor = ours.fileno()
        ours.close()
        with socket.socket() as other:
            assert other.fileno() != descriptor
            theirs.send(b"question")
            assert await reader.readexactly(8) == b"question"
            writer.write(b"answer")
            assert theirs.recv(100) == b"answer"
        writer.close()
        await writer.wait_closed()
        assert theirs.recv(100) == b""
    with pytest.raises(OSError, match=r"descriptor|10038"):
        socket.socket(fileno=descriptor)


@pytest.mark.asyncio
async def test_writes_of_a_turn_arrive_in_order_whatever_their_kind() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours)
        with pytest.raises(TypeError):
            writer.write("text")  # type: ignore[arg-type]
        for round_ in range(3):
            for piece in (bytearray(b"a"), b"", memoryview(b"bc"), b"d", bytearray(b"e"), b""):
                writer.write(piece)
            if round_:
                await asyncio.sleep(0)
        writer.writelines([b"f", bytearray(b"g")])
        writer.write_eof()
        for refused in (b"late", bytearray(b"late")):
            with pytest.raises(RuntimeError, match="write_eof"):
                writer.write(refused)
        with theirs.makefile("rb") as file:
            assert await asyncio.to_thread(file.read) == b"abcde" * 3 + b"fg"
        assert theirs.send(b"x") == 1
        assert await reader.read(1) == b"x"
        writer.close()
        await writer.wait_closed()


class Alike:
    """No socket, but all that a transport asks of one."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.sock, name)


@pytest.mark.asyncio
async def test_what_only_acts_as_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=Alike(ours))
        writer.write(b"there")
        theirs.settimeout(60)
        assert theirs.recv(100) == b"there"
        theirs.send(b"and back")
        assert await reader.readexactly(8) == b"and back"
        writer.close()
        await writer.wait_closed()
        assert ours.fileno() == -1
        assert theirs.recv(1) == b""
