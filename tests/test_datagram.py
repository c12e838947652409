"""Datagram endpoints, on every loop."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import TYPE_CHECKING, Any

import pytest

from notifyloop.transports.datagram import MOST_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import notifyloop

Loop = asyncio.AbstractEventLoop
LOCAL = ("127.0.0.1", 0)


class Recorder(asyncio.DatagramProtocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.received: list[tuple[bytes, Any]] = []
        self.errors: list[Exception] = []
        self.calls: list[str] = []
        self.lost = self.loop.create_future()
        self.news = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.append((data, addr))
        self.news.set()

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)
        self.news.set()

    def pause_writing(self) -> None:
        self.calls.append("pause")
        self.news.set()

    def resume_writing(self) -> None:
        self.calls.append("resume")
        self.news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.news.clear()
            await self.news.wait()


def run(loop: Loop, main: Coroutine[Any, Any, None]) -> None:
    loop.run_until_complete(asyncio.wait_for(main, 30))


async def endpoint(**options: Any) -> tuple[asyncio.DatagramTransport, Recorder]:
    return await asyncio.get_running_loop().create_datagram_endpoint(Recorder, **options)


def test_datagrams_arrive_whole_and_in_order(loop: Loop) -> None:
    async def main() -> None:
        server, received = await endpoint(local_addr=LOCAL)
        client, _ = await endpoint(remote_addr=server.get_extra_info("sockname"))
        sent = [b"%d" % number * 100 for number in range(3 * MOST_AT_ONCE)]
        for number, data in enumerate(sent):
            client.sendto(data)
            if number % 50 == 49:  # no more at a time than the system keeps
                await received.until(lambda expected=number + 1: len(received.received) == expected)
        await received.until(lambda: len(received.received) == len(sent))
        assert [data for data, _ in received.received] == sent
        assert {address for _, address in received.received} == {client.get_extra_info("sockname")}
        server.close()
        client.close()
        assert await received.lost is None

    run(loop, main())


def test_a_flood_of_datagrams_leaves_room_for_others(notify_loop: notifyloop.NotifyLoop) -> None:
    """What is queued for one socket is taken in portions: between them others have their turn."""

    async def main() -> None:
        server, received = await endpoint(local_addr=LOCAL)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(2 * MOST_AT_ONCE):
                sender.sendto(b"x", server.get_extra_info("sockname"))
        seen: list[int] = []

        def look() -> None:
            seen.append(len(received.received))
            if seen[-1] < 2 * MOST_AT_ONCE:
                notify_loop.call_soon(look)

        look()
        await received.until(lambda: len(received.received) == 2 * MOST_AT_ONCE)
        assert MOST_AT_ONCE in seen
        server.close()
        await received.lost

    run(notify_loop, main())


def test_empty_datagrams_are_received(loop: Loop) -> None:
    async def main() -> None:
        server, received = await endpoint(local_addr=LOCAL)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", server.get_extra_info("sockname"))
            sender.sendto(b"after", server.get_extra_info("sockname"))
            await received.until(lambda: len(received.received) == 2)
        assert [data for data, _ in received.received] == [b"", b"after"]
        server.close()
        await received.lost

    run(loop, main())


def test_a_closed_port_is_an_error_and_not_the_end(loop: Loop) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind(LOCAL)
            address = nobody.getsockname()
        client, heard = await endpoint(remote_addr=address)
        client.sendto(b"anybody?")
        await heard.until(lambda: heard.errors)
        assert isinstance(heard.errors[0], ConnectionRefusedError)
        server, received = await endpoint(local_addr=address)
        client.sendto(b"now?")
        await received.until(lambda: received.received)
        assert not client.is_closing()
        server.sendto(b"yes", received.received[0][1])
        await heard.until(lambda: heard.received)
        client.close()
        server.close()
        assert await heard.lost is None

    run(loop, main())


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="UDP never blocks here")
@pytest.mark.parametrize("end", ["close", "abort"])
def test_what_the_socket_does_not_take_is_kept(notify_loop: notifyloop.NotifyLoop, end: str) -> None:
    """asyncio cannot send to the other end of a socket pair; uvloop drops what it has kept when it is closed."""

    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        theirs.setblocking(False)
        with theirs:
            transport, protocol = await endpoint(sock=ours)
            transport.set_write_buffer_limits(high=3000, low=1000)
            count = 0
            while "pause" not in protocol.calls:
                transport.sendto(b"%06d" % count + bytes(994), None)
                count += 1
            kept = transport.get_write_buffer_size()
            assert 3000 < kept < 4100
            getattr(transport, end)()
            if end == "abort":
                assert transport.get_write_buffer_size() == 0
                assert await protocol.lost is None
                count -= kept // 1000
            numbers = []
            while len(numbers) < count:
                data = await asyncio.get_running_loop().sock_recv(theirs, 2000)
                numbers.append(int(data[:6]))
            assert numbers == list(range(count))
            assert await protocol.lost is None

    run(notify_loop, main())


def test_misuse(loop: Loop) -> None:
    async def main() -> None:
        server, _ = await endpoint(local_addr=LOCAL)
        client, _ = await endpoint(remote_addr=server.get_extra_info("sockname"))
        with pytest.raises(TypeError):
            client.sendto("text")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="Invalid address"):
            client.sendto(b"data", ("127.0.0.1", 1))
        client.close()
        server.close()

    run(loop, main())


def test_what_is_sent_after_the_end_is_dropped(loop: Loop) -> None:
    async def main() -> None:
        server, received = await endpoint(local_addr=LOCAL)
        client, heard = await endpoint(remote_addr=server.get_extra_info("sockname"))
        client.close()
        client.sendto(b"late")
        await heard.lost
        assert client.is_closing()
        other, _ = await endpoint(remote_addr=server.get_extra_info("sockname"))
        other.sendto(b"in time")
        await received.until(lambda: received.received)
        assert [data for data, _ in received.received] == [b"in time"]
        other.close()
        server.close()

    run(loop, main())


def test_an_exception_of_the_protocol_is_reported_and_the_next_datagram_received(loop: Loop) -> None:
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))

    class Fragile(Recorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data == b"bad":
                raise LookupError(data)

    async def main() -> None:
        server, received = await asyncio.get_running_loop().create_datagram_endpoint(Fragile, local_addr=LOCAL)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for data in (b"bad", b"good"):
                sender.sendto(data, server.get_extra_info("sockname"))
            await received.until(lambda: len(received.received) == 2)
        assert not server.is_closing()
        server.close()
        await received.lost

    run(loop, main())
    assert [type(context["exception"]) for context in reported] == [LookupError]


def test_extra_info(loop: Loop) -> None:
    async def main() -> None:
        server, _ = await endpoint(local_addr=LOCAL)
        client, _ = await endpoint(remote_addr=server.get_extra_info("sockname"))
        assert client.get_extra_info("peername") == server.get_extra_info("sockname")
        assert server.get_extra_info("peername") is None
        assert server.get_extra_info("socket").type == socket.SOCK_DGRAM
        assert server.get_extra_info("nothing", "default") == "default"
        client.close()
        server.close()

    run(loop, main())


def test_an_unclosed_transport_warns(notify_loop: notifyloop.NotifyLoop) -> None:
    coroutine = notify_loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=LOCAL)
    made = [notify_loop.run_until_complete(coroutine)]
    notify_loop.close()
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        collect(made)


def collect(held: list[Any]) -> None:
    held.clear()
    gc.collect()
