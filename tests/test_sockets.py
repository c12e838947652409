"""The `sock_*` coroutines, on every loop where it has the feature."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import notifyloop
from notifyloop.port.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path


Loop = asyncio.AbstractEventLoop
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def run(loop: Loop, main: Coroutine[Any, Any, None]) -> None:
    loop.run_until_complete(asyncio.wait_for(main, 30))


async def waiting(loop: Loop, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has got as far as it comes by itself."""
    task = loop.create_task(coroutine)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    return task


def test_messages_there_and_back(loop: Loop, pair: Pair) -> None:
    """Short reads, full reads, and reads that find something at once."""
    ours, theirs = pair

    async def main() -> None:
        for number in range(50):
            receiving = await waiting(loop, loop.sock_recv(ours, 100))
            await loop.sock_sendall(theirs, b"%d" % number)
            assert await receiving == b"%d" % number
        await loop.sock_sendall(theirs, bytes(250))
        assert [len(await loop.sock_recv(ours, 100)) for _ in range(3)] == [100, 100, 50]
        await loop.sock_sendall(theirs, b"there before anybody asks")
        assert await loop.sock_recv(ours, 100) == b"there before anybody asks"
        theirs.close()
        assert await loop.sock_recv(ours, 100) == b""
        assert await loop.sock_recv(ours, 100) == b""

    run(loop, main())


