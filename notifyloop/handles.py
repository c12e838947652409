"""Callbacks that wait for their turn.

asyncio's handles with a shorter way in and out. They are made a few times per message, so each call that making
or running one does not make counts: whether the loop is in debug mode is asked by the loop, which then makes
asyncio's own handles; arguments are passed on as cheaply as their number allows.
"""

from __future__ import annotations

import asyncio
from asyncio.format_helpers import _format_callback_source
from contextvars import copy_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any

    from notifyloop.loop import NotifyLoop

__all__ = ["Handle", "TimerHandle"]


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
        self._repr = None
        self._source_traceback = None

    _run = _run


class TimerHandle(asyncio.TimerHandle):
    """What `call_later` and `call_at` return, where the loop is not in debug mode."""

    __slots__ = ()

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
        self._repr = None
        self._source_traceback = None
        self._when = when
        self._scheduled = True

    _run = _run

    def cancel(self) -> None:
        if self._cancelled or self._loop._debug:
            super().cancel()
            return
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]
        if self._scheduled:
            self._loop._timer_cancelled_count += 1
