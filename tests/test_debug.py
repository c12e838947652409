"""What debug mode tells: slow callbacks, misuse, and where callbacks come from. And what nobody closed."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import notifyloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pair = tuple[socket.socket, socket.socket]

Loop = asyncio.AbstractEventLoop


@pytest.fixture
def debugged(loop: Loop) -> Loop:
    loop.set_debug(True)
    return loop


def run_turn(loop: Loop) -> None:
    loop.call_soon(loop.stop)
    loop.run_forever()


class TestSwitching:
    def test_while_the_loop_runs(self, loop: Loop) -> None:
        seen: list[tuple[bool, bool]] = []

        async def note() -> None:
            await asyncio.sleep(0)  # what notes the origins of coroutines is switched in the next turn
            seen.append((loop.get_debug(), sys.get_coroutine_origin_tracking_depth() > 0))

        async def main() -> None:
            for debug in (True, False, True, False):
                loop.set_debug(debug)
                await note()

        loop.run_until_complete(main())
        assert seen == [(True, True), (False, False)] * 2

    @pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
    def test_by_a_callback(self, loop: Loop, method: str) -> None:
        """What is scheduled from then on remembers who did that."""
        schedule = getattr(loop, method)
        schedule(loop.set_debug, True)
        run_turn(loop)
        handle = schedule(int)
        assert handle._source_traceback[-1].name == "test_by_a_callback"

    def test_while_other_threads_call(self, loop: Loop) -> None:
        """Each of their calls is made, in whichever mode."""
        called: list[int] = []

        def call() -> None:
            for number in range(3000):
                loop.call_soon_threadsafe(called.append, number)
            loop.call_soon_threadsafe(loop.stop)

        def switch() -> None:
            loop.set_debug(not loop.get_debug())
            loop.call_soon(switch)

        thread = threading.Thread(target=call)
        loop.call_soon(switch)
        loop.call_soon(thread.start)
        loop.run_forever()
        thread.join()
        loop.set_debug(False)
        assert called == list(range(3000))


class TestSlowCallbacks:
    @staticmethod
    def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    @pytest.mark.parametrize(
        "schedule",
        [
            "call_soon",
            "call_soon_threadsafe",
            "call_later",
            pytest.param("add_reader", marks=pytest.mark.differs(uvloop="0.23.0", reason="does not time readers")),
        ],
    )
    def test_each_kind_is_reported(self, debugged: Loop, schedule: str, caplog: pytest.LogCaptureFixture) -> None:
        debugged.slow_callback_duration = 0  # seconds: every callback is slow
        ours, theirs = socket.socketpair()

        def slow() -> None:
            if schedule == "add_reader":
                debugged.remove_reader(ours)
            debugged.stop()

        with ours, theirs:
            theirs.send(b"x")
            arguments = {"call_later": [0.001], "add_reader": [ours]}.get(schedule, [])
            getattr(debugged, schedule)(*arguments, slow)
            debugged.run_forever()
        [report] = [report for report in self.reports(caplog) if slow.__qualname__ in report]
        assert re.match(r"Executing <.* took \d+\.\d{3} seconds$", report)

    def test_a_slow_step_of_a_task_names_the_task(self, debugged: Loop, caplog: pytest.LogCaptureFixture) -> None:
        debugged.slow_callback_duration = 0

        async def main() -> None:
            await asyncio.sleep(0)

        debugged.run_until_complete(debugged.create_task(main(), name="the slow one"))
        assert any(report.startswith("Executing <Task") and "the slow one" in report for report in self.reports(caplog))

    def test_others_are_not(self, debugged: Loop, caplog: pytest.LogCaptureFixture) -> None:
        debugged.slow_callback_duration = 3600
        run_turn(debugged)
        assert self.reports(caplog) == []

    def test_nor_outside_of_debug_mode(self, loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
        loop.slow_callback_duration = 0
        run_turn(loop)
        assert self.reports(caplog) == []


class TestMisuse:
    @pytest.mark.parametrize("method", ["call_soon", "call_later", "call_at"])
    def test_calls_from_other_threads(self, debugged: Loop, method: str) -> None:
        arguments = [] if method == "call_soon" else [0]

        async def main() -> None:
            with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
                await asyncio.to_thread(getattr(debugged, method), *arguments, print)
            called = asyncio.Event()
            await asyncio.to_thread(debugged.call_soon_threadsafe, called.set)
            await called.wait()
            await debugged.shutdown_default_executor()

        debugged.run_until_complete(main())

    @pytest.mark.differs(uvloop="0.23.0", reason="does not look")
    @pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
    def test_coroutine_functions_are_no_callbacks(self, debugged: Loop, method: str) -> None:
        async def coroutine() -> None: ...

        arguments = [0] if method in ("call_later", "call_at") else []
        with pytest.raises(TypeError, match="coroutines cannot be used"):
            getattr(debugged, method)(*arguments, coroutine)
        with pytest.raises(TypeError, match="callable object was expected"):
            getattr(debugged, method)(*arguments, "no function")

    def test_blocking_sockets(self, debugged: Loop) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(ValueError, match="must be non-blocking"):
            debugged.run_until_complete(debugged.sock_recv(ours, 1))


class TestOrigins:
    @pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
    def test_a_report_says_who_scheduled_the_callback(self, debugged: Loop, method: str) -> None:
        reports: list[dict[str, Any]] = []
        debugged.set_exception_handler(lambda _, context: reports.append(context))

        def schedule_it() -> None:
            getattr(debugged, method)(*([0] if method in ("call_later", "call_at") else []), lambda: 1 / 0)

        schedule_it()
        debugged.call_later(0.001, debugged.stop)
        debugged.run_forever()
        [report] = reports
        frames = report["source_traceback"]
        assert (frames[-1].name, frames[-1].filename) == (schedule_it.__name__, __file__)

    def test_a_report_says_who_made_the_task(self, debugged: Loop) -> None:
        reports: list[dict[str, Any]] = []
        debugged.set_exception_handler(lambda _, context: reports.append(context))

        async def fail() -> None:
            raise ZeroDivisionError

        def make_it() -> None:
            debugged.create_task(fail())

        make_it()
        run_turn(debugged)
        gc.collect()
        [report] = reports
        assert report["source_traceback"][-1].name == make_it.__name__

    def test_coroutines_note_their_origin_while_it_runs(self, loop: Loop) -> None:
        depths: list[int] = []
        for debug in (True, False):
            loop.set_debug(debug)
            loop.call_soon(lambda: depths.append(sys.get_coroutine_origin_tracking_depth()))
            run_turn(loop)
            depths.append(sys.get_coroutine_origin_tracking_depth())
        assert depths[0] > 0
        assert depths[1:] == [0, 0, 0]


class TestWhatNobodyClosed:
    """It is told in debug mode or not."""

    @pytest.fixture(params=[asyncio.SelectorEventLoop, notifyloop.NotifyLoop])
    def factory(self, request: pytest.FixtureRequest) -> Callable[[], Loop]:
        factory: Callable[[], Loop] = request.param
        return factory

    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            yield ours, theirs

    @staticmethod
    def forget(things: list[Any]) -> None:
        things.clear()
        gc.collect()

    def test_a_loop(self, factory: Callable[[], Loop]) -> None:
        kept = [factory()]
        with pytest.warns(ResourceWarning, match="unclosed event loop"):
            self.forget(kept)

    @pytest.mark.asyncio
    @pytest.mark.differs(uvloop="0.23.0", reason="keeps it until the loop is closed")
    async def test_a_transport(self, pair: Pair) -> None:
        kept = [*await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=pair[0])]
        kept[0].pause_reading()  # or the loop has it, for there may be something to receive
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            self.forget(kept)
        pair[1].settimeout(60)
        assert pair[1].recv(1) == b""  # and the connection has ended

    @pytest.mark.asyncio
    async def test_a_transport_that_was_closed_is_not_told(self, pair: Pair) -> None:
        kept = [*await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=pair[0])]
        kept[0].close()
        await asyncio.sleep(0)
        self.forget(kept)  # every warning fails a test
