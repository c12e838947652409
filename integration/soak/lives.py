"""What comes and goes. Each life is a coroutine that leaves nothing behind when it ends, and checks what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import warnings
from typing import TYPE_CHECKING

import notifyloop

from .world import Echo, World, echo_streams, reset, streams

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["LIVES"]

forking = multiprocessing.get_context("fork")


# ---- streams, and all the ways in which they end


async def converse(world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be answered, then end."""
    with streams(writer):
        for _ in range(world.random.randrange(4)):
            data = world.some_bytes()
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
        match world.random.randrange(6):
            case 0:
                writer.close()
                await writer.wait_closed()
            case 1 if writer.can_write_eof():
                writer.write(data := world.some_bytes())
                writer.write_eof()
                assert await reader.read() == data
            case 2 if writer.get_extra_info("socket").family == socket.AF_INET:
                writer.write(world.some_bytes())
                reset(writer.transport)
            case 3:
                writer.write(world.some_bytes())
                writer.transport.abort()
            case 4:  # with something left to be sent, and to be read
                writer.write(world.some_bytes())
                writer.close()
                await writer.wait_closed()
            case _:
                writer.writelines([b"a", bytearray(b"b"), b"c" * 1000])
                assert await reader.readexactly(1002) == b"ab" + b"c" * 1000


async def tcp(world: World) -> None:
    await converse(world, *await asyncio.open_connection(*world.tcp))


async def unix(world: World) -> None:
    await converse(world, *await asyncio.open_unix_connection(world.path))


async def tls(world: World) -> None:
    connection = await asyncio.open_connection(
        *world.tls, ssl=world.client_tls, server_hostname="localhost", ssl_shutdown_timeout=5
    )
    await converse(world, *connection)