def test_both_directions_at_once(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    data = bytes(range(256)) * 8192

    async def receive_all(sock: socket.socket) -> bytes:
        received = bytearray()
        while len(received) < len(data):
            received += await loop.sock_recv(sock, 65536)
        return bytes(received)

    async def main() -> None:
        results = await asyncio.gather(
            loop.sock_sendall(ours, data), loop.sock_sendall(theirs, data), receive_all(ours), receive_all(theirs)
        )
        assert results[2:] == [data, data]

    run(loop, main())


def test_nothing_is_lost_by_cancelling(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> None:
        for _ in range(10):
            receiving = await waiting(loop, loop.sock_recv(ours, 100))
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receiving
        theirs.send(b"still there")
        assert await loop.sock_recv(ours, 100) == b"still there"

    run(loop, main())


@pytest.mark.differs(asyncio="3.13.0", reason="forgets the coroutine, which waits for ever", run=False)
def test_a_socket_that_is_closed_meanwhile(loop: Loop, pair: Pair) -> None:
    """It stays open below until the coroutine is done."""
    ours, theirs = pair

    async def main() -> None:
        receiving = await waiting(loop, loop.sock_recv(ours, 100))
        ours.close()
        theirs.send(b"in time")
        assert await receiving == b"in time"
        assert ours.fileno() == -1

    run(loop, main())


def test_closing_the_loop_closes_what_was_only_waited_for(notify_loop: notifyloop.NotifyLoop, pair: Pair) -> None:
    ours, _ = pair

    async def main() -> None:
        await waiting(notify_loop, notify_loop.sock_recv(ours, 100))
        ours.close()
        assert ours.fileno() != -1

    run(notify_loop, main())
    notify_loop.close()
    assert ours.fileno() == -1


@pytest.mark.never("windows", reason="Windows does not give out the smallest number that is free")
def test_the_next_socket_with_the_same_number(loop: Loop, pair: Pair) -> None:
    """Its predecessor's registration rests with the port when it comes."""
    ours, theirs = pair

    async def echo(left: socket.socket, right: socket.socket) -> None:
        receiving = await waiting(loop, loop.sock_recv(left, 100))
        right.send(b"x")
        assert await receiving == b"x"

    async def main() -> None:
        await echo(ours, theirs)
        number = ours.fileno()
        ours.close()
        for _ in range(3):
            left, right = socket.socketpair()
            with left, right:
                assert left.fileno() == number
                left.setblocking(False)
                await echo(left, right)
        descriptor = socket.socketpair()
        with descriptor[0], descriptor[1]:
            readable = asyncio.Event()
            loop.add_reader(descriptor[0].fileno(), readable.set)
            descriptor[1].send(b"x")
            await readable.wait()
            loop.remove_reader(descriptor[0].fileno())

    run(loop, main())


def test_the_same_file_in_another_socket_object(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> None:
        receiving = await waiting(loop, loop.sock_recv(ours, 100))
        theirs.send(b"first")
        assert await receiving == b"first"
        with socket.socket(fileno=ours.detach()) as again:
            receiving = await waiting(loop, loop.sock_recv(again, 100))
            theirs.send(b"second")
            assert await receiving == b"second"

    run(loop, main())


def test_sockets_are_not_kept_alive(notify_loop: notifyloop.NotifyLoop) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def main(sock: socket.socket) -> None:
        receiving = await waiting(notify_loop, notify_loop.sock_recv(sock, 100))
        theirs.send(b"x")
        await receiving

    run(notify_loop, main(ours))
    ours.close()
    theirs.close()
    gone = weakref.ref(ours)
    del ours
    gc.collect()
    assert gone() is None


class Acting:
    """Acts as a socket, and is none: what OpenSSL's, ZeroMQ's or a test's sockets are to a loop."""

    __slots__ = ("_sock",)  # so it cannot be referred to weakly

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, data: Any) -> int:  # takes no flags
        return self._sock.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_what_acts_as_a_socket(loop: Loop, pair: Pair) -> None:
    ours, theirs = (Acting(sock) for sock in pair)

    async def main() -> None:
        data = bytes(1_000_000)
        for _ in range(2):
            receiving = await waiting(loop, loop.sock_recv(ours, 100))  # type: ignore[arg-type]
            await loop.sock_sendall(theirs, b"x")  # type: ignore[arg-type]
            assert await receiving == b"x"
            sending = loop.create_task(loop.sock_sendall(ours, data))  # type: ignore[arg-type]
            received = 0
            while received < len(data):
                received += len(await loop.sock_recv(theirs, 100_000))  # type: ignore[arg-type]
            await sending

    run(loop, main())


def test_while_something_else_stands_for_the_class_of_sockets(
    loop: Loop, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncssh's tests put a function in its place."""
    ours, theirs = pair
    true = socket.socket
    monkeypatch.setattr(socket, "socket", lambda *args, **options: true(*args, **options))

    async def main() -> None:
        receiving = await waiting(loop, loop.sock_recv(ours, 100))
        await loop.sock_sendall(theirs, b"x")
        assert await receiving == b"x"
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        connection, _ = true.accept(listener)
        connection.send(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()
        await writer.wait_closed()
        connection.close()
        listener.close()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
        transport.close()
        await asyncio.sleep(0)

    run(loop, main())


def test_no_registration_traffic_in_the_steady_state(notify_loop: notifyloop.NotifyLoop, pair: Pair) -> None:
    """No call of the port only registers or removes. What a blocked read was told of is reported twice, for its task
    reads it a turn later.
    """
    ours, theirs = pair

    async def rounds(number: int) -> None:
        for _ in range(number):
            receiving = await waiting(notify_loop, notify_loop.sock_recv(ours, 100))
            theirs.send(b"x")
            await receiving

    async def main() -> None:
        await rounds(5)
        before = notify_loop.statistics()
        await rounds(100)
        after = notify_loop.statistics()
        assert after.registrations == before.registrations
        assert after.foreign_calls - before.foreign_calls == after.waits - before.waits
        assert after.re_arms - before.re_arms <= 201

    run(notify_loop, main())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems queue or refuse")
def test_a_unix_socket_with_a_full_queue(notify_loop: notifyloop.NotifyLoop, tmp_path: Path) -> None:
    """The connection has not begun: asyncio returns as if it were made."""
    path = str(tmp_path / "socket")

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(0)
            connected = []
            try:
                with pytest.raises(BlockingIOError):
                    while len(connected) < 10:
                        connected.append(socket.socket(socket.AF_UNIX))
                        connected[-1].setblocking(False)
                        await notify_loop.sock_connect(connected[-1], path)
            finally:
                for sock in connected:
                    sock.close()

    run(notify_loop, main())


@pytest.mark.only("unix sockets", reason="this Python has no Unix sockets")
def test_a_unix_socket_that_is_connected_while_it_is_watched(loop: Loop, tmp_path: Path) -> None:
    """Linux tells nobody. Until then it is called writable, and is not readable."""
    path = str(tmp_path / "socket")

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as sock:
            listener.bind(path)
            listener.listen()
            sock.setblocking(False)
            writable = asyncio.Event()
            loop.add_writer(sock, writable.set)
            await writable.wait()
            sock.connect(path)
            await asyncio.sleep(0)
            writable.clear()
            await writable.wait()
            loop.remove_writer(sock)

    run(loop, main())


def test_a_refused_connection_names_the_address(loop: Loop) -> None:
    async def main() -> None:
        with socket.socket() as nobody, socket.socket() as sock:
            nobody.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                await loop.sock_connect(sock, nobody.getsockname())

    run(loop, main())


def test_accept_and_connect(loop: Loop) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            listener.setblocking(False)
            client.setblocking(False)
            accepting = await waiting(loop, loop.sock_accept(listener))
            await loop.sock_connect(client, ("127.0.0.1", listener.getsockname()[1]))
            server, address = await accepting
            with server:
                assert server.gettimeout() == 0
                assert address == client.getsockname()

    run(loop, main())


def test_what_arrives_while_nobody_waits_wakes_the_loop_once(notify_loop: notifyloop.NotifyLoop) -> None:
    """The registration is still armed after the last wait, and is disarmed when that shows to be in vain."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, notifyloop.NotifyLoop)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            receiving = asyncio.create_task(loop.sock_recv(ours, 100))
            await asyncio.sleep(0)
            theirs.send(b"first")
            assert await receiving == b"first"
            theirs.send(b"second")
            before = loop.statistics()
            for _ in range(5):
                await asyncio.sleep(0.001)  # a wait
            after = loop.statistics()
            assert after.waits >= before.waits + 5
            assert after.notifications <= before.notifications + 1
            assert ours.fileno() not in loop._selector.get_map()
            assert not loop.remove_reader(ours)
            assert await loop.sock_recv(ours, 100) == b"second"

    notify_loop.run_until_complete(main())


def test_waiting_again_and_again_makes_and_orders_nothing(notify_loop: notifyloop.NotifyLoop) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, notifyloop.NotifyLoop)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            waits: set[int] = set()
            for _ in range(10):
                receiving = asyncio.create_task(loop.sock_recv(ours, 100))
                await asyncio.sleep(0)
                waits.add(id(loop._turn.interests.by_descriptor[ours.fileno()].reader))
                theirs.send(b"x")
                assert await receiving == b"x"
            assert len(waits) == 1

    notify_loop.run_until_complete(main())


@pytest.mark.asyncio
async def test_a_wait_that_is_cancelled_when_its_socket_is_ready() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        for turns in range(4):
            receiving = asyncio.create_task(loop.sock_recv(ours, 100))
            await asyncio.sleep(0)
            theirs.send(b"x")
            for _ in range(turns):
                await asyncio.sleep(0)
            if receiving.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await receiving
                theirs.send(b"y")  # asyncio may have received x already, and loses it
                assert await loop.sock_recv(ours, 100) in (b"y", b"xy")
            else:
                assert await receiving == b"x"


@pytest.mark.never("windows", reason="a socket is no descriptor there")
def test_a_socket_that_another_is_put_over(loop: Loop, pair: Pair) -> None:
    """Between two reads, as daemons and proxies do: what the number stands for now is waited for."""
    ours, theirs = pair
    other, peer = socket.socketpair()
    other.setblocking(False)

    async def main() -> None:
        receiving = await waiting(loop, loop.sock_recv(ours, 100))
        theirs.send(b"one")
        assert await receiving == b"one"
        os.dup2(other.fileno(), ours.fileno())
        receiving = await waiting(loop, loop.sock_recv(ours, 100))
        peer.send(b"two")
        assert await receiving == b"two"

    with other, peer:
        run(loop, main())


@pytest.mark.never("windows", reason="the kernel's memory is no such thing there")
def test_what_cannot_be_watched_is_told(notify_loop: notifyloop.NotifyLoop, pair: Pair) -> None:
    """The order fails with the wait that it goes with, which does not wait then."""
    ours, _ = pair
    interests = notify_loop._turn.interests

    class Refusing(Batch):
        def turn(self, packed: bytes | None, timeout: int) -> tuple[int, ...]:
            interest = interests.by_descriptor.get(ours.fileno())
            if packed and interest is not None and interest.events:
                self.failures.append((0, interest.key, errno.ENOSPC))
                return ()
            return super().turn(packed, timeout)

    async def main() -> None:
        with pytest.raises(OSError, match="cannot ENABLE the registration") as raised:
            await notify_loop.sock_recv(ours, 100)
        assert raised.value.errno == errno.ENOSPC
        lost = notify_loop.create_future()

        class Losing(asyncio.Protocol):
            def connection_lost(self, error: Exception | None) -> None:
                lost.set_result(error)

        reported = []
        notify_loop.set_exception_handler(lambda loop, context: reported.append(context["message"]))
        await notify_loop.create_connection(Losing, sock=ours)
        assert (await lost).errno == errno.ENOSPC
        assert reported == ["The socket of a transport cannot be watched"]

    interests._batch = Refusing(interests.port._handle, 64)
    run(notify_loop, main())
