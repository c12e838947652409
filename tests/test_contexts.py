"""In which context the callbacks of transports run: one for each connection, a copy of that in which it was made.

uvloop does it so."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import Any

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.differs(
        asyncio="3.13.0",
        reason="the context of whoever paused, wrote or closed: https://github.com/python/cpython/issues/140947",
    ),
]

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")


async def in_another_context(function: Callable[..., object], *args: object) -> None:
    """Call it from a task for which the variable is "somebody else's"."""

    async def call() -> None:
        variable.set("somebody else's")
        function(*args)

    await asyncio.create_task(call())


class Recorder:
    """Notes what the variable is in each callback."""

    def __init__(self) -> None:
        self.seen: defaultdict[str, list[str]] = defaultdict(list)
        self.happened: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.transport: Any = None
        self.buffer = bytearray(100)

    def note(self, name: str) -> None:
        self.seen[name].append(variable.get())
        self.happened[name].set()

    async def until(self, name: str) -> None:
        await self.happened[name].wait()
        self.happened[name].clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.note("connection_made")

    def eof_received(self) -> bool:
        self.note("eof_received")
        return True

    def pause_writing(self) -> None:
        self.note("pause_writing")

    def resume_writing(self) -> None:
        self.note("resume_writing")

    def connection_lost(self, error: Exception | None) -> None:
        self.note("connection_lost")


class StreamRecorder(Recorder, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self.note("data_received")


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    def get_buffer(self, sizehint: int) -> bytearray:
        self.seen["get_buffer"].append(variable.get())
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.note("data_received")


@pytest.fixture(params=[StreamRecorder, BufferedRecorder])
def recorder(request: pytest.FixtureRequest) -> type[Recorder]:
    return request.param


async def exercise(protocol: Any, peer_writer: asyncio.StreamWriter, peer_reader: asyncio.StreamReader) -> None:
    """Have each callback called, each time from a context that is not the connection's."""
    await protocol.until("connection_made")
    transport = protocol.transport
    peer_writer.write(b"one")
    await protocol.until("data_received")
    await in_another_context(transport.pause_reading)
    peer_writer.write(b"two")
    await peer_writer.drain()
    await in_another_context(transport.resume_reading)
    await protocol.until("data_received")

    transport.set_write_buffer_limits(high=1000)
    while not protocol.seen["pause_writing"]:
        await in_another_context(transport.write, bytes(100_000))
    while not protocol.seen["resume_writing"]:
        await peer_reader.read(100_000)
        await asyncio.sleep(0)

    await in_another_context(transport.close)
    while await peer_reader.read(1_000_000):
        pass
    peer_writer.close()
    await protocol.until("connection_lost")
    assert {place for places in protocol.seen.values() for place in places} == {"the connection's"}


class TestStreams:
    async def test_of_a_client(self, recorder: type[Recorder]) -> None:
        peers: asyncio.Queue[Any] = asyncio.Queue()
        server = await asyncio.start_server(lambda *peer: peers.put_nowait(peer), "127.0.0.1", 0)
        async with server:
            variable.set("the connection's")
            _, protocol = await asyncio.get_running_loop().create_connection(recorder, *server.sockets[0].getsockname())
            variable.set("changed later")
            reader, writer = await peers.get()
            await exercise(protocol, writer, reader)

    async def test_of_a_server(self, recorder: type[Recorder]) -> None:
        made: list[Any] = []

        def factory() -> Any:
            made.append(recorder())
            return made[-1]

        variable.set("the connection's")
        server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
        variable.set("changed later")
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"zero")
            while not made:
                await asyncio.sleep(0)
            await made[0].until("data_received")
            await exercise(made[0], writer, reader)

    async def test_over_tls(self, recorder: type[Recorder], tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
        server_side, client_side = tls
        peers: asyncio.Queue[Any] = asyncio.Queue()
        server = await asyncio.start_server(lambda *peer: peers.put_nowait(peer), "127.0.0.1", 0, ssl=server_side)
        async with server:
            variable.set("the connection's")
            _, protocol = await asyncio.get_running_loop().create_connection(
                recorder, *server.sockets[0].getsockname(), ssl=client_side, server_hostname="localhost"
            )
            variable.set("changed later")
            reader, writer = await peers.get()
            await exercise(protocol, writer, reader)

    async def test_after_start_tls(self, recorder: type[Recorder], tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
        server_side, client_side = tls
        peers: asyncio.Queue[Any] = asyncio.Queue()

        async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await writer.start_tls(server_side)
            peers.put_nowait((reader, writer))

        server = await asyncio.start_server(upgrade, "127.0.0.1", 0)
        async with server:
            variable.set("the connection's")
            loop = asyncio.get_running_loop()
            transport, protocol = await loop.create_connection(recorder, *server.sockets[0].getsockname())
            variable.set("changed later")
            protocol.transport = await loop.start_tls(transport, protocol, client_side, server_hostname="localhost")
            reader, writer = await peers.get()
            await exercise(protocol, writer, reader)

    @pytest.mark.differs(uvloop="0.23.0", reason="has one context for all connections of a server")
    async def test_connections_of_a_server_do_not_share_theirs(self) -> None:
        seen: asyncio.Queue[str] = asyncio.Queue()

        class Setting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                seen.put_nowait(variable.get())
                variable.set("somebody else's")

        server = await asyncio.get_running_loop().create_server(Setting, "127.0.0.1", 0)
        async with server:
            for _ in range(2):
                _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                assert await seen.get() == "nobody's"
                writer.close()
                await writer.wait_closed()

    async def test_what_connection_made_sets_is_there_for_the_others(self, recorder: type[Recorder]) -> None:
        class Setting(recorder):  # type: ignore[misc, valid-type]
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                variable.set("set in connection_made")
                super().connection_made(transport)

        ours, theirs = socket.socketpair()
        with theirs:
            _, protocol = await asyncio.get_running_loop().create_connection(Setting, sock=ours)
            theirs.send(b"data")
            await protocol.until("data_received")
            theirs.close()
            await protocol.until("eof_received")
            protocol.transport.close()
            await protocol.until("connection_lost")
        assert variable.get() == "nobody's"
        assert {place for places in protocol.seen.values() for place in places} == {"set in connection_made"}


CAT = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read(4)); sys.stdout.flush(); sys.stdin.read()"


async def test_of_a_child_process() -> None:
    class Child(Recorder, asyncio.SubprocessProtocol):
        def pipe_data_received(self, fd: int, data: bytes) -> None:
            self.note("pipe_data_received")

        def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
            self.note("pipe_connection_lost")

        def process_exited(self) -> None:
            self.note("process_exited")

    variable.set("the connection's")
    _, protocol = await asyncio.get_running_loop().subprocess_exec(Child, sys.executable, "-c", CAT)
    variable.set("changed later")
    await in_another_context(protocol.transport.get_pipe_transport(0).write, b"data")
    await protocol.until("pipe_data_received")
    await in_another_context(protocol.transport.get_pipe_transport(0).close)
    await protocol.until("connection_lost")
    assert {place for places in protocol.seen.values() for place in places} == {"the connection's"}
    assert set(protocol.seen) == {
        "connection_made",
        "pipe_data_received",
        "pipe_connection_lost",
        "process_exited",
        "connection_lost",
    }
    protocol.transport.close()
