"""Listening: sockets that somebody else opened, ports that several servers share, and how a server ends. And connecting
to a host that has several addresses, the Happy Eyeballs way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows passes no descriptors on, and shares no port so")


class Echo(asyncio.Protocol):
    """Sends back what comes, and says when it has come and gone."""

    def __init__(self, made: asyncio.Queue[Echo]) -> None:
        self.made = made
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.made.put_nowait(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)


async def serve(**options: Any) -> tuple[asyncio.Server, Any, asyncio.Queue[Echo]]:
    """A server, its address, and its connections as they come."""
    made: asyncio.Queue[Echo] = asyncio.Queue()
    if "sock" not in options:
        options = {"host": "127.0.0.1", "port": 0, **options}
    server = await asyncio.get_running_loop().create_server(lambda: Echo(made), **options)
    return server, server.sockets[0].getsockname(), made


async def exchange(address: Any) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"there and back")
    assert await reader.readexactly(14) == b"there and back"
    writer.close()
    await writer.wait_closed()


CHILD = """
import asyncio, importlib, socket, sys

async def main():
    end = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        writer.write(await reader.readline())
        writer.close()
        end.set_result(None)

    listener = socket.socket(fileno=int(sys.argv[2]))
    async with await asyncio.start_server(serve, sock=listener):
        await end

module, _, name = sys.argv[1].partition(":")
with asyncio.Runner(loop_factory=getattr(importlib.import_module(module), name)) as runner:
    runner.run(main())
