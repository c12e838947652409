"""Ctrl-C may come at any point. Wherever that is, in the modules of the turn: the loop runs on, everything that it
watches answers, and it does not spin.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import socket
import sys
import threading
from pathlib import Path
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any

import pytest

import notifyloop
from notifyloop import loop
from notifyloop.port import batch, foreign
from notifyloop.port.provider import provider
from notifyloop.turn import (
    datagram,
    handles,
    interest,
    interests,
    primitives,
    readiness,
    scheduling,
    sockets,
    stream,
    timers,
    transport,
    turn,
    waits,
)
from notifyloop.turn.interest import Interest
from notifyloop.turn.interests import Interests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

pytestmark = pytest.mark.only("plain", reason="compiled code has no lines at which an interrupt could come in")

if sys.platform == "win32":  # where the providers are written in Python. The rest is the same, and takes its time
    MODULES = [
        loop,
        turn,
        interest,
        interests,
        batch,
        foreign,
        *[importlib.import_module(f"notifyloop.port.{name}") for name in ("iocp", provider.name)],
    ]
else:
    MODULES = [
        *(loop, batch, foreign, datagram, handles, interest, interests, primitives),
        *(readiness, scheduling, sockets, stream, timers, transport, turn, waits),
    ]
FILES = {str(module.__file__) for module in MODULES}

Place = tuple["CodeType", int]


class Interrupter:
    """Sees each line of the modules that is about to run, and raises KeyboardInterrupt before one of them."""

    def __init__(self, place: Place | None = None, times: int = 1) -> None:
        self.place = place
        self.left = times
        self.seen: dict[Place, int] = {}

    def __enter__(self) -> Interrupter:
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter_frame(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._trace_line if frame.f_code.co_filename in FILES else None

    def _trace_line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            place = (frame.f_code, frame.f_lineno)
            self.seen[place] = self.seen.get(place, 0) + 1
            if place == self.place:
                self.left -= 1
                if not self.left:
                    sys.settrace(None)
                    raise KeyboardInterrupt
        return self._trace_line


class Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def resume_writing(self) -> None:
        pass


class BufferedEcho(asyncio.BufferedProtocol, Echo):  # type: ignore[misc]
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Echo.connection_made(self, transport)
        self.buffer = bytearray(100_000)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, size: int) -> None:
        self.transport.write(bytes(self.buffer[:size]))


class DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


def pairs(number: int) -> list[tuple[socket.socket, socket.socket]]:
    made = [socket.socketpair() for _ in range(number)]
    for ours, theirs in made:
        ours.setblocking(False)
        theirs.setblocking(False)
    return made


class Scene:
    """A loop with one of everything, which can be kept busy and then be asked."""

    def __init__(self) -> None:
        self.loop = notifyloop.NotifyLoop()
        self.loop.set_exception_handler(lambda loop, context: None)
        self.connections: list[Echo] = []
        self.peers: list[socket.socket] = []
        self.sockets: list[socket.socket] = []
        self.called: list[object] = []
        self.errors: list[BaseException] = []
        self.loop.run_until_complete(self.set_up())

    async def set_up(self) -> None:
        for (ours, theirs), kind in zip(pairs(3), (Echo, Echo, BufferedEcho), strict=True):
            _, protocol = await self.loop.create_connection(kind, sock=ours)
            self.connections.append(protocol)
            self.peers.append(theirs)
        (self.read, self.write), (self.receiver, self.sender), (self.full, self.reader) = pairs(3)
        self.asker = socket.socket(type=socket.SOCK_DGRAM)
        self.asker.setblocking(False)
        self.sockets = [self.read, self.write, self.receiver, self.sender, self.full, self.reader, self.asker]
        self.datagrams, _ = await self.loop.create_datagram_endpoint(DatagramEcho, ("127.0.0.1", 0))
        self.asker.connect(self.datagrams.get_extra_info("sockname"))
        self.loop.add_reader(self.read, self.note)
        self.later = self.loop.call_later(3600, self.called.append, "later")

    def note(self) -> None:
        self.called.append(self.read.recv(100))

    def keep_busy(self) -> None:
        """One of everything happens, in the loop and from outside."""
        loop = self.loop
        for peer in self.peers:
            peer.send(b"before")
        for sender in (self.write, self.sender, self.asker):
            sender.send(b"before")

        def toggle() -> None:
            for connection in self.connections:
                connection.transport.pause_reading()
            loop.call_soon(resume)

        def resume() -> None:
            for connection in self.connections:
                connection.transport.resume_reading()

        def pile_up() -> None:
            for connection in self.connections:
                connection.transport.writelines([b"x" * 10, bytearray(10)])
                connection.transport.write(bytes(300_000))
            loop.call_soon(drain)

        over = False

        def drain() -> None:
            for peer in self.peers if not over else ():
                try:
                    while peer.recv(1_000_000):
                        pass
                except BlockingIOError:
                    pass

        def watch_another() -> None:
            loop.add_writer(self.full, loop.remove_writer, self.full)
            loop.remove_reader(self.read)
            loop.add_reader(self.read, self.note)

        # An interrupt may make a task that nobody gets to know of. It must not take what others wait for.
        over = False

        async def receive() -> None:
            if over:
                return
            self.called.append(await loop.sock_recv(self.receiver, 100))
            await loop.sock_sendall(self.sender, b"again")
            self.called.append(await loop.sock_recv(self.receiver, 100))
            loop.call_soon(self.sender.send, b"late")
            self.called.append(await loop.sock_recv(self.receiver, 100))

        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(self.called.append, "thread"))

        async def main() -> None:
            if over:
                return
            for number in range(5):
                loop.call_later(0.0001 * number, self.called.append, number).cancel()
                loop.call_later(0.0001 * number, self.called.append, number)
            for callback in (toggle, pile_up, watch_another, thread.start):
                loop.call_soon(callback)
            receiving = loop.create_task(receive())
            for _ in range(5):
                await asyncio.sleep(0)
            drain()
            await asyncio.sleep(0.001)
            for peer in self.peers:
                peer.send(b"again")
            for _ in range(5):
                await asyncio.sleep(0)
            drain()
            await receiving

        try:
            loop.run_until_complete(main())
        finally:
            # What the interrupt has ended is of no more interest; a thread that was not started neither. A task that it
            # kept from being registered may run all the same.
            over = True
            for task in asyncio.all_tasks(loop):
                task.cancel()
            if thread.ident is not None:
                thread.join()

    def ask(self) -> None:
        """Everything for an answer, however long that may take."""
        self.loop.stop()  # or the interrupt came when the main task's callback had been scheduled to do so
        self.loop.run_forever()
        self.loop.run_until_complete(asyncio.wait_for(self.asking(), 100))

    async def asking(self) -> None:
        loop = self.loop
        await asyncio.sleep(0.001)  # what was scheduled before is done
        for connection in self.connections:
            connection.transport.resume_reading()
        for connection, peer in zip(self.connections, self.peers, strict=True):
            if connection.transport.is_closing():
                raise AssertionError("a connection was lost")
            peer.send(b"?!")
            answer = b""
            while not answer.endswith(b"?!"):
                data = await loop.sock_recv(peer, 1_000_000)
                assert data, "a connection was lost"
                answer += data
        woken = loop.create_future()
        await loop.run_in_executor(None, loop.call_soon_threadsafe, woken.set_result, None)
        await woken
        self.called.clear()
        loop.remove_reader(self.read)  # an interrupt in add_reader() may have left it, or not
        loop.add_reader(self.read, self.note)
        self.write.send(b"?")
        while not self.called:
            await asyncio.sleep(0.0001)
        await loop.sock_sendall(self.sender, b"?")
        while not (data := await loop.sock_recv(self.receiver, 100)).endswith(b"?"):
            assert data
        self.asker.send(b"?")
        while await loop.sock_recv(self.asker, 100) != b"?":
            pass
        writable = loop.create_future()
        loop.add_writer(self.full, lambda: writable.done() or writable.set_result(None))
        await writable
        loop.remove_writer(self.full)
        await asyncio.sleep(0.001)
        assert self.later in loop._scheduled
        turns = loop.statistics().iterations
        await asyncio.sleep(0.005)
        assert loop.statistics().iterations - turns < 20, "it spins"

    def close(self) -> None:
        for connection in self.connections:
            connection.transport.abort()
        self.datagrams.abort()
        self.loop.remove_reader(self.read)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        for sock in [*self.sockets, *self.peers]:
            sock.close()
            assert sock._io_refs == 0, "it stays open below"  # type: ignore[attr-defined]


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


def lines_of(act: Callable[[], None]) -> dict[Place, int]:
    with Interrupter() as interrupter:
        act()
    return interrupter.seen


def where(place: Place) -> str:
    code, line = place
    return f"{Path(code.co_filename).name}:{line} in {code.co_name}"


def interrupted(scene: Scene, place: Place, times: int) -> bool:
    try:
        with Interrupter(place, times):
            scene.keep_busy()
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.timeout(600)  # each of many interrupts has a loop of its own
@pytest.mark.filterwarnings("ignore:.*was never awaited", "ignore:Exception ignored in")
def test_a_busy_loop_survives_an_interrupt_at_any_line(scene: Scene) -> None:
    """At the first time that a line is run, and at one of those after. What the interrupt has kept from being awaited
    or closed, Python says.
    """
    lines = lines_of(scene.keep_busy)
    assert {Path(code.co_filename) for code, _ in lines} == {Path(file) for file in FILES}
    scene.ask()
    interrupts = 0
    failures = []
    for place, count in lines.items():
        for times in {1, (count + 2) // 2}:
            one = Scene()
            try:
                if interrupted(one, place, times):
                    interrupts += 1
                try:
                    one.ask()
                except BaseException as error:
                    failures.append(f"after an interrupt at {where(place)}, time {times} of {count}: {error!r}")
            finally:
                one.close()
    gc.collect()  # what is to be warned of
    print(f"{interrupts} interrupts at {len(lines)} lines")
    assert failures == []
    assert interrupts >= len(lines) / 2


def test_an_interrupt_that_follows_another_at_once_loses_no_order() -> None:
    """The first comes while orders are made up, the second when that one is handled, if a call is made then: it is at
    calls that Python looks for signals.
    """

    class Last(Interest):
        """The last of those that are to be ordered."""

        def arm(self, enable: int = 0) -> bytes:
            sys.settrace(interrupt_again)
            raise KeyboardInterrupt

    def interrupt_again(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_filename in FILES:
            sys.settrace(None)
            raise KeyboardInterrupt

    with contextlib.closing(Interests()) as interests:
        ((ours, theirs),) = pairs(1)
        with ours, theirs:
            theirs.send(b"x")
            interest = interests.adopt(ours, ours.fileno(), lambda: ours)
            interests.want(interest, EVENT_READ)
            last = Last(-1, -1, EVENT_READ, 0)
            interests.changed.append(last)
            try:
                with pytest.raises(KeyboardInterrupt):
                    interests.dequeue(0)
            finally:
                sys.settrace(None)
            interests.changed = [changed for changed in interests.changed if changed is not last]
            assert interests.ready(interests.dequeue(5_000_000_000)) == [(interest, EVENT_READ)]
