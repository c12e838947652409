"""Files that are sent: by the system where it can, by reading and writing where it cannot or TLS stands between."""

from __future__ import annotations

import asyncio
import io
import socket
from asyncio.exceptions import SendfileNotAvailableError
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

on_both = pytest.mark.asyncio(loop_factories=["asyncio", "notifyloop"])  # uvloop has no sendfile


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


async def end(transport: Any, writer: asyncio.StreamWriter) -> None:
    transport.close()
    writer.close()
    await writer.wait_closed()


class TestTransports:
    @on_both
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
    @on_both
    async def test_a_part(self, file: IO[bytes], offset: int, count: int | None, expected: bytes) -> None:
        transport, reader, writer = await connect()
        reading = asyncio.ensure_future(reader.readexactly(len(expected)))
        assert await asyncio.get_running_loop().sendfile(transport, file, offset, count) == len(expected)
        assert await reading == expected
        assert file.tell() == offset + len(expected)
        await end(transport, writer)

    @pytest.mark.never("windows", reason="Python has no sendfile() there, and does not guard what it does instead")
    @on_both
    async def test_while_it_lasts_nothing_can_be_written(self, file: IO[bytes]) -> None:
        transport, reader, writer = await connect()
        sending = asyncio.ensure_future(asyncio.get_running_loop().sendfile(transport, file))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.write(b"meanwhile")
        assert await reader.readexactly(len(CONTENT)) == CONTENT
        await sending
        await end(transport, writer)

    @on_both
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

    @on_both
    async def test_the_peer_leaves_meanwhile(self, file: IO[bytes]) -> None:
        transport, reader, writer = await connect()
        sending = asyncio.ensure_future(asyncio.get_running_loop().sendfile(transport, file))
        await reader.read(1)
        writer.transport.abort()
        with pytest.raises(ConnectionError):
            await sending
        transport.abort()

    @on_both
    async def test_what_is_no_file_is_read_and_written(self) -> None:
        transport, reader, writer = await connect()
        loop = asyncio.get_running_loop()
        reading = asyncio.ensure_future(reader.readexactly(len(CONTENT)))
        assert await loop.sendfile(transport, io.BytesIO(CONTENT)) == len(CONTENT)
        assert await reading == CONTENT
        with pytest.raises(SendfileNotAvailableError):
            await loop.sendfile(transport, io.BytesIO(CONTENT), fallback=False)
        await end(transport, writer)

    @on_both
    async def test_over_tls_it_is_read_and_written(self, file: IO[bytes], tls: Contexts) -> None:
        transport, reader, writer = await connect(tls)
        loop = asyncio.get_running_loop()
        reading = asyncio.ensure_future(reader.readexactly(len(CONTENT)))
        assert await loop.sendfile(transport, file) == len(CONTENT)
        assert await reading == CONTENT
        with pytest.raises(RuntimeError, match="fallback is disabled"):
            await loop.sendfile(transport, file, fallback=False)
        await end(transport, writer)

    @on_both
    async def test_a_transport_that_closes(self, file: IO[bytes]) -> None:
        transport, _, writer = await connect()
        transport.close()
        with pytest.raises(RuntimeError, match="Transport is closing"):
            await asyncio.get_running_loop().sendfile(transport, file)
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

    @on_both
    async def test_a_file(self, file: IO[bytes], pair: Pair) -> None:
        ours, theirs = pair
        receiving = asyncio.ensure_future(self.receive(theirs, len(CONTENT) - 7))
        assert await asyncio.get_running_loop().sock_sendfile(ours, file, 7) == len(CONTENT) - 7
        assert await receiving == CONTENT[7:]
        assert file.tell() == len(CONTENT)

    @pytest.mark.asyncio(loop_factories=["notifyloop"])  # asyncio sets the position when the socket takes more
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
