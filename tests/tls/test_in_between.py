"""What comes in between: an interrupt in a callback, a finalizer that writes, whoever closes from where he is asked."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

Loop = asyncio.AbstractEventLoop


class Recorder(asyncio.BufferedProtocol):
    """Its buffer is small, so it is called several times for what comes at once."""

    def __init__(self) -> None:
        self.buffer = bytearray(100)
        self.received = bytearray()
        self.in_between: Callable[[str], None] = lambda where: None
        self.changed = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        self.in_between("get_buffer")
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]
        self.changed.set()
        self.in_between("buffer_updated")

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)

    async def until(self, size: int) -> None:
        while len(self.received) < size:
            self.changed.clear()
            await self.changed.wait()


async def accept(ours: socket.socket, peer: Any, contexts: Contexts) -> Recorder:
    """Our server's end, when hands are shaken."""
    peer.speak(contexts[1], server_side=False)
    protocol = Recorder()
    loop = asyncio.get_running_loop()
    accepting = asyncio.ensure_future(loop.connect_accepted_socket(lambda: protocol, ours, ssl=contexts[0]))
    await peer.send(await peer.shake_hands())
    await accepting
    return protocol


def once(where: str, action: Callable[[], None]) -> Callable[[str], None]:
    done = []

    def in_between(here: str) -> None:
        if here == where and not done:
            done.append(here)
            action()

    return in_between


@pytest.mark.differs(uvloop="0.23.0", reason="forgets what it has received", run=False)
@pytest.mark.parametrize("where", ["get_buffer", "buffer_updated"])
def test_an_interrupt_loses_nothing(loop: Loop, ours: socket.socket, peer: Any, tls: Contexts, where: str) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    protocol = loop.run_until_complete(accept(ours, peer, tls))
    protocol.in_between = once(where, interrupt)

    async def receive(word: bytes, size: int) -> None:
        await peer.send(peer.encrypt(word * 100))
        await protocol.until(size)

    receiving = loop.create_task(receive(b"one", 300))
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(receiving)
    loop.run_until_complete(receive(b"two", 600))  # with which asyncio goes on
    loop.run_until_complete(receiving)
    assert protocol.received == b"one" * 100 + b"two" * 100
    protocol.transport.abort()
    loop.run_until_complete(protocol.lost)


@pytest.mark.asyncio
async def test_a_callback_that_was_cancelled_loses_nothing(ours: socket.socket, peer: Any, tls: Contexts) -> None:
    """From the second time on nobody is told but the exception handler, as of any callback."""

    def cancel() -> None:
        if len(protocol.received) == 200:
            raise asyncio.CancelledError

    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    protocol = await accept(ours, peer, tls)
    protocol.in_between = lambda where: cancel() if where == "buffer_updated" else None
    await peer.send(peer.encrypt(b"one" * 200))
    await protocol.until(600)
    assert protocol.received == b"one" * 200
    assert len(told) == 1
    protocol.transport.abort()
    await protocol.lost


@pytest.mark.asyncio(loop_factories=["asyncio", "notifyloop"])  # uvloop does the one and not the other
@pytest.mark.differs(asyncio="3.13.0", reason="delivers what it had asked for room for")
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_whoever_closes_when_asked_for_a_buffer_receives_nothing(
    ours: socket.socket, peer: Any, tls: Contexts, how: str
) -> None:
    protocol = await accept(ours, peer, tls)
    protocol.in_between = once("get_buffer", lambda: getattr(protocol.transport, how)())
    await peer.send(peer.encrypt(b"data") + peer.goodbye())
    assert await protocol.lost is None
    assert protocol.received == b""


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", uvloop="0.23.0", reason="send twice what was just being written", run=False)
@pytest.mark.parametrize("size", [1000, 20_000, 300_000])
@pytest.mark.parametrize("then", ["write", "close"])
async def test_whoever_writes_in_the_midst_of_a_write(
    ours: socket.socket, peer: Any, tls: Contexts, monkeypatch: pytest.MonkeyPatch, size: int, then: str
) -> None:
    """As a finalizer does, or a signal handler: Python runs them when OpenSSL has taken what is written."""
    midst: list[Callable[[], None]] = []

    class Disturbed(ssl.SSLObject):
        def write(self, data: Any) -> int:
            count = super().write(data)
            if midst:
                midst.pop()()
            return count

    monkeypatch.setattr(tls[0], "sslobject_class", Disturbed)
    protocol = await accept(ours, peer, tls)

    def disturb() -> None:
        protocol.transport.write(b"Z")
        if then == "close":
            protocol.transport.close()

    receiving = asyncio.ensure_future(peer.receive_all())
    for send in (protocol.transport.write, lambda data: protocol.transport.writelines([data, data])):
        if protocol.transport.is_closing():
            break
        midst.append(disturb)
        send(b"a" * size)
        while midst:  # the transport does not take more yet
            await asyncio.sleep(0)
    protocol.transport.close()
    received = await receiving
    await peer.send(peer.goodbye())
    assert await protocol.lost is None
    assert received == b"a" * size + b"Z" + (b"a" * 2 * size + b"Z" if then == "write" else b"")


@pytest.mark.asyncio(loop_factories=["notifyloop"])  # the others write again what OpenSSL has taken
@pytest.mark.parametrize("size", [1000, 40_000])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_interrupt_of_a_write(
    ours: socket.socket, peer: Any, tls: Contexts, monkeypatch: pytest.MonkeyPatch, size: int, when: str
) -> None:
    interrupts: list[str] = []

    class Interrupted(ssl.SSLObject):
        def write(self, data: Any) -> int:
            if interrupts == ["before"]:
                raise KeyboardInterrupt(interrupts.pop())
            count = super().write(data)
            if interrupts == ["after"]:
                raise KeyboardInterrupt(interrupts.pop())
            return count

    monkeypatch.setattr(tls[0], "sslobject_class", Interrupted)
    protocol = await accept(ours, peer, tls)
    receiving = asyncio.ensure_future(peer.receive_all())
    for write in (protocol.transport.write, lambda data: protocol.transport.writelines([data])):
        interrupts.append(when)
        with pytest.raises(KeyboardInterrupt):
            write(b"a" * size)
    protocol.transport.write(b"Z")
    assert protocol.transport.get_write_buffer_size() == 0
    protocol.transport.close()
    assert await receiving == b"a" * 2 * size + b"Z"
    await peer.send(peer.goodbye())
    assert await protocol.lost is None


@pytest.mark.asyncio(loop_factories=["asyncio", "notifyloop"])  # uvloop's servers wait for ever
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("server_side", [False, True])
async def test_whoever_pauses_as_soon_as_start_tls_has_returned(
    ours: socket.socket,
    peer: Any,
    tls: Contexts,
    monkeypatch: pytest.MonkeyPatch,
    version: ssl.TLSVersion,
    server_side: bool,
) -> None:
    """What is still to be said of the handshake is said."""
    monkeypatch.setattr(tls[0], "minimum_version", version)
    monkeypatch.setattr(tls[0], "maximum_version", version)
    loop = asyncio.get_running_loop()
    plain, protocol = await loop.create_connection(Recorder, sock=ours)
    peer.speak(tls[int(server_side)], server_side=not server_side)
    name = None if server_side else "localhost"
    upgrading: Any = asyncio.ensure_future(
        loop.start_tls(plain, protocol, tls[int(not server_side)], server_side=server_side, server_hostname=name)
    )
    upgrading.add_done_callback(lambda done: done.result().pause_reading())
    await peer.send(await peer.shake_hands())
    (await upgrading).abort()
    await protocol.lost
