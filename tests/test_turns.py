"""What a turn is: when I/O is seen, what is called in which order, when the loop stops. Programs count on all of it,
and asyncio documents little.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import sys
import threading
import time
from heapq import heappop
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

import notifyloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pair = tuple[socket.socket, socket.socket]

Loop = asyncio.AbstractEventLoop

since_3_15 = pytest.mark.differs(
    asyncio="3.11.7 to 3.14.10", reason="calls it from Python 3.15 on", when=sys.version_info < (3, 15)
)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(params=[False, True], ids=["normal", "debug"])
def debug(request: pytest.FixtureRequest) -> bool:
    mode: bool = request.param
    return mode


@pytest.fixture
def loop(loop: Loop, debug: bool) -> Loop:
    """A loop of each kind, in each mode: they turn alike."""
    loop.set_debug(debug)
    return loop


class TestStopping:
    def test_a_loop_that_was_stopped_before_makes_one_turn(self, loop: Loop) -> None:
        called: list[str] = []
        loop.call_soon(called.append, "before")
        for number in range(3):
            loop.stop()
            loop.run_forever()
            loop.call_soon(called.append, f"then {number}")
        loop.stop()
        loop.run_forever()
        assert called == ["before", "then 0", "then 1", "then 2"]

    def test_a_loop_without_work_stops(self, loop: Loop) -> None:
        loop.stop()
        loop.run_forever()

    def test_what_is_readable_is_read_before_it_stops(self, loop: Loop, pair: Pair) -> None:
        """aiohttp's tests end their loops so."""
        got: list[bytes] = []
        loop.add_reader(pair[0], lambda: got.append(pair[0].recv(10)))
        pair[1].send(b"last")
        loop.stop()
        loop.run_forever()
        assert got == [b"last"]

    @pytest.mark.differs(asyncio="3.13.0", uvloop="0.23.0", reason="stop when something else wakes them", run=False)
    @pytest.mark.skipif(sys.platform == "win32", reason="there a signal is no interruption of a wait")
    @pytest.mark.parametrize("timer", [False, True])
    def test_a_signal_handler_stops_a_loop_that_sleeps(
        self, loop: Loop, timer: bool, request: pytest.FixtureRequest
    ) -> None:
        """A handler of `signal.signal`, of which the loop has not been told. asyncio sleeps on, as PEP 475 has it."""
        previous = signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
        request.addfinalizer(lambda: signal.signal(signal.SIGUSR1, previous))
        if timer:
            loop.call_later(3600, int)
        ended = threading.Event()

        def send() -> None:
            while not ended.wait(0.01):
                os.kill(os.getpid(), signal.SIGUSR1)

        thread = threading.Thread(target=send)
        loop.call_soon(thread.start)
        loop.run_forever()
        ended.set()
        thread.join()

    @pytest.mark.differs(uvloop="0.23.0", reason="the turn goes on, and then it is raised")
    def test_an_interrupt_leaves_the_rest_of_the_turn_for_later(self, loop: Loop) -> None:
        called: list[int] = []

        def interrupt() -> None:
            loop.call_soon(called.append, 3)
            raise KeyboardInterrupt

        loop.call_soon(called.append, 0)
        loop.call_soon(interrupt)
        loop.call_soon(called.append, 1)
        loop.call_soon(called.append, 2)
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        assert called == [0]
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert called == [0, 1, 2, 3]


