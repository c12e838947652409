"""What hurts users of asyncio's loops, mostly on Windows, and must not hurt here.

Each test names where it was reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import notifyloop

if TYPE_CHECKING:
    from collections.abc import Callable

RESET_ON_CLOSE = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)
ERROR_NETNAME_DELETED = 64
ERROR_SEM_TIMEOUT = 121
ERROR_PORT_UNREACHABLE = 1234
ERROR_CONNECTION_ABORTED = 1236


def windows(number: int) -> Any:
    """An error that only Windows has."""
    error = OSError(0, "of Windows", None, number)
    return pytest.param(error, marks=pytest.mark.only("windows", reason="other systems have no such error"))


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


def listen() -> list[dict[str, Any]]:
    """What the running loop's exception handler will be told."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    return told


class Counting(asyncio.Protocol):
    """Counts how often it was told of the beginning and of the end."""

    def __init__(self) -> None:
        self.made = self.ended = 0
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.made += 1
        self.transport = transport

    def connection_lost(self, error: BaseException | None) -> None:
        self.ended += 1
        self.error = error
        self.lost.set()


def test_two_thousand_sockets() -> None:
    """More than 512, which is where `select` ends on Windows: tornadoweb/tornado#2864, Kludex/uvicorn#1220."""
    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(contextlib.closing(notifyloop.NotifyLoop()))
        pairs = []
        try:
            for _ in range(1000):
                pairs.append(socket.socketpair())
                for end in pairs[-1]:
                    stack.enter_context(end)
                    end.setblocking(False)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            pytest.skip("this process may not have so many sockets")
        heard: list[int] = []

        def hear(number: int) -> None:
            pairs[number][0].recv(1)
            heard.append(number)
            loop.stop()

        for number, (ours, theirs) in enumerate(pairs):
            loop.add_reader(ours, hear, number)
            loop.add_reader(theirs, loop.stop)
        chosen = [0, 1, 511, 512, 998, 999]
        for number in chosen:
            pairs[number][1].send(b"x")
            loop.run_forever()
        assert heard == chosen
        for ours, theirs in pairs:
            assert loop.remove_reader(ours)
            assert loop.remove_reader(theirs)


def test_registrations_that_come_and_go() -> None:
    """c-ares opens a socket for each query: aio-libs/aiodns#78."""
    loop = notifyloop.NotifyLoop()
    with contextlib.closing(loop):
        for _ in range(1000):
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                sock.bind(("127.0.0.1", 0))
                loop.add_reader(sock, print)
                loop.add_writer(sock, loop.stop)
                loop.run_forever()
                assert loop.remove_reader(sock)
                assert loop.remove_writer(sock)
        assert loop.statistics().registered == 0
        assert not loop._turn.interests.by_descriptor
        assert len(loop._turn.interests.places) < 10