async def upgraded(world: World) -> None:
    """TLS that is begun on a connection that has been used without."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with streams(writer):
            assert await reader.readline() == b"hello\n"
            writer.write(b"go on\n")
            await writer.start_tls(world.server_tls)
            await echo_streams(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with streams(writer):
            writer.write(b"hello\n")
            assert await reader.readline() == b"go on\n"
            await writer.start_tls(world.client_tls, server_hostname="localhost")
            await converse(world, reader, writer)
            # The other end must be gone before the server is asked to wait for it.
    await asyncio.sleep(0)


async def cancelled(world: World) -> None:
    """Whatever it is in the midst of."""
    task = asyncio.ensure_future(world.random.choice((tcp, unix, tls, upgraded, sockets, pipes, datagrams))(world))
    await world.while_short()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def refused(world: World) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with contextlib.suppress(ConnectionRefusedError):
            await asyncio.open_connection(*nobody.getsockname())
            raise AssertionError("nobody listens there")


async def crowd(world: World) -> None:
    """Many at once, most of them idle."""
    connections = await asyncio.gather(*[asyncio.open_connection(*world.tcp) for _ in range(60)])
    for reader, writer in connections[::6]:
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
    for _, writer in connections:
        world.random.choice((lambda: reset(writer.transport), writer.transport.abort, writer.close))()  # noqa: B023
    for _, writer in connections:
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# ---- protocols


class Collector(asyncio.Protocol):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.received = 0
        self.wanted = -1
        self.made = 0
        self.lost = asyncio.get_running_loop().create_future()
        self.enough = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made += 1

    def data_received(self, data: bytes) -> None:
        self.note(len(data))

    def note(self, size: int) -> None:
        self.received += size
        if self.received == self.wanted and not self.enough.done():
            self.enough.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)
        if not self.enough.done():
            self.enough.set_result(None)


class BufferedCollector(asyncio.BufferedProtocol, Collector):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(5000)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, size: int) -> None:
        self.note(size)


async def protocols(world: World, kind: type[Collector] = Collector) -> None:
    transport, protocol = await world.loop.create_connection(kind, *world.plain)
    try:
        data = world.some_bytes()
        protocol.wanted = 2 * len(data)
        transport.write(data)
        transport.pause_reading()
        await world.while_short()
        transport.write(data)
        transport.resume_reading()
        await protocol.enough
        assert protocol.received == protocol.wanted
    finally:
        world.random.choice((transport.close, transport.abort))()
    await protocol.lost
    assert protocol.made == 1


async def buffered_protocols(world: World) -> None:
    await protocols(world, BufferedCollector)


async def servers(world: World) -> None:
    """One that comes and goes with its connections, and one that is closed while some come."""
    server = await world.loop.create_server(Echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    made = [await world.loop.create_connection(Collector, *address) for _ in range(world.random.randrange(5))]
    coming = [asyncio.ensure_future(world.loop.create_connection(Collector, *address)) for _ in range(3)]
    await world.while_short()
    server.close()
    for connection in await asyncio.gather(*coming, return_exceptions=True):
        if isinstance(connection, tuple):
            made.append(connection)
        else:
            assert isinstance(connection, (ConnectionError, OSError)), connection
    for transport, protocol in made:
        transport.write(b"bye")
        world.random.choice((transport.close, transport.abort, lambda: reset(transport)))()  # noqa: B023
        await protocol.lost
    await server.wait_closed()


async def given_sockets(world: World) -> None:
    ours, theirs = socket.socketpair()
    transport, protocol = await world.loop.create_connection(Collector, sock=ours)
    with theirs:
        theirs.send(b"hello")
        protocol.wanted = 5
        await protocol.enough
        if world.random.random() < 0.5:
            theirs.close()
        else:
            transport.close()
        await protocol.lost


# ---- datagrams


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.lost, self.answered = loop.create_future(), loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.answered.done():
            self.answered.set_result(data)

    def error_received(self, exc: OSError) -> None:
        assert isinstance(exc, ConnectionRefusedError), exc

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def datagrams(world: World) -> None:
    receiver, received = await world.loop.create_datagram_endpoint(Datagrams, ("127.0.0.1", 0))
    try:
        address = receiver.get_extra_info("sockname")
        sender, sent = await world.loop.create_datagram_endpoint(Datagrams, remote_addr=address)
        try:
            for size in (0, 1, 1000, 60_000):
                sender.sendto(bytes(size))
            assert await received.answered == b""
            if world.random.random() < 0.5:
                receiver.abort()
                await received.lost
                sender.sendto(b"to nobody")
                await asyncio.sleep(0)
                sender.sendto(b"again")
        finally:
            sender.close()
        await sent.lost
    finally:
        receiver.close()
    await received.lost


# ---- sockets of the program's own


async def sockets(world: World) -> None:
    loop = world.loop
    with socket.socket() as listener:
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.socket() as client:
            client.setblocking(False)
            accepting = asyncio.ensure_future(loop.sock_accept(listener))
            try:
                await loop.sock_connect(client, listener.getsockname())
                server, _ = await accepting
            finally:
                accepting.cancel()
            with server:
                data = world.some_bytes()
                sending = asyncio.ensure_future(loop.sock_sendall(client, data))
                try:
                    received, buffer = 0, bytearray(50_000)
                    while received < len(data):
                        count = await loop.sock_recv_into(server, buffer)
                        assert count
                        received += count
                    await sending
                finally:
                    sending.cancel()
                client.shutdown(socket.SHUT_WR)
                assert await loop.sock_recv(server, 1) == b""
                waiting = asyncio.ensure_future(loop.sock_recv(client, 1))
                await asyncio.sleep(0)
                waiting.cancel()


async def watched(world: World) -> None:
    """Readers and writers that are put, put in another's place, and taken away."""
    loop = world.loop
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        for _ in range(world.random.randrange(1, 5)):
            readable, writable = loop.create_future(), loop.create_future()
            loop.add_reader(ours, print)
            loop.add_reader(ours, lambda: readable.done() or readable.set_result(ours.recv(10)))  # noqa: B023
            loop.add_writer(ours, lambda: writable.done() or writable.set_result(None))  # noqa: B023
            try:
                await writable
                loop.remove_writer(ours)
                theirs.send(b"x")
                assert await readable == b"x"
            finally:
                loop.remove_writer(ours)
                loop.remove_reader(ours)


async def files(world: World) -> None:
    transport, protocol = await world.loop.create_connection(Collector, *world.plain)
    try:
        with await asyncio.to_thread(open, __file__, "rb") as file:
            protocol.wanted = await world.loop.sendfile(transport, file)
        protocol.note(0)
        await protocol.enough
    finally:
        transport.abort()
    await protocol.lost


# ---- pipes and children


