"""Eager tasks: what can be done at once is done at once, and never sees the loop."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.version_info < (3, 12):
    pytest.skip("Python 3.11 has no eager tasks", allow_module_level=True)


pytestmark = pytest.mark.differs(
    uvloop="0.23.0",
    reason="gives the factory an argument that it does not take",
    when=(3, 13) <= sys.version_info < (3, 14),
)
NOT_EAGER = pytest.mark.differs(
    uvloop="0.23.0", reason="tells the factory not to be eager", when=sys.version_info >= (3, 14)
)


@pytest.fixture
def eager(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.AbstractEventLoop]:
    loop.set_task_factory(asyncio.eager_task_factory)
    yield loop
    loop.set_task_factory(None)


@NOT_EAGER
def test_one_that_need_not_wait_is_done_before_anybody_has_it(eager: asyncio.AbstractEventLoop) -> None:
    async def answer() -> int:
        return 42

    async def main() -> None:
        scheduled: list[str] = []
        eager.call_soon(scheduled.append, "the next turn")
        task = asyncio.create_task(answer(), name="quick")
        assert task.done()
        assert (task.result(), task.get_name()) == (42, "quick")
        assert await task == 42
        assert scheduled == []
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer()) for _ in range(3)]
            assert [task.result() for task in tasks] == [42] * 3

    eager.run_until_complete(main())


def test_each_step_has_its_own_current_task(eager: asyncio.AbstractEventLoop) -> None:
    current: list[asyncio.Task[object] | None] = []

    async def note() -> None:
        current.append(asyncio.current_task())
        await asyncio.sleep(0)
        current.append(asyncio.current_task())

    async def main() -> None:
        outer = asyncio.current_task()
        inner = asyncio.create_task(note())
        assert asyncio.current_task() is outer
        await inner
        assert current == [inner, inner]

    eager.run_until_complete(main())


def test_one_that_waits_for_a_socket_goes_on_when_it_is_ready(eager: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            task = asyncio.create_task(eager.sock_recv(ours, 10))
            assert not task.done()
            theirs.send(b"data")
            assert await task == b"data"

    eager.run_until_complete(main())


@NOT_EAGER
def test_what_fails_at_once_fails_for_whoever_waits(eager: asyncio.AbstractEventLoop) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        task = asyncio.create_task(fail())
        assert task.done()
        with pytest.raises(ZeroDivisionError):
            await task

    eager.run_until_complete(main())
