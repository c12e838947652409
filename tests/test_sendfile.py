"""Files that are sent: by the system where it can, by reading and writing where it cannot or TLS stands between."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import sys
from asyncio import SendfileNotAvailableError
from typing import IO, TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

    Pair = tuple[socket.socket, socket.socket]
    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

# More than the buffers between two sockets hold, so that sending has to wait.
CONTENT = bytes(range(256)) * 20_000

NO_SENDFILE = pytest.mark.differs(uvloop="0.23.0", reason="has no sendfile, and may wait for ever", run=False)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[IO[bytes]]:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        yield file


async def connect(tls: Contexts | None = None) -> tuple[Any, asyncio.StreamReader, Any]:
    """A transport, and the reader and the writer at the other end."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[Any] = loop.create_future()
    server = await asyncio.start_server(
        lambda *streams: accepted.set_result(streams), "127.0.0.1", 0, ssl=tls and tls[0], limit=1 << 30
    )
    transport, _ = await loop.create_connection(
        asyncio.Protocol,
        *server.sockets[0].getsockname(),
        ssl=tls and tls[1],
        server_hostname="localhost" if tls else None,
    )
    reader, writer = await accepted
    server.close()
    return transport, reader, writer


def have_it_wait(transport: Any, writer: asyncio.StreamWriter) -> None:
    """Let the other end not read, and the kernel hold little."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    for end, size in ((transport, socket.SO_SNDBUF), (writer, socket.SO_RCVBUF)):
        end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, size, 64 * 1024)


async def end(transport: Any, writer: asyncio.StreamWriter) -> None:
    transport.close()
    writer.close()
    await writer.wait_closed()


class TestTransports:
    @pytest.mark.asyncio
    @NO_SENDFILE
    async def test_between_what_is_written_before_and_after(self, file: IO[bytes]) -> None:
        transport, reader, writer = await connect()
        before = b"before" * 500_000
        transport.write(before)
        reading = asyncio.ensure_future(reader.readexactly(len(before) + len(CONTENT) + 5))
        assert await asyncio.get_running_loop().sendfile(transport, file) == len(CONTENT)
        transport.write(b"after")
        assert await reading == before + CONTENT + b"after"
        assert file.tell() == len(CONTENT)
        await end(transport, writer)

    @pytest.mark.parametrize(
        ("offset", "count", "expected"),
        [(100, None, CONTENT[100:]), (100, 50, CONTENT[100:150]), (len(CONTENT) - 10, 50, CONTENT[-10:])],
    )
    @pytest.mark.asyncio
    @NO_SENDFILE
    async def test_a_part(self, file: IO[bytes], offset: int, count: int | None, expected: bytes) -> None:
        transport, reader, writer = await connect()
        reading = asyncio.ensure_future(reader.readexactly(len(expected)))
        assert await asyncio.get_running_loop().sendfile(transport, file, offset, count) == len(expected)
        assert await reading == expected
        assert file.tell() == offset + len(expected)
        await end(transport, writer)

    @pytest.mark.never("windows", reason="Python has no sendfile() there, and does not guard what it does instead")
    @pytest.mark.asyncio
    @NO_SENDFILE
    async def test_while_it_lasts_nothing_can_be_written(self, file: IO[bytes]) -> None:
        transport, reader, writer = await connect()
        sending = asyncio.ensure_future(asyncio.get_running_loop().sendfile(transport, file))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.write(b"meanwhile")
        assert await reader.readexactly(len(CONTENT)) == CONTENT
        await sending
        await end(transport, writer)

    @pytest.mark.asyncio
    @NO_SENDFILE
    async def test_reading_goes_on_afterwards(self, file: IO[bytes]) -> None:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[bytes] = loop.create_future()

        class Receiving(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                arrived.set_result(data)

        transport, reader, writer = await connect()
        transport.set_protocol(Receiving())
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await asyncio.sleep(0)
        writer.write(b"answer")
        assert not transport.is_reading()
        await reader.readexactly(len(CONTENT))
        await sending
        assert transport.is_reading()
        assert await arrived == b"answer"
        await end(transport, writer)

    @pytest.mark.asyncio
    @pytest.mark.differs(uvloop="0.23.0", reason="has no sendfile, and waits for ever", run=False)
    async def test_the_peer_leaves_meanwhile(self, file: IO[bytes]) -> None:
        transport, reader, writer = await connect()
        sending = asyncio.ensure_future(asyncio.get_running_loop().sendfile(transport, file))
        await reader.read(1)
        writer.transport.abort()
        with pytest.raises(ConnectionError):
            await sending
        transport.abort()

    @pytest.mark.asyncio
    @NO_SENDFILE
    async def test_what_is_no_file_is_read_and_written(self) -> None:
        transport, reader, writer = await connect()
        loop = asyncio.get_running_loop()
        reading = asyncio.ensure_future(reader.readexactly(len(CONTENT)))
        assert await loop.sendfile(transport, io.BytesIO(CONTENT)) == len(CONTENT)
        assert await reading == CONTENT
        with pytest.raises(SendfileNotAvailableError):
            await loop.sendfile(transport, io.BytesIO(CONTENT), fallback=False)
        await end(transport, writer)

    @pytest.mark.asyncio
    @NO_SENDFILE
    async def test_over_tls_it_is_read_and_written(self, file: IO[bytes], tls: Contexts) -> None:
        transport, reader, writer = await connect(tls)
        loop = asyncio.get_running_loop()
        reading = asyncio.ensure_future(reader.readexactly(len(CONTENT)))
        assert await loop.sendfile(transport, file) == len(CONTENT)
        assert await reading == CONTENT
        with pytest.raises(RuntimeError, match="fallback is disabled"):
            await loop.sendfile(transport, file, fallback=False)
        await end(transport, writer)

    @pytest.mark.asyncio
    @NO_SENDFILE
    async def test_a_transport_that_closes(self, file: IO[bytes]) -> None:
        transport, _, writer = await connect()
        transport.close()
        with pytest.raises(RuntimeError, match="Transport is closing"):
            await asyncio.get_running_loop().sendfile(transport, file)
        await end(transport, writer)

    @pytest.mark.asyncio(loop_factories=["notifyloop"])  # asyncio's transport can neither read nor write any more
    async def test_cancelled_before_it_began(self, file: IO[bytes]) -> None:
        loop = asyncio.get_running_loop()
        transport, reader, writer = await connect()
        have_it_wait(transport, writer)
        transport.set_write_buffer_limits(high=1 << 30)
        transport.write(CONTENT)
        transport.write(CONTENT)
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        while transport.is_reading():
            await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert transport.is_reading()
        transport.write(b"and more")
        transport.close()
        writer.transport.resume_reading()
        assert await reader.read() == CONTENT + CONTENT + b"and more"
        await end(transport, writer)

    # asyncio's since Python 3.13.5, or some release before that.
    @pytest.mark.asyncio(loop_factories=["asyncio", "notifyloop"][sys.version_info < (3, 13, 5) :])
    async def test_a_protocol_is_not_told_to_go_on_that_was_not_told_to_pause(self, tls: Contexts) -> None:
        loop = asyncio.get_running_loop()
        transport, reader, writer = await connect(tls)
        told: list[str] = []

        class Recorder(asyncio.Protocol):
            def pause_writing(self) -> None:
                told.append("pause")

            def resume_writing(self) -> None:
                told.append("go on")

        transport.set_protocol(Recorder())
        have_it_wait(transport, writer)
        transport.set_write_buffer_limits(high=1 << 30)
        transport.write(CONTENT)
        transport.write(CONTENT)
        kept = transport.get_write_buffer_size()
        transport.set_write_buffer_limits(high=kept + 1)
        sending = asyncio.ensure_future(loop.sendfile(transport, io.BytesIO(b"the last of all")))
        while transport.get_write_buffer_size() <= kept:
            await asyncio.sleep(0)
        await asyncio.wait([sending], timeout=0.1)  # who does not wait for that to be sent has ended by then
        writer.transport.resume_reading()
        received = asyncio.ensure_future(reader.readexactly(2 * len(CONTENT) + 15))
        assert await sending == 15
        assert (await received).endswith(b"the last of all")
        await asyncio.sleep(0)
        assert told == []
        await end(transport, writer)


class TestPosition:
    """The documentation: the file's position is always updated, and tells how much was sent."""

    # asyncio leaves it where it was if nothing was sent; and before it mended python/cpython#150107, where the file is
    # read and written, an offset of 0 is where it stands.
    pytestmark = pytest.mark.asyncio(loop_factories=["notifyloop"])

    @pytest.mark.parametrize("offset", [0, 500, len(CONTENT), len(CONTENT) + 1000])
    @pytest.mark.parametrize("way", ["system", "tls", "socket"])
    async def test_whatever_was_sent(self, file: IO[bytes], tls: Contexts, offset: int, way: str) -> None:
        loop = asyncio.get_running_loop()
        transport, reader, writer = await connect(tls if way == "tls" else None)
        sock, peer = socket.socketpair()
        with sock, peer:
            sock.setblocking(False)
            peer.setblocking(False)
            file.read(123)  # and what was read ahead
            expected = CONTENT[offset:]
            if way == "socket":
                reading = asyncio.ensure_future(TestSockets.receive(peer, len(expected)))
                sent = await loop.sock_sendfile(sock, file, offset)
            else:
                reading = asyncio.ensure_future(reader.readexactly(len(expected)))
                sent = await loop.sendfile(transport, file, offset)
            assert sent == len(expected)
            assert file.tell() == offset + sent
            assert await reading == expected
        await end(transport, writer)

    async def test_of_what_is_no_file(self) -> None:
        transport, reader, writer = await connect()
        file = io.BytesIO(CONTENT)
        file.seek(123)
        reading = asyncio.ensure_future(reader.readexactly(len(CONTENT)))
        assert await asyncio.get_running_loop().sendfile(transport, file) == len(CONTENT)
        assert await reading == CONTENT
        assert file.tell() == len(CONTENT)
        assert await asyncio.get_running_loop().sendfile(transport, file, len(CONTENT)) == 0
        assert file.tell() == len(CONTENT)
        await end(transport, writer)

    async def test_of_an_empty_file(self, tmp_path: Path) -> None:
        transport, _, writer = await connect()
        path = tmp_path / "empty"
        path.touch()
        with path.open("rb") as file:
            file.seek(123)
            assert await asyncio.get_running_loop().sendfile(transport, file, fallback=not hasattr(os, "sendfile")) == 0
            assert file.tell() == 0
        await end(transport, writer)

    @pytest.mark.never("windows", reason="socket pairs are TCP there, which takes something before it hears of the end")
    async def test_where_nobody_receives(self, file: IO[bytes]) -> None:
        """Nothing was sent, so the file stands where sending began, whatever was read of it."""
        loop = asyncio.get_running_loop()
        sock, peer = socket.socketpair()
        with sock:
            sock.setblocking(False)
            peer.close()
            file.seek(123)
            with pytest.raises(ConnectionError):
                await loop.sock_sendfile(sock, file, 7)
            assert file.tell() == 7

    @pytest.mark.asyncio
    @pytest.mark.differs(uvloop="0.23.0", reason="has no sendfile, and waits for ever", run=False)
    async def test_where_the_peer_leaves_amid_the_first_block(self) -> None:
        """Of what the transport had taken some has arrived, so it was not nothing."""
        loop = asyncio.get_running_loop()
        sock, peer = socket.socketpair()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024)
        peer.setblocking(False)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
        transport.set_write_buffer_limits(high=0)
        file = io.BytesIO(CONTENT)
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        with peer:
            arrived = len(await loop.sock_recv(peer, 1000))
        with pytest.raises(ConnectionError):
            await sending
        assert arrived <= file.tell() < len(CONTENT)
        transport.close()

    @pytest.mark.skipif(not hasattr(os, "pipe2"), reason="such descriptors cannot be opened as files here")
    async def test_of_what_has_none(self) -> None:
        """A pipe is read and written, and cannot be told where to stand. asyncio takes it for an empty file."""
        transport, reader, writer = await connect()
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb", 0) as pipe, os.fdopen(write_end, "wb", 0) as into:
            into.write(b"content")
            into.close()
            with pytest.raises(SendfileNotAvailableError):
                await asyncio.get_running_loop().sendfile(transport, pipe, fallback=False)
            reading = asyncio.ensure_future(reader.readexactly(7))
            assert await asyncio.get_running_loop().sendfile(transport, pipe) == 7
            assert await reading == b"content"
        await end(transport, writer)


