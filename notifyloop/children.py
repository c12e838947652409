"""What the transports of child processes do other than asyncio's, on every system.

`wait()` returns when the child has ended. asyncio's waits for its pipes too, which a daemon that the child left
behind may hold open for ever.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Child"]


class Child:
    """To be mixed into `asyncio.base_subprocess.BaseSubprocessTransport`."""

    _closed: bool
    _loop: Any
    _pipes: dict[int, Any]
    _exit_waiters: Any
    _pending_calls: Any

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
        super().close()  # type: ignore[misc]

    def _call(self, callback: Callable[..., object], *data: Any) -> None:
        if self._pending_calls is not None:
            super()._call(callback, *data)  # type: ignore[misc]
        else:
            self._loop.call_soon(callback, *data, context=self._context)