@pytest.mark.asyncio(loop_factories=["notifyloop"])
class TestListeners:
    async def test_connections_that_are_reset_before_they_are_accepted(self) -> None:
        """python/cpython#93821: AcceptEx fails with WinError 64, and the Proactor loop closes the listening socket."""
        complaints = listen()
        accepted: asyncio.Queue[bytes] = asyncio.Queue()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                if data := await reader.read(100):
                    accepted.put_nowait(data)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()
            for _ in range(50):
                reset(socket.create_connection(address))
            with socket.create_connection(address) as client:
                client.send(b"still there")
                assert await accepted.get() == b"still there"
        assert complaints == []

    @pytest.mark.parametrize(
        "error",
        [
            ConnectionResetError(errno.ECONNRESET, "reset"),
            ConnectionAbortedError(errno.ECONNABORTED, "aborted"),
            OSError(errno.EHOSTUNREACH, "the network's trouble"),
            windows(ERROR_NETNAME_DELETED),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_errors_of_one_connection(self, error: OSError) -> None:
        class Failing(socket.socket):
            failures = 3

            def accept(self) -> tuple[socket.socket, Any]:
                if self.failures:
                    self.failures -= 1
                    raise error
                return super().accept()

        complaints = listen()
        listener = Failing()
        listener.bind(("127.0.0.1", 0))
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Counting, sock=listener)
        _, protocol = await loop.create_connection(Counting, *listener.getsockname())
        protocol.transport.close()
        await protocol.lost.wait()
        server.close()
        assert complaints == []

    async def test_stopping_one_server_leaves_the_others_alone(self) -> None:
        """python/cpython#73897: the Proactor cancelled what every server waited for."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        first, second = [await asyncio.start_server(serve, "127.0.0.1", 0) for _ in range(2)]
        async with second:
            async with first:
                await asyncio.sleep(0)
            reader, writer = await asyncio.open_connection(*second.sockets[0].getsockname())
            writer.write(b"still there\n")
            assert await reader.read() == b"still there\n"
            writer.close()

    async def test_a_listener_that_another_loop_has_served(self) -> None:
        """Kludex/uvicorn#529: after a reload the socket cannot be given to a second port."""
        listener = socket.create_server(("127.0.0.1", 0))

        async def serve() -> None:
            server = await asyncio.start_server(lambda _, writer: writer.close(), sock=listener.dup())
            async with server:
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                assert await reader.read() == b""
                writer.close()

        with listener:
            await serve()
            for _ in range(2):
                await asyncio.to_thread(lambda: notifyloop.run(serve()))


PATHS: dict[str, Callable[[Any, socket.socket], None]] = {
    "close": lambda transport, theirs: transport.close(),
    "abort": lambda transport, theirs: transport.abort(),
    "close twice": lambda transport, theirs: (transport.close(), transport.close()),  # type: ignore[func-returns-value]
    "close and abort": lambda transport, theirs: (transport.close(), transport.abort()),  # type: ignore[func-returns-value]
    "write and close": lambda transport, theirs: (transport.write(bytes(4_000_000)), transport.close(), reset(theirs)),  # type: ignore[func-returns-value]
    "write and abort": lambda transport, theirs: (transport.write(bytes(4_000_000)), transport.abort()),  # type: ignore[func-returns-value]
    "the peer closes": lambda transport, theirs: theirs.close(),
    "the peer resets": lambda transport, theirs: reset(theirs),
    "the peer resets while it is written to": lambda transport, theirs: (
        transport.write(bytes(4_000_000)),  # type: ignore[func-returns-value]
        reset(theirs),
    ),
    "both close": lambda transport, theirs: (theirs.close(), transport.close()),  # type: ignore[func-returns-value]
    "the peer resets, then we shut down": lambda transport, theirs: (reset(theirs), transport.write_eof()),  # type: ignore[func-returns-value]
    "paused, and the peer resets, and close": lambda transport, theirs: (
        transport.pause_reading(),
        reset(theirs),  # type: ignore[func-returns-value]
        transport.close(),
    ),
}


@pytest.mark.asyncio(loop_factories=["notifyloop"])
@pytest.mark.parametrize("path", PATHS)
async def test_each_connection_ends_once_and_quietly(path: str) -> None:
    """python/cpython#83037: a peer's reset while shutting down is reported as an unhandled exception;
    agronholm/anyio#1237: connection_lost never comes.
    """
    loop, complaints = asyncio.get_running_loop(), listen()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        with theirs:
            transport, protocol = await loop.create_connection(Counting, sock=ours.dup())
            PATHS[path](transport, theirs)
            await protocol.lost.wait()
            for _ in range(3):
                await asyncio.sleep(0)
    assert (protocol.made, protocol.ended) == (1, 1)
    assert complaints == []
    assert "closed" in repr(transport)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        ConnectionAbortedError(errno.ECONNABORTED, "aborted"),
        TimeoutError(errno.ETIMEDOUT, "timed out"),
        windows(ERROR_NETNAME_DELETED),
        windows(ERROR_SEM_TIMEOUT),
        windows(ERROR_CONNECTION_ABORTED),
    ],
    ids=repr,
)
@pytest.mark.differs(uvloop="0.23.0", reason="waits for ever: it does not call the socket's own methods", run=False)
async def test_a_network_that_fails_is_a_lost_connection(error: OSError, caplog: pytest.LogCaptureFixture) -> None:
    """python/asyncio#319: 'Fatal read error', for a peer that is gone."""

    def fail(*_: Any) -> bytes:
        raise error

    class Failing(socket.socket):
        recv = fail

    complaints = listen()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = Failing()
        ours.connect(listener.getsockname())
        with listener.accept()[0] as theirs:
            _, protocol = await asyncio.get_running_loop().create_connection(Counting, sock=ours)
            theirs.send(b"!")
            await protocol.lost.wait()
    assert protocol.error is error
    assert (protocol.made, protocol.ended) == (1, 1)
    assert complaints == []
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


