"""What the loop has on Windows besides sockets: pipes, child processes, signals."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import gc
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

import notifyloop

if sys.platform != "win32":
    pytest.skip("this is Windows' own", allow_module_level=True)

import _winapi
from asyncio import windows_utils

if TYPE_CHECKING:
    from notifyloop import NotifyLoop

OVERLAPPED, BLOCKING = (True, True), (False, False)
numbers = itertools.count()


@pytest.fixture
def address() -> str:
    return rf"\\.\pipe\notifyloop-{os.getpid()}-{next(numbers)}"


class Ends(asyncio.Protocol):
    """Takes note of what it is told, and of how often."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.calls: list[str] = []
        self.data = b""
        self.arrived = asyncio.Event()
        self.lost: asyncio.Future[BaseException | None] = loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self.calls.append("made")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.arrived.set()

    def eof_received(self) -> None:
        self.calls.append("eof")

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, error: BaseException | None) -> None:
        self.calls.append("lost")
        self.lost.set_result(error)

    async def until(self, size: int) -> bytes:
        while len(self.data) < size:
            self.arrived.clear()
            await self.arrived.wait()
        return self.data


async def pipe(kind: tuple[bool, bool]) -> tuple[Ends, Ends]:
    """What reads a pipe, and what writes to it."""
    loop = asyncio.get_running_loop()
    reads, writes = windows_utils.pipe(overlapped=kind)
    _, reader = await loop.connect_read_pipe(Ends, windows_utils.PipeHandle(reads))
    _, writer = await loop.connect_write_pipe(Ends, windows_utils.PipeHandle(writes))
    return reader, writer


def in_flight(loop: Any) -> int:
    return len(loop._system.operations)


def python(*arguments: str, **options: Any) -> Any:
    return asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", *arguments, **options)