class TestSleepZero:
    """`await asyncio.sleep(0)` lets the others in, and I/O."""

    @pytest.mark.never("wine", reason="its server is a process, which tells of a socket when it gets to it")
    def test_a_reader_is_called(self, loop: Loop, pair: Pair) -> None:
        async def main() -> int:
            called: list[int] = []
            loop.add_reader(pair[0], lambda: (called.append(1), loop.remove_reader(pair[0])))
            pair[1].send(b"x")
            turns = 0
            while not called:
                await asyncio.sleep(0)
                turns += 1
            return turns

        assert loop.run_until_complete(main()) <= 2

    def test_a_protocol_receives(self, loop: Loop, pair: Pair) -> None:
        class Receiver(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                got.append(data)

        got: list[bytes] = []

        async def main() -> list[int]:
            transport, _ = await loop.create_connection(Receiver, sock=pair[0])
            counts = []
            for _ in range(30):
                got.clear()
                pair[1].send(b"x")
                turns = 0
                while not got:
                    await asyncio.sleep(0)
                    turns += 1
                counts.append(turns)
            transport.abort()
            return counts

        assert max(loop.run_until_complete(main())) <= 3

    @pytest.mark.parametrize("clients", [1, 30])
    def test_servers_see_their_clients_end_before_the_program_does(self, loop: Loop, clients: int) -> None:
        """Python 3.11 prints a traceback for each that has not."""
        ended = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal ended
            while line := await reader.readline():
                writer.write(line)
            ended += 1
            writer.close()

        async def visit(address: Any) -> None:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"x\n")
            assert await reader.readline() == b"x\n"
            writer.close()
            await writer.wait_closed()

        async def main() -> int:
            server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=100)
            address = server.sockets[0].getsockname()
            await asyncio.gather(*[visit(address) for _ in range(clients)])
            for _ in range(5):
                await asyncio.sleep(0)
            seen = ended
            server.close()
            return seen

        assert loop.run_until_complete(main()) == clients

    def test_a_timer_that_is_due_is_called(self, loop: Loop) -> None:
        async def main() -> list[str]:
            called: list[str] = []
            loop.call_later(0, called.append, "timer")
            while loop.time() <= now:
                pass
            for _ in range(2):
                await asyncio.sleep(0)
            return called

        now = loop.time()
        assert loop.run_until_complete(main()) == ["timer"]


class TestOrder:
    @pytest.mark.differs(uvloop="0.23.0", reason="timers come first")
    @pytest.mark.never("wine", reason="its server is a process, which tells of a socket when it gets to it")
    def test_readers_come_after_what_was_ready_and_timers_after_them(self, loop: Loop, pair: Pair) -> None:
        called: list[str] = []

        def read() -> None:
            pair[0].recv(10)
            called.append("reader")
            loop.call_soon(called.append, "what the reader made ready")

        def begin() -> None:
            loop.call_soon(called.append, "ready")
            pair[1].send(b"x")
            loop.call_at(loop.time() - 1, called.append, "timer")
            loop.call_soon(loop.call_soon, loop.call_soon, loop.call_soon, loop.stop)

        loop.add_reader(pair[0], read)
        loop.call_soon(begin)
        loop.run_forever()
        assert called == ["ready", "reader", "timer", "what the reader made ready"]

    def test_two_readers_of_one_turn(self, loop: Loop) -> None:
        """What the first makes ready waits for the second."""
        called: list[str] = []
        pairs = [socket.socketpair() for _ in range(2)]

        def read(number: int) -> None:
            pairs[number][0].recv(10)
            called.append("reader")
            loop.call_soon(called.append, "ready")

        for number, (ours, theirs) in enumerate(pairs):
            loop.add_reader(ours, read, number)
            theirs.send(b"x")
        loop.call_soon(loop.call_soon, loop.call_soon, loop.stop)
        loop.run_forever()
        for ours, theirs in pairs:
            loop.remove_reader(ours)
            ours.close()
            theirs.close()
        assert called == ["reader", "reader", "ready", "ready"]

    @pytest.mark.differs(uvloop="0.23.0", reason="the replacement is called at once")
    def test_a_reader_that_another_has_replaced_waits_for_the_next_turn(self, loop: Loop) -> None:
        """It may read a blocking descriptor, and what it was told to read the first has read already."""
        pairs = [socket.socketpair() for _ in range(2)]
        called: list[str] = []

        def first(number: int) -> None:
            for ours, _ in pairs:
                ours.recv(10)
            called.append("first")
            loop.add_reader(pairs[1 - number][0], called.append, "replacement")

        for number, (ours, theirs) in enumerate(pairs):
            loop.add_reader(ours, first, number)
            theirs.send(b"x")
        loop.call_soon(loop.call_soon, loop.call_soon, loop.stop)
        loop.run_forever()
        for ours, theirs in pairs:
            loop.remove_reader(ours)
            ours.close()
            theirs.close()
        assert called == ["first"]

    @pytest.mark.differs(uvloop="0.23.0", reason="connections are no tasks", run=False)
    def test_a_connection_begins_in_a_turn_of_its_own(self, loop: Loop) -> None:
        """After what other threads have called in while its protocol was made; and who cancels all tasks ends it."""
        called: list[str] = []

        class Guest(asyncio.Protocol):
            def __init__(self) -> None:
                thread = threading.Thread(target=loop.call_soon_threadsafe, args=(cancel_all,))
                thread.start()
                thread.join()

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                called.append("made")

            def connection_lost(self, error: Exception | None) -> None:
                called.append("lost")

        def cancel_all() -> None:
            called.append("cancelled")
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.stop()

        server = loop.run_until_complete(loop.create_server(Guest, "127.0.0.1", 0))
        with socket.create_connection(server.sockets[0].getsockname()):
            loop.run_forever()
            server.close()
            loop.run_until_complete(asyncio.wait_for(server.wait_closed(), 60))
            while "lost" not in called:
                loop.call_soon(loop.stop)
                loop.run_forever()
        assert called == ["cancelled", "made", "lost"]


