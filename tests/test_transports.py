"""Stream transports, where they differ from asyncio's."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import struct
import sys
import warnings
import weakref
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path
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


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="needs a BufferedProtocol", run=False)
async def test_a_protocol_that_only_takes_buffers() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        transport, protocol = await asyncio.get_running_loop().create_connection(OnlyBuffered, sock=ours)
        theirs.send(b"data")
        assert await protocol.arrived == b"data"
        transport.close()


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="does it for sockets that name TCP")
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
        ends = (writer, at_server)
        at_once = [end.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for end in ends]
        for end in ends:
            end.close()
        await writer.wait_closed()
    assert all(at_once)


@pytest.mark.asyncio
@pytest.mark.differs(
    asyncio="3.13.0",
    reason="twice: https://github.com/python/cpython/issues/156512",
    when=sys.version_info < (3, 15),
)
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
        while not transport.get_write_buffer_size():  # Windows takes the first of them whole, however much that is
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


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="its transports lose their connection")
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


class Quiet(asyncio.Protocol):
    pass


@pytest.mark.differs(uvloop="0.23.0", reason="raises that it is closed")
def test_a_transport_that_outlives_its_loop(loop: asyncio.AbstractEventLoop) -> None:
    """What it has not sent is lost. It may be closed, as in asyncio, and it cannot be used."""
    ours, theirs = socket.socketpair()
    with theirs:
        transport, _ = loop.run_until_complete(loop.create_connection(Quiet, sock=ours))
        transport.write(bytes(10_000_000))
        transport.pause_reading()
        loop.close()
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            transport.resume_reading()
        transport.close()
        ours.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del transport, _
        gc.collect()


class TestTheirOwners:
    """Whose the interest in a descriptor is, where descriptors are closed and given out again."""

    @pytest.mark.never("windows", reason="Windows does not give out the smallest number that is free")
    @pytest.mark.asyncio(loop_factories=["notifyloop"])
    async def test_a_transport_that_the_collector_reaches_late(self) -> None:
        """Its socket went first, and then the number is a pipe's, which must not be disturbed."""

        class Cyclic(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport

        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport = (await loop.create_connection(Cyclic, sock=ours))[0]
        gc.disable()
        try:
            late = weakref.ref(transport)
            os.close(ours.detach())
            read_end, write_end = os.pipe()
            assert read_end == transport._sock_fd
            del transport
            reader = asyncio.StreamReader()
            pipe, _ = await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", 0)
            )
            assert late() is not None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
            assert late() is None
        finally:
            gc.enable()
        os.write(write_end, b"x")
        assert await reader.read(10) == b"x"
        pipe.close()
        os.close(write_end)
        theirs.close()

    @pytest.mark.never("windows", reason="a socket is no descriptor there, and no file gets its number")
    @pytest.mark.asyncio
    @pytest.mark.differs(uvloop="0.23.0", reason="does not notice", run=False)
    async def test_a_socket_that_is_detached(self, tmp_path: Path) -> None:
        """What is written afterwards is not written into the file that has the number by then."""

        class Losing(asyncio.Protocol):
            def __init__(self) -> None:
                self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

            def connection_lost(self, error: Exception | None) -> None:
                self.lost.set_result(error)

        ours, theirs = socket.socketpair()
        transport, protocol = await asyncio.get_running_loop().create_connection(Losing, sock=ours)
        os.close(ours.detach())
        with (tmp_path / "file").open("wb") as file:
            transport.write(b"for the peer")
            error = await protocol.lost
        assert isinstance(error, OSError)
        assert error.errno == errno.EBADF
        assert (tmp_path / "file").read_bytes() == b""
        theirs.close()
        assert file.closed

    @pytest.mark.asyncio
    @pytest.mark.differs(uvloop="0.23.0", reason="refuses it until connection_lost()")
    async def test_a_socket_that_is_watched_between_close_and_connection_lost(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(Quiet, sock=ours)
        transport.close()
        loop.add_reader(ours.fileno(), int)
        assert loop.remove_reader(ours.fileno())
        theirs.close()