@pytest.mark.parametrize("kind", [OVERLAPPED, BLOCKING], ids=["overlapped", "blocking"])
@pytest.mark.asyncio(loop_factories=["notifyloop"])
class TestPipes:
    async def test_everything_that_is_written_is_read(self, kind: tuple[bool, bool]) -> None:
        reader, writer = await pipe(kind)
        message = os.urandom(1_000_000)
        writer.transport.write(message[:10])
        writer.transport.writelines([message[10:20], bytearray(message[20:30]), memoryview(message[30:])])
        writer.transport.write_eof()
        assert await reader.lost is None
        assert await writer.lost is None
        assert reader.data == message
        assert reader.calls == ["made", "eof", "lost"]
        assert writer.calls == ["made", "pause", "lost"]

    async def test_writing_pauses_and_resumes(self, kind: tuple[bool, bool]) -> None:
        reader, writer = await pipe(kind)
        reader.transport.pause_reading()
        writer.transport.write(bytes(300_000))
        assert writer.calls == ["made", "pause"]
        assert writer.transport.get_write_buffer_size() == 300_000
        reader.transport.resume_reading()
        await reader.until(300_000)
        writer.transport.write(b"!")
        await reader.until(300_001)
        assert writer.calls == ["made", "pause", "resume"]
        while writer.transport.get_write_buffer_size():  # that it was written may be told after it was read
            await asyncio.sleep(0.001)
        writer.transport.close()
        await reader.lost

    async def test_what_came_while_reading_was_paused_is_not_lost(self, kind: tuple[bool, bool]) -> None:
        reader, writer = await pipe(kind)
        for number in range(20):
            reader.transport.pause_reading()
            assert not reader.transport.is_reading()
            writer.transport.write(b"%02d" % number)
            if number % 2:
                await asyncio.sleep(0)
            reader.transport.resume_reading()
            reader.transport.resume_reading()
            assert await reader.until(2 * (number + 1)) == b"".join(b"%02d" % n for n in range(number + 1))
        writer.transport.close()
        await reader.lost
        assert reader.calls == ["made", "eof", "lost"]

    async def test_nothing_is_delivered_while_reading_is_paused(self, kind: tuple[bool, bool]) -> None:
        reader, writer = await pipe(kind)
        reader.transport.pause_reading()
        writer.transport.write(b"first")
        while writer.transport.get_write_buffer_size():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)  # should something come after all, it is seen here
        assert reader.data == b""
        reader.transport.resume_reading()
        reader.transport.pause_reading()  # at once: what is due must wait again
        await asyncio.sleep(0.02)
        assert reader.data == b""
        reader.transport.resume_reading()
        assert await reader.until(5) == b"first"
        writer.transport.close()
        await reader.lost

    @pytest.mark.parametrize("how", ["close", "abort"])
    async def test_closing_while_a_read_is_in_flight(self, kind: tuple[bool, bool], how: str) -> None:
        reader, writer = await pipe(kind)
        getattr(reader.transport, how)()
        getattr(reader.transport, how)()
        assert reader.transport.is_closing()
        assert await reader.lost is None
        assert reader.calls == ["made", "lost"]
        writer.transport.close()
        await writer.lost
        assert writer.calls == ["made", "lost"]
        assert "closed" in repr(reader.transport)

    async def test_writing_to_a_pipe_that_nobody_reads(self, kind: tuple[bool, bool]) -> None:
        reader, writer = await pipe(kind)
        reader.transport.close()
        await reader.lost
        while not writer.transport.is_closing():
            writer.transport.write(b"anybody?")
            await asyncio.sleep(0.001)
        await writer.lost
        writer.transport.write(b"too late")
        assert [call for call in writer.calls if call in ("made", "lost")] == ["made", "lost"]

    async def test_aborting_a_write(self, kind: tuple[bool, bool]) -> None:
        reader, writer = await pipe(kind)
        reader.transport.pause_reading()
        writer.transport.write(bytes(1_000_000))
        writer.transport.close()
        await asyncio.sleep(0)
        assert writer.calls == ["made", "pause"]
        writer.transport.abort()
        assert await writer.lost is None
        assert writer.calls == ["made", "pause", "lost"]
        reader.transport.close()
        await reader.lost

    async def test_an_error_in_the_protocol_ends_the_connection(
        self, kind: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader, writer = await pipe(kind)
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        problem = ZeroDivisionError()

        def fail(data: bytes) -> None:
            raise problem

        monkeypatch.setattr(reader, "data_received", fail)
        writer.transport.write(b"data")
        assert await reader.lost is problem
        assert [complaint["exception"] for complaint in complaints] == [problem]
        writer.transport.close()
        await writer.lost

    async def test_a_buffered_protocol(self, kind: tuple[bool, bool]) -> None:
        received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        class Buffered(asyncio.BufferedProtocol):
            buffer = bytearray(4)
            data = b""

            def get_buffer(self, sizehint: int) -> bytearray:
                return self.buffer

            def buffer_updated(self, nbytes: int) -> None:
                self.data += self.buffer[:nbytes]

            def eof_received(self) -> None:
                received.set_result(self.data)

        reader, writer = await pipe(kind)
        reader.transport.set_protocol(Buffered())
        writer.transport.write(b"in pieces of four")
        writer.transport.close()
        assert await received == b"in pieces of four"


@pytest.mark.parametrize("kind", [OVERLAPPED, BLOCKING], ids=["overlapped", "blocking"])
def test_an_interrupt_in_its_protocol_does_not_end_a_pipe(
    kind: tuple[bool, bool], notify_loop: NotifyLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is run again, and all goes on."""
    loop = notify_loop
    reader, writer = loop.run_until_complete(pipe(kind))

    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    for end, method in ((reader, "data_received"), (writer, "resume_writing")):
        monkeypatch.setattr(end, method, interrupted)
        writer.transport.write(bytes(200_000))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asyncio.wait_for(asyncio.Event().wait(), 30))
        reader.data = b""
        writer.transport.write(b"!")

        async def main() -> None:
            while not reader.data.endswith(b"!"):
                reader.arrived.clear()
                await reader.arrived.wait()

        loop.run_until_complete(main())
    writer.transport.close()

    async def ends() -> None:
        await reader.lost
        await writer.lost

    loop.run_until_complete(ends())


@pytest.mark.parametrize("name", ["_run", "_read_ended", "_written"])
@pytest.mark.parametrize("kind", [OVERLAPPED, BLOCKING], ids=["overlapped", "blocking"])
def test_an_interrupt_in_the_first_line_of_its_callback_does_not_end_a_pipe(
    kind: tuple[bool, bool], name: str, notify_loop: NotifyLoop
) -> None:
    loop = notify_loop
    interrupts: list[str] = []

    def interrupt(frame: Any, event: str, argument: object) -> Any:
        code = frame.f_code
        place = code.co_qualname
        if code.co_name != name or "windows" not in code.co_filename or place in interrupts:
            return None
        interrupts.append(place)
        raise KeyboardInterrupt

    reader, writer = loop.run_until_complete(pipe(kind))

    async def speak() -> None:
        reader.data = b""
        writer.transport.write(b"hello!")
        while not reader.data.endswith(b"!"):
            reader.arrived.clear()
            await reader.arrived.wait()

    async def end() -> None:
        reader.transport.close()
        writer.transport.close()

    async def ends() -> None:
        await reader.lost
        await writer.lost

    for task in (speak, speak, end):
        waiting = loop.create_task(task())
        while not waiting.done():
            sys.settrace(interrupt)
            try:
                loop.run_until_complete(asyncio.wait_for(asyncio.shield(waiting), 20))
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
    loop.run_until_complete(ends())
    assert interrupts


@pytest.mark.asyncio(loop_factories=["notifyloop"])
class TestFiles:
    async def test_pipes_of_the_c_library(self) -> None:
        loop = asyncio.get_running_loop()
        reads, writes = os.pipe()
        _, reader = await loop.connect_read_pipe(Ends, os.fdopen(reads, "rb"))
        _, writer = await loop.connect_write_pipe(Ends, os.fdopen(writes, "wb"))
        writer.transport.write(b"hello")
        assert await reader.until(5) == b"hello"
        writer.transport.close()
        await reader.lost
        assert reader.calls == ["made", "eof", "lost"]

    async def test_pipes_of_a_child_that_popen_has_made(self) -> None:
        loop = asyncio.get_running_loop()
        program = "import sys; print(sys.stdin.read().upper(), end='')"
        arguments = [sys.executable, "-I", "-S", "-c", program]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            _, reader = await loop.connect_read_pipe(Ends, child.stdout)
            _, writer = await loop.connect_write_pipe(Ends, child.stdin)
            writer.transport.write(b"hello")
            writer.transport.close()
            await reader.lost
            assert reader.data == b"HELLO"

    async def test_a_file_on_disk(self, tmp_path: Any) -> None:
        loop = asyncio.get_running_loop()
        (tmp_path / "file").write_bytes(bytes(200_000))
        _, reader = await loop.connect_read_pipe(Ends, (tmp_path / "file").open("rb"))
        await reader.lost
        assert reader.data == bytes(200_000)

    async def test_what_is_no_file(self) -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TypeError, match="a file object is required"):
            await loop.connect_read_pipe(Ends, object())
        reads, writes = windows_utils.pipe()
        _winapi.CloseHandle(writes)
        _winapi.CloseHandle(reads)
        with pytest.raises(OSError, match="WinError 6"):
            await loop.connect_read_pipe(Ends, Number(reads))

    async def test_a_thread_that_reads_ends_with_its_transport(self) -> None:
        before = threading.active_count()
        reader, writer = await pipe(BLOCKING)
        assert threading.active_count() == before + 2
        threads = [end.transport._file._thread for end in (reader, writer)]
        for end in (reader, writer):
            end.transport.close()
            await end.lost
        for thread in threads:
            await asyncio.get_running_loop().run_in_executor(None, thread.join)


class Number:
    def __init__(self, handle: int) -> None:
        self._handle = handle

    def fileno(self) -> int:
        return self._handle

    def close(self) -> None:
        pass


STDIN = """
import asyncio, notifyloop, sys

async def main():
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        print(line.decode().strip().upper(), flush=True)
        if line.strip() == b"enough":
            return

notifyloop.run(main())
"""


@pytest.mark.asyncio(loop_factories=["notifyloop"])
class TestStandardInput:
    async def test_its_lines_come_and_its_end(self) -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STDIN, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for word in (b"one", b"two"):
            child.stdin.write(word + b"\n")  # type: ignore[union-attr]
            assert (await child.stdout.readline()).strip() == word.upper()  # type: ignore[union-attr]
        child.stdin.close()  # type: ignore[union-attr]
        assert await child.wait() == 0

    async def test_a_program_ends_that_still_waits_for_it(self) -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-c", STDIN, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        child.stdin.write(b"enough\n")  # type: ignore[union-attr]
        assert await child.wait() == 0


CONSOLE = """
import asyncio, ctypes, msvcrt, notifyloop, signal, threading
from ctypes import wintypes

kernel = ctypes.WinDLL("kernel32")
kernel.SetConsoleCtrlHandler(None, False)  # whoever started us may have refused Ctrl-C for us, too

class Key(ctypes.Structure):  # INPUT_RECORD, with a KEY_EVENT_RECORD
    _fields_ = [
        ("kind", wintypes.WORD), ("down", wintypes.BOOL), ("times", wintypes.WORD), ("key", wintypes.WORD),
        ("scan", wintypes.WORD), ("character", wintypes.WCHAR), ("state", wintypes.DWORD),
    ]

def press(text):
    keys = (Key * len(text))(*[Key(1, True, 1, 13 if letter == "\\r" else 0, 0, letter, 0) for letter in text])
    handle = wintypes.HANDLE(msvcrt.get_osfhandle(keyboard.fileno()))
    assert kernel.WriteConsoleInputW(handle, keys, len(text), ctypes.byref(wintypes.DWORD()))

def interrupt(event):
    assert kernel.GenerateConsoleCtrlEvent(event, 0)

async def read():
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), keyboard)
    return reader

