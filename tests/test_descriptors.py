"""Descriptors that are closed while the loop watches them, and numbers that are another file's by then."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    import notifyloop

Loop = asyncio.AbstractEventLoop
Pair = tuple[socket.socket, socket.socket]


def run(loop: Loop, main: Coroutine[Any, Any, None]) -> None:
    loop.run_until_complete(asyncio.wait_for(main, 30))


def nothing() -> None:
    """A callback."""


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


class TestRemoving:
    """What is known by an object is found by it also when it has lost its descriptor."""

    def test_a_closed_socket(self, loop: Loop, pair: Pair) -> None:
        ours, _ = pair
        loop.add_reader(ours, nothing)
        ours.close()
        assert loop.remove_reader(ours) in (True, None)  # None: uvloop's

    def test_both_callbacks_of_a_closed_socket(self, notify_loop: notifyloop.NotifyLoop, pair: Pair) -> None:
        """asyncio raises that the descriptor is bad, for the second is to stay."""
        ours, _ = pair
        notify_loop.add_reader(ours, nothing)
        notify_loop.add_writer(ours, nothing)
        ours.close()
        assert notify_loop.remove_writer(ours) is True
        assert notify_loop.remove_writer(ours) is False
        assert notify_loop.remove_reader(ours) is True
        assert notify_loop.remove_reader(ours) is False

    def test_a_closed_socket_that_was_known_by_its_number(self, notify_loop: notifyloop.NotifyLoop, pair: Pair) -> None:
        """asyncio raises ValueError for the object."""
        ours, _ = pair
        number = ours.fileno()
        notify_loop.add_reader(number, nothing)
        ours.close()
        assert notify_loop.remove_reader(ours) is False
        assert notify_loop.remove_reader(number) is True
        assert notify_loop.remove_reader(number) is False

    @pytest.mark.never("windows", reason="only sockets can be watched there")
    def test_a_closed_file(self, notify_loop: notifyloop.NotifyLoop) -> None:
        """asyncio raises ValueError, for such an object does not tell a number any more."""
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb", 0) as file, os.fdopen(write_end, "wb", 0):
            notify_loop.add_reader(file, nothing)
        assert notify_loop.remove_reader(file) is True
        assert notify_loop.remove_reader(file) is False

    def test_what_never_was_a_file(self, loop: Loop) -> None:
        for nonsense in (-1, "text", None, object()):
            with pytest.raises((ValueError, TypeError)):
                loop.remove_reader(nonsense)  # type: ignore[arg-type]
            with pytest.raises((ValueError, TypeError)):
                loop.add_writer(nonsense, nothing)  # type: ignore[arg-type]

    def test_a_closed_socket_cannot_be_watched(self, loop: Loop, pair: Pair) -> None:
        ours, _ = pair
        ours.close()
        with pytest.raises(ValueError, match="-1"):
            loop.add_reader(ours, nothing)

    @pytest.mark.never("windows", reason="Windows does not give out the smallest number that is free")
    def test_the_next_with_its_number_stays(self, notify_loop: notifyloop.NotifyLoop, pair: Pair) -> None:
        ours, _ = pair
        notify_loop.add_reader(ours, nothing)
        number = ours.fileno()
        ours.close()
        left, right = socket.socketpair()

        async def main() -> None:
            readable = asyncio.Event()
            notify_loop.add_reader(left, readable.set)
            assert notify_loop.remove_reader(ours) is False
            right.send(b"x")
            await readable.wait()
            assert notify_loop.remove_reader(left) is True

        with left, right:
            assert left.fileno() == number
            run(notify_loop, main())


def close(ours: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Close it, and make the next with its number."""
    number = ours.fileno()
    ours.close()
    left, right = socket.socketpair()
    assert left.fileno() == number
    return left, right


