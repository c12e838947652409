"""Child processes: how their end is noticed, and by whom."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import notifyloop

if sys.platform == "win32":
    pytest.skip("Windows has other means: see test_windows", allow_module_level=True)

from notifyloop.unix import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not processes.can_watch_children(), reason="this system has no pidfds")


def wait_until_it_has_ended(pid: int) -> None:
    """And leave it to whoever is to reap it."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def descriptors() -> set[str]:
    return {str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


@pytest.mark.asyncio
@pytest.mark.differs(
    asyncio="3.13.0", reason="waits for the end of the pipes", when=sys.version_info < (3, 14, 10), run=False
)
async def test_wait_does_not_wait_for_those_who_inherited_the_pipes() -> None:
    process = await asyncio.create_subprocess_shell("sleep 1000 & echo $!", stdout=subprocess.PIPE)
    assert process.stdout is not None
    heir = int(await process.stdout.readline())
    assert await process.wait() == 0
    os.kill(heir, signal.SIGKILL)
    assert await process.stdout.read() == b""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.11.7", reason="a thread tells of the end, first", when=sys.version_info < (3, 12))
@pytest.mark.differs(asyncio="3.14.10", reason="tells of the end, first", when=sys.version_info >= (3, 14, 10))
@pytest.mark.differs(uvloop="0.23.0", reason="tells no descriptor of its pipes")
async def test_what_has_been_written_comes_before_the_end_if_both_have_come() -> None:
    """Also if the end came first."""
    order: list[str] = []

    class Protocol(asyncio.SubprocessProtocol):
        def connection_made(self, transport: Any) -> None:
            self.ended = asyncio.get_running_loop().create_future()
            transport.get_pipe_transport(0).write(b"line\n")
            wait_until_it_has_ended(transport.get_pid())
            select.select([transport.get_pipe_transport(1).get_extra_info("pipe")], [], [])

        def pipe_data_received(self, fd: int, data: bytes) -> None:
            order.append("data")

        def process_exited(self) -> None:
            order.append("end")

        def connection_lost(self, exc: Exception | None) -> None:
            self.ended.set_result(None)

    loop = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(Protocol, "sh", "-c", "read line; (sleep 0.05; echo hello) &")
    await protocol.ended
    transport.close()
    assert order == ["data", "end"]


@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_no_thread_waits_and_no_descriptor_stays() -> None:
    await (await asyncio.create_subprocess_exec("true")).wait()
    threads, before = threading.active_count(), descriptors()
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    assert threading.active_count() == threads
    process.terminate()
    assert await process.wait() == -signal.SIGTERM
    assert descriptors() == before


@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_a_child_that_popen_has_reaped_keeps_its_exit_status() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(7)")
    wait_until_it_has_ended(process.pid)
    assert process._transport.get_extra_info("subprocess").poll() == 7  # type: ignore[attr-defined]
    assert await process.wait() == 7


@pytest.fixture
def ignoring_children() -> Iterator[None]:
    """As some supervisors have it: the kernel reaps, and nobody else learns how a child has ended."""
    the_kernel_tells()
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


@functools.cache
def the_kernel_tells() -> bool:
    """Whether it says of a process how it ended after somebody has reaped it: Linux since 6.15."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "raise SystemExit(7)"], os.environ)
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    status = processes.told_by_the_kernel(pidfd)
    os.close(pidfd)
    return status is not None


WAYS = {"exit 3": 3, "exit 0": 0, "kill -9 $$": -9, "kill -15 $$": -15}


@pytest.mark.parametrize("command", WAYS)
@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="raises ProcessLookupError, or reports 255")
@pytest.mark.differs(uvloop="0.23.0", reason="reports 255")
async def test_a_child_that_the_kernel_has_reaped(
    command: str, ignoring_children: None, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        process = await asyncio.create_subprocess_exec("sh", "-c", command)
        expected = {WAYS[command]} if the_kernel_tells() else {WAYS[command], 255}
        assert await process.wait() in expected
        popen = process._transport.get_extra_info("subprocess")  # type: ignore[attr-defined]
        assert popen.returncode == process.returncode
    assert not (caplog.records and the_kernel_tells())
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN


@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_popen_that_found_nothing_to_reap_is_not_believed(ignoring_children: None) -> None:
    """It says 0 then."""
    if not the_kernel_tells():
        pytest.skip("this kernel does not tell it better")
    process = await asyncio.create_subprocess_exec("sh", "-c", "read line; exit 3", stdin=subprocess.PIPE)
    popen = process._transport.get_extra_info("subprocess")  # type: ignore[attr-defined]
    assert process.stdin is not None
    process.stdin.write(b"line\n")
    while popen.poll() is None:
        time.sleep(0.001)
    assert popen.returncode == 0
    assert await process.wait() == 3
    assert popen.returncode == 3


@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_a_child_that_is_gone_before_it_can_be_watched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where SIGCHLD is ignored and another thread runs the loop, which cannot change that for the moment."""

    def reap(pid: int) -> int:
        os.waitpid(pid, 0)
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", reap)
    process = await asyncio.create_subprocess_exec("true", stdout=subprocess.PIPE)
    process.kill()
    assert await process.communicate() == (b"", None)
    assert process.returncode == 255
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_a_child_that_somebody_else_has_reaped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    assert await process.wait() == (-signal.SIGKILL if the_kernel_tells() else 255)

    monkeypatch.setattr(processes, "told_by_the_kernel", lambda pidfd: None)
    caplog.clear()
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    with caplog.at_level(logging.WARNING, "asyncio"):
        assert await process.wait() == 255
    assert f"pid {process.pid}" in caplog.text


@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_signals_are_for_the_child_and_not_for_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be another process's, once it was reaped."""
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    process.send_signal(0)
    process.terminate()
    assert await process.wait() == -signal.SIGTERM
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    process.kill()
    wait_until_it_has_ended(process.pid)
    process.kill()
    os.waitpid(process.pid, 0)
    process.kill()
    await process.wait()
    assert killed == []


@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_a_child_that_cannot_be_watched_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    def refuse(pid: int) -> int:
        pids.append(pid)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        await asyncio.create_subprocess_exec("sleep", "1000", stdin=subprocess.PIPE)
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], os.WNOHANG)