def when_it_sleeps(function, *arguments):
    threading.Timer(0.1, function, arguments).start()

keyboard = open("CONIN$", "rb", buffering=0)
"""


def in_a_console(program: str) -> bytes:
    """What a program says that has a console of its own, which nobody sees."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CONSOLE + program],
        capture_output=True,
        creationflags=subprocess.CREATE_NO_WINDOW,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.strip()


class TestConsoles:
    def test_what_is_typed_is_read(self) -> None:
        program = """
async def main():
    reader = await read()
    for word in ("one", "two"):
        press(word + "\\r")
        print((await reader.readline()).decode().strip(), end=" ", flush=True)
notifyloop.run(main())
"""
        assert in_a_console(program) == b"one two"

    @pytest.mark.parametrize("reading", [False, True])
    def test_an_interrupt_ends_the_wait_at_once(self, reading: bool) -> None:
        """python/cpython#101166, #91170."""
        program = f"""
async def main():
    reader = await read() if {reading} else None
    when_it_sleeps(interrupt, signal.CTRL_C_EVENT)
    await asyncio.Event().wait()
try:
    notifyloop.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""
        assert in_a_console(program) == b"interrupted"

    def test_an_interrupt_ends_the_wait_however_many_came_before(self) -> None:
        """In quick succession, so that they come while the loop looks after the first."""
        program = """
