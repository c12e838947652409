"""Running a program on the loop."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, TypeVar

from notifyloop.loop import NotifyLoop, new_event_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

__all__ = ["run"]

T = TypeVar("T")


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


def run(
    main: Awaitable[T],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = new_event_loop,
    debug: bool | None = None,
    **run_kwargs: Any,
) -> T:
    """Run a coroutine or another awaitable on a new loop, as `asyncio.run` and `uvloop.run` do, and return
    its result. A factory is for loops of a class derived from ours; what else is given, `asyncio.Runner` takes.

    Raises RuntimeError if a loop runs in this thread already, TypeError if `main` cannot be awaited or the factory
    makes other loops.
    """
    if not inspect.isawaitable(main):
        raise TypeError(f"an awaitable is required, got {main!r}")
    coroutine: Coroutine[Any, Any, T] = main if inspect.iscoroutine(main) else _await(main)
    # A coroutine that never starts is closed, so that what is reported is the reason, not that it was never awaited.
    if asyncio._get_running_loop() is not None:
        coroutine.close()
        raise RuntimeError("notifyloop.run() cannot be called from a running event loop")
    with asyncio.Runner(debug=debug, loop_factory=loop_factory, **run_kwargs) as runner:
        if not isinstance(runner.get_loop(), NotifyLoop):
            coroutine.close()
            raise TypeError("notifyloop.run() uses a non-notifyloop event loop")
        return runner.run(coroutine)