def test_a_loop_that_is_closed_before_its_child_has_ended() -> None:
    before = descriptors()
    program = """
import asyncio, notifyloop, os
before = len(os.listdir("/proc/self/fd"))
async def main():
    await asyncio.create_subprocess_exec("sleep", "1000")
notifyloop.run(main())
import gc; gc.collect()
print(len(os.listdir("/proc/self/fd")) - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == 0, done.stderr
    assert descriptors() == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # child watchers, on Python 3.12 and 3.13
def test_without_pidfds_children_are_watched_as_in_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "can_watch_children", lambda: False)

    async def main() -> int:
        process = await asyncio.create_subprocess_exec("true")
        assert not isinstance(process._transport, processes.ChildProcess)  # type: ignore[attr-defined]
        return await process.wait()

    assert notifyloop.run(main()) == 0


def test_on_a_system_that_knows_no_pidfds() -> None:
    """As macOS: neither os nor signal has what only Linux can."""
    program = """
import os, signal
vars(os).pop("pidfd_open", None)
vars(signal).pop("pidfd_send_signal", None)
import asyncio, notifyloop
async def main():
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    process.terminate()
    return await process.wait()
assert notifyloop.run(main()) == -signal.SIGTERM
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)


@pytest.mark.asyncio(loop_factories=["notifyloop"])  # asyncio asks otherwise, and its transport never hears of the end
async def test_a_child_whose_exit_status_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = descriptors()
    process = await asyncio.create_subprocess_exec("sleep", "1000")

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "waitid", refuse)
    process.kill()
    with caplog.at_level(logging.WARNING, "asyncio"):
        assert await process.wait() == 255
    assert f"pid {process.pid}" in caplog.text
    assert descriptors() == before
    os.waitpid(process.pid, 0)


# asyncio's since Python 3.14.10: before, what was not connected stays open until it is collected. uvloop's are others.
@pytest.mark.asyncio(loop_factories=["asyncio", "notifyloop"][sys.version_info < (3, 14, 10) :])
@pytest.mark.usefixtures("no_collector")
async def test_pipes_that_cannot_be_connected_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()

    async def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "connect_read_pipe", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        await asyncio.create_subprocess_exec("sleep", "1000", stdin=-1, stdout=-1, stderr=-1)
    for _ in range(3):
        await asyncio.sleep(0)
    assert {name for name in descriptors() - before if "pipe" in name} == set()


@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_a_child_that_has_ended_can_be_given_up() -> None:
    """Whoever began it may be cancelled in that turn."""
    lost = asyncio.Event()

    class Protocol(asyncio.SubprocessProtocol):
        def connection_lost(self, exc: BaseException | None) -> None:
            lost.set()

    transport: Any
    transport, _ = await asyncio.get_running_loop().subprocess_exec(
        Protocol, "true", stdin=None, stdout=None, stderr=None
    )
    await lost.wait()
    await transport.give_up()
    assert transport.get_returncode() == 0


# asyncio's since Python 3.13.
@pytest.mark.asyncio(loop_factories=["asyncio", "notifyloop"][sys.version_info < (3, 13) :])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_child_that_we_may_not_kill_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "1000")

    def refuse() -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    transport = process._transport  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(transport.get_extra_info("subprocess"), "kill", refuse)
        transport.close()
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL


@pytest.mark.asyncio
@pytest.mark.differs(
    asyncio="3.14.3", reason="reports an error of its own in connection_lost()", when=sys.version_info >= (3, 14)
)
@pytest.mark.parametrize("turns", range(10))
async def test_one_that_is_given_up_leaves_the_descriptors_of_others_alone(turns: int) -> None:
    """Also those that have the numbers of its pipes by then."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    command = (sys.executable, "-c", "input()")
    starting = loop.create_task(
        asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE),
    )
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    with contextlib.ExitStack() as others:
        pairs = []
        for _ in range(20):
            await asyncio.sleep(0)
            pairs.append([others.enter_context(end) for end in socket.socketpair()])
            for end in pairs[-1]:
                end.send(b"theirs")
                end.setblocking(False)
        try:
            process = await starting
        except asyncio.CancelledError:
            pass
        else:
            process.kill()
            await process.communicate()
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
        assert [end.recv(100) for pair in pairs for end in pair] == [b"theirs"] * 40
    assert complaints == []