import os, time

loop = notifyloop.NotifyLoop()
heard, runs = threading.Event(), threading.Event()
loop.call_soon(runs.set)

def press_often():
    runs.wait()
    for number in range(30):
        for _ in range(3):
            interrupt(signal.CTRL_C_EVENT)
            time.sleep(number % 10 / 4000)
        while heard.wait(0.05):
            heard.clear()
        interrupt(signal.CTRL_C_EVENT)
        if not heard.wait(20):
            print("deaf after", number, flush=True)
            os._exit(0)
    print("heard all", flush=True)
    os._exit(0)

threading.Thread(target=press_often).start()
while True:
    try:
        while True:
            try:
                loop.run_forever()
            except KeyboardInterrupt:
                heard.set()
    except KeyboardInterrupt:
        heard.set()
"""
        assert in_a_console(program) == b"heard all"

    @pytest.mark.parametrize(
        ("event", "number"),
        [
            ("CTRL_C_EVENT", "SIGINT"),
            pytest.param(
                "CTRL_BREAK_EVENT", "SIGBREAK", marks=pytest.mark.never("wine", reason="wine has only Ctrl-C")
            ),
        ],
    )
    def test_handlers(self, event: str, number: str) -> None:
        """python/cpython#137863."""
        program = f"""
async def main():
    pressed = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.{number}, pressed.set)
    when_it_sleeps(interrupt, signal.{event})
    await pressed.wait()
    print("{number}")
notifyloop.run(main())
"""
        assert in_a_console(program) == number.encode()


@pytest.mark.asyncio(loop_factories=["notifyloop"])
class TestNamedPipes:
    async def test_clients_are_served(self, address: str) -> None:
        loop: Any = asyncio.get_running_loop()
        served: list[Ends] = []

        class Echo(Ends):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                served.append(self)

            def data_received(self, data: bytes) -> None:
                self.transport.write(data)

        [server] = await loop.start_serving_pipe(Echo, address)
        for _ in range(3):
            transport, client = await loop.create_pipe_connection(Ends, address)
            message = os.urandom(100_000)
            transport.write(message)
            assert await client.until(len(message)) == message
            assert transport.get_extra_info("addr") == address
            transport.close()
            await client.lost
        for echo in served:
            assert await echo.lost is None
            assert echo.calls in (["made", "eof", "lost"], ["made", "pause", "resume", "eof", "lost"])
        server.close()
        server.close()
        assert server.closed()
        with pytest.raises(FileNotFoundError):
            await loop.create_pipe_connection(Ends, address)

    async def test_more_clients_than_the_server_has_ends_for(self, address: str) -> None:
        loop: Any = asyncio.get_running_loop()
        [server] = await loop.start_serving_pipe(Ends, address)
        pairs = await asyncio.gather(*[loop.create_pipe_connection(Ends, address) for _ in range(20)])
        server.close()
        for transport, client in pairs:
            transport.close()
            await client.lost

    async def test_a_client_that_comes_and_goes_does_not_end_the_serving(self, address: str) -> None:
        loop: Any = asyncio.get_running_loop()
        [server] = await loop.start_serving_pipe(Ends, address)
        for _ in range(5):
            (await loop.create_pipe_connection(Ends, address))[0].abort()
        transport, client = await loop.create_pipe_connection(Ends, address)
        server.close()
        transport.close()
        await client.lost

    @pytest.mark.never("wine", reason="wine lets a second server have the name")
    async def test_a_name_that_is_taken(self, address: str) -> None:
        loop: Any = asyncio.get_running_loop()
        [server] = await loop.start_serving_pipe(Ends, address)
        with pytest.raises(PermissionError):
            await loop.start_serving_pipe(Ends, address)
        server.close()

    async def test_a_factory_that_fails_is_reported_and_the_serving_goes_on(self, address: str) -> None:
        loop: Any = asyncio.get_running_loop()
        complaints: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        [server] = await loop.start_serving_pipe(lambda: 1 / 0, address)
        for _ in range(2):
            _, client = await loop.create_pipe_connection(Ends, address)
            await client.lost
        server.close()
        assert [type(complaint["exception"]) for complaint in complaints] == [ZeroDivisionError] * 2


