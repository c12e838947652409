"""Pipes, and what is read and written like one: terminals, sockets, files, /dev/null."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if sys.platform == "win32":
    pytest.skip("Windows has other pipes: see test_windows", allow_module_level=True)

import fcntl
import pty
import tty

from notifyloop.unix import nonblocking
from notifyloop.unix.pipes import MOST_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import notifyloop

NOTHING = Path("/dev/null")

on_every_loop = pytest.mark.asyncio
on_ours = pytest.mark.asyncio(loop_factories=["notifyloop"])


class Recorder(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.calls: list[str] = []
        self.news = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def note(self, call: str) -> None:
        self.calls.append(call)
        self.news.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.note("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.news.set()

    def eof_received(self) -> None:
        self.note("eof")

    def pause_writing(self) -> None:
        self.note("pause")

    def resume_writing(self) -> None:
        self.note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.note("lost")
        self.lost.set_result(exc)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def end(self) -> Exception | None:
        async with asyncio.timeout(30):
            return await self.lost


async def reads(pipe: Any) -> tuple[Any, Recorder]:
    transport, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, pipe)
    return transport, protocol


async def writes(pipe: Any) -> tuple[Any, Recorder]:
    transport, protocol = await asyncio.get_running_loop().connect_write_pipe(Recorder, pipe)
    return transport, protocol


@pytest.fixture
def pipe() -> Iterator[tuple[Any, Any]]:
    """Both ends, as files."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", 0) as reading, os.fdopen(write_end, "wb", 0) as writing:
        yield reading, writing


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Descriptors of its master and of the terminal, which passes everything on as it is."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    yield master, slave
    for fd in (master, slave):
        with contextlib.suppress(OSError):
            os.close(fd)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


class TestReading:
    @on_every_loop
    async def test_data_and_their_end(self, pipe: tuple[Any, Any]) -> None:
        reading, writing = pipe
        transport, protocol = await reads(reading)
        assert transport.is_reading()
        writing.write(b"one")
        await protocol.until(lambda: protocol.data)
        writing.write(b"two")
        writing.close()
        assert await protocol.end() is None
        assert protocol.data == b"onetwo"
        assert protocol.calls == ["made", "eof", "lost"]
        assert transport.is_closing()
        assert not transport.is_reading()

    @on_every_loop
    async def test_paused_it_leaves_all_in_the_pipe(self, pipe: tuple[Any, Any]) -> None:
        reading, writing = pipe
        transport, protocol = await reads(reading)
        transport.pause_reading()
        transport.pause_reading()
        writing.write(b"later")
        for _ in range(3):
            await asyncio.sleep(0)
        assert not protocol.data
        transport.resume_reading()
        transport.resume_reading()
        await protocol.until(lambda: protocol.data == b"later")
        transport.pause_reading()
        transport.close()
        assert await protocol.end() is None
        transport.resume_reading()

    @on_every_loop
    async def test_closed_it_hears_no_more(self, pipe: tuple[Any, Any]) -> None:
        reading, writing = pipe
        transport, protocol = await reads(reading)
        writing.write(b"too late")
        transport.close()
        transport.close()
        assert await protocol.end() is None
        assert protocol.calls == ["made", "lost"]
        assert not protocol.data

    @on_ours
    async def test_buffered_protocols(self, pipe: tuple[Any, Any]) -> None:
        """asyncio does not ask for their buffer, uvloop 0.23.0 not either."""

        class Buffered(asyncio.BufferedProtocol):
            def __init__(self) -> None:
                self.buffer = bytearray(3)
                self.data = b""
                self.end = asyncio.get_running_loop().create_future()

            def get_buffer(self, sizehint: int) -> bytearray:
                return self.buffer

            def buffer_updated(self, nbytes: int) -> None:
                self.data += self.buffer[:nbytes]

            def connection_lost(self, exc: Exception | None) -> None:
                self.end.set_result(exc)

        reading, writing = pipe
        _, protocol = await asyncio.get_running_loop().connect_read_pipe(Buffered, reading)
        writing.write(b"more than three")
        writing.close()
        assert await protocol.end is None
        assert protocol.data == b"more than three"

    @pytest.mark.asyncio
    @pytest.mark.differs(uvloop="0.23.0", reason="closes the pipe")
    async def test_an_exception_of_the_protocol_is_reported(self, pipe: tuple[Any, Any]) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        class Fragile(Recorder):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                if data == b"bad":
                    raise LookupError(data)

        reading, writing = pipe
        _, protocol = await asyncio.get_running_loop().connect_read_pipe(Fragile, reading)
        writing.write(b"bad")
        await protocol.until(lambda: protocol.data)
        writing.write(b"good")
        writing.close()
        assert await protocol.end() is None
        assert protocol.data == b"badgood"
        assert [type(context["exception"]) for context in told] == [LookupError]

    @on_ours
    async def test_data_of_one_pipe_come_before_the_end_of_the_next(self) -> None:
        """Also in a loop that is busy."""
        for _ in range(50):
            order = []

            class Named(Recorder):
                def __init__(self, name: str, order: list[str]) -> None:
                    super().__init__()
                    self.name, self.order = name, order

                def data_received(self, data: bytes) -> None:
                    self.order.append(f"data of {self.name}")

                def connection_lost(self, exc: Exception | None) -> None:
                    self.order.append(f"end of {self.name}")
                    super().connection_lost(exc)

            loop = asyncio.get_running_loop()
            ends = []
            protocols = []
            for name in ("first", "second"):
                read_end, write_end = os.pipe()
                _, protocol = await loop.connect_read_pipe(
                    lambda name=name, order=order: Named(name, order), os.fdopen(read_end, "rb", 0)
                )
                ends.append(write_end)
                protocols.append(protocol)
            os.write(ends[0], b"x")
            os.close(ends[1])
            await protocols[1].end()
            assert order == ["data of first", "end of second"]
            os.close(ends[0])
            await protocols[0].end()


