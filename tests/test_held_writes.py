"""Where many callbacks of one turn write: nothing is lost, nothing comes out of order, and nothing waits for long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from notifyloop import loop as loop_module
from notifyloop.transports import stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Any

    import notifyloop

    Ends = list[tuple[Any, socket.socket]]  # a transport, and its peer

COUNT = 2 * loop_module.MANY
OURS = pytest.mark.asyncio(loop_factories=["notifyloop"])


@pytest.fixture
def peers() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    pairs = [socket.socketpair() for _ in range(COUNT)]
    yield pairs
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


@pytest.fixture
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: what is held stays held until the turn ends."""
    monkeypatch.setattr(stream, "monotonic", lambda: 0.0)


async def connect(pairs: list[tuple[socket.socket, socket.socket]]) -> Ends:
    loop = asyncio.get_running_loop()
    ends = []
    for ours, theirs in pairs:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        theirs.setblocking(False)
        ends.append((transport, theirs))
    return ends


async def abort(ends: Ends) -> None:
    for transport, _ in ends:
        transport.abort()
    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def connected(pairs: list[tuple[socket.socket, socket.socket]]) -> AsyncIterator[Ends]:
    ends = await connect(pairs)
    yield ends
    await abort(ends)


async def in_one_turn(callbacks: list[Callable[[], object]]) -> None:
    """The first comes before all others, and the others while what many have written is held."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for callback in callbacks:
        asyncio.get_running_loop().call_soon(callback)
    asyncio.get_running_loop().call_soon(done.set_result, None)
    await done


def arrived(peer: socket.socket) -> bytes | None:
    """What has, without waiting. None: nothing."""
    try:
        return peer.recv(100_000)
    except BlockingIOError:
        return None


async def received(peer: socket.socket, size: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size and (more := await loop.sock_recv(peer, size - len(data))):
        data += more
    return data


def write_twice(transport: Any) -> bytes:
    transport.write(b"first ")
    transport.write(b"second")
    return b"first second"


def write_nothing_first(transport: Any) -> bytes:
    transport.write(b"")
    transport.write(b"something")
    return b"something"


def write_lines(transport: Any) -> bytes:
    transport.write(b"head ")
    transport.writelines([b"some ", bytearray(b"lines "), b"more"])
    transport.write(memoryview(b" tail"))
    return b"head some lines more tail"


def write_much(transport: Any) -> bytes:
    transport.write(b"little ")
    transport.write(b"much" * 50_000)
    return b"little " + b"much" * 50_000


def write_and_close(transport: Any) -> bytes:
    transport.write(b"the last")
    transport.close()
    return b"the last"


def write_and_end(transport: Any) -> bytes:
    transport.write(b"the end")
    transport.write_eof()
    return b"the end"


@pytest.mark.asyncio
async def test_all_arrives_in_order(peers: list[tuple[socket.socket, socket.socket]]) -> None:
    kinds = [write_twice, write_nothing_first, write_lines, write_much, write_and_close, write_and_end]
    async with connected(peers) as ends:
        expected: list[bytes] = []

        def write(index: int) -> None:
            expected.append(kinds[index % len(kinds)](ends[index][0]))

        await in_one_turn([lambda index=index: write(index) for index in range(COUNT)])  # type: ignore[misc]
        for (_, peer), data in zip(ends, expected, strict=True):
            assert await received(peer, len(data)) == data


@OURS
@pytest.mark.usefixtures("no_time_passes")
async def test_what_is_held_is_sent_when_all_have_run(peers: list[tuple[socket.socket, socket.socket]]) -> None:
    async with connected(peers) as ends:
        sizes: list[int] = []
        early: list[bytes | None] = []

        def write(transport: Any, peer: socket.socket) -> None:
            transport.write(b"data")
            sizes.append(transport.get_write_buffer_size())
            early.append(arrived(peer))

        await in_one_turn([lambda end=end: write(*end) for end in ends])  # type: ignore[misc]
        assert sizes == [4] * COUNT
        assert early == [None] * COUNT
        await asyncio.sleep(0)
        assert [transport.get_write_buffer_size() for transport, _ in ends] == [0] * COUNT
        assert [arrived(peer) for _, peer in ends] == [b"data"] * COUNT


@OURS
@pytest.mark.parametrize("kind", ["few", "large", "watermark"])
async def test_what_is_not_held(peers: list[tuple[socket.socket, socket.socket]], kind: str) -> None:
    """Where it would gain nothing, or a protocol wants to hear of all that is not sent at once."""
    async with connected(peers) as ends:
        writing = ends if kind != "few" else ends[: loop_module.MANY - 2]  # one more callback sets the future
        size = stream.MOST_HELD + (kind == "large")
        early: list[int] = []

        def write(transport: Any, peer: socket.socket) -> None:
            if kind == "watermark":
                transport.set_write_buffer_limits(high=0)
            transport.write(b"x" * size)
            early.append(len(arrived(peer) or b""))

        await in_one_turn([lambda end=end: write(*end) for end in writing])  # type: ignore[misc]
        assert early == [size] * len(writing)


@OURS
@pytest.mark.usefixtures("no_time_passes")
async def test_what_is_aborted_is_not_sent(peers: list[tuple[socket.socket, socket.socket]]) -> None:
    async with connected(peers) as ends:

        def write(transport: Any) -> None:
            transport.write(b"never mind")
            transport.abort()

        await in_one_turn([lambda end=end: write(end[0]) for end in ends])  # type: ignore[misc]
        for _ in range(2):
            await asyncio.sleep(0)
        assert [arrived(peer) for _, peer in ends] == [b""] * COUNT


@OURS
async def test_after_a_while_all_is_sent(
    peers: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn may be long. When its time is over, who writes next sends for the others, too."""
    async with connected(peers) as ends:
        clock = [0.0]
        monkeypatch.setattr(stream, "monotonic", lambda: clock[0])
        early: list[list[bytes | None]] = []

        def write(index: int) -> None:
            if index == 3:
                clock[0] = float("inf")
            ends[index][0].write(b"data")
            early.append([arrived(peer) for _, peer in ends[: index + 1]])

        await in_one_turn([lambda index=index: write(index) for index in range(COUNT)])  # type: ignore[misc]
        assert early[:3] == [[None] * (index + 1) for index in range(3)]
        assert early[3] == [b"data"] * 4
        assert [each[-1] for each in early[4:]] == [b"data"] * (COUNT - 4)