@pytest.mark.asyncio(loop_factories=["notifyloop"])
class TestProcesses:
    async def test_what_it_says_and_how_it_ends(self) -> None:
        program = "import sys; sys.stderr.write('e'); sys.stdout.write(sys.stdin.read().upper()); sys.exit(7)"
        child = await python(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert await child.communicate(b"ping") == (b"PING", b"e")
        assert child.returncode == 7

    async def test_a_shell(self) -> None:
        child = await asyncio.create_subprocess_shell("echo hello", stdout=subprocess.PIPE)
        assert (await child.communicate())[0].strip() == b"hello"

    async def test_options_of_popen(self) -> None:
        information = subprocess.STARTUPINFO()
        information.dwFlags = subprocess.STARTF_USESHOWWINDOW
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        program = "import os; print(os.environ['WORD'])"
        child = await python(
            program,
            stdout=subprocess.PIPE,
            startupinfo=information,
            creationflags=flags,
            close_fds=False,
            env={**os.environ, "WORD": "hello"},
        )
        assert (await child.communicate())[0].strip() == b"hello"

    async def test_next_to_a_watched_socket(self) -> None:
        """What no loop of asyncio does on Windows."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            readable = asyncio.Event()
            loop.add_reader(ours, readable.set)
            child = await python("print('hello')", stdout=subprocess.PIPE)
            theirs.send(b"!")
            await readable.wait()
            loop.remove_reader(ours)
            assert (await child.communicate())[0].strip() == b"hello"

    async def test_a_pipe_whose_child_is_gone(self) -> None:
        """As when it had died later: whoever waits until what he wrote is gone hears that it is lost."""
        for size in (1, 1_000_000):
            child = await python("", stdin=subprocess.PIPE)
            await child.wait()
            child.stdin.write(bytes(size))
            with pytest.raises(ConnectionError):
                await child.stdin.drain()
        child = await python("input()", stdin=subprocess.PIPE)
        child.stdin.write(bytes(1_000_000))
        child.kill()
        with pytest.raises(BrokenPipeError):
            await child.stdin.drain()

    async def test_who_has_waited_for_it_cannot_kill_it(self) -> None:
        heir = "import sys; sys.stdin.read()"
        program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {heir!r}])"
        child = await python(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        await child.wait()
        for kill in (child.kill, child.terminate, lambda: child.send_signal(signal.SIGTERM)):
            with pytest.raises(ProcessLookupError):
                kill()
        child.stdin.close()
        assert await child.stdout.read() == b""

    async def test_kill_and_terminate(self) -> None:
        for how in ("kill", "terminate"):
            child = await python("input()", stdin=subprocess.PIPE)
            getattr(child, how)()
            assert await child.wait() == 1

    async def test_many_at_once(self) -> None:
        children = await asyncio.gather(*[python(f"raise SystemExit({number})") for number in range(8)])
        assert await asyncio.gather(*[child.wait() for child in children]) == list(range(8))

    async def test_wait_does_not_wait_for_those_who_inherited_the_pipes(self) -> None:
        heir = "import sys; sys.stdin.read()"
        program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {heir!r}])"
        child = await python(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert await child.wait() == 0
        child.stdin.close()
        assert await child.stdout.read() == b""

    async def test_no_thread_of_pythons_waits(self) -> None:
        before = threading.active_count()
        child = await python("input()", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert threading.active_count() == before
        await child.communicate(b"\n")

    async def test_a_program_that_is_not_there(self) -> None:
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("there is no such program", stdin=subprocess.PIPE)

    async def test_a_stdin_that_its_child_has_closed(self) -> None:
        child = await python("import os; os.close(0); print('closed', flush=True); input", stdin=-1, stdout=-1)
        await child.wait()
        assert (await child.communicate(bytes(1_000_000)))[0].strip() == b"closed"


def in_another_thread(function: Any) -> None:
    """Raises what it raises."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


class TestSignals:
    def test_an_interrupt_ends_the_wait_at_once(self) -> None:
        async def main() -> None:
            threading.Timer(0.02, signal.raise_signal, (signal.SIGINT,)).start()
            await asyncio.sleep(100)

        started = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            notifyloop.run(main())
        assert time.perf_counter() - started < 50

    def test_closing_the_loop_in_another_thread_gives_signals_back(self) -> None:
        """As soon as the main thread can: only there Python lets change what becomes of them."""
        loop: Any = notifyloop.NotifyLoop()
        loop.add_signal_handler(signal.SIGINT, print)
        loop.run_until_complete(asyncio.sleep(0))
        in_another_thread(loop.close)
        assert loop.is_closed()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.set_wakeup_fd(-1) == -1

    def test_an_interrupt_of_a_second_loop_after_the_first_was_closed(self, notify_loop: NotifyLoop) -> None:
        first = notifyloop.NotifyLoop()
        first.run_until_complete(asyncio.sleep(0))

        async def main() -> None:
            first.close()
            threading.Timer(0.02, signal.raise_signal, (signal.SIGINT,)).start()
            await asyncio.sleep(100)

        with pytest.raises(KeyboardInterrupt):
            notify_loop.run_until_complete(main())
        notify_loop.run_until_complete(asyncio.sleep(0))

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGBREAK, signal.SIGTERM])
    def test_handlers(self, notify_loop: NotifyLoop, number: signal.Signals) -> None:
        loop = notify_loop
        called: list[tuple[Any, ...]] = []

        def handle(*arguments: Any) -> None:
            called.append(arguments)
            loop.stop()

        loop.add_signal_handler(number, handle, 1, 2)
        thread = threading.Timer(0.02, signal.raise_signal, (number,))
        thread.start()
        loop.run_forever()
        thread.join()
        assert called == [(1, 2)]
        signal.raise_signal(number)  # between two runs: the next one hears of it
        loop.run_forever()
        assert len(called) == 2
        assert loop.remove_signal_handler(number)
        assert not loop.remove_signal_handler(number)
        expected = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        assert signal.getsignal(number) == expected
        assert signal.set_wakeup_fd(-1) == -1

    def test_closing_a_loop_gives_signals_back(self) -> None:
        loop = notifyloop.NotifyLoop()
        loop.add_signal_handler(signal.SIGTERM, print)
        loop.close()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == -1

    def test_who_was_told_of_signals_before_is_told_again(self, notify_loop: NotifyLoop) -> None:
        reads, writes = os.pipe()
        signal.set_wakeup_fd(writes)
        try:
            notify_loop.run_until_complete(asyncio.sleep(0))
            assert signal.set_wakeup_fd(-1) == writes
        finally:
            signal.set_wakeup_fd(-1)
            os.close(reads)
            os.close(writes)

    def test_wrong_arguments(self, notify_loop: NotifyLoop) -> None:
        async def coroutine() -> None: ...

        with pytest.raises(TypeError, match="coroutines cannot"):
            notify_loop.add_signal_handler(signal.SIGINT, coroutine)
        with pytest.raises(TypeError, match="must be an int"):
            notify_loop.add_signal_handler("SIGINT", print)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="invalid signal number"):
            notify_loop.add_signal_handler(1000, print)
        with pytest.raises(ValueError, match="invalid signal number"):
            notify_loop.remove_signal_handler(1000)

    def test_elsewhere_than_in_the_main_thread(self) -> None:
        errors: list[Exception] = []

        def run() -> None:
            loop = notifyloop.NotifyLoop()
            with contextlib.closing(loop):
                try:
                    loop.add_signal_handler(signal.SIGTERM, print)
                except RuntimeError as error:
                    errors.append(error)
                loop.run_until_complete(asyncio.sleep(0))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert len(errors) == 1


