"""What newer versions of asyncio have, on every version: uvloop has it too, and asyncio where it is new enough."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def since(*version: int) -> pytest.MarkDecorator:
    loops = ["notifyloop", "uvloop"]
    return pytest.mark.asyncio(loop_factories=["asyncio", *loops] if sys.version_info >= version else loops)


@pytest.mark.only("unix sockets", reason="this Python has no Unix sockets")
class TestCleanupSocket:
    @pytest.mark.parametrize("as_bytes", [False, True])
    @since(3, 13)
    async def test_the_file_is_removed(self, tmp_path: Path, as_bytes: bool) -> None:
        path = tmp_path / "socket"
        server = await asyncio.get_running_loop().create_unix_server(
            asyncio.Protocol, os.fsencode(path) if as_bytes else path, cleanup_socket=True
        )
        assert path.exists()
        server.close()
        await server.wait_closed()
        assert not path.exists()

    @since(3, 13)
    async def test_or_left(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        server = await asyncio.get_running_loop().create_unix_server(asyncio.Protocol, path, cleanup_socket=False)
        server.close()
        await server.wait_closed()
        assert path.exists()

    @since(3, 13)
    async def test_another_socket_in_its_place_is_left(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        server = await asyncio.get_running_loop().create_unix_server(asyncio.Protocol, path, cleanup_socket=True)
        path.rename(tmp_path / "aside")  # still there, so that its inode is not used again
        with socket.socket(socket.AF_UNIX) as another:
            another.bind(str(path))
            server.close()
            await server.wait_closed()
            assert path.exists()

    @since(3, 13)
    async def test_a_file_that_is_gone_is_no_error(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        server = await asyncio.get_running_loop().create_unix_server(asyncio.Protocol, path, cleanup_socket=True)
        path.unlink()
        server.close()
        await server.wait_closed()

    @since(3, 13)
    async def test_an_abstract_socket_has_no_file(self) -> None:
        name = f"\0notifyloop-{os.getpid()}"
        server = await asyncio.get_running_loop().create_unix_server(asyncio.Protocol, name, cleanup_socket=True)
        server.close()
        await server.wait_closed()


class TestShutdownDefaultExecutor:
    @since(3, 12)
    async def test_threads_that_end(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, int)
        await loop.shutdown_default_executor(timeout=60)  # type: ignore[call-arg]
        with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
            await loop.run_in_executor(None, int)

    @pytest.mark.asyncio(loop_factories=["notifyloop"])  # uvloop waits all the same
    async def test_a_thread_that_does_not_end(self) -> None:
        loop = asyncio.get_running_loop()
        end = threading.Event()
        waiting = loop.run_in_executor(None, end.wait)
        with pytest.warns(RuntimeWarning, match=r"within 0\.01 seconds"):
            await loop.shutdown_default_executor(timeout=0.01)  # type: ignore[call-arg]
        end.set()
        assert await waiting

    @since(3, 12)
    async def test_no_thread_was_ever_needed(self) -> None:
        await asyncio.get_running_loop().shutdown_default_executor(timeout=0.01)  # type: ignore[call-arg]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 has no eager tasks")
class TestEagerStart:
    @staticmethod
    async def work(steps: list[str]) -> str:
        steps.append("started")
        await asyncio.sleep(0)
        steps.append("went on")
        return "done"

    @since(3, 13, 3)
    async def test_it_starts_at_once(self) -> None:
        if sys.version_info < (3, 13) and type(asyncio.get_running_loop()).__module__ == "uvloop":
            pytest.skip("uvloop has it since Python 3.13")
        steps: list[str] = []
        task = asyncio.get_running_loop().create_task(self.work(steps), name="eager", eager_start=True)  # type: ignore[call-arg]
        assert (steps, task.get_name()) == (["started"], "eager")
        assert await task == "done"
        later = asyncio.get_running_loop().create_task(self.work(steps))
        assert steps == ["started", "went on"]
        await later

    @pytest.mark.asyncio
    async def test_a_task_factory_gets_what_it_was_given_and_no_more(self) -> None:
        given: list[dict[str, object]] = []

        def factory(loop: asyncio.AbstractEventLoop, coro: object, **options: object) -> asyncio.Task[str]:
            given.append(options)
            return asyncio.Task(coro, loop=loop, **options)  # type: ignore[arg-type]

        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)  # type: ignore[arg-type]
        try:
            task = loop.create_task(self.work([]), name="named")
            assert await task == "done"
        finally:
            loop.set_task_factory(None)
        assert task.get_name() == "named"
        assert "eager_start" not in given[0] or given[0]["eager_start"] is None
