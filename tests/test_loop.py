"""The loop: what asyncio's loops do, on the stock one, uvloop and ours; then what only ours does."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import notifyloop
from notifyloop.turn.handles import MOST_SPARE
from notifyloop.turn.interests import ASLEEP
from notifyloop.turn.primitives import UNSHARED

if TYPE_CHECKING:
    from collections.abc import Iterator

    Pair = tuple[socket.socket, socket.socket]

Loop = asyncio.AbstractEventLoop

POSIX = sys.platform != "win32"
# The stock loop that these tests have on Windows, the selector loop, has neither child processes nor pipes nor signals.
COMPLETE = ["asyncio", "notifyloop", "uvloop"] if POSIX else ["notifyloop"]
LINUX_LISTS = pytest.mark.only("linux", reason="only Linux lists what a process has open")


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()


def descriptors() -> Counter[str]:
    """What this process has open."""
    gc.collect()  # what earlier tests left behind must not be closed between two counts
    links: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links[str(entry.readlink())] += 1
    return links


def run_turns(loop: Loop, turns: int = 1) -> None:
    for _ in range(turns):
        loop.call_soon(loop.stop)
        loop.run_forever()


class TestScheduling:
    @pytest.mark.differs(uvloop="0.23.0", reason="runs another turn after stop()")
    def test_callbacks_run_in_order_and_new_ones_in_the_next_turn(self, loop: Loop) -> None:
        order: list[str] = []

        def first() -> None:
            order.append("first")
            loop.call_soon(order.append, "third")

        loop.call_soon(first)
        loop.call_soon(order.append, "second")
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert order == ["first", "second"]
        run_turns(loop)
        assert order == ["first", "second", "third"]

    def test_a_loop_that_was_stopped_beforehand_takes_one_turn(self, loop: Loop, pair: Pair) -> None:
        ran: list[str] = []
        pair[1].send(b"x")
        loop.add_reader(pair[0], ran.append, "reader")
        loop.call_later(0, ran.append, "timer")
        loop.stop()
        loop.run_forever()
        assert sorted(ran) == ["reader", "timer"]

    def test_cancelled_callbacks_do_not_run(self, loop: Loop) -> None:
        ran: list[int] = []
        loop.call_soon(ran.append, 1).cancel()
        loop.call_later(0, ran.append, 2).cancel()
        loop.call_later(0.001, loop.stop)
        loop.run_forever()
        assert ran == []

    def test_a_handle_that_was_kept_is_nobody_elses(self, loop: Loop) -> None:
        ran: list[int] = []
        kept = [loop.call_soon(ran.append, number) for number in range(3)]
        run_turns(loop)
        for number in range(3, 100):
            loop.call_soon(ran.append, number)
        for handle in kept:
            handle.cancel()
        run_turns(loop)
        assert ran == list(range(100))

    def test_a_callback_that_cancels_its_own_handle_cancels_no_other(self, loop: Loop) -> None:
        ran: list[str] = []
        handles: list[asyncio.Handle] = []

        def callback() -> None:
            handles.pop().cancel()
            ran.append("cancelled")

        handles.append(loop.call_soon(callback))
        run_turns(loop)
        for _ in range(10):
            loop.call_soon(ran.append, "later")
        run_turns(loop)
        assert ran == ["cancelled", *["later"] * 10]

    def test_what_a_callback_was_given_is_gone_when_it_has_run(self, loop: Loop) -> None:
        class Payload:
            pass

        variable: contextvars.ContextVar[Payload] = contextvars.ContextVar("variable")
        payloads = [Payload() for _ in range(4)]
        alive = weakref.WeakSet(payloads)
        context = contextvars.copy_context()
        context.run(variable.set, payloads[3])

        def callback(*_: Payload, last: Payload = payloads[2]) -> None:
            pass

        loop.call_soon(callback, *payloads[:2], context=context)
        payloads.clear()
        del callback, context
        run_turns(loop, 2)
        gc.collect()
        assert not alive

    @pytest.mark.differs(uvloop="0.23.0", reason="counts in milliseconds, and may be early by one")
    def test_timers_run_in_the_order_of_their_times(self, loop: Loop) -> None:
        order: list[int] = []
        now = loop.time()
        for number in (3, 1, 2):
            loop.call_at(now + number / 500, order.append, number)
        loop.call_at(now + 0.01, loop.stop)
        loop.run_forever()
        assert order == [1, 2, 3]
        early = loop._clock_resolution  # type: ignore[attr-defined]  # of asyncio's on Windows 15.6 ms, until Python 3.13
        assert loop.time() >= now + 0.01 - early

    def test_many_cancelled_timers_are_forgotten(self, loop: Loop) -> None:
        class Payload:
            pass

        payloads = [Payload() for _ in range(300)]
        alive = weakref.WeakSet(payloads)
        handles = [loop.call_later(3600, id, payload) for payload in payloads]
        payloads.clear()
        for handle in handles:
            handle.cancel()
        handles.clear()
        del handle
        run_turns(loop, 2)
        gc.collect()
        assert len(alive) == 0

    def test_cancelled_timers_do_not_pile_up_while_the_loop_is_busy(self, loop: Loop) -> None:
        timers = []

        async def main() -> None:
            for _ in range(100):
                for _ in range(100):
                    handle = loop.call_later(3600, id, None)
                    timers.append(weakref.ref(handle))
                    handle.cancel()
                await asyncio.sleep(0)

        loop.run_until_complete(main())
        gc.collect()
        assert sum(timer() is not None for timer in timers) <= 300

    def test_callbacks_keep_their_context(self, loop: Loop) -> None:
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")
        seen: list[str] = []
        context = contextvars.copy_context()
        context.run(variable.set, "inside")
        loop.call_soon(lambda: seen.append(variable.get()))
        loop.call_soon(lambda: seen.append(variable.get()), context=context)
        run_turns(loop)
        assert seen == ["outside", "inside"]

    def test_a_callback_that_raises_is_reported_and_harms_nobody(self, loop: Loop) -> None:
        reports: list[dict[str, object]] = []
        loop.set_exception_handler(lambda _, context: reports.append(context))
        ran: list[int] = []
        loop.call_soon(lambda: 1 / 0)
        loop.call_soon(ran.append, 1)
        run_turns(loop)
        assert ran == [1]
        assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]

    def test_an_interrupt_from_a_callback_leaves_the_others_for_the_next_run(self, loop: Loop) -> None:
        ran: list[int] = []

        def interrupt() -> None:
            raise KeyboardInterrupt

        loop.call_soon(interrupt)
        loop.call_soon(ran.append, 1)
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        run_turns(loop)
        assert ran == [1]

    def test_arguments_do_not_live_longer_than_their_callback(self, loop: Loop) -> None:
        class Payload:
            pass

        payload = Payload()
        alive = weakref.ref(payload)
        loop.call_soon(id, payload)
        del payload
        run_turns(loop)
        gc.collect()
        assert alive() is None

    @pytest.mark.parametrize("debug", [False, True])
    def test_an_exception_does_not_keep_the_task_that_raised_it(self, loop: Loop, debug: bool) -> None:
        """Its traceback keeps the frames that the task was called from, so they must not keep the task."""
        loop.set_debug(debug)

        async def fail() -> None:
            raise ZeroDivisionError

        async def main() -> None:
            task = asyncio.ensure_future(fail())
            raised = None
            try:
                await task
            except ZeroDivisionError as error:
                raised = error
            reference = weakref.ref(task)
            del task
            await asyncio.sleep(0)  # that which woke us had it as its argument
            assert raised is not None
            assert reference() is None

        gc.disable()
        try:
            loop.run_until_complete(main())
        finally:
            gc.enable()


@pytest.mark.parametrize("debug", [False, True])
def test_what_a_closed_loop_held_goes_with_it(loop: Loop, debug: bool) -> None:
    """At once. There may be one loop for each call, and of a loop's dictionary that refers to itself CPython 3.13's
    collector may never hear.
    """

    class Handler:
        def __call__(self, loop: Loop, context: object) -> None:
            pass

    gc.disable()
    try:
        another = type(loop)()
        another.set_debug(debug)
        handler = Handler()
        alive = weakref.ref(handler)
        another.set_exception_handler(handler)
        another.run_until_complete(asyncio.sleep(0))
        another.close()
        del another, handler
        assert alive() is None
    finally:
        gc.enable()


class TestOtherThreads:
    def test_a_sleeping_loop_wakes_up(self, loop: Loop) -> None:
        started = threading.Event()

        def stop_it() -> None:
            started.wait()
            loop.call_soon_threadsafe(loop.stop)

        thread = threading.Thread(target=stop_it)
        thread.start()
        loop.call_soon(started.set)
        loop.run_forever()
        thread.join()

    def test_callbacks_of_many_threads_all_arrive_and_in_order(self, loop: Loop) -> None:
        got: list[tuple[int, int]] = []

        def add(item: tuple[int, int]) -> None:
            got.append(item)
            if len(got) == 8 * 500:
                loop.stop()

        def send(number: int) -> None:
            for index in range(500):
                loop.call_soon_threadsafe(add, (number, index))

        threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        loop.run_forever()
        for thread in threads:
            thread.join()
        for number in range(8):
            assert [index for owner, index in got if owner == number] == list(range(500))

    def test_a_callback_can_be_cancelled(self, loop: Loop) -> None:
        called: list[str] = []

        def cancel_another() -> None:
            loop.call_soon_threadsafe(called.append, "cancelled").cancel()
            loop.call_soon_threadsafe(called.append, "called")
            loop.call_soon_threadsafe(loop.stop)

        thread = threading.Thread(target=cancel_another)
        thread.start()
        thread.join()
        loop.run_forever()
        assert called == ["called"]

    def test_a_cancelled_handle_says_so(self, loop: Loop) -> None:
        for schedule in (loop.call_soon, loop.call_soon_threadsafe):
            handle = schedule(print, "what it would have done")
            handle.cancel()
            assert handle.cancelled()
            assert repr(handle).endswith("Handle cancelled>")

    def test_a_callback_may_cancel_itself(self, loop: Loop) -> None:
        handles = [loop.call_soon_threadsafe(lambda: handles[0].cancel())]
        loop.call_soon_threadsafe(loop.stop)
        loop.run_forever()
        assert handles[0].cancelled()

    @pytest.mark.differs(uvloop="0.23.0", reason="its handles have no lock")
    @pytest.mark.skipif(sys.version_info < (3, 14), reason="before Python 3.14 nobody waits")
    @pytest.mark.parametrize("debug", [False, True])
    @pytest.mark.parametrize("method", ["cancel", "cancelled"])
    def test_whoever_asks_about_a_callback_that_runs_waits_for_it(self, loop: Loop, method: str, debug: bool) -> None:
        loop.set_debug(debug)
        started, asking, answered = threading.Event(), threading.Event(), threading.Event()
        early: list[bool] = []

        def callback() -> None:
            started.set()
            asking.wait()
            early.append(answered.wait(0.05))
            loop.stop()

        def ask() -> None:
            handle = loop.call_soon_threadsafe(callback)
            started.wait()
            asking.set()
            getattr(handle, method)()
            answered.set()

        thread = threading.Thread(target=ask)
        thread.start()
        loop.run_forever()
        thread.join()
        assert early == [False]

    @pytest.mark.skipif(sys.version_info < (3, 14), reason="the class is new in Python 3.14")
    def test_handles_of_other_threads_are_of_asyncios_kind(self, notify_loop: notifyloop.NotifyLoop) -> None:
        kind = asyncio.events._ThreadSafeHandle  # type: ignore[attr-defined]
        assert isinstance(notify_loop.call_soon_threadsafe(print), kind)
        assert not isinstance(notify_loop.call_soon(print), kind)

    def test_closed(self) -> None:
        loop = notifyloop.NotifyLoop()
        loop.close()
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            loop.call_soon_threadsafe(print)

    def test_debug_mode_refuses_calls_from_the_wrong_thread(self, loop: Loop) -> None:
        loop.set_debug(True)
        errors: list[RuntimeError] = []

        def call() -> None:
            try:
                loop.call_soon(print)
            except RuntimeError as error:
                errors.append(error)

        async def main() -> None:
            await asyncio.to_thread(call)

        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
        assert "Non-thread-safe operation" in str(errors[0])


class TestReaders:
    def test_a_reader_that_does_not_drain_is_called_again(self, loop: Loop, pair: Pair) -> None:
        got: list[bytes] = []

        def read() -> None:
            got.append(pair[0].recv(1))
            if len(got) == 5:
                loop.remove_reader(pair[0])
                loop.stop()

        loop.add_reader(pair[0], read)
        pair[1].send(b"abcdef")
        loop.run_forever()
        assert got == [b"a", b"b", b"c", b"d", b"e"]

    @pytest.mark.differs(uvloop="0.23.0", reason="returns None")
    def test_removing_says_whether_there_was_one(self, loop: Loop, pair: Pair) -> None:
        loop.add_reader(pair[0], print)
        assert loop.remove_reader(pair[0]) is True
        assert loop.remove_reader(pair[0]) is False
        assert loop.remove_writer(pair[0]) is False

    def test_reader_and_writer_of_one_socket(self, loop: Loop, pair: Pair) -> None:
        events: list[str] = []

        def write() -> None:
            events.append("write")
            if events.count("write") == 3:
                loop.remove_writer(pair[0])
                pair[1].send(b"x")

        def read() -> None:
            events.append("read")
            pair[0].recv(1)
            loop.stop()

        loop.add_reader(pair[0], read)
        loop.add_writer(pair[0], write)
        loop.run_forever()
        assert events == ["write"] * 3 + ["read"]
        loop.remove_reader(pair[0])

    def test_adding_again_replaces_the_callback(self, loop: Loop, pair: Pair) -> None:
        got: list[str] = []
        loop.add_reader(pair[0], got.append, "old")
        loop.add_reader(pair[0], lambda: (got.append("new"), loop.remove_reader(pair[0]), loop.stop()))
        pair[1].send(b"x")
        loop.run_forever()
        assert got == ["new"]

    def test_a_reader_removed_by_another_callback_of_the_turn_is_not_called(self, loop: Loop) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        called: list[int] = []

        def read(index: int) -> None:
            called.append(index)
            loop.remove_reader(pairs[1 - index][0])
            loop.stop()

        for index, (end, peer) in enumerate(pairs):
            loop.add_reader(end, read, index)
            peer.send(b"x")
        loop.run_forever()
        assert len(set(called)) == 1
        for end, peer in pairs:
            loop.remove_reader(end)
            end.close()
            peer.close()

    def test_a_refused_connection_calls_the_writer(self, loop: Loop) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            address = closed.getsockname()
        with socket.socket() as client:
            client.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                loop.run_until_complete(loop.sock_connect(client, address))

    @pytest.mark.differs(asyncio="3.13.0", reason="takes them on Windows", when=not POSIX)
    @pytest.mark.parametrize("method", ["add_reader", "add_writer"])
    def test_invalid_descriptors(self, loop: Loop, method: str, tmp_path: Path) -> None:
        add = getattr(loop, method)
        with pytest.raises(ValueError):  # noqa: PT011
            add(-1, print)
        with pytest.raises((ValueError, TypeError)):
            add("socket", print)
        with socket.socket() as closed:
            descriptor = closed.fileno()
        with pytest.raises(OSError):  # noqa: PT011
            add(descriptor, print)
        with (tmp_path / "file").open("wb") as file, pytest.raises(PermissionError if POSIX else OSError):
            add(file, print)

    def test_a_descriptor_of_a_transport(self, loop: Loop, pair: Pair) -> None:
        async def main() -> None:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=pair[0])
            descriptor = transport.get_extra_info("socket").fileno()
            with pytest.raises(RuntimeError, match="is used by transport"):
                loop.add_reader(descriptor, print)
            transport.abort()
            await asyncio.sleep(0)

        loop.run_until_complete(main())

    def test_closing_right_after_removing_and_reusing_the_descriptor(self, loop: Loop) -> None:
        got: list[int] = []
        for round_ in range(50):
            end, peer = socket.socketpair()
            loop.add_reader(end, got.append, -1)
            peer.send(b"x")
            loop.remove_reader(end)
            end.close()
            peer.close()
            end, peer = socket.socketpair()

            def read(end: socket.socket = end, number: int = round_) -> None:
                got.append(number)
                loop.remove_reader(end)
                loop.stop()

            loop.add_reader(end, read)
            peer.send(b"y")
            loop.run_forever()
            end.close()
            peer.close()
        assert got == list(range(50))

    @pytest.mark.parametrize("registered", [False, True])
    def test_what_was_ready_for_a_socket_is_not_told_to_its_successor(self, loop: Loop, registered: bool) -> None:
        """Both are ready in one turn. The first puts a socket with nothing to read in the other's place."""
        called: list[str] = []
        with contextlib.ExitStack() as open_sockets:

            def open_pair() -> tuple[socket.socket, socket.socket]:
                ours, theirs = socket.socketpair()
                return open_sockets.enter_context(ours), open_sockets.enter_context(theirs)

            def replace(itself: socket.socket, other: socket.socket) -> None:
                called.append("first")
                loop.call_soon(loop.stop)
                loop.remove_reader(itself)
                loop.remove_reader(other)
                descriptor = other.fileno()
                other.close()
                successors.extend(open_pair())
                if POSIX:
                    assert descriptor in [sock.fileno() for sock in successors]
                if registered:
                    for sock in successors:
                        loop.add_reader(sock, called.append, "successor")

            successors: list[socket.socket] = []
            (first, its_peer), (second, whose_peer) = open_pair(), open_pair()
            its_peer.send(b"x")
            whose_peer.send(b"x")
            loop.add_reader(first, replace, first, second)
            loop.add_reader(second, replace, second, first)
            loop.run_forever()
            run_turns(loop)
            assert called == ["first"]
            for sock in successors:
                loop.remove_reader(sock)