class TestTheEnd:
    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.parametrize("kind", [OVERLAPPED, BLOCKING], ids=["overlapped", "blocking"])
    def test_closing_the_loop_with_operations_in_flight(self, kind: tuple[bool, bool]) -> None:
        loop: Any = notifyloop.NotifyLoop()
        reader, writer = loop.run_until_complete(pipe(kind))
        writer.transport.write(bytes(1_000_000))
        started = time.perf_counter()
        loop.close()
        assert time.perf_counter() - started < 50
        assert not in_flight(loop)
        del reader, writer
        gc.collect()  # closes their handles, and says nothing of closed loops

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_closing_the_loop_in_another_thread(self, address: str) -> None:
        """What one thread has begun and another cancels may be pending still when its file is closed."""

        async def main(loop: Any) -> tuple[Any, ...]:
            [server] = await loop.start_serving_pipe(asyncio.Protocol, address)
            transport, _ = await loop.create_pipe_connection(asyncio.Protocol, address)
            await asyncio.sleep(0.05)  # whoever connected is served, and the server waits for the next
            return server, transport

        def close(loop: Any, server: Any) -> None:
            server.close()
            loop.close()

        for _ in range(5):
            loop: Any = notifyloop.NotifyLoop()
            server, transport = loop.run_until_complete(main(loop))
            in_another_thread(lambda loop=loop, server=server: close(loop, server))
            assert loop.is_closed()
            assert not in_flight(loop)
            del transport
            gc.collect()

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.parametrize("kind", [OVERLAPPED, BLOCKING], ids=["overlapped", "blocking"])
    def test_closing_the_loop_in_another_thread_with_everything_open(self, kind: tuple[bool, bool]) -> None:
        loop: Any = notifyloop.NotifyLoop()
        reader, writer = loop.run_until_complete(pipe(kind))
        child = loop.run_until_complete(python("input()", stdin=subprocess.PIPE))
        writer.transport.write(bytes(1_000_000))
        in_another_thread(loop.close)
        assert loop.is_closed()
        assert not in_flight(loop)
        del reader, writer, child
        gc.collect()

    def test_a_loop_whose_end_fails_is_closed(self, notify_loop: NotifyLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        loop: Any = notify_loop
        error = OSError(9, "no")

        def fail() -> None:
            raise error

        monkeypatch.setattr(type(loop._system.exits), "close", lambda self: fail())
        with pytest.raises(OSError, match="no"):
            loop.close()
        assert loop.is_closed()
        loop.close()

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_closing_the_loop_with_a_child_that_runs(self) -> None:
        loop = notifyloop.NotifyLoop()
        child = loop.run_until_complete(python("input()", stdin=subprocess.PIPE))
        process = _winapi.OpenProcess(_winapi.SYNCHRONIZE, False, child.pid)
        loop.close()
        del child
        gc.collect()  # kills it
        assert _winapi.WaitForSingleObject(process, 10_000) == _winapi.WAIT_OBJECT_0
        _winapi.CloseHandle(process)

    @pytest.mark.parametrize("closed", [True, False])
    def test_the_interpreter_ends_with_operations_in_flight(self, closed: bool) -> None:
        program = f"""
import asyncio, notifyloop, sys
from asyncio import windows_utils

async def main():
    loop = asyncio.get_running_loop()
    for _ in range(20):
        reads, writes = map(windows_utils.PipeHandle, windows_utils.pipe())
        reader, _ = await loop.connect_read_pipe(asyncio.Protocol, reads)
        writer, _ = await loop.connect_write_pipe(asyncio.Protocol, writes)
        reader.pause_reading()
        writer.write(bytes(100_000))
    await asyncio.create_subprocess_exec(sys.executable, "-c", "import sys; sys.stdin.read()", stdin=-1)
    kept.append(loop)

kept = []
loop = notifyloop.NotifyLoop()
loop.run_until_complete(main())
if {closed}:
    loop.close()
print("done", flush=True)
"""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program], capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, b"done", b"")

    def test_a_completion_that_nobody_waits_for_is_dropped(self, notify_loop: NotifyLoop) -> None:
        loop: Any = notify_loop

        async def main() -> None:
            reader, writer = await pipe(OVERLAPPED)
            operations = in_flight(loop)
            reader.transport.abort()
            await reader.lost
            writer.transport.abort()
            await writer.lost
            while in_flight(loop) == operations:
                await asyncio.sleep(0.001)
            while in_flight(loop) > 1:  # that of the signals stays
                await asyncio.sleep(0.001)

        loop.run_until_complete(main())
        assert loop.statistics().stale_notifications == 0