class TestWriting:
    @on_every_loop
    @pytest.mark.differs(uvloop="0.23.0", reason="write_eof() shuts down, which pipes cannot be")
    async def test_all_arrives_before_the_end(self, pipe: tuple[Any, Any]) -> None:
        reading, writing = pipe
        transport, protocol = await writes(writing)
        data = bytes(range(256)) * 4000
        pieces: list[Any] = [data, bytearray(data), memoryview(data)]
        for piece in pieces:
            transport.write(piece)
        transport.write(b"")
        transport.writelines([b"one", b"two"])
        assert transport.can_write_eof()
        transport.write_eof()
        assert transport.is_closing()
        received = await asyncio.get_running_loop().run_in_executor(None, lambda: reading.read())
        assert received == data * 3 + b"onetwo"
        assert await protocol.end() is None
        assert writing.closed

    @on_ours
    @pytest.mark.parametrize("rest", [0, 4096])
    async def test_views_of_any_shape(self, pipe: tuple[Any, Any], rest: int) -> None:
        """asyncio counts their elements for bytes, and cannot write what does not lie in one piece."""
        reading, writing = pipe
        transport, protocol = await writes(writing)
        before = bytes(65536 - rest)
        transport.write(before)  # the pipe has room for that
        transport.write(memoryview(bytes(range(200)) * 100).cast("i"))
        transport.write(memoryview(bytes(range(200)) * 100)[::2])
        transport.close()
        received = await asyncio.get_running_loop().run_in_executor(None, reading.read)
        assert received == before + bytes(range(200)) * 100 + bytes(range(0, 200, 2)) * 100
        assert await protocol.end() is None

    @on_every_loop
    async def test_the_protocol_is_asked_to_wait(self, pipe: tuple[Any, Any]) -> None:
        reading, writing = pipe
        transport, protocol = await writes(writing)
        transport.set_write_buffer_limits(high=1000, low=100)
        written = 0
        while "pause" not in protocol.calls:
            transport.write(bytes(10_000))
            written += 10_000
        assert transport.get_write_buffer_size() > 1000
        received = 0
        while "resume" not in protocol.calls:
            received += len(await asyncio.get_running_loop().run_in_executor(None, os.read, reading.fileno(), 10_000))
        assert transport.get_write_buffer_size() <= 100
        transport.close()
        while received < written:
            received += len(os.read(reading.fileno(), 100_000))
        assert await protocol.end() is None
        assert protocol.calls == ["made", "pause", "resume", "lost"]

    @on_every_loop
    async def test_what_was_written_last_is_dropped_by_abort(self, pipe: tuple[Any, Any]) -> None:
        reading, writing = pipe
        transport, protocol = await writes(writing)
        transport.write(bytes(1_000_000))
        assert transport.get_write_buffer_size()
        transport.close()
        transport.abort()
        transport.abort()
        await protocol.end()
        assert transport.get_write_buffer_size() == 0
        assert len(reading.read()) < 1_000_000
        assert protocol.calls.count("lost") == 1

    @on_every_loop
    async def test_the_reader_leaves(self, pipe: tuple[Any, Any]) -> None:
        reading, writing = pipe
        transport, protocol = await writes(writing)
        reading.close()
        assert await protocol.end() is None
        assert transport.is_closing()

    @pytest.mark.asyncio
    @pytest.mark.parametrize("closing", [False, True])
    async def test_the_reader_leaves_before_it_has_read_all(self, pipe: tuple[Any, Any], closing: bool) -> None:
        reading, writing = pipe
        transport, protocol = await writes(writing)
        transport.write(bytes(1_000_000))
        if closing:
            transport.close()
        reading.close()
        assert isinstance(await protocol.end(), BrokenPipeError)
        assert protocol.calls.count("lost") == 1

    @on_every_loop
    @pytest.mark.differs(uvloop="0.23.0", reason="says nothing")
    async def test_writes_that_come_too_late(self, pipe: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
        _, writing = pipe
        transport, protocol = await writes(writing)
        transport.close()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(6):
                transport.write(b"x")
        assert "pipe closed by peer or os.write(pipe, data) raised exception." in caplog.text
        await protocol.end()

    @on_every_loop
    async def test_text_is_refused(self, pipe: tuple[Any, Any]) -> None:
        _, writing = pipe
        transport, protocol = await writes(writing)
        with pytest.raises((TypeError, AssertionError)):
            transport.write("text")
        transport.close()
        await protocol.end()


class TestTransports:
    @on_every_loop
    async def test_extra_info(self, pipe: tuple[Any, Any]) -> None:
        for connect, file in zip((reads, writes), pipe, strict=True):
            transport, protocol = await connect(file)
            assert transport.get_extra_info("pipe") is file
            assert transport.get_extra_info("nothing", "default") == "default"
            assert transport.get_protocol() is protocol
            transport.close()
            await protocol.end()
            assert transport.get_extra_info("pipe") is file

    @pytest.mark.asyncio
    @pytest.mark.differs(uvloop="0.23.0", reason="says which object it is")
    async def test_repr(self, pipe: tuple[Any, Any]) -> None:
        for connect, file in zip((reads, writes), pipe, strict=True):
            transport, protocol = await connect(file)
            assert f"fd={file.fileno()}" in repr(transport)
            assert "clos" not in repr(transport)
            transport.close()
            assert "closing" in repr(transport)
            await protocol.end()
            await asyncio.sleep(0)
            assert "closed" in repr(transport)

    @on_every_loop
    @pytest.mark.differs(uvloop="0.23.0", reason="its transports are of its own kinds")
    async def test_kinds(self, pipe: tuple[Any, Any]) -> None:
        reading, _ = await reads(pipe[0])
        writing, _ = await writes(pipe[1])
        reading.close()
        writing.close()
        assert isinstance(reading, asyncio.ReadTransport)
        assert isinstance(writing, asyncio.WriteTransport)

    @pytest.mark.asyncio
    @pytest.mark.differs(uvloop="0.23.0", reason="ends the process", run=False)
    async def test_directories_are_refused(self, tmp_path: Path) -> None:
        fd = os.open(tmp_path, os.O_RDONLY)

        class Directory:
            def fileno(self) -> int:
                return fd

            def close(self) -> None:
                """Nobody may."""
                raise AssertionError

        for connect in (reads, writes):
            with pytest.raises((ValueError, OSError)):
                await connect(Directory())
        os.close(fd)

    @on_ours
    async def test_a_file_that_cannot_be_closed_in_peace(self, pipe: tuple[Any, Any]) -> None:
        """What it has buffered nobody will read."""
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        reading, writing = pipe
        with os.fdopen(os.dup(writing.fileno()), "wb") as buffered:
            buffered.write(b"x")
            transport, protocol = await writes(buffered)
            reading.close()
            assert await protocol.end() is None
            assert buffered.closed
        assert transport.get_protocol() is None
        assert [type(context["exception"]) for context in told] == [BrokenPipeError]

    @on_ours
    async def test_unclosed_they_warn_and_close(self, pipe: tuple[Any, Any]) -> None:
        reading, writing = pipe
        transport, _ = await reads(reading)
        transport.pause_reading()
        other, _ = await writes(writing)
        other._unwatch()
        del transport, _, other
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            gc.collect()
        assert reading.closed
        assert writing.closed

    def test_closed_after_their_loop(self, notify_loop: notifyloop.NotifyLoop, pipe: tuple[Any, Any]) -> None:
        """asyncio raises that the loop is closed, and leaves the pipe open."""
        reading, _ = notify_loop.run_until_complete(reads(pipe[0]))
        writing, _ = notify_loop.run_until_complete(writes(pipe[1]))
        notify_loop.close()
        reading.close()
        writing.close()
        assert pipe[0].closed
        assert pipe[1].closed

    @pytest.mark.asyncio
    @pytest.mark.differs(asyncio="3.13.0", reason="they have the context of whoever calls")
    async def test_one_context_for_all_callbacks(self, pipe: tuple[Any, Any]) -> None:
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")
        seen: set[tuple[str, str]] = set()

        class Looking(Recorder):
            def note(self, call: str) -> None:
                seen.add((call, variable.get()))
                super().note(call)

            def data_received(self, data: bytes) -> None:
                seen.add(("data", variable.get()))
                super().data_received(data)

        async def elsewhere(function: Callable[..., object], *args: object) -> None:
            variable.set("somebody else's")
            function(*args)

        loop = asyncio.get_running_loop()
        variable.set("the pipe's")
        _, reader = await loop.connect_read_pipe(Looking, pipe[0])
        writing, writer = await loop.connect_write_pipe(Looking, pipe[1])
        writing.set_write_buffer_limits(high=1000)
        await asyncio.create_task(elsewhere(reader.transport.pause_reading))
        await asyncio.create_task(elsewhere(writing.write, bytes(1_000_000)))
        await asyncio.create_task(elsewhere(reader.transport.resume_reading))
        await writer.until(lambda: "resume" in writer.calls)
        await asyncio.create_task(elsewhere(writing.close))
        await reader.end()
        await writer.end()
        assert seen == {(call, "the pipe's") for call in ("made", "data", "eof", "lost", "pause", "resume")}


class TestFiles:
    """Standard input and output, redirected. asyncio and uvloop refuse files; /dev/null asyncio waits for in vain, and
    uvloop 0.23.0 ends the process for it.
    """

    pytestmark = on_ours

    async def test_nothing_is_read_from_dev_null(self) -> None:
        with NOTHING.open("rb", 0) as file:
            _, protocol = await reads(file)
            assert await protocol.end() is None
            assert protocol.calls == ["made", "eof", "lost"]
            assert file.closed

    async def test_a_file_is_read(self, tmp_path: Path) -> None:
        content = bytes(range(256)) * 5000
        path = tmp_path / "content"
        path.write_bytes(content)
        with path.open("rb", 0) as file:
            _, protocol = await reads(file)
            assert await protocol.end() is None
            assert protocol.data == content

    async def test_a_file_is_read_no_further_while_paused(self, tmp_path: Path) -> None:
        path = tmp_path / "content"
        path.write_bytes(bytes(3 * MOST_AT_ONCE))

        class Pausing(Recorder):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                self.transport.pause_reading()

        with path.open("rb", 0) as file:
            transport, protocol = await asyncio.get_running_loop().connect_read_pipe(Pausing, file)
            for number in (1, 2, 3):
                await protocol.until(lambda number=number: len(protocol.data) == number * MOST_AT_ONCE)
                assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == number * MOST_AT_ONCE
                transport.resume_reading()
                transport.pause_reading()
                transport.resume_reading()
            assert await protocol.end() is None
            assert protocol.calls == ["made", "eof", "lost"]

    async def test_a_file_that_is_closed_while_it_is_read_stays_open_until_then(self, tmp_path: Path) -> None:
        """Or the thread would read from another, which has its number."""
        path = tmp_path / "content"
        path.write_bytes(bytes(MOST_AT_ONCE))
        loop = asyncio.get_running_loop()
        reading, go_on = asyncio.Event(), threading.Event()
        read = os.read

        def slow(fd: int, size: int) -> bytes:
            loop.call_soon_threadsafe(reading.set)
            go_on.wait()
            return read(fd, size)

        with path.open("rb", 0) as file, pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "read", slow)
            transport, protocol = await reads(file)
            await reading.wait()
            transport.close()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not file.closed
            assert "lost" not in protocol.calls
            go_on.set()
            assert await protocol.end() is None
            assert file.closed
            assert not protocol.data

    async def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        with (tmp_path / "content").open("wb", 0) as file:
            _, protocol = await reads(file)
            assert isinstance(await protocol.end(), OSError)
        assert [context["message"] for context in told] == ["Fatal read error on pipe transport"]

    async def test_without_threads_to_read_it(self, tmp_path: Path) -> None:
        told: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        await loop.shutdown_default_executor()
        with NOTHING.open("rb", 0) as file:
            _, protocol = await reads(file)
            assert isinstance(await protocol.end(), RuntimeError)
        assert [context["message"] for context in told] == ["Fatal read error on pipe transport"]

    async def test_files_are_written(self, tmp_path: Path) -> None:
        content = bytes(range(256)) * 5000
        path = tmp_path / "content"
        with path.open("wb", 0) as file, NOTHING.open("wb", 0) as nothing:
            for target in (file, nothing):
                transport, protocol = await writes(target)
                transport.write(content)
                transport.close()
                assert await protocol.end() is None
        assert path.read_bytes() == content

    async def test_a_disk_that_is_full(self) -> None:
        with Path("/dev/full").open("wb", 0) as file:
            transport, protocol = await writes(file)
            transport.write(b"x")
            error = await protocol.end()
            assert isinstance(error, OSError)

    async def test_a_file_that_takes_a_part(self, tmp_path: Path) -> None:
        """A limit of its size; the rest is an error."""
        program = """
import asyncio, resource, signal, sys, notifyloop
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
lost = []
class Protocol(asyncio.BaseProtocol):
    def connection_lost(self, error):
        lost.append(type(error).__name__)
async def main():
    with open(sys.argv[1], "wb", 0) as file:
        transport, _ = await asyncio.get_running_loop().connect_write_pipe(Protocol, file)
        transport.write(bytes(3000))
        while not lost:
            await asyncio.sleep(0)
notifyloop.run(main())
print(*lost)
"""
        path = tmp_path / "content"
        done = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await done.communicate()
        assert out == b"OSError\n", err
        assert path.stat().st_size == 1000


