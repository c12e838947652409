"""Callbacks that wait for their turn.

asyncio's handles with a shorter way in and out. They are made a few times per message, so each call that making
or running one does not make counts: whether the loop is in debug mode is asked by the loop, which then makes
asyncio's own handles; arguments are passed on as cheaply as their number allows.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.format_helpers import _format_callback_source
from contextvars import copy_context
from threading import RLock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any

    from notifyloop.loop import NotifyLoop

__all__ = ["Handle", "ThreadSafeHandle", "TimerHandle"]


def _run(self: Handle | TimerHandle) -> None:
    """Call back; what it raises goes to the loop's exception handler, but for SystemExit and KeyboardInterrupt."""
    try:
        args = self._args
        if not args:
            self._context.run(self._callback)
        elif len(args) == 1:  # every task that is woken; passing a tuple on costs twice as much
            self._context.run(self._callback, args[0])
        else:
            self._context.run(self._callback, *args)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        callback = _format_callback_source(self._callback, self._args)
        self._loop.call_exception_handler(
            {"message": f"Exception in callback {callback}", "exception": error, "handle": self}
        )
    self = None  # type: ignore[assignment]  # the exception's traceback would keep it, and it the exception


class Handle(asyncio.Handle):
    """What `call_soon` and `add_reader` return, where the loop is not in debug mode."""

    __slots__ = ()

    # Debug mode's, which would only be set to None here.
    _repr = None
    _source_traceback = None

    _context: Context
    _loop: NotifyLoop
    _callback: Callable[..., object]
    _args: tuple[Any, ...]

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: NotifyLoop, context: Context | None = None
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False

    _run = _run

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]


class LockedHandle(Handle):
    """What other threads get, who may cancel it while the loop is about to run it; then `cancel()` waits for that."""

    __slots__ = ("_lock",)

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: NotifyLoop, context: Context | None = None
    ) -> None:
        super().__init__(callback, args, loop, context)
        self._lock = RLock()

    def cancel(self) -> None:
        with self._lock:
            super().cancel()

    def _run(self) -> None:
        with self._lock:
            if not self._cancelled:
                super()._run()


# Since Python 3.14 asyncio's handles of other threads have a lock.
ThreadSafeHandle = LockedHandle if sys.version_info >= (3, 14) else Handle


class TimerHandle(asyncio.TimerHandle):
    """What `call_later` and `call_at` return, where the loop is not in debug mode."""

    __slots__ = ()

    _repr = None
    _source_traceback = None

    _context: Context
    _loop: NotifyLoop
    _callback: Callable[..., object]
    _args: tuple[Any, ...]

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: NotifyLoop,
        context: Context | None = None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._when = when
        self._scheduled = True

    _run = _run

    def cancel(self) -> None:
        if not self._cancelled and self._scheduled:
            self._loop._timer_cancelled_count += 1
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]