def close_one_of_two(ours: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Which the kernel goes on to report."""
    duplicates.append(ours.dup())
    return close(ours)


def put_another_over_it(ours: socket.socket) -> tuple[socket.socket, socket.socket]:
    left, right = socket.socketpair()
    number = ours.detach()
    os.dup2(left.fileno(), number)
    left.close()
    return socket.socket(fileno=number), right


duplicates: list[socket.socket] = []


@pytest.fixture(params=[close, close_one_of_two, put_another_over_it])
def replace(request: pytest.FixtureRequest) -> Iterator[Callable[[socket.socket], Pair]]:
    yield request.param
    while duplicates:
        duplicates.pop().close()


@pytest.fixture(params=["reader", "writer", "both", "reader of the object"])
def watch(request: pytest.FixtureRequest) -> Callable[[Loop, socket.socket], None]:
    """Watch a socket, which nobody will take back."""

    def watch(loop: Loop, sock: socket.socket) -> None:
        if request.param != "writer":
            loop.add_reader(sock if "object" in request.param else sock.fileno(), sock.fileno)
        if request.param in ("writer", "both"):
            loop.add_writer(sock.fileno(), sock.fileno)

    return watch


@pytest.mark.never("windows", reason="Windows does not give out the smallest number that is free")
class TestAnotherFileWithTheSameNumber:
    """asyncio takes it for the one that is watched, and so does uvloop 0.23.0: nothing is told of it."""

    @pytest.fixture
    def sockets(
        self,
        notify_loop: notifyloop.NotifyLoop,
        watch: Callable[[Loop, socket.socket], None],
        replace: Callable[[socket.socket], Pair],
    ) -> Iterator[Pair]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        watch(notify_loop, ours)
        notify_loop.run_until_complete(asyncio.sleep(0))  # the port knows of it
        left, right = replace(ours)
        with theirs, left, right:
            left.setblocking(False)
            yield left, right

    def test_has_its_own_reader(self, notify_loop: notifyloop.NotifyLoop, sockets: Pair) -> None:
        left, right = sockets

        async def main() -> None:
            readable = asyncio.Event()
            notify_loop.add_reader(left.fileno(), readable.set)
            right.send(b"x")
            await readable.wait()
            assert notify_loop.remove_reader(left.fileno())
            assert not notify_loop.remove_writer(left.fileno())

        run(notify_loop, main())

    def test_has_its_own_writer(self, notify_loop: notifyloop.NotifyLoop, sockets: Pair) -> None:
        left, _ = sockets

        async def main() -> None:
            writable = asyncio.Event()
            notify_loop.add_writer(left.fileno(), writable.set)
            await writable.wait()
            assert notify_loop.remove_writer(left.fileno())
            assert not notify_loop.remove_reader(left.fileno())

        run(notify_loop, main())

    def test_receives(self, notify_loop: notifyloop.NotifyLoop, sockets: Pair) -> None:
        left, right = sockets

        async def main() -> None:
            receiving = notify_loop.create_task(notify_loop.sock_recv(left, 10))
            await asyncio.sleep(0)
            right.send(b"x")
            assert await receiving == b"x"

        run(notify_loop, main())

    def test_sends(self, notify_loop: notifyloop.NotifyLoop, sockets: Pair) -> None:
        left, right = sockets
        data = bytes(1_000_000)

        async def main() -> None:
            sending = notify_loop.create_task(notify_loop.sock_sendall(left, data))
            await asyncio.sleep(0)
            assert not sending.done()
            received = 0
            while received < len(data):
                received += len(await notify_loop.run_in_executor(None, right.recv, 1 << 20))
            await sending

        run(notify_loop, main())

    def test_has_a_transport(self, notify_loop: notifyloop.NotifyLoop, sockets: Pair) -> None:
        left, right = sockets

        async def main() -> None:
            reader, writer = await asyncio.open_connection(sock=left)
            right.send(b"request")
            assert await reader.readexactly(7) == b"request"
            writer.write(bytes(1_000_000))
            received = 0
            while received < 1_000_000:
                received += len(await notify_loop.run_in_executor(None, right.recv, 1 << 20))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        run(notify_loop, main())


@pytest.mark.parametrize("direction", ["reader", "writer"])
def test_the_same_file_keeps_its_other_callback(loop: Loop, pair: Pair, direction: str) -> None:
    """Whoever looks whether it is another file must not take that away."""
    ours, theirs = pair
    called = asyncio.Event()
    duplicate = ours.dup()
    for sock in (ours, ours, duplicate):
        getattr(loop, f"add_{direction}")(sock.fileno(), nothing)
    theirs.send(b"x")

    async def main() -> None:
        for _ in range(2):
            loop.add_reader(ours.fileno(), called.set)
            await called.wait()
            called.clear()
            loop.add_writer(ours.fileno(), called.set)
            await called.wait()
            loop.remove_writer(ours.fileno())
            called.clear()
            await called.wait()  # the reader's

    run(loop, main())
    for sock in (ours, duplicate):
        loop.remove_reader(sock.fileno())
        loop.remove_writer(sock.fileno())
    duplicate.close()