class TestTerminals:
    pytestmark = on_ours

    async def test_the_end_of_a_terminal(self, terminal: tuple[int, int]) -> None:
        """Linux reports an input/output error, of which asyncio and uvloop make the connection's."""
        master, slave = terminal
        process = await asyncio.create_subprocess_exec("sh", "-c", "printf hello", stdin=slave, stdout=slave)
        os.close(slave)
        _, protocol = await reads(os.fdopen(master, "rb", 0))
        assert await protocol.end() is None
        assert protocol.data == b"hello"
        assert protocol.calls == ["made", "eof", "lost"]
        await process.wait()

    @pytest.mark.parametrize("connect", [reads, writes])
    async def test_it_blocks_those_who_share_it_as_before(self, terminal: tuple[int, int], connect: Any) -> None:
        """asyncio and uvloop set them not to block, for good."""
        master, slave = terminal
        transport, protocol = await connect(os.fdopen(os.dup(slave), "r+b", 0))
        assert os.get_blocking(slave)
        if connect is reads:
            os.write(master, b"x")
            await protocol.until(lambda: protocol.data == b"x")
        else:
            transport.write(b"x")
            assert os.read(master, 10) == b"x"
        transport.close()
        await protocol.end()
        assert os.get_blocking(slave)

    async def test_more_than_it_takes(self, terminal: tuple[int, int]) -> None:
        master, slave = terminal
        transport, protocol = await writes(os.fdopen(os.dup(slave), "wb", 0))
        transport.write(bytes(100_000))
        assert transport.get_write_buffer_size()
        transport.close()
        received = 0
        while received < 100_000:
            received += len(await asyncio.get_running_loop().run_in_executor(None, os.read, master, 100_000))
        assert await protocol.end() is None

    async def test_one_that_cannot_be_opened_again_blocks_again_at_the_end(
        self, terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: object) -> int:
            raise PermissionError

        master, slave = terminal
        monkeypatch.setattr(os, "open", refuse)
        ends = [await writes(os.fdopen(os.dup(slave), "wb", 0)) for _ in range(2)]
        assert not os.get_blocking(slave)
        for number, (transport, protocol) in enumerate(ends):
            transport.write(b"x")
            assert os.read(master, 10) == b"x"
            transport.close()
            await protocol.end()
            assert os.get_blocking(slave) == (number == 1)
        assert not nonblocking.needed

    async def test_a_master_is_no_other_terminals(self, terminal: tuple[int, int]) -> None:
        master, slave = terminal
        transport, protocol = await writes(os.fdopen(os.dup(master), "wb", 0))
        transport.write(b"to the terminal")
        assert os.read(slave, 100) == b"to the terminal"
        transport.close()
        await protocol.end()
        assert os.get_blocking(master)

    async def test_it_is_not_closed_by_what_is_typed(self, terminal: tuple[int, int]) -> None:
        master, slave = terminal
        transport, protocol = await writes(os.fdopen(os.dup(slave), "wb", 0))
        _, reader = await reads(os.fdopen(os.dup(slave), "rb", 0))
        os.write(master, b"typed")
        await reader.until(lambda: reader.data == b"typed")
        assert not transport.is_closing()
        transport.write(b"answer")
        assert os.read(master, 100) == b"answer"
        transport.close()
        await protocol.end()
        reader.transport.close()
        await reader.end()


