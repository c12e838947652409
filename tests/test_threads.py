"""Two loops in two threads, and what they do together: calls and coroutines for each other, and sockets that change
hands. Where the interpreter has no lock they run at once.

What is counted are messages. NOTIFYLOOP_THREADS_SECONDS=60 has each test begin anew until a minute is over.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import notifyloop
from notifyloop.port import CompletionPort
from notifyloop.selector import NotificationSelector
from notifyloop.turn.interests import Interests

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from notifyloop.turn.interest import Interest

MakeLoop = Callable[[], asyncio.AbstractEventLoop]

SECONDS = float(os.environ.get("NOTIFYLOOP_THREADS_SECONDS", "0"))
LONG_ENOUGH = 60  # seconds for what takes milliseconds
NUMBER = 4  # bytes of a message

pytestmark = pytest.mark.timeout(SECONDS + 120)


class LoopThread(threading.Thread):
    """A loop that runs in a thread of its own until `end`."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, make_loop: MakeLoop) -> None:
        super().__init__(daemon=True)
        self._make_loop = make_loop
        self._running = threading.Event()
        self.faults: list[object] = []
        self.start()
        self._running.wait()

    def run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._make_loop) as runner:
                self.loop = runner.get_loop()
                self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
                runner.run(self._until_the_end())
        except BaseException as fault:
            self.faults.append(fault)

    async def _until_the_end(self) -> None:
        self._end = asyncio.Event()
        self._running.set()
        await self._end.wait()

    def call(self, callback: Callable[..., object], *arguments: object) -> None:
        """Have it called here, by whatever thread."""
        self.loop.call_soon_threadsafe(callback, *arguments)

    def here(self) -> bool:
        return asyncio.get_running_loop() is self.loop and threading.current_thread() is self

    def end(self) -> None:
        self.call(self._end.set)
        self.join(LONG_ENOUGH)
        assert not self.is_alive()
        assert self.faults == []


Two = tuple[LoopThread, LoopThread]


@pytest.fixture
def two(make_loop: MakeLoop) -> Iterator[Two]:
    """Two threads with a loop of the same kind. They leave nothing open."""
    make_loop().close()  # the first of a kind may open what all will use
    before = descriptors()
    both = LoopThread(make_loop), LoopThread(make_loop)
    yield both
    for thread in both:
        thread.end()
    assert descriptors() == before


def descriptors() -> int:
    """How many this process has open, where the system says so."""
    gc.collect()  # what earlier tests left behind must not be closed between two counts
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def rounds() -> Iterator[None]:
    """Once, or until the time is over."""
    until = time.monotonic() + SECONDS
    yield
    while time.monotonic() < until:
        yield


def run(*work: tuple[LoopThread, Coroutine[Any, Any, object]]) -> None:
    """Coroutines, each on its loop, to their end."""
    running = [asyncio.run_coroutine_threadsafe(coroutine, thread.loop) for thread, coroutine in work]
    for future in running:
        future.result(LONG_ENOUGH + SECONDS)


# ---- calls


@pytest.mark.parametrize(("balls", "throws"), [(1, 20000), (100, 500)])
def test_calls_arrive_once_each_and_in_order(two: Two, balls: int, throws: int) -> None:
    """Balls are thrown from one loop to the other and back. With one of them a loop is asleep, or about to be, whenever
    it comes; with many it has others to throw.
    """
    thrown: dict[LoopThread, list[tuple[int, int]]] = {thread: [] for thread in two}
    caught: dict[LoopThread, list[tuple[int, int]]] = {thread: [] for thread in two}
    landed = threading.Semaphore(0)

    def throw(here: LoopThread, there: LoopThread, ball: tuple[int, int]) -> None:
        thrown[here].append(ball)
        there.call(catch, there, here, ball)

    def catch(here: LoopThread, there: LoopThread, ball: tuple[int, int]) -> None:
        assert here.here()
        caught[here].append(ball)
        number, left = ball
        if left:
            throw(here, there, (number, left - 1))
        else:
            landed.release()

    left, right = two
    for _ in rounds():
        for number in range(balls):
            here, there = (left, right) if number % 2 else (right, left)
            here.call(throw, here, there, (number, throws))
        for _ in range(balls):
            while not landed.acquire(timeout=1):
                assert left.faults == right.faults == []
                assert all(thread.is_alive() for thread in two)
        assert caught[left] == thrown[right]
        assert caught[right] == thrown[left]
        for kept in (*thrown.values(), *caught.values()):
            kept.clear()


