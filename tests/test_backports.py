"""What newer versions of asyncio have, on every version: uvloop has it too, and asyncio where it is new enough."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.asyncio


def since(*version: int) -> pytest.MarkDecorator:
    name = ".".join(map(str, version))
    return pytest.mark.differs(asyncio="3.11.7", reason=f"since {name}", when=sys.version_info < version)


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

    @pytest.mark.differs(asyncio="3.11.7", reason="since 3.12", when=sys.version_info < (3, 12), run=False)
    @pytest.mark.differs(asyncio="3.12.1", reason="waits all the same", when=sys.version_info < (3, 13), run=False)
    @pytest.mark.differs(uvloop="0.23.0", reason="waits all the same", run=False)
    async def test_a_thread_that_does_not_end(self) -> None:
        loop = asyncio.get_running_loop()
        end = threading.Event()
        try:
            waiting = loop.run_in_executor(None, end.wait)
            with pytest.warns(RuntimeWarning, match=r"within 0\.01 seconds"):
                await loop.shutdown_default_executor(timeout=0.01)  # type: ignore[call-arg]
        finally:
            end.set()  # Python waits for such threads before it ends
        assert await waiting

    @since(3, 12)
    async def test_no_thread_was_ever_needed(self) -> None:
        await asyncio.get_running_loop().shutdown_default_executor(timeout=0.01)  # type: ignore[call-arg]

    @since(3, 13)
    async def test_an_executor_that_fails(self) -> None:
        failed: list[bool] = []

        class Failing(ThreadPoolExecutor):
            def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
                super().shutdown(wait, cancel_futures=cancel_futures)
                if not failed:
                    failed.append(True)
                    raise LookupError("it has failed")

        loop = asyncio.get_running_loop()
        loop.set_default_executor(Failing())
        await loop.run_in_executor(None, int)
        with pytest.raises(LookupError, match="it has failed"):
            await loop.shutdown_default_executor(timeout=60)  # type: ignore[call-arg]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 has no eager tasks")
class TestEagerStart:
    @staticmethod
    async def work(steps: list[str]) -> str:
        steps.append("started")
        await asyncio.sleep(0)
        steps.append("went on")
        return "done"

    @since(3, 13, 3)
    @pytest.mark.differs(uvloop="0.23.0", reason="has it since Python 3.13", when=sys.version_info < (3, 13))
    async def test_it_starts_at_once(self) -> None:
        steps: list[str] = []
        task = asyncio.get_running_loop().create_task(self.work(steps), name="eager", eager_start=True)  # type: ignore[call-arg]
        assert (steps, task.get_name()) == (["started"], "eager")
        assert await task == "done"
        later = asyncio.get_running_loop().create_task(self.work(steps))
        assert steps == ["started", "went on"]
        await later

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

    @since(3, 13, 3)
    async def test_one_that_has_failed_is_not_held_by_its_own_exception(self) -> None:
        if sys.version_info < (3, 13) and type(asyncio.get_running_loop()).__module__ == "uvloop":
            pytest.skip("uvloop has it since Python 3.13")

        async def fail() -> None:
            raise LookupError

        gc.collect()
        gc.disable()
        try:
            task = asyncio.get_running_loop().create_task(fail(), eager_start=True)  # type: ignore[call-arg]
            error, remains = task.exception(), weakref.ref(task)
            del task
            assert isinstance(error, LookupError)
            assert remains() is None
        finally:
            gc.enable()