TLS_PATHS: dict[str, Callable[[Any, Any], None]] = {
    "close": lambda ours, theirs: ours.close(),
    "abort": lambda ours, theirs: ours.abort(),
    "close twice": lambda ours, theirs: (ours.close(), ours.close()),  # type: ignore[func-returns-value]
    "close and abort": lambda ours, theirs: (ours.close(), ours.abort()),  # type: ignore[func-returns-value]
    "write and close": lambda ours, theirs: (ours.write(bytes(1_000_000)), ours.close()),  # type: ignore[func-returns-value]
    "write and abort": lambda ours, theirs: (ours.write(bytes(1_000_000)), ours.abort()),  # type: ignore[func-returns-value]
    "the peer goes without goodbye": lambda ours, theirs: theirs.abort(),
    "both close": lambda ours, theirs: (ours.close(), theirs.close()),  # type: ignore[func-returns-value]
    "the peer resets": lambda ours, theirs: (
        theirs.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE),
        theirs.abort(),  # type: ignore[func-returns-value]
    ),
}


@pytest.mark.asyncio(loop_factories=["notifyloop"])
@pytest.mark.parametrize("path", TLS_PATHS)
async def test_each_connection_with_tls_ends_once_and_quietly(path: str, tls: Any) -> None:
    """agronholm/anyio#1237, MagicStack/uvloop#471."""
    loop, complaints = asyncio.get_running_loop(), listen()
    at_server = Counting()
    server = await loop.create_server(lambda: at_server, "127.0.0.1", 0, ssl=tls[0])
    async with server:
        transport, protocol = await loop.create_connection(
            Counting, *server.sockets[0].getsockname(), ssl=tls[1], server_hostname="localhost"
        )
        while not at_server.made:
            await asyncio.sleep(0)
        TLS_PATHS[path](transport, at_server.transport)
        await protocol.lost.wait()
        await at_server.lost.wait()
        for _ in range(3):
            await asyncio.sleep(0)
    for end in (protocol, at_server):
        assert (end.made, end.ended) == (1, 1)
    assert complaints == []


PIPE_PATHS: dict[str, Callable[[Any, Any], None]] = {
    "the writer closes": lambda reader, writer: writer.close(),
    "the writer closes twice": lambda reader, writer: (writer.close(), writer.close()),  # type: ignore[func-returns-value]
    "the writer aborts": lambda reader, writer: writer.abort(),
    "the writer says that it is at the end": lambda reader, writer: writer.write_eof(),
    "written and closed": lambda reader, writer: (writer.write(bytes(300_000)), writer.close()),  # type: ignore[func-returns-value]
    "written and aborted": lambda reader, writer: (writer.write(bytes(300_000)), writer.abort()),  # type: ignore[func-returns-value]
    "both close": lambda reader, writer: (reader.close(), writer.close()),  # type: ignore[func-returns-value]
    "the reader is closed first": lambda reader, writer: (reader.close(), writer.abort()),  # type: ignore[func-returns-value]
    "the reader goes while it is written to": lambda reader, writer: (
        writer.write(bytes(300_000)),  # type: ignore[func-returns-value]
        reader.close(),
    ),
}


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="its selector loop has no pipes on Windows", when=sys.platform == "win32")
@pytest.mark.parametrize("path", PIPE_PATHS)
async def test_each_end_of_a_pipe_ends_once_and_quietly(path: str) -> None:
    """python/cpython#149388: WinError 6 out of connection_lost, for a handle that was closed twice."""
    loop, complaints = asyncio.get_running_loop(), listen()
    reads, writes = os.pipe()
    transports, protocols = zip(
        await loop.connect_read_pipe(Counting, os.fdopen(reads, "rb", 0)),
        await loop.connect_write_pipe(Counting, os.fdopen(writes, "wb", 0)),
        strict=True,
    )
    PIPE_PATHS[path](*transports)
    for protocol in protocols:
        await protocol.lost.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    assert [(protocol.made, protocol.ended) for protocol in protocols] == [(1, 1)] * 2
    assert complaints == []
    assert all("closed" in repr(transport) for transport in transports)