def handles() -> int:
    """How many this process has open: as they are listed, for wine says 0 when it is asked for their number."""
    handles_of_all, entry, too_short = 64, struct.Struct("@NNNIHHII"), 0xC0000004
    ntdll = ctypes.WinDLL("ntdll")
    size, status = 1 << 20, too_short
    while status == too_short:
        size *= 2
        memory = ctypes.create_string_buffer(size)
        status = ntdll.NtQuerySystemInformation(handles_of_all, memory, size, None) & 0xFFFFFFFF
    assert status == 0
    [count, _] = struct.unpack_from("@NN", memory)
    places = range(16, 16 + count * entry.size, entry.size)
    return sum(entry.unpack_from(memory, place)[1] == os.getpid() for place in places)


class TestHandles:
    """None is left open, but for what Windows keeps since the first time, for its pool of threads and the like."""

    @staticmethod
    async def connections() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()
            await writer.wait_closed()

        async def ask(address: tuple[Any, ...]) -> None:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"hello\n")
            assert await reader.read() == b"hello\n"
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        for _ in range(3):
            await asyncio.gather(*[ask(server.sockets[0].getsockname()) for _ in range(20)])
        server.close()
        await server.wait_closed()

    @staticmethod
    async def pipes() -> None:
        for kind in [OVERLAPPED] * 10 + [BLOCKING] * 3:
            reader, writer = await pipe(kind)
            writer.transport.write(bytes(100_000))
            writer.transport.close()
            await reader.lost
            await writer.lost

    @staticmethod
    async def named_pipes() -> None:
        loop: Any = asyncio.get_running_loop()
        address = rf"\\.\pipe\notifyloop-{os.getpid()}-{next(numbers)}"
        [server] = await loop.start_serving_pipe(Ends, address)
        for _ in range(10):
            transport, client = await loop.create_pipe_connection(Ends, address)
            transport.close()
            await client.lost
        server.close()

    @staticmethod
    async def children() -> None:
        for how in (None, "kill"):
            child = await python("print(input())", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if how:
                child.kill()
            await child.communicate(b"hello\n")

    @staticmethod
    async def signals() -> None:
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, heard.set)
        signal.raise_signal(signal.SIGTERM)
        await heard.wait()
        loop.remove_signal_handler(signal.SIGTERM)

    @pytest.mark.parametrize("what", ["connections", "pipes", "named_pipes", "children", "signals"])
    def test_of_a_loop_that_was_closed(self, what: str) -> None:
        counts = []
        for _ in range(6):
            notifyloop.run(getattr(self, what)())
            gc.collect()
            counts.append(handles())
        assert counts[-1] <= counts[2], counts


