"""The state of handles, which must be classes of Python's, because they are subclasses of asyncio's: their attributes
have places.

Compiled code reads and writes these places without asking Python, as `layouts.pxd` declares. So this module is not
compiled itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = ["HandleState", "TimerHandleState"]


class HandleState(asyncio.Handle):
    """What a handle keeps, where the loop is not in debug mode."""

    __slots__ = ()

    # Debug mode's, which would only be set to None here.
    _repr = None
    _source_traceback = None

    _context: Context
    _loop: Loop
    _callback: Callable[..., object]
    _args: tuple[Any, ...]
    _cancelled: bool


class TimerHandleState(asyncio.TimerHandle):
    """And a timer's."""

    __slots__ = ()

    _repr = None
    _source_traceback = None

    _context: Context
    _loop: Loop
    _callback: Callable[..., object]
    _args: tuple[Any, ...]
    _cancelled: bool
    _when: float
    _scheduled: bool
