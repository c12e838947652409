"""Datagram endpoints, on every loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from notifyloop.turn.datagram import MOST_AT_ONCE, OVERHEAD

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


@pytest.mark.differs(uvloop="0.23.0", reason="says nothing", run=False)
def test_a_datagram_for_nobody_ends_an_endpoint_without_a_peer(loop: Loop) -> None:
    async def main() -> None:
        loop.set_exception_handler(lambda loop, context: None)
        transport, received = await endpoint(local_addr=LOCAL)
        transport.sendto(b"x")
        assert isinstance(await received.lost, TypeError)

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


@pytest.mark.never("wine", reason="wine does not tell a socket that nobody is there")
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


@pytest.mark.differs(asyncio="3.11.7, 3.12.1", reason="drops them", when=sys.version_info < (3, 13), run=False)
@pytest.mark.differs(uvloop="0.23.0", reason="drops them", run=False)
def test_empty_datagrams_are_sent(loop: Loop) -> None:
    async def main() -> None:
        server, received = await endpoint(local_addr=LOCAL)
        client, _ = await endpoint(remote_addr=server.get_extra_info("sockname"))
        client.sendto(b"")
        await received.until(lambda: received.received)
        assert received.received[0][0] == b""
        client.close()
        server.close()

    run(loop, main())


@pytest.mark.differs(uvloop="0.23.0", reason="connects it", run=False)
def test_the_address_of_a_socket_that_broadcasts(loop: Loop) -> None:
    """Such a socket is not connected: it sends to its address, and hears everybody."""

    async def main() -> None:
        server, received = await endpoint(local_addr=LOCAL)
        address = server.get_extra_info("sockname")
        client, heard = await endpoint(remote_addr=address, allow_broadcast=True)
        assert client.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
        client.sendto(b"without an address")
        client.sendto(b"with its address", address)
        await received.until(lambda: len(received.received) == 2 or heard.errors)
        assert heard.errors == []
        assert [data for data, _ in received.received] == [b"without an address", b"with its address"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebody:
            somebody.sendto(b"hello", ("127.0.0.1", received.received[0][1][1]))
        await heard.until(lambda: heard.received)
        client.close()
        server.close()

    run(loop, main())


@pytest.mark.parametrize(
    "named",
    [
        pytest.param(True, marks=pytest.mark.differs(uvloop="0.23.0", reason="refuses an address there", run=False)),
        False,
    ],
)
def test_a_socket_that_was_connected_already(loop: Loop, named: bool) -> None:
    async def main() -> None:
        server, received = await endpoint(local_addr=LOCAL)
        address = server.get_extra_info("sockname")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(address)
        client, heard = await endpoint(sock=sock)
        assert client.get_extra_info("peername") == address
        client.sendto(b"data", address if named else None)
        await received.until(lambda: received.received)
        server.sendto(b"answer", received.received[0][1])
        await heard.until(lambda: heard.received)
        assert heard.received == [(b"answer", address)]
        client.close()
        server.close()

    run(loop, main())


def test_a_new_protocol_gets_what_comes_next(loop: Loop) -> None:
    class First(Recorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.set_protocol(second)

    async def main() -> None:
        nonlocal second
        second = Recorder()
        server, first = await asyncio.get_running_loop().create_datagram_endpoint(First, local_addr=LOCAL)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for data in (b"1", b"2", b"3"):
                sender.sendto(data, server.get_extra_info("sockname"))
        await second.until(lambda: len(second.received) == 2)
        assert [data for data, _ in first.received] == [b"1"]
        assert [data for data, _ in second.received] == [b"2", b"3"]
        server.close()
        assert await second.lost is None

    second: Recorder
    run(loop, main())


@pytest.mark.parametrize("end", ["close", "abort"])
def test_no_datagram_arrives_after_the_end(loop: Loop, end: str) -> None:
    """Also not of those that were queued when a protocol ends it while it gets the first."""

    class Ending(Recorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            getattr(self.transport, end)()

    async def main() -> None:
        server, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Ending, local_addr=LOCAL)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for data in (b"1", b"2", b"3"):
                sender.sendto(data, server.get_extra_info("sockname"))
        assert await protocol.lost is None
        assert [data for data, _ in protocol.received] == [b"1"]

    run(loop, main())


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "of words"])
def test_whatever_holds_bytes_can_be_sent(loop: Loop, kind: str) -> None:
    text = b"some data in words of 4 bytes..."
    data: Any = {
        "bytes": text,
        "bytearray": bytearray(text),
        "memoryview": memoryview(text),
        "of words": memoryview(text).cast("I"),
    }[kind]

    async def main() -> None:
        server, received = await endpoint(local_addr=LOCAL)
        client, heard = await endpoint(remote_addr=server.get_extra_info("sockname"))
        client.sendto(data)
        await received.until(lambda: received.received or heard.errors)
        assert [data for data, _ in received.received] == [text]
        client.close()
        server.close()

    run(loop, main())


class Full:
    """A Unix datagram socket whose peer takes no more, and a transport that keeps what is sent to it."""

    def __init__(self, protocol: type[Recorder] = Recorder) -> None:
        self.protocol_factory = protocol

    async def __aenter__(self) -> Full:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.transport, self.protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            self.protocol_factory, sock=ours
        )
        while not self.transport.get_write_buffer_size():
            self.transport.sendto(b"fill")
        self.kept = self.transport.get_write_buffer_size()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.peer.close()
        self.transport.abort()
        await self.protocol.lost


needs_unix = pytest.mark.only("unix sockets", reason="UDP never blocks here")


@needs_unix
def test_the_buffer_counts_bytes_and_a_header(notify_loop: notifyloop.NotifyLoop) -> None:
    async def main() -> None:
        async with Full() as full:
            assert full.kept == len(b"fill") + OVERHEAD
            before = full.kept
            for data in (b"", bytearray(3), memoryview(bytes(16)).cast("I")):
                full.transport.sendto(data)
                added = full.transport.get_write_buffer_size() - before
                assert added == memoryview(data).nbytes + OVERHEAD
                before += added
            while full.transport.get_write_buffer_size():
                await asyncio.get_running_loop().sock_recv(full.peer, 100)
            assert full.transport.get_write_buffer_size() == 0

    run(notify_loop, main())


@needs_unix
def test_what_is_kept_does_not_change(notify_loop: notifyloop.NotifyLoop) -> None:
    async def main() -> None:
        async with Full() as full:
            data = bytearray(b"before")
            full.transport.sendto(data)
            data[:] = b"after!"
            while (received := await asyncio.get_running_loop().sock_recv(full.peer, 100)) == b"fill":
                pass
            assert received == b"before"

    run(notify_loop, main())


@needs_unix
def test_writing_resumes_when_the_peer_takes_it(notify_loop: notifyloop.NotifyLoop) -> None:
    async def main() -> None:
        async with Full() as full:
            full.transport.set_write_buffer_limits(high=100, low=50)
            assert full.transport.get_write_buffer_limits() == (50, 100)
            while "pause" not in full.protocol.calls:
                full.transport.sendto(b"more")
            assert full.transport.get_write_buffer_size() > 100
            while "resume" not in full.protocol.calls:
                await asyncio.get_running_loop().sock_recv(full.peer, 100)
            assert full.transport.get_write_buffer_size() <= 50
            assert full.protocol.calls == ["pause", "resume"]

    run(notify_loop, main())


@needs_unix
def test_an_exception_of_error_received_does_not_send_a_datagram_again(notify_loop: notifyloop.NotifyLoop) -> None:
    """The peer is gone: each datagram that was kept is an error, once."""
    reported: list[dict[str, Any]] = []
    notify_loop.set_exception_handler(lambda _, context: reported.append(context))

    class Fragile(Recorder):
        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            raise LookupError(exc)

    async def main() -> None:
        async with Full(Fragile) as full:
            full.transport.sendto(b"second")
            full.transport.sendto(b"third")
            full.transport.close()
            full.peer.close()
            assert await full.protocol.lost is None
            assert len(full.protocol.errors) == 3
            assert isinstance(full.protocol.errors[0], ConnectionError)

    run(notify_loop, main())
    assert [type(context["exception"]) for context in reported] == [LookupError] * 3


@needs_unix
@pytest.mark.parametrize("end", ["close", "abort"])
def test_ending_from_error_received_while_datagrams_are_kept(notify_loop: notifyloop.NotifyLoop, end: str) -> None:
    class Ending(Recorder):
        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            getattr(self.transport, end)()

    async def main() -> None:
        async with Full(Ending) as full:
            full.transport.sendto(b"second")
            full.peer.close()
            assert await full.protocol.lost is None
            assert len(full.protocol.errors) == (2 if end == "close" else 1)

    run(notify_loop, main())


def test_addresses_that_nothing_can_be_sent_to(loop: Loop) -> None:
    """What the system refuses is the protocol's to hear of; the transport goes on."""

    async def main() -> None:
        server, received = await endpoint(local_addr=LOCAL)
        client, heard = await endpoint(local_addr=LOCAL)
        client.sendto(b"x" * 100_000, server.get_extra_info("sockname"))  # larger than any UDP datagram
        await heard.until(lambda: heard.errors)
        assert isinstance(heard.errors[0], OSError)
        client.sendto(b"small", server.get_extra_info("sockname"))
        await received.until(lambda: received.received)
        assert not client.is_closing()
        client.close()
        server.close()

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