class TestFairness:
    """While callbacks make callbacks without end, everything else is still served."""

    @pytest.fixture
    def busy(self, loop: Loop) -> Loop:
        def chain() -> None:
            loop.call_soon(chain)

        loop.call_soon(chain)
        return loop

    def test_readers(self, busy: Loop, pair: Pair) -> None:
        busy.add_reader(pair[0], busy.stop)
        busy.call_soon(pair[1].send, b"x")
        busy.run_forever()

    def test_timers(self, busy: Loop) -> None:
        busy.call_later(0.01, busy.stop)
        busy.run_forever()

    def test_other_threads(self, busy: Loop) -> None:
        thread = threading.Thread(target=busy.call_soon_threadsafe, args=(busy.stop,))
        busy.call_soon(thread.start)
        busy.run_forever()
        thread.join()

    def test_connections(self, busy: Loop) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        async def main() -> None:
            async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
                for number in range(5):
                    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                    writer.write(b"%d\n" % number)
                    assert await reader.read() == b"%d\n" % number
                    writer.close()
                    await writer.wait_closed()

        busy.run_until_complete(main())


class TestProcessesSignalsPipes:
    @pytest.mark.asyncio(loop_factories=COMPLETE)
    async def test_subprocess(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import sys; print(sys.stdin.read().upper())", stdin=-1, stdout=-1
        )
        output, _ = await process.communicate(b"text")
        assert (process.returncode, output.strip()) == (0, b"TEXT")

    @pytest.mark.asyncio(loop_factories=COMPLETE)
    async def test_a_killed_subprocess(self) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(100)")
        process.kill()
        assert await process.wait() == (-signal.SIGKILL if POSIX else 1)

    @pytest.mark.asyncio(loop_factories=COMPLETE)
    async def test_signal_handler(self) -> None:
        loop = asyncio.get_running_loop()
        got = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, got.set)
        signal.raise_signal(signal.SIGTERM)
        await got.wait()
        assert loop.remove_signal_handler(signal.SIGTERM)

    @pytest.mark.asyncio(loop_factories=COMPLETE)
    async def test_pipes(self) -> None:
        loop = asyncio.get_running_loop()
        reader_end, writer_end = os.pipe()
        reader = asyncio.StreamReader()
        reading, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reader_end, "rb", 0)
        )
        writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(writer_end, "wb", 0))
        writing.write(b"through the pipe")
        writing.close()
        assert await reader.read() == b"through the pipe"
        reading.close()

    @pytest.mark.never("windows", reason="Windows has no signals that one process could send another")
    @pytest.mark.parametrize("factory", ["asyncio:SelectorEventLoop", "notifyloop:NotifyLoop"])
    def test_an_interrupt_ends_a_sleeping_program(self, factory: str) -> None:
        """SIGINT in a process of its own, as from a terminal."""
        module, name = factory.split(":")
        program = f"""
import asyncio, signal, {module}
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell starts with it ignored
async def main():
    print("sleeping", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("cleaned up", flush=True)
with asyncio.Runner(loop_factory={module}.{name}) as runner:
    runner.run(main())
"""
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "sleeping\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
        assert output == "cleaned up\n"
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert process.returncode == -signal.SIGINT