class TestSharing:
    pytestmark = on_ours

    async def test_a_pipe_blocks_again_at_the_end(self, pipe: tuple[Any, Any]) -> None:
        """asyncio and uvloop leave it as it was of use to them: the next program's output fails with EAGAIN."""
        for connect, file in zip((reads, writes), pipe, strict=True):
            with os.fdopen(os.dup(file.fileno())) as duplicate:
                transport, protocol = await connect(file)
                assert not os.get_blocking(duplicate.fileno())
                transport.close()
                await protocol.end()
                assert os.get_blocking(duplicate.fileno())

    async def test_what_did_not_block_before_does_not_block_after(self, pipe: tuple[Any, Any]) -> None:
        for connect, file in zip((reads, writes), pipe, strict=True):
            with os.fdopen(os.dup(file.fileno())) as duplicate:
                os.set_blocking(file.fileno(), False)
                transport, protocol = await connect(file)
                transport.close()
                await protocol.end()
                assert not os.get_blocking(duplicate.fileno())

    async def test_what_somebody_has_closed_meanwhile(self, pipe: tuple[Any, Any]) -> None:
        """Its number may be another file's."""
        reading, _ = pipe
        transport, protocol = await reads(reading)
        number = reading.fileno()
        reading.close()
        other = os.open("/dev/null", os.O_RDONLY)
        assert other == number
        os.set_blocking(other, False)
        transport.close()
        await protocol.end()
        assert fcntl.fcntl(other, fcntl.F_GETFL) & os.O_NONBLOCK
        os.close(other)
        assert not nonblocking.needed