async def pipes(world: World) -> None:
    loop = world.loop
    reading, writing = os.pipe()
    # From here on the transports close them.
    read_file, write_file = os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
    try:
        receiver, received = await loop.connect_read_pipe(Collector, read_file)
    except BaseException:
        write_file.close()
        raise
    try:
        sender, sent = await loop.connect_write_pipe(Collector, write_file)
        try:
            data = world.some_bytes()
            received.wanted = len(data)
            sender.write(data)
            await received.enough
            assert received.received == len(data)
        finally:
            world.random.choice((sender.close, sender.abort))()
        await sent.lost
    finally:
        receiver.close()
    await received.lost


async def children(world: World) -> None:
    pipe = asyncio.subprocess.PIPE
    match world.random.randrange(3):
        case 0:
            child = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
            data = world.some_bytes()
            output, _ = await child.communicate(data)
            assert output == data
            assert child.returncode == 0
        case 1:
            child = await asyncio.create_subprocess_shell("exit 3")
            assert await child.wait() == 3
        case _:
            child = await asyncio.create_subprocess_exec("sleep", "60", stdin=pipe, stdout=pipe)
            child.kill()
            assert await child.wait() == -signal.SIGKILL
    child._transport.close()  # type: ignore[attr-defined]


async def forks(world: World) -> None:
    """A child beside, which has copies of all descriptors until it ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads
        child = os.fork()
    if not child:
        os._exit(7)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 7


async def life_in_a_child() -> None:
    server = await asyncio.start_server(echo_streams, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with streams(writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
        await asyncio.sleep(0.001)


def run_in_a_child() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(50)
    notifyloop.run(life_in_a_child())


async def loops_in_children(world: World) -> None:
    child = forking.Process(target=run_in_a_child)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child.start()
    await asyncio.to_thread(child.join)
    assert child.exitcode == 0, child.exitcode
    child.close()


# ---- threads, timers, signals, loops


async def threads(world: World) -> None:
    loop = world.loop
    reader, writer = await asyncio.open_connection(*world.tcp)
    with streams(writer):

        def write() -> None:
            for _ in range(50):
                loop.call_soon_threadsafe(writer.write, b"0123456789")
            assert asyncio.run_coroutine_threadsafe(asyncio.sleep(0, 5), loop).result(30) == 5

        writing = threading.Thread(target=write)
        writing.start()
        assert len(await reader.readexactly(500)) == 500
        await asyncio.to_thread(writing.join)


async def timers(world: World) -> None:
    loop = world.loop
    called: list[float] = []
    handles = [loop.call_later(world.random.random() * 0.02, called.append, number) for number in range(200)]
    for handle in handles[::2]:
        handle.cancel()
    far = [loop.call_later(1000, print) for _ in range(200)]
    for handle in far:
        handle.cancel()
    await asyncio.sleep(0.03)
    while len(called) < 100:
        await asyncio.sleep(0.001)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.sleep(10), 0.001)
        raise AssertionError("it was to be short")


async def signals(world: World) -> None:
    async with world.signals:
        told = world.loop.create_future()
        world.loop.add_signal_handler(signal.SIGUSR1, told.set_result, None)
        os.kill(os.getpid(), signal.SIGUSR1)
        await told
        world.loop.remove_signal_handler(signal.SIGUSR1)


async def names(world: World) -> None:
    assert await world.loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    assert await world.loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)


async def debugging(world: World) -> None:
    world.loop.set_debug(True)
    try:
        await tcp(world)
    finally:
        world.loop.set_debug(False)


def live_apart() -> None:
    """A loop is made, used, and closed; one is closed with all that it has."""
    with asyncio.Runner(loop_factory=notifyloop.NotifyLoop) as runner:
        runner.run(life_in_a_child())
    loop = notifyloop.NotifyLoop()
    ours, theirs = socket.socketpair()
    loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=ours))
    with theirs:
        loop.add_reader(theirs, print)
        loop.call_later(1000, print)
        loop.call_soon_threadsafe(print)
        loop.close()


async def loops(world: World) -> None:
    await asyncio.to_thread(live_apart)


OFTEN: list[Callable[[World], Awaitable[None]]] = [
    tcp,
    unix,
    tls,
    upgraded,
    cancelled,
    refused,
    protocols,
    buffered_protocols,
    servers,
    given_sockets,
    datagrams,
    sockets,
    watched,
    files,
    pipes,
    threads,
    timers,
    signals,
    names,
]
SELDOM: list[Callable[[World], Awaitable[None]]] = [crowd, children, forks, loops_in_children, debugging, loops]
LIVES = OFTEN * 3 + SELDOM
