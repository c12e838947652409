"""What the transports of child processes do other than asyncio's, on every system.

`wait()` returns when the child has ended. asyncio's waits for its pipes too, which a daemon that the child left
behind may hold open for ever.
"""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["Child"]


class Child:
    """To be mixed into `asyncio.base_subprocess.BaseSubprocessTransport`."""

    _closed: bool
    _loop: Any
    _pipes: dict[int, Any]
    _exit_waiters: Any
    _pending_calls: Any
    _proc: Any
    _wait: Callable[[], Any]
    _connecting: asyncio.Task[Any] | None = None  # which gives its pipes to transports

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._context = copy_context()
        super().__init__(*args, **kwargs)

    def _process_exited(self, returncode: int) -> None:
        super()._process_exited(returncode)  # type: ignore[misc]
        if self._exit_waiters is not None:
            for waiter in self._exit_waiters:
                if not waiter.done():
                    waiter.set_result(returncode)
            self._exit_waiters.clear()

    def close(self) -> None:
        if not self._closed and self._loop is not None and self._loop.is_closed():
            # asyncio, until Python 3.12, would have their transports call the loop. They close when they are collected.
            self._pipes.clear()
        try:
            super().close()  # type: ignore[misc]
        except PermissionError:
            return  # it is another user's by now; asyncio, until Python 3.12, raises this

    async def connected(self, waiter: asyncio.Future[None]) -> Self:
        """The child, once its pipes have transports. Raises what keeps them from that, or its waiting; then it has
        ended.
        """
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            await self.give_up()
            raise
        return self

    async def give_up(self) -> None:
        """Its pipes could not be connected, or nobody waits for that any more: end it."""
        process = self._proc
        self.close()
        while self._connecting is None:
            await asyncio.sleep(0)
        # It may be about to give a pipe to a transport, which closes it when it has its turn. Were it closed now, its
        # number could be somebody else's by then.
        self._connecting.cancel()
        await asyncio.wait([self._connecting])
        if process is not None:  # or it has ended already
            for number, file in enumerate((process.stdin, process.stdout, process.stderr)):
                if file is not None and self._pipes.get(number) is None:  # no transport closes it
                    file.close()
        await self._wait()

    async def _connect_pipes(self, waiter: asyncio.Future[None] | None) -> None:
        self._connecting = asyncio.current_task()
        await super()._connect_pipes(waiter)  # type: ignore[misc]

    def _call(self, cb: Callable[..., object], *data: Any) -> None:
        if self._pending_calls is not None:
            super()._call(cb, *data)  # type: ignore[misc]
        else:
            self._loop.call_soon(cb, *data, context=self._context)