class TestSockets:
    """Standard input and output of what inetd or systemd starts for a connection."""

    pytestmark = on_ours

    async def test_a_writer_is_not_closed_by_what_arrives(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """asyncio takes it for the end; uvloop 0.23.0 too."""
        ours, theirs = pair
        transport, protocol = await writes(ours)
        theirs.send(b"incoming")
        theirs.shutdown(socket.SHUT_WR)
        for _ in range(5):
            await asyncio.sleep(0)
        statistics = asyncio.get_running_loop().statistics()  # type: ignore[attr-defined]
        assert not transport.is_closing()
        transport.write(b"answer")
        assert theirs.recv(100) == b"answer"
        theirs.close()
        assert await protocol.end() is None
        after = asyncio.get_running_loop().statistics()  # type: ignore[attr-defined]
        assert after.notifications - statistics.notifications < 5  # it does not spin

    async def test_one_socket_for_both_directions(self, pair: tuple[socket.socket, socket.socket]) -> None:
        ours, theirs = pair
        for order in ((reads, writes), (writes, reads)):
            made = {connect: await connect(ours.dup()) for connect in order}
            _, reader = made[reads]
            writing, _ = made[writes]
            theirs.send(b"request")
            await reader.until(lambda reader=reader: reader.data == b"request")
            writing.write(b"answer")
            assert theirs.recv(100) == b"answer"
            for transport, protocol in made.values():
                transport.close()
                await protocol.end()
        assert ours.getblocking()

    async def test_one_object_for_both_directions(self, pair: tuple[socket.socket, socket.socket]) -> None:
        ours, theirs = pair
        writing, writer = await writes(ours)
        _, reader = await reads(ours)
        writing.write(bytes(10_000_000))
        theirs.send(b"request")
        await reader.until(lambda: reader.data == b"request")
        theirs.close()
        await reader.end()
        assert isinstance(await writer.end(), OSError)


def test_a_finalizer_comes_in_while_a_pipe_is_told_not_to_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives back another of the same: it neither waits for its own thread nor takes itself for the last."""
    reading, writing = os.pipe()
    duplicate = os.dup(reading)
    dropped = nonblocking.NonBlocking(reading)
    set_blocking = os.set_blocking

    def come_in(fd: int, blocking: bool) -> None:
        dropped.close()
        set_blocking(fd, blocking)

    with monkeypatch.context() as patch:
        patch.setattr(os, "set_blocking", come_in)
        kept = nonblocking.NonBlocking(duplicate)
    assert not os.get_blocking(reading)
    kept.close()
    assert os.get_blocking(reading)
    for end in (reading, writing, duplicate):
        os.close(end)