class TestOurs:
    def test_what_programs_ask_of_the_class(self, notify_loop: notifyloop.NotifyLoop) -> None:
        assert isinstance(notify_loop, asyncio.SelectorEventLoop)
        assert isinstance(notify_loop._selector, notifyloop.NotificationSelector)

    @pytest.mark.only("epoll", reason="what is listed is its set and its eventfd")
    def test_it_opens_no_self_pipe(self) -> None:
        before = descriptors()
        loop = notifyloop.NotifyLoop()
        opened = descriptors() - before
        loop.close()
        assert opened == Counter({"anon_inode:[eventpoll]": 1, "anon_inode:[eventfd]": 1})

    @LINUX_LISTS
    def test_one_that_nobody_closed_leaves_nothing_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where the warning of it is an exception, as here."""
        told: list[BaseException | None] = []
        monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value))
        before = descriptors()
        for _ in range(3):
            loop = notifyloop.NotifyLoop()
            del loop
        assert descriptors() == before
        assert [type(error) for error in told] == [ResourceWarning] * 3

    def test_another_selector_is_refused(self) -> None:
        import selectors  # noqa: PLC0415

        with pytest.raises(TypeError, match="needs a NotificationSelector"):
            notifyloop.NotifyLoop(selectors.SelectSelector())  # type: ignore[arg-type]

    def test_the_stock_loop_runs_on_our_selector(self) -> None:
        async def main() -> bytes:
            server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            data = await reader.read()
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()
            await asyncio.to_thread(int)
            return data

        loop = asyncio.SelectorEventLoop(notifyloop.NotificationSelector())
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            assert runner.run(main()) == b""

    @pytest.mark.skipif(UNSHARED < 0, reason="without a global lock nobody knows who else has a handle")
    @pytest.mark.parametrize(
        ("method", "place"), [("call_soon", "spare"), ("call_soon_threadsafe", "spare_for_threads")]
    )
    def test_handles_that_nobody_kept_are_used_again(
        self, notify_loop: notifyloop.NotifyLoop, method: str, place: str
    ) -> None:
        schedule = getattr(notify_loop, method)
        kept = schedule(int)
        for _ in range(2 * MOST_SPARE):
            schedule(int)
        run_turns(notify_loop)
        spare = getattr(notify_loop._turn, place)
        assert len(spare) == MOST_SPARE
        assert kept not in spare
        assert schedule(int) not in spare
        assert len(spare) == MOST_SPARE - 1

    def test_one_foreign_call_per_turn(self, notify_loop: notifyloop.NotifyLoop, pair: Pair, traits: set[str]) -> None:
        remaining = 1000

        def read() -> None:
            nonlocal remaining
            pair[0].recv(1)
            pair[1].send(b"x")
            remaining -= 1
            if not remaining:
                notify_loop.stop()

        notify_loop.add_reader(pair[0], read)
        pair[1].send(b"x")
        before = notify_loop.statistics()
        notify_loop.run_forever()
        after = notify_loop.statistics()
        turns = after.iterations - before.iterations
        assert after.foreign_calls - before.foreign_calls <= turns
        if "afd" not in traits:  # which tells the kernel of each re-arm in a call of its own
            assert (
                after.kernel_calls - before.kernel_calls <= turns + turns // 256
            )  # asked whether it is still the file
        assert after.re_arms - before.re_arms == 999

    @pytest.mark.only("epoll", reason="strace knows no calls of a stand-in")
    @pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
    def test_one_system_call_per_turn_as_the_kernel_sees_it(self, tmp_path: Path) -> None:
        program = """
