"""Where the soak's lives are led: a loop, its servers, and who interrupts it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import ssl
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import trustme

from notifyloop.port import batch, foreign
from notifyloop.turn import interest, interests, timers, turn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    import notifyloop

__all__ = ["Echo", "Interrupts", "World", "reset", "streams"]

# Where an interrupt may come in, and from where on it is others that are called.
RUN_ONCE, RUN_READY = turn.run_once.__name__, turn.run_ready.__name__
TURN = {str(module.__file__) for module in (turn, timers, interest, interests, batch, foreign)}
LINGER = struct.pack("ii", 1, 0)


class Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def echo_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with streams(writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()


@contextlib.contextmanager
def streams(writer: asyncio.StreamWriter) -> Iterator[None]:
    """For as long as a connection is used; that the other end resets it or is gone is no fault."""
    try:
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            yield
    finally:
        writer.transport.abort()


def reset(transport: asyncio.BaseTransport) -> None:
    """End a TCP connection so that the other end is told it was reset."""
    sock = transport.get_extra_info("socket")
    if sock.fileno() != -1:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    assert isinstance(transport, asyncio.WriteTransport)
    transport.abort()


class World:
    """A loop and its servers."""

    def __init__(self, loop: notifyloop.NotifyLoop, seed: int, folder: Path) -> None:
        self.loop = loop
        self.random = random.Random(seed)
        self.folder = folder
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.faults: list[str] = []
        self.told: Counter[str] = Counter()  # by the exception handler
        self.resting = True
        self.unique = 0
        self.signals = asyncio.Lock()
        authority = trustme.CA()
        self.server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.client_tls = ssl.create_default_context()
        authority.issue_cert("localhost").configure_cert(self.server_tls)
        authority.configure_trust(self.client_tls)
        loop.set_exception_handler(self.take_note)

    def take_note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.told[f"{context['message']}: {context.get('exception')!r}"] += 1

    def fault(self, description: str) -> None:
        self.faults.append(description)
        print("fault:", description, flush=True)

    async def open(self) -> None:
        serving: Any = {"ssl_shutdown_timeout": 5}
        self.path = str(self.folder / "served")
        self.servers = [
            await asyncio.start_server(echo_streams, "127.0.0.1", 0),
            await asyncio.start_server(echo_streams, "127.0.0.1", 0, ssl=self.server_tls, **serving),
            await self.loop.create_server(Echo, "127.0.0.1", 0),
            await asyncio.start_unix_server(echo_streams, self.path),
        ]
        self.tcp, self.tls, self.plain = (server.sockets[0].getsockname() for server in self.servers[:3])

    async def close(self) -> None:
        for server in self.servers:
            server.close()
            await server.wait_closed()

    def some_bytes(self) -> bytes:
        return bytes(self.random.choice((1, 10, 1000, 70_000, 400_000)))

    async def while_short(self) -> None:
        await asyncio.sleep(self.random.choice((0, 0, 0.0001, 0.001, 0.01)))

    def new_path(self) -> str:
        self.unique += 1
        return str(self.folder / f"{os.getpid()}-{self.unique}")


class Interrupts:
    """Sends SIGINT every now and then, from a thread. KeyboardInterrupt is raised where it comes into the turn, or the
    wait, but not into the program or asyncio, for these could not go on then, whatever a loop does: a task that is kept
    from scheduling its next step has none. Of the compiled form no frames are seen, so there it is not raised.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.over = threading.Event()
        self.sent = self.raised = 0
        signal.signal(signal.SIGINT, self.handle)
        self.thread = threading.Thread(target=self.send, name="interrupts")

    def handle(self, number: int, frame: FrameType | None) -> None:
        names = []
        while frame is not None and frame.f_code.co_filename in TURN:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        # What is called by what run_ready() calls may be called by a task or a future, of which nothing is seen here.
        if names[-1:] == [RUN_ONCE] and RUN_READY not in names[1:]:
            self.raised += 1
            raise KeyboardInterrupt

    def send(self) -> None:
        while not self.over.wait(self.random.random() * 0.05):
            self.sent += 1
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def __enter__(self) -> Interrupts:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_through_interrupts(loop: notifyloop.NotifyLoop, main: Any) -> None:
    """As `run_until_complete`, but an interrupt ends no more than `run_forever`, which is resumed."""
    task = loop.create_task(main)
    task.add_done_callback(lambda _: loop.stop())
    while not task.done():
        with contextlib.suppress(KeyboardInterrupt):
            loop.run_forever()
    task.result()