def test_coroutines_answer_each_other(two: Two) -> None:
    askers, questions = 10, 200

    async def answer(number: int, here: LoopThread) -> int:
        assert here.here()
        await asyncio.sleep(0)
        if number % 5 == 0:
            raise LookupError(number)
        return -number

    async def never_answer(there: LoopThread, begun: asyncio.Event, ended: asyncio.Event) -> None:
        there.call(begun.set)
        try:
            await asyncio.Event().wait()
        finally:
            there.call(ended.set)

    def asked(there: LoopThread, answer: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answer, there.loop))

    async def ask(here: LoopThread, there: LoopThread) -> None:
        for number in range(questions):
            if number % 5 == 0:
                with pytest.raises(LookupError):
                    await asked(there, answer(number, there))
            elif number % 7 == 0:
                begun, ended = asyncio.Event(), asyncio.Event()
                future = asked(there, never_answer(here, begun, ended))
                await begun.wait()
                future.cancel()
                await ended.wait()
            else:
                assert await asked(there, answer(number, there)) == -number

    async def ask_much(here: LoopThread, there: LoopThread) -> None:
        await asyncio.gather(*[ask(here, there) for _ in range(askers)])

    left, right = two
    for _ in rounds():
        run((left, ask_much(left, right)), (right, ask_much(right, left)))


def test_whoever_posts_to_a_loop_that_closes_is_told(make_loop: MakeLoop) -> None:
    failures: list[BaseException] = []

    def post(loop: asyncio.AbstractEventLoop, posted: threading.Semaphore) -> None:
        try:
            while True:
                loop.call_soon_threadsafe(int)
                posted.release()
        except RuntimeError as error:
            if str(error) != "Event loop is closed":
                failures.append(error)
        except BaseException as error:
            failures.append(error)

    for _ in rounds():
        for _ in range(10):
            loop = make_loop()
            posted = threading.Semaphore(0)
            threads = [threading.Thread(target=post, args=(loop, posted), daemon=True) for _ in range(3)]
            for thread in threads:
                thread.start()
            loop.call_later(0.001, loop.stop)
            loop.run_forever()
            assert posted.acquire(timeout=LONG_ENOUGH)
            loop.close()
            for thread in threads:
                thread.join(LONG_ENOUGH)
                assert not thread.is_alive()
        assert failures == []


@pytest.mark.parametrize("turns", [0, 2], ids=["with a new handle", "with one that was used before"])
def test_a_loop_that_is_closed_while_somebody_posts(notify_loop: notifyloop.NotifyLoop, turns: int) -> None:
    class Ready(deque[Any]):
        """Another thread comes in between, and closes the loop."""

        def append(self, handle: Any) -> None:
            notify_loop.close()
            super().append(handle)

    for _ in range(turns):
        notify_loop.call_soon_threadsafe(notify_loop.stop)
        notify_loop.run_forever()
    notify_loop._ready = Ready()
    notify_loop.call_soon_threadsafe(int)  # it was not closed when this began
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        notify_loop.call_soon_threadsafe(int)


# ---- statistics


def test_statistics_are_read_by_another_thread() -> None:
    thread = LoopThread(notifyloop.NotifyLoop)
    loop = thread.loop
    assert isinstance(loop, notifyloop.NotifyLoop)

    async def watch_some() -> None:
        for _ in range(300):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                loop.add_reader(ours, int)
                loop.add_writer(theirs, int)
                await asyncio.sleep(0)
                loop.remove_reader(ours)
                loop.remove_writer(theirs)

    before = loop.statistics()
    watching = asyncio.run_coroutine_threadsafe(watch_some(), loop)
    while not watching.done():
        now = loop.statistics()
        assert now.iterations >= before.iterations
        assert now.registrations >= before.registrations
        assert 0 <= now.registered <= 2
        before = now
    watching.result()
    assert loop.statistics().registrations >= 600
    thread.end()