@pytest.mark.parametrize("gone", [False, True])
def test_a_connection_that_is_accepted_without_an_address(
    notify_loop: NotifyLoop, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """As that of a client who was gone before, in newer versions of wine."""
    from notifyloop.turn import listener  # noqa: PLC0415

    loop, complaints, peernames = notify_loop, [], []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    accept = listener.accept

    def accept_without_address(sock: Any) -> tuple[Any, None]:
        return accept(sock)[0], None

    monkeypatch.setattr(listener, "accept", accept_without_address)

    class Served(Ends):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            peernames.append(transport.get_extra_info("peername"))

    async def main() -> None:
        served: asyncio.Future[Ends] = loop.create_future()

        def serve() -> Ends:
            served.set_result(Served())
            return served.result()

        server = await loop.create_server(serve, "127.0.0.1", 0)
        client = socket.create_connection(server.sockets[0].getsockname())
        address = client.getsockname()
        if gone:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh", 1, 0))
            client.close()
        try:
            ends = await asyncio.wait_for(asyncio.shield(served), 0.5 if gone else None)
        except TimeoutError:
            assert gone  # and so it was never accepted
        else:
            client.close()
            await ends.lost
            assert peernames in ([address], [None])
            assert gone or peernames == [address]
        server.close()
        await server.wait_closed()

    loop.run_until_complete(main())
    assert complaints == []


def test_the_clock_is_a_fine_one(notify_loop: NotifyLoop) -> None:
    readings = {notify_loop.time() for _ in range(10_000)}
    assert len(readings) > 100
    assert notify_loop._clock_resolution < 1e-5


SERVE = """
import signal, sys, threading
from notifyloop.__main__ import main

def listen():
    for line in sys.stdin:
        signal.raise_signal(int(line))  # as Windows does it: in another thread

threading.Thread(target=listen, daemon=True).start()
sys.exit(main(["serve", "--port", "0"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGBREAK, signal.SIGTERM])
def test_serve_answers_until_a_signal_ends_it(number: signal.Signals) -> None:
    pytest.importorskip("aiohttp", reason="the demo needs aiohttp, which notifyloop itself does not")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-W", "error", "-c", SERVE], **pipes, text=True) as process:
        url = process.stdout.readline().split()[-1]
        assert process.stdout.readline() == "Open it in a browser. Ctrl-C ends it.\n"
        with urllib.request.urlopen(f"{url}json") as response:
            assert json.load(response)["message"] == "Hello from notifyloop"
        output, complaints = process.communicate(f"{number:d}\n", timeout=30)
    assert (process.returncode, complaints) == (0, "")
    assert output == "Closing, once requests in flight are done. Ctrl-C ends it at once.\n"
