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
        assert not loop._selector.interests
        assert not loop._selector.by_number


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
            pytest.param(
                OSError(0, "the name is gone", None, ERROR_NETNAME_DELETED),
                marks=pytest.mark.only("windows", reason="other systems have no such error"),
            ),
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