CHILD_PATHS: dict[str, Callable[[Any], None]] = {
    "its input ends": lambda transport: transport.get_pipe_transport(0).close(),
    "kill": lambda transport: transport.kill(),
    "terminate": lambda transport: transport.terminate(),
    "close": lambda transport: transport.close(),
    "close twice": lambda transport: (transport.close(), transport.close()),  # type: ignore[func-returns-value]
    "kill and close": lambda transport: (transport.kill(), transport.close()),  # type: ignore[func-returns-value]
    "its pipes are closed": lambda transport: [transport.get_pipe_transport(fd).close() for fd in range(3)],  # type: ignore[func-returns-value]
}


@pytest.mark.asyncio(loop_factories=["notifyloop"])
@pytest.mark.parametrize("path", CHILD_PATHS)
async def test_each_child_ends_once_and_quietly(path: str) -> None:
    """python/cpython#89237, #100055, agronholm/anyio#1237."""

    class Parent(asyncio.SubprocessProtocol, Counting):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.exits = 0
            self.pipes: list[int] = []

        def process_exited(self) -> None:
            self.exits += 1

        def pipe_connection_lost(self, fd: int, error: BaseException | None) -> None:
            self.pipes.append(fd)

    complaints = listen()
    program = "import sys; sys.stdin.read()"
    transport, protocol = await asyncio.get_running_loop().subprocess_exec(Parent, sys.executable, "-c", program)
    CHILD_PATHS[path](transport)
    await protocol.lost.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    transport.close()
    assert (protocol.made, protocol.ended, protocol.exits) == (1, 1, 1)
    assert sorted(protocol.pipes) == [0, 1, 2]
    assert complaints == []


class Datagrams(asyncio.DatagramProtocol, Counting):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        self.received: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.received.put_nowait((data, address))

    def error_received(self, error: Exception) -> None:
        self.errors.append(error)