import socket, notifyloop
a, b = socket.socketpair()
a.setblocking(False); b.setblocking(False)
loop = notifyloop.NotifyLoop()
count = 0
def read(own, counted):
    global count
    own.send(own.recv(1))
    count += counted
    if count == 500: loop.stop()
loop.add_reader(a, read, a, 1)
loop.add_reader(b, read, b, 0)
a.send(b"x")
before = loop.statistics().iterations
loop.run_forever()
print(loop.statistics().iterations - before)
loop.close()
"""
        trace = tmp_path / "trace"
        calls = "trace=epoll_wait,epoll_pwait,epoll_pwait2,epoll_ctl,write"
        result = subprocess.run(
            ["strace", "-f", "-e", calls, "-o", trace, sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode and "ptrace" in result.stderr:
            pytest.skip("this system does not let strace trace")
        assert result.returncode == 0, result.stderr
        turns = int(result.stdout)
        lines = trace.read_text().splitlines()
        waits = [line for line in lines if "epoll_wait" in line or "epoll_pwait" in line]
        changes = [line for line in lines if "epoll_ctl" in line]
        assert 900 <= len(waits) <= turns + 1
        assert len(changes) <= 10, "re-arming told the kernel"

    def test_wake_ups_are_coalesced(self, notify_loop: notifyloop.NotifyLoop) -> None:
        """A loop that is awake is not woken, and one that sleeps only once."""
        for _ in range(1000):
            notify_loop.call_soon_threadsafe(int)
        assert notify_loop.statistics().posted == 0
        run_turns(notify_loop)

        def burst() -> None:
            for _ in range(1000):
                notify_loop.call_soon_threadsafe(int)
            notify_loop.call_soon_threadsafe(notify_loop.stop)

        notify_loop.call_soon(burst)
        notify_loop.run_forever()
        assert notify_loop.statistics().posted == 0

        class Disturbed(deque[asyncio.Handle]):
            """Another thread comes just when the loop has said that it sleeps, and looks whether anything is ready."""

            def __bool__(self) -> bool:
                if not self.__len__() and notify_loop._turn.interests.sleeping == ASLEEP:
                    thread = threading.Thread(target=burst)
                    thread.start()
                    thread.join()
                return self.__len__() > 0

        notify_loop._ready = Disturbed(notify_loop._ready)
        notify_loop.run_forever()
        assert notify_loop.statistics().posted == 1

    def test_ready_callbacks_do_not_starve_sockets(self, notify_loop: notifyloop.NotifyLoop, pair: Pair) -> None:
        turns = 0

        def spin() -> None:
            nonlocal turns
            turns += 1
            notify_loop.call_soon(spin)

        notify_loop.add_reader(pair[0], notify_loop.stop)
        notify_loop.call_soon(spin)
        notify_loop.call_soon(pair[1].send, b"x")
        notify_loop.run_forever()
        assert turns < 100

    def test_the_port_is_asked_in_each_turn_unless_nothing_is_watched(
        self, notify_loop: notifyloop.NotifyLoop, pair: Pair
    ) -> None:
        def waits_of(turns: int) -> int:
            before = notify_loop.statistics().waits
            for _ in range(turns):
                notify_loop.call_soon(int)
                notify_loop._run_once()
            return notify_loop.statistics().waits - before

        if not notify_loop._turn.interests.foreign:
            assert waits_of(10) == 0
        notify_loop.add_reader(pair[0], int)
        assert waits_of(10) == 10

    def test_ready_callbacks_do_not_starve_timers(self, notify_loop: notifyloop.NotifyLoop) -> None:
        def spin() -> None:
            notify_loop.call_soon(spin)

        notify_loop.call_soon(spin)
        notify_loop.call_later(0.01, notify_loop.stop)
        notify_loop.run_forever()

    def test_a_patched_clock_moves_the_timers(self, notify_loop: notifyloop.NotifyLoop, monkeypatch) -> None:
        now = 1000.0
        monkeypatch.setattr(notify_loop, "time", lambda: now)
        ran: list[int] = []
        notify_loop.call_later(3600, ran.append, 1)
        run_turns(notify_loop)
        assert ran == []
        now += 3600
        run_turns(notify_loop)
        assert ran == [1]

    def test_statistics(self, notify_loop: notifyloop.NotifyLoop, pair: Pair) -> None:
        first = notify_loop.statistics()
        assert (first.iterations, first.callbacks, first.registered) == (0, 0, 0)
        notify_loop.add_reader(pair[0], notify_loop.stop)
        pair[1].send(b"x")
        notify_loop.run_forever()
        then = notify_loop.statistics()
        assert then.registered == 1
        assert then.registrations == 1
        assert then.notifications == 1
        assert then.waits >= 1
        assert then.waiting_time > 0
        notify_loop.close()
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            notify_loop.statistics()

    @LINUX_LISTS
    def test_closing_releases_every_descriptor(self) -> None:
        loop = notifyloop.NotifyLoop()
        loop.close()
        gc.collect()
        before = descriptors()
        for _ in range(20):
            loop = notifyloop.NotifyLoop()
            loop.call_soon(loop.stop)
            loop.run_forever()
            loop.close()
            loop.close()
        assert descriptors() == before


@pytest.mark.asyncio
@pytest.mark.differs(
    asyncio="3.13.0", reason="forgets that it runs", when=(3, 13) <= sys.version_info < (3, 13, 5), run=False
)
async def test_a_loop_that_cannot_be_run_because_it_runs_goes_on_running() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(RuntimeError, match="already running"):
        loop.run_forever()
    assert loop.is_running()
    assert asyncio.get_running_loop() is loop