class TestSockets:
    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            yield ours, theirs

    @staticmethod
    async def receive(sock: socket.socket, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            received += await asyncio.get_running_loop().sock_recv(sock, 1_000_000)
        return bytes(received)

    @pytest.mark.asyncio
    @NO_SENDFILE
    async def test_a_file(self, file: IO[bytes], pair: Pair) -> None:
        ours, theirs = pair
        receiving = asyncio.ensure_future(self.receive(theirs, len(CONTENT) - 7))
        assert await asyncio.get_running_loop().sock_sendfile(ours, file, 7) == len(CONTENT) - 7
        assert await receiving == CONTENT[7:]
        assert file.tell() == len(CONTENT)

    @pytest.mark.asyncio
    @pytest.mark.differs(asyncio="3.13.0", reason="sets the position when the socket takes more")
    @NO_SENDFILE
    async def test_cancelled_in_the_midst_it_can_go_on(self, file: IO[bytes], pair: Pair) -> None:
        """From where the file stands: at the end of what was sent."""
        ours, theirs = pair
        loop = asyncio.get_running_loop()
        sending = asyncio.ensure_future(loop.sock_sendfile(ours, file))
        received = await loop.sock_recv(theirs, 1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        position = file.tell()
        assert 0 < position < len(CONTENT)
        receiving = asyncio.ensure_future(self.receive(theirs, len(CONTENT) - 1))
        await loop.sock_sendfile(ours, file, position)
        assert received + await receiving == CONTENT