class TestTimes:
    @pytest.mark.differs(asyncio="3.13.0", uvloop="0.23.0", reason="take it, and all timers stop")
    @pytest.mark.parametrize("method", ["call_later", "call_at"])
    def test_what_is_no_number_stops_no_timer(self, loop: Loop, method: str) -> None:
        with pytest.raises(ValueError, match="not a number"):
            getattr(loop, method)(math.nan, print)
        with pytest.raises(TypeError):
            getattr(loop, method)("soon", print)
        loop.run_until_complete(asyncio.sleep(0.001))

    @pytest.mark.parametrize("delay", [math.inf, 1e300, 10**9])
    def test_never_is_a_time(self, loop: Loop, delay: float) -> None:
        timer = loop.call_later(delay, pytest.fail)
        loop.run_until_complete(asyncio.sleep(0.001))
        timer.cancel()

    @pytest.mark.differs(uvloop="0.23.0", reason="a clock of its own")
    @pytest.mark.parametrize("now", [0.0, 1000.0, *(pytest.param(float(2**n), marks=since_3_15) for n in (40, 50))])
    @pytest.mark.parametrize("step", [0.0, 1.0])
    def test_a_clock_that_stands_still(
        self, loop: Loop, monkeypatch: pytest.MonkeyPatch, now: float, step: float
    ) -> None:
        """What is due now is called now, also where a nanosecond is less than the distance of two floats."""
        monkeypatch.setattr(loop, "time", lambda: now)
        called: list[float] = []
        loop.call_later(step, called.append, now)
        loop.stop()
        loop.run_forever()
        assert called == ([] if step else [now])
        now += step
        loop.stop()
        loop.run_forever()
        assert len(called) == 1


