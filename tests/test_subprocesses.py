"""Child processes: how their end is noticed, and by whom."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import notifyloop

if sys.platform == "win32":
    pytest.skip("Windows has other means: see test_windows", allow_module_level=True)

from notifyloop import subprocesses

pytestmark = pytest.mark.skipif(not subprocesses.can_watch_children(), reason="this system has no pidfds")


def wait_until_it_has_ended(pid: int) -> None:
    """And leave it to whoever is to reap it."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def descriptors() -> set[str]:
    return {str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


@pytest.mark.asyncio(loop_factories=["notifyloop", "uvloop"])  # asyncio waits for the end of the pipes
async def test_wait_does_not_wait_for_those_who_inherited_the_pipes() -> None:
    process = await asyncio.create_subprocess_shell("sleep 1000 & echo $!", stdout=subprocess.PIPE)
    assert process.stdout is not None
    heir = int(await process.stdout.readline())
    assert await process.wait() == 0
    os.kill(heir, signal.SIGKILL)
    assert await process.stdout.read() == b""


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


@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_a_child_that_somebody_else_has_reaped(caplog: pytest.LogCaptureFixture) -> None:
    process = await asyncio.create_subprocess_exec("true")
    os.waitpid(process.pid, 0)
    with caplog.at_level(logging.WARNING, "asyncio"):
        assert await process.wait() == 255
    assert f"pid {process.pid}" in caplog.text


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
async def main():
    await asyncio.create_subprocess_exec("sleep", "1000")
notifyloop.run(main())
import gc; gc.collect()
print(len(os.listdir("/proc/self/fd")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == 4, done.stderr  # the three of every process, and that of the listing
    assert descriptors() == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # child watchers, on Python 3.12 and 3.13
def test_without_pidfds_children_are_watched_as_in_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocesses, "can_watch_children", lambda: False)

    async def main() -> int:
        process = await asyncio.create_subprocess_exec("true")
        assert not isinstance(process._transport, subprocesses.ChildProcess)  # type: ignore[attr-defined]
        return await process.wait()

    assert notifyloop.run(main()) == 0