@pytest.mark.differs(uvloop="0.23.0", reason="drops what is sent after close()", run=False)
@pytest.mark.parametrize("end", ["close", "abort"])
def test_an_endpoint_without_a_peer_sends_until_it_has_ended(loop: Loop, end: str) -> None:
    async def main() -> None:
        server, received = await endpoint(local_addr=LOCAL)
        client, heard = await endpoint(local_addr=LOCAL)
        getattr(client, end)()
        client.sendto(b"bye", server.get_extra_info("sockname"))
        await received.until(lambda: received.received)
        assert [data for data, _ in received.received] == [b"bye"]
        assert await heard.lost is None
        server.close()

    run(loop, main())


@pytest.mark.differs(uvloop="0.23.0", reason="drops what is sent after close()")
def test_errors_are_heard_of_until_the_end(loop: Loop) -> None:
    class Closing(Recorder):
        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            self.transport.close()

    async def main() -> None:
        client, heard = await asyncio.get_running_loop().create_datagram_endpoint(Closing, local_addr=LOCAL)
        for _ in range(2):
            client.sendto(b"x" * 100_000, ("127.0.0.1", 9))  # larger than any UDP datagram
        await heard.lost
        assert len(heard.errors) == 2

    run(loop, main())


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="UDP never blocks here")
def test_what_a_closed_endpoint_cannot_send_any_more_is_reported(
    notify_loop: notifyloop.NotifyLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """It was not waited for; asyncio keeps it, to drop it in silence."""

    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.setblocking(False)
        with theirs:
            transport, protocol = await endpoint(sock=ours)
            with contextlib.suppress(BlockingIOError):
                while True:
                    ours.send(bytes(1000))
            transport.close()
            transport.sendto(b"late")
            assert transport.get_write_buffer_size() == 0
            assert await protocol.lost is None
            for _ in range(5):
                transport.sendto(b"too late")

    run(notify_loop, main())
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [
        "a datagram sent after close() is lost, for the socket takes no more now",
        "socket.send() raised exception.",
    ]


@pytest.mark.skipif(not socket.has_ipv6, reason="Python without IPv6")
def test_an_ipv6_peer_is_known_by_its_host_and_port(notify_loop: notifyloop.NotifyLoop) -> None:
    """asyncio and uvloop 0.23.0 take the four numbers only that the system has for it."""

    async def main() -> None:
        try:
            server, received = await endpoint(local_addr=("::1", 0))
        except OSError as error:
            pytest.skip(f"this system has no IPv6: {error}")
        host, port, flow, scope = server.get_extra_info("sockname")
        client, _ = await endpoint(remote_addr=(host, port))
        for address in ((host, port), (host, port, flow), (host, port, flow, scope), None):
            client.sendto(b"data", address)
        for address in ((host, port + 1), (host,), ("::2", port), (host, port, flow, scope + 1)):
            with pytest.raises(ValueError, match="Invalid address"):
                client.sendto(b"data", address)
        await received.until(lambda: len(received.received) == 4)
        client.close()
        server.close()

    run(notify_loop, main())


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