class TestLookingInside:
    """What programs replace in a loop of asyncio's, or look at. Not in uvloop: it has no such inside."""

    @pytest.fixture(params=["asyncio", "notifyloop"])
    def loop(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        loop = {"asyncio": asyncio.SelectorEventLoop, "notifyloop": notifyloop.NotifyLoop}[request.param]()
        yield loop
        loop.close()

    def test_stepping_by_hand(self, loop: Any) -> None:
        """Guests in the loop of a GUI do so."""
        called: list[int] = []
        loop.call_soon(called.append, 1)
        loop.call_soon(loop.call_soon, called.append, 2)
        loop.call_later(0.001, called.append, 3)
        asyncio._set_running_loop(loop)
        loop._thread_id = threading.get_ident()
        try:
            loop._run_once()
            assert called == [1]
            loop._run_once()
            assert called[:2] == [1, 2]
            while called != [1, 2, 3]:
                loop._run_once()
        finally:
            loop._thread_id = None
            asyncio._set_running_loop(None)

    def test_the_scheduled_timers(self, loop: Any) -> None:
        timer = loop.call_later(60, print, "never")
        other = loop.call_later(30, print, "sooner")
        assert sorted(loop._scheduled) == [other, timer]
        assert loop._scheduled[0] is other
        assert [(t._args, t.cancelled(), t.when() > 0) for t in [timer]] == [(("never",), False, True)]
        timer.cancel()
        assert timer.cancelled()

    def test_timers_taken_out_by_hand(self, loop: Any) -> None:
        called: list[int] = []
        for number in range(5):
            loop.call_at(loop.time() - 5 + number, called.append, number)
        heappop(loop._scheduled)
        loop.stop()
        loop.run_forever()
        assert called == [1, 2, 3, 4]

    def test_a_monitor_of_handles(self, loop: Any, pair: Pair) -> None:
        seen: list[str] = []
        run = asyncio.events.Handle._run

        def watched(handle: Any) -> None:
            seen.append(repr(handle))
            run(handle)

        def read() -> None:
            pair[0].recv(10)
            loop.stop()

        async def task() -> None:
            await asyncio.sleep(0)

        class Receiver(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                loop.stop()

        loop.run_until_complete(asyncio.sleep(0))
        with patch.object(asyncio.events.Handle, "_run", watched):
            loop.call_soon(int)
            loop.call_later(0, str)
            loop.run_until_complete(task())
            loop.run_until_complete(asyncio.sleep(0.001))
            loop.add_reader(pair[0], read)
            pair[1].send(b"x")
            loop.run_forever()
            loop.remove_reader(pair[0])
            transport, _ = loop.run_until_complete(loop.create_connection(Receiver, sock=pair[0]))
            before = len(seen)
            pair[1].send(b"x")
            loop.run_forever()
            transport.abort()
        assert any("int" in text for text in seen)
        assert any("str" in text for text in seen)
        assert any("task" in text for text in seen)
        assert any("read" in text for text in seen)
        assert len(seen) > before
        count = len(seen)
        loop.call_soon(int)
        loop.stop()
        loop.run_forever()
        assert len(seen) == count

    @pytest.mark.parametrize("when", ["before", "while it runs"])
    def test_a_monitor_of_the_wait(self, loop: Any, pair: Pair, when: str) -> None:
        """How long a loop was idle is measured so; and virtual clocks are driven so."""
        seen: list[float | None] = []
        select = loop._selector.select

        def watched(timeout: float | None = None) -> Any:
            seen.append(timeout)
            return select(timeout)

        def install() -> None:
            loop._selector.select = watched

        if when == "before":
            install()
        else:
            loop.call_soon(install)
        loop.add_reader(pair[0], loop.stop)
        loop.call_later(3600, int)
        loop.call_soon(loop.call_soon, loop.call_soon, pair[1].send, b"x")
        loop.run_forever()
        loop.remove_reader(pair[0])
        assert 0 in seen
        assert len(seen) >= 3

    @pytest.mark.differs(asyncio="3.13.0", reason="'pop from an empty deque', if the inner one has run what was ready")
    def test_an_inner_loop(self, loop: Any) -> None:
        """As nest_asyncio makes one: with a turn of its own, of the names that it finds."""

        def run_once() -> None:
            scheduled, ready = loop._scheduled, loop._ready
            while scheduled and scheduled[0]._cancelled:
                heappop(scheduled)
            timeout = None
            if ready or loop._stopping:
                timeout = 0
            elif scheduled:
                timeout = max(0, scheduled[0]._when - loop.time())
            loop._process_events(loop._selector.select(timeout))
            while scheduled and scheduled[0]._when < loop.time() + loop._clock_resolution:
                ready.append(heappop(scheduled))
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()

        def inner() -> None:
            future = loop.create_future()
            threads = [threading.Thread(target=call_in, args=(number, future)) for number in range(3)]
            loop.call_later(0.001, got.append, "timer")
            for thread in threads:
                thread.start()
            while not (future.done() and "timer" in got):
                run_once()
            for thread in threads:
                thread.join()
            loop.stop()

        def call_in(number: int, future: asyncio.Future[None]) -> None:
            time.sleep(0)
            loop.call_soon_threadsafe(come, number, future)

        def come(number: int, future: asyncio.Future[None]) -> None:
            got.append(number)
            if {0, 1, 2} <= set(got):
                future.set_result(None)

        for _ in range(20):
            got: list[Any] = []
            loop.call_soon(inner)
            loop.call_soon(got.append, "outer")
            loop.run_forever()
            assert sorted(map(str, set(got) - {"outer"})) == ["0", "1", "2", "timer"]

    def test_a_timer_whose_method_was_replaced(self, loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        call_at: Callable[..., Any] = loop.call_at
        times: list[float] = []

        def watched(when: float, *rest: Any, **more: Any) -> Any:
            times.append(when)
            return call_at(when, *rest, **more)

        monkeypatch.setattr(loop, "call_at", watched)
        loop.call_later(0, loop.stop)
        loop.run_forever()
        assert len(times) == 1
