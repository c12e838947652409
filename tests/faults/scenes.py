"""What a loop does for a program, one thing after the other. Each scene is played while one call of the system fails.

A scene may raise what it is told, and leaves nothing behind, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trustme

__all__ = ["SCENES", "Stage", "converse"]

MUCH = 300_000  # bytes: more than a socket or a pipe takes at once


class Stage:
    """A loop, and what somebody was told: exceptions of all kinds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path) -> None:
        self.loop = loop
        self.told: list[BaseException] = []
        self.failed = 0
        self.actors: list[Any] = []
        self.folder = folder
        self.file = folder / "file"
        if not self.file.exists():
            self.file.write_bytes(bytes(MUCH))
        # What the program has made itself before, and gives to the loop.
        self.pair = socket.socketpair()
        for sock in self.pair:
            sock.setblocking(False)
        reading, writing = os.pipe()
        self.pipe = os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
        loop.set_exception_handler(lambda _, context: self.tell(context.get("exception"), context["message"]))

    def close(self) -> None:
        for file in (*self.pair, *self.pipe):
            file.close()

    def tell(self, error: BaseException | None, message: str = "") -> None:
        self.told.append(error or RuntimeError(message))


class Actor(asyncio.Protocol):
    """A protocol of any kind."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.received = 0
        self.arrived = asyncio.Event()
        self.lost: asyncio.Future[None] = stage.loop.create_future()
        self.transport: Any = None
        stage.actors.append(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        for name in ("socket", "sockname", "peername"):
            transport.get_extra_info(name)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self.arrived.set()

    def datagram_received(self, data: bytes, address: object) -> None:
        self.data_received(data or b".")

    def error_received(self, error: OSError) -> None:
        self.stage.tell(error)
        self.arrived.set()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.stage.tell(error)
        self.lost.set_result(None)
        self.arrived.set()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.data_received(data)

    def pipe_connection_lost(self, fd: int, error: Exception | None) -> None:
        if error is not None:
            self.stage.tell(error)

    def process_exited(self) -> None:
        pass

    async def until(self, size: int) -> bool:
        """Wait until so much has arrived. Returns whether it has, or it is over."""
        while self.received < size and not self.lost.done():
            self.arrived.clear()
            await self.arrived.wait()
        return self.received >= size

    async def leave(self) -> None:
        if self.transport is not None:
            self.transport.abort()
            await self.lost


class Echo(Actor):
    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol, Echo):  # type: ignore[misc]
    def __init__(self, stage: Stage) -> None:
        Echo.__init__(self, stage)
        self.buffer = bytearray(50_000)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, size: int) -> None:
        self.transport.write(bytes(self.buffer[:size]))


Made = Awaitable[tuple[Any, Any]]


async def speak(client: Actor) -> None:
    client.transport.write(b"hello")
    await client.until(5)
    client.transport.writelines([b"a", bytes(MUCH)])
    await client.until(5 + 1 + MUCH)
    if client.transport.can_write_eof():
        client.transport.write_eof()
    else:
        client.transport.close()
    await client.lost


async def converse(
    stage: Stage, serve: Callable[[Any], Awaitable[Any]], connect: Callable[[Any, Any], Made], kind: type[Actor] = Echo
) -> None:
    """Listen, connect, speak, and end."""
    server = await serve(lambda: kind(stage))
    try:
        _, client = await connect(lambda: Actor(stage), server.sockets[0].getsockname())
        await speak(client)
    finally:
        with contextlib.ExitStack() as stack:
            stack.callback(server.close)
        for actor in stage.actors:
            await actor.leave()
        await server.wait_closed()


async def tcp(stage: Stage, kind: type[Actor] = Echo, **secrets: Any) -> None:
    loop = stage.loop
    client = {"ssl": secrets["client"], "server_hostname": "localhost"} if secrets else {}
    await converse(
        stage,
        lambda factory: loop.create_server(factory, "127.0.0.1", 0, ssl=secrets.get("server")),
        lambda factory, address: loop.create_connection(factory, *address, **client),
        kind,
    )


async def buffered(stage: Stage) -> None:
    await tcp(stage, BufferedEcho)


async def tls(stage: Stage) -> None:
    await tcp(stage, **SECRETS)


async def unix(stage: Stage) -> None:
    loop, path = stage.loop, str(stage.folder / "socket")
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    await converse(
        stage,
        lambda factory: loop.create_unix_server(factory, path),
        lambda factory, _: loop.create_unix_connection(factory, path),
    )


async def accepted(stage: Stage) -> None:
    """A connection that somebody else has accepted."""
    try:
        await stage.loop.connect_accepted_socket(lambda: Echo(stage), stage.pair[0])
        await stage.loop.sock_sendall(stage.pair[1], b"hello")
        answer = b""
        while len(answer) < 5 and not stage.actors[0].lost.done():
            answer += await stage.loop.sock_recv(stage.pair[1], 10)
    finally:
        for actor in stage.actors:
            await actor.leave()


async def udp(stage: Stage) -> None:
    loop = stage.loop
    try:
        receiver, received = await loop.create_datagram_endpoint(lambda: Actor(stage), ("127.0.0.1", 0))
        address = receiver.get_extra_info("sockname")
        if address is None:
            return
        sender, _ = await loop.create_datagram_endpoint(lambda: Actor(stage), remote_addr=address)
        sender.sendto(b"one")
        free, _ = await loop.create_datagram_endpoint(lambda: Actor(stage), family=socket.AF_INET)
        free.sendto(b"two", address)
        while received.received < 6 and not stage.told:
            received.arrived.clear()
            await received.arrived.wait()
        for transport in (sender, free, receiver):
            transport.close()
        for actor in stage.actors:
            await actor.lost
    finally:
        for actor in stage.actors:
            await actor.leave()


async def sockets(stage: Stage) -> None:
    loop = stage.loop
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = stack.enter_context(socket.socket())
        client.setblocking(False)
        await loop.sock_connect(client, listener.getsockname())
        server = stack.enter_context((await loop.sock_accept(listener))[0])
        sending = asyncio.ensure_future(loop.sock_sendall(client, bytes(MUCH)))
        sending.add_done_callback(lambda _: sending.cancelled() or (sending.exception() and client.close()))
        try:
            received = 0
            while received < MUCH and (data := await loop.sock_recv(server, 100_000)):
                received += len(data)
            await sending
        finally:
            sending.cancel()
            await asyncio.wait([sending])
        waiting = asyncio.ensure_future(loop.sock_recv_into(client, bytearray(10)))
        await asyncio.sleep(0)
        server.send(b"x")
        assert await waiting == 1


async def datagram_sockets(stage: Stage) -> None:
    loop = stage.loop
    with socket.socket(type=socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        receiver.setblocking(False)
        sender.setblocking(False)
        receiver.bind(("127.0.0.1", 0))
        receiving = asyncio.ensure_future(loop.sock_recvfrom(receiver, 10))
        try:
            await asyncio.sleep(0)
            await loop.sock_sendto(sender, b"x", receiver.getsockname())
            assert (await receiving)[0] == b"x"
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])


async def files(stage: Stage) -> None:
    loop, theirs = stage.loop, stage.pair[1]
    transport, actor = await loop.create_connection(lambda: Actor(stage), sock=stage.pair[0])
    try:
        with stage.file.open("rb") as file:
            sending = asyncio.ensure_future(loop.sendfile(transport, file))
            sending.add_done_callback(lambda _: transport.close())
            received = 0
            while data := await loop.sock_recv(theirs, 100_000):
                received += len(data)
            assert await sending == MUCH == received
    finally:
        await actor.leave()


async def pipes(stage: Stage) -> None:
    loop = stage.loop
    read_file, write_file = stage.pipe
    try:
        _, received = await loop.connect_read_pipe(lambda: Actor(stage), read_file)
        sender, sent = await loop.connect_write_pipe(lambda: Actor(stage), write_file)
        sender.write(bytes(MUCH))
        while received.received < MUCH and not received.lost.done() and not sent.lost.done():
            received.arrived.clear()
            sent.arrived.clear()
            either = [asyncio.ensure_future(actor.arrived.wait()) for actor in (received, sent)]
            _, waiting = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
        sender.close()
        await sent.lost
        await received.lost
    finally:
        for actor in stage.actors:
            if actor.transport is not None:
                actor.transport.close() if not hasattr(actor.transport, "abort") else actor.transport.abort()
                await actor.lost


async def child(stage: Stage) -> None:
    """One that is spoken to, and one that is killed."""
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1, stderr=-1)
    try:
        output, _ = await process.communicate(b"hello")
        if output != b"hello":
            stage.tell(RuntimeError(f"the child has said {output!r}, and ended with {process.returncode}"))
    finally:
        await end(process)
    process = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        process.kill()
        await process.wait()
    finally:
        await end(process)


async def end(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError, OSError):
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
    process._transport.close()
    await process.wait()
    process._transport.close()


async def signals(stage: Stage) -> None:
    """As in a loop that had no handlers before."""
    loop: Any = stage.loop
    received = asyncio.Event()
    try:
        loop.add_signal_handler(signal.SIGUSR1, received.set)
        for _ in range(2):
            received.clear()
            os.kill(os.getpid(), signal.SIGUSR1)
            while not received.is_set() and not stage.told:
                await asyncio.sleep(0.0001)
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
        if hasattr(loop, "_turn"):
            loop._close_self_pipe()


def make_secrets() -> dict[str, Any]:
    import ssl  # noqa: PLC0415

    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return {"server": server, "client": client}


SECRETS = make_secrets()
SCENES = {
    scene.__name__: scene
    for scene in (tcp, buffered, unix, tls, accepted, udp, sockets, datagram_sockets, files, pipes, child, signals)
}