@pytest.mark.asyncio
async def test_a_peer_that_is_gone(peers: list[tuple[socket.socket, socket.socket]]) -> None:
    """One bad connection does not harm the others."""
    async with connected(peers) as ends:
        ends[1][1].close()

        def write(transport: Any) -> None:
            for _ in range(2):
                transport.write(b"data")

        await in_one_turn([lambda end=end: write(end[0]) for end in ends])  # type: ignore[misc]
        for index, (_, peer) in enumerate(ends):
            if index != 1:
                assert await received(peer, 8) == b"datadata"


@OURS
async def test_what_does_not_fit(peers: list[tuple[socket.socket, socket.socket]]) -> None:
    """A socket that is full takes the rest of what was held when there is room."""
    async with connected(peers) as ends:
        transport, peer = ends[0]
        sock = peers[0][0]
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += sock.send(b"x" * 10_000)
        await in_one_turn([lambda end=end: end[0].write(b"data") for end in ends])  # type: ignore[misc]
        await asyncio.sleep(0)
        assert transport.get_write_buffer_size() == 4
        assert await received(peer, filled + 4) == b"x" * filled + b"data"
        while transport.get_write_buffer_size():
            await asyncio.sleep(0)


def test_what_was_held_when_the_program_ends(
    loop: asyncio.AbstractEventLoop, peers: list[tuple[socket.socket, socket.socket]]
) -> None:
    """What is written is sent, even if another callback of the turn ends the loop."""
    if type(loop).__module__ == "uvloop":
        pytest.skip("uvloop sends it when it runs again")
    ends = loop.run_until_complete(connect(peers))

    def leave() -> None:
        raise SystemExit

    for transport, _ in ends:
        loop.call_soon(transport.write, b"data")
    loop.call_soon(leave)
    with pytest.raises(SystemExit):
        loop.run_forever()
    assert [arrived(peer) for _, peer in ends] == [b"data"] * COUNT
    loop.run_until_complete(abort(ends))


@pytest.mark.usefixtures("no_time_passes")
def test_an_interrupt_while_it_is_sent(
    notify_loop: notifyloop.NotifyLoop,
    peers: list[tuple[socket.socket, socket.socket]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It costs no more than the one write that it interrupts."""
    ends = notify_loop.run_until_complete(connect(peers))
    send, sent = stream.send, []

    def interrupted(*arguments: Any) -> int:
        sent.append(arguments)
        if len(sent) == 2:
            raise KeyboardInterrupt
        return send(*arguments)

    monkeypatch.setattr(stream, "send", interrupted)
    for transport, _ in ends:
        notify_loop.call_soon(transport.write, b"data")
    with pytest.raises(KeyboardInterrupt):
        notify_loop.run_forever()
    notify_loop.run_until_complete(asyncio.sleep(0))
    assert [arrived(peer) for _, peer in ends] == [b"data", None] + [b"data"] * (COUNT - 2)
    notify_loop.run_until_complete(abort(ends))