"""


class Guest(asyncio.Protocol):
    """Has come only to close the server."""

    def __init__(self, close: Callable[[], None]) -> None:
        self.close = close

    def connection_made(self, transport: Any) -> None:
        self.close()
        transport.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("more", [0, 1])
async def test_a_server_closes_when_the_first_has_come(more: int) -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    closed = asyncio.Event()

    def close() -> None:
        server.close()
        closed.set()

    server = await loop.create_server(lambda: Guest(close), "127.0.0.1", 0, start_serving=False)
    with contextlib.ExitStack() as guests:
        listener = server.sockets[0]
        await server.start_serving()
        for _ in range(1 + more):
            guests.enter_context(socket.create_connection(listener.getsockname()))
        await closed.wait()
        await server.wait_closed()
        for _ in range(3):
            await asyncio.sleep(0)
    assert complaints == []


# asyncio trips over an assertion then, reports it, and leaves the connection open (CPython 3.13); uvloop serves it.
@pytest.mark.asyncio(loop_factories=["notifyloop"])
@pytest.mark.parametrize("secure", [False, True])
async def test_a_connection_that_was_accepted_before_its_server_closed_is_closed(secure: bool, tls: Any) -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))

    def come() -> asyncio.Protocol:
        server.close()
        return asyncio.Protocol()

    server = await loop.create_server(come, "127.0.0.1", 0, ssl=tls[0] if secure else None)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        client.setblocking(False)
        assert await loop.sock_recv(client, 1) == b""
    await server.wait_closed()
    assert complaints == []


# asyncio and uvloop leave a server that nobody knows, and that serves.
@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_whoever_is_cancelled_while_it_is_made_leaves_no_server(tmp_path: Any) -> None:
    loop = asyncio.get_running_loop()
    listeners = [socket.create_server(("127.0.0.1", 0))]
    making = [asyncio.ensure_future(loop.create_server(asyncio.Protocol, sock=listeners[0]))]
    if sys.platform != "win32":
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[1].bind(str(tmp_path / "socket"))
        making.append(asyncio.ensure_future(loop.create_unix_server(asyncio.Protocol, sock=listeners[1])))
    await asyncio.sleep(0)
    for task in making:
        task.cancel()
    ends = await asyncio.gather(*making, return_exceptions=True)
    with contextlib.ExitStack() as left:
        for listener in listeners:
            left.enter_context(listener)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * len(making)
        assert [listener.fileno() for listener in listeners] == [-1] * len(making)


class TestSocketsOfOthers:
    @POSIX
    @pytest.mark.parametrize("family", ["tcp", "unix"])
    @pytest.mark.parametrize(
        "factory", ["asyncio:SelectorEventLoop", "notifyloop:new_event_loop", "uvloop:new_event_loop"]
    )
    def test_a_child_serves_the_listener_that_it_inherits(self, factory: str, family: str, tmp_path: Any) -> None:
        """As systemd has it. The socket listens, and takes connections, before the child has begun."""
        pytest.importorskip(factory.partition(":")[0])
        if family == "tcp":
            listener = socket.create_server(("127.0.0.1", 0))
        else:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(tmp_path / "socket"))
            listener.listen()
        with listener, socket.socket(listener.family) as client:
            client.settimeout(60)
            client.connect(listener.getsockname())
            client.sendall(b"from before\n")
            number = listener.fileno()
            command = [sys.executable, "-c", CHILD, factory, str(number)]
            with subprocess.Popen(command, pass_fds=[number]) as child:
                assert client.makefile().readline() == "from before\n"
                assert child.wait() == 0

    @pytest.mark.asyncio
    async def test_of_this_process(self) -> None:
        """A blocking one; the server makes it what it needs, and closes it."""
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        server, address, _ = await serve(sock=listener)
        async with server:
            await exchange(address)
        assert listener.fileno() == -1

    @pytest.mark.asyncio
    async def test_no_stream(self) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="Socket was expected"):
            await serve(sock=sock)


class TestSharedPorts:
    @POSIX
    @pytest.mark.asyncio
    async def test_each_connection_has_one_server(self) -> None:
        first, address, made = await serve(reuse_port=True)
        second, _, made_by_second = await serve(port=address[1], reuse_port=True)
        for _ in range(20):
            await exchange(address)
        assert made.qsize() + made_by_second.qsize() == 20
        first.close()
        await first.wait_closed()
        taken = made.qsize()
        for _ in range(10):
            await exchange(address)
        assert made.qsize() == taken
        second.close()
        await second.wait_closed()

    @pytest.mark.asyncio
    async def test_not_unasked(self) -> None:
        server, address, _ = await serve()
        async with server:
            with pytest.raises(OSError, match=str(errno.EADDRINUSE)) as raised:
                await serve(port=address[1])
            assert raised.value.errno == errno.EADDRINUSE


class TestTheEnd:
    @pytest.mark.asyncio
    async def test_closing_leaves_connections_alone(self) -> None:
        server, address, made = await serve()
        reader, writer = await asyncio.open_connection(*address)
        connection = await made.get()
        server.close()
        assert not server.is_serving()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        writer.write(b"goes on")
        assert await reader.readexactly(7) == b"goes on"
        writer.close()
        assert await connection.lost is None
        await server.wait_closed()

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="new in Python 3.13")
    @pytest.mark.asyncio
    @pytest.mark.differs(uvloop="0.23.0", reason="its servers do not have it")
    async def test_clients_are_closed(self) -> None:
        """What was written to them still arrives."""
        server, address, made = await serve()
        reader, writer = await asyncio.open_connection(*address)
        connection = await made.get()
        connection.transport.write(bytes(3_000_000))
        server.close()
        server.close_clients()
        assert len(await reader.read(-1)) == 3_000_000
        assert await connection.lost is None
        await server.wait_closed()
        writer.close()
        await writer.wait_closed()

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="new in Python 3.13")
    @pytest.mark.asyncio
    @pytest.mark.differs(uvloop="0.23.0", reason="its servers do not have it")
    async def test_clients_are_aborted(self) -> None:
        """What they have not taken is dropped."""
        loop = asyncio.get_running_loop()
        server, address, made = await serve()
        with socket.create_connection(address) as client:
            client.setblocking(False)
            connection = await made.get()
            written = 0
            while not connection.transport.get_write_buffer_size():  # Windows takes the first of them whole
                connection.transport.write(bytes(10_000_000))
                written += 10_000_000
            server.close()
            server.abort_clients()
            assert await connection.lost is None
            received = 0
            while data := await loop.sock_recv(client, 1_000_000):
                received += len(data)
            assert received < written
            await server.wait_closed()

    @pytest.mark.skipif(sys.version_info >= (3, 13), reason="since Python 3.13 there is more")
    @pytest.mark.asyncio
    async def test_before_python_3_13_servers_do_not_know_their_clients(self) -> None:
        server, _, _ = await serve()
        async with server:
            assert not hasattr(server, "close_clients")
            assert not hasattr(server, "abort_clients")


@contextlib.contextmanager
def silent() -> Iterator[Any]:
    """An address where nobody answers, and nobody refuses: its queue is full. Linux drops what does not fit."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(2):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        yield listener.getsockname()


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: Any) -> None:
    """Have every name stand for these addresses."""

    async def getaddrinfo(*arguments: object, **options: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


@pytest.mark.asyncio
@pytest.mark.differs(uvloop="0.23.0", reason="does not have them")
class TestHappyEyeballs:
    @pytest.mark.only("linux", reason="elsewhere a full queue refuses")
    async def test_an_address_that_is_silent_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        server, address, made = await serve()
        async with server:
            with silent() as nobody:
                resolve(monkeypatch, nobody, address)
                _, writer = await asyncio.open_connection("name", 0, happy_eyeballs_delay=0.01)
            assert writer.get_extra_info("peername") == address
            await made.get()
            writer.close()
            await writer.wait_closed()

    async def test_after_an_address_that_refuses_the_next_is_tried_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nobody = closed.getsockname()
        server, address, made = await serve()
        async with server:
            resolve(monkeypatch, nobody, address)
            _, writer = await asyncio.open_connection("name", 0, happy_eyeballs_delay=3600)
            assert writer.get_extra_info("peername") == address
            await made.get()
            writer.close()
            await writer.wait_closed()

    async def test_all_addresses_refuse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
            addresses = first.getsockname(), second.getsockname()
        resolve(monkeypatch, *addresses)
        with pytest.raises(OSError, match=str(addresses[1][1])) as raised:
            await asyncio.open_connection("name", 0, happy_eyeballs_delay=0.01)
        assert str(addresses[0][1]) in str(raised.value)

    @pytest.mark.only("linux", reason="elsewhere a full queue refuses")
    async def test_giving_up_closes_every_attempt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that stayed open would be reported when it is collected, which fails the test."""
        with silent() as first, silent() as second:
            resolve(monkeypatch, first, second)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await asyncio.open_connection("name", 0, happy_eyeballs_delay=0.01)