@pytest.mark.parametrize("ask", [CompletionPort.counters, NotificationSelector.get_map])
def test_statistics_of_a_loop_that_closes(
    ask: Callable[..., object], notify_loop: notifyloop.NotifyLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close_first(asked: Any) -> Any:
        """Another thread comes in between."""
        notify_loop.close()
        return ask(asked)

    owner = CompletionPort if ask is CompletionPort.counters else NotificationSelector
    monkeypatch.setattr(owner, ask.__name__, close_first)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        notify_loop.statistics()


# ---- sockets that change hands


def number_in(message: bytes) -> int:
    return int.from_bytes(message, "big")


async def converse(sock: socket.socket, messages: int) -> None:
    """Send one number after the other, and get each back."""
    reader, writer = await asyncio.open_connection(sock=sock)
    for number in range(messages):
        writer.write(number.to_bytes(NUMBER, "big"))
        assert number_in(await reader.readexactly(NUMBER)) == number
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


class Wanderer(asyncio.Protocol):
    """Sends one number back, and hands its socket over to the other loop."""

    def __init__(self, here: LoopThread, there: LoopThread) -> None:
        self.here, self.there = here, there
        self.received = b""
        self.next: socket.socket | None = None

    def connection_made(self, transport: Any) -> None:
        assert self.here.here()
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.here.here()
        self.received += data
        if len(self.received) == NUMBER:
            ours = self.transport.get_extra_info("socket")
            self.next = socket.fromfd(ours.fileno(), ours.family, ours.type)
            self.transport.write(self.received)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        assert self.here.here()
        assert error is None
        if self.next is not None:
            self.there.call(accept, self.there, self.here, self.next)


def accept(here: LoopThread, there: LoopThread, sock: socket.socket) -> None:
    sock.setblocking(False)
    task = here.loop.create_task(here.loop.connect_accepted_socket(lambda: Wanderer(here, there), sock))
    task.add_done_callback(lambda task: task.result())


async def serve_in_turn(here: LoopThread, there: LoopThread, sock: socket.socket) -> None:
    """Send one number back, and have the other loop do likewise."""
    assert here.here()
    message = b""
    while len(message) < NUMBER:
        received = await here.loop.sock_recv(sock, NUMBER - len(message))
        if not received:
            sock.close()
            return
        message += received
    await here.loop.sock_sendall(sock, message)
    there.call(serve, there, here, sock)


def serve(here: LoopThread, there: LoopThread, sock: socket.socket) -> None:
    here.loop.create_task(serve_in_turn(here, there, sock)).add_done_callback(lambda task: task.result())


def watch(here: LoopThread, there: LoopThread, sock: socket.socket) -> None:
    """The same with a reader."""

    def read() -> None:
        message = sock.recv(NUMBER)
        here.loop.remove_reader(sock)
        if message:
            assert len(message) == NUMBER
            sock.send(message)
            there.call(watch, there, here, sock)
        else:
            sock.close()

    here.loop.add_reader(sock, read)


@pytest.mark.parametrize("hand_over", [accept, serve, watch])
def test_sockets_change_hands(two: Two, hand_over: Callable[[LoopThread, LoopThread, socket.socket], None]) -> None:
    connections, messages = 8, 200

    async def talk(here: LoopThread, there: LoopThread) -> None:
        async def talk_to_one() -> None:
            ours, theirs = socket.socketpair()
            for sock in (ours, theirs):
                sock.setblocking(False)
            there.call(hand_over, there, here, theirs)
            await converse(ours, messages)

        await asyncio.gather(*[talk_to_one() for _ in range(connections)])

    left, right = two
    for _ in rounds():
        run((left, talk(left, right)), (right, talk(right, left)))
        assert left.faults == right.faults == []


# ---- what belongs to a loop, and another thread's garbage collector comes to


class Forgetful(asyncio.Protocol):
    """Its transport and it have nobody but each other."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.pause_reading()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing is collected but when asked for, and what should have been closed is no error."""
    gc.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
    gc.enable()


def test_a_transport_that_another_thread_collects_is_forgotten_in_its_own(uncollected: None) -> None:
    forgotten_in: list[threading.Thread] = []

    class Noting(Interests):
        def forget(self, interest: Interest) -> None:
            forgotten_in.append(threading.current_thread())
            super().forget(interest)

    def make_loop() -> notifyloop.NotifyLoop:
        selector = NotificationSelector()
        selector.interests.close()
        selector.interests = Noting()
        return notifyloop.NotifyLoop(selector)

    thread = LoopThread(make_loop)

    async def connect(ends: list[socket.socket]) -> None:
        await thread.loop.connect_accepted_socket(Forgetful, ends.pop())

    ours, theirs = socket.socketpair()
    ends = [theirs]
    del theirs
    run((thread, connect(ends)))
    ours.settimeout(LONG_ENOUGH)
    gc.collect()
    assert ours.recv(1) == b""
    ours.close()
    thread.end()
    assert forgotten_in == [thread]