@pytest.mark.asyncio
class TestDatagrams:
    @pytest.mark.parametrize(
        "error",
        [
            ConnectionResetError(errno.ECONNRESET, "nobody was there"),
            OSError(errno.EMSGSIZE, "too long"),
            windows(ERROR_PORT_UNREACHABLE),
        ],
        ids=repr,
    )
    @pytest.mark.differs(uvloop="0.23.0", reason="does not call the socket's own methods")
    async def test_errors_of_one_datagram(self, error: OSError) -> None:
        """python/cpython#91227, #127057, caproto/caproto#745: nobody is heard any more."""

        class Failing(socket.socket):
            failures = 3

            def recvfrom(self, *arguments: Any) -> tuple[bytes, Any]:
                if self.failures:
                    self.failures -= 1
                    raise error
                return super().recvfrom(*arguments)

        complaints = listen()
        ours = Failing(type=socket.SOCK_DGRAM)
        ours.bind(("127.0.0.1", 0))
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, sock=ours)
        with socket.socket(type=socket.SOCK_DGRAM) as somebody:
            somebody.sendto(b"still there?", ours.getsockname())
            assert (await protocol.received.get())[0] == b"still there?"
        assert protocol.errors == [error] * 3
        transport.close()
        await protocol.lost.wait()
        assert complaints == []

    async def test_a_server_whose_clients_are_gone(self) -> None:
        """The same, as it happens: Windows tells the next reception that an answer found nobody."""
        loop, complaints = asyncio.get_running_loop(), listen()
        transport, protocol = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
        address = transport.get_extra_info("sockname")
        for _ in range(5):
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.sendto(b"hello", address)
                _, gone = await protocol.received.get()
            transport.sendto(b"anybody?", gone)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(b"me", address)
            assert (await protocol.received.get())[0] == b"me"
        transport.close()
        await protocol.lost.wait()
        assert complaints == []

    async def test_an_endpoint_without_an_address(self) -> None:
        """python/cpython#119711: WinError 10022, on the Proactor."""
        loop = asyncio.get_running_loop()
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            transport, protocol = await loop.create_datagram_endpoint(Datagrams, family=socket.AF_INET)
            await asyncio.sleep(0)
            transport.sendto(b"question", peer.getsockname())
            data, address = await loop.run_in_executor(None, peer.recvfrom, 100)
            assert data == b"question"
            peer.sendto(b"answer", ("127.0.0.1", address[1]))
            assert (await protocol.received.get())[0] == b"answer"
            transport.close()
            await protocol.lost.wait()
        assert protocol.errors == []

    @pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
    async def test_the_other_internet_protocol(self) -> None:
        """python/cpython#83329: wrong addresses, on the Proactor."""
        loop = asyncio.get_running_loop()
        try:
            ours, server = await loop.create_datagram_endpoint(Datagrams, local_addr=("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        address = ours.get_extra_info("sockname")
        theirs, client = await loop.create_datagram_endpoint(Datagrams, remote_addr=address[:2])
        theirs.sendto(b"question")
        data, sender = await server.received.get()
        assert (data, sender) == (b"question", theirs.get_extra_info("sockname"))
        ours.sendto(b"answer", sender)
        assert await client.received.get() == (b"answer", address)
        for transport, protocol in ((ours, server), (theirs, client)):
            transport.close()
            await protocol.lost.wait()

    @pytest.mark.parametrize("path", ["close", "abort", "close twice", "close and abort", "sent and aborted"])
    @pytest.mark.differs(uvloop="0.23.0", reason="counts what was aborted as still to be sent")
    async def test_each_endpoint_ends_once_and_quietly(self, path: str) -> None:
        """agronholm/anyio#1237: with a datagram in flight, connection_lost never comes."""

        class Full(socket.socket):
            def sendto(self, *_: Any) -> int:
                raise BlockingIOError

        complaints = listen()
        ours = Full(type=socket.SOCK_DGRAM)
        ours.bind(("127.0.0.1", 0))
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, sock=ours)
        if path == "sent and aborted":
            transport.sendto(b"kept", ours.getsockname())
            transport.close()
            await asyncio.sleep(0)
            assert protocol.ended == 0
        for _ in range(2 if path == "close twice" else 1):
            if path.startswith("close"):
                transport.close()
        if path.endswith(("abort", "aborted")):
            transport.abort()
        await protocol.lost.wait()
        for _ in range(3):
            await asyncio.sleep(0)
        assert (protocol.made, protocol.ended) == (1, 1)
        assert complaints == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("debug", [False, True])
def test_transports_that_are_collected_after_their_loop(debug: bool, caplog: pytest.LogCaptureFixture) -> None:
    """'Event loop is closed': aio-libs/aiohttp#4324, encode/httpx#914."""

    async def main() -> list[Any]:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        kept = [server, *await asyncio.open_connection(*server.sockets[0].getsockname())]
        loop = asyncio.get_running_loop()
        kept += await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        program = "import sys; sys.stdin.read()"
        kept.append(await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdin=-1, stdout=-1))
        return kept

    with caplog.at_level(logging.WARNING, "asyncio"):
        kept: list[Any] = []
        kept += notifyloop.run(main(), debug=debug)
        kept.clear()
        gc.collect()  # what cannot be raised there, pytest reports
    assert "Event loop is closed" not in caplog.text


def test_closing_does_not_wait_for_a_child(capfd: pytest.CaptureFixture[str]) -> None:
    """python/cpython#111604: the Proactor waits for ever. A process of its own, for it must end."""
    program = """
import asyncio, notifyloop, sys
async def main():
    await asyncio.create_subprocess_exec(sys.executable, "-c", "import sys; sys.stdin.read()", stdin=-1, stdout=-1)
    raise SystemExit(3)
notifyloop.run(main())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60, check=False)
    assert done.returncode == 3


def test_wake_ups_from_many_threads_need_no_socket() -> None:
    """python/cpython#156333: the pair of sockets that wakes the loop reaches its end when the machine has slept."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        count = 0

        def come() -> None:
            nonlocal count
            count += 1
            if count == 4000:
                done.set_result(None)

        def call() -> None:
            for _ in range(1000):
                loop.call_soon_threadsafe(come)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        await done
        for thread in threads:
            thread.join()
        assert loop._ssock is None  # type: ignore[attr-defined]
        return count

    assert notifyloop.run(main()) == 4000


@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_what_is_no_socket_is_refused_with_a_clear_message(tmp_path: Any) -> None:
    """empicano/aiomqtt#4 and others: the selector loop says WinError 10038 for all, at the next turn."""
    loop = asyncio.get_running_loop()
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match=f"descriptor {file.fileno()}"):
        loop.add_reader(file, os.getpid)
