"""Locks that a forked child finds free.

A fork copies every lock, but only the thread that forks: what another one held at that moment would stay locked in the
child for ever. So an object's lock is the lock of one process. Whoever comes to it in another gets a new one, as late
as that: a child that only inherits pays nothing.
"""

from __future__ import annotations

import os
import sys
import threading

__all__ = ["Guarded", "forks"]

_forks = 0  # between the first process and this one
_renewing = threading.RLock()


def forks() -> int:
    """How many forks this process is away from the first: another number than that of any process it descends from."""
    return _forks


def _note_fork() -> None:
    global _forks, _renewing  # noqa: PLW0603
    _forks += 1
    _renewing = threading.RLock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_note_fork)


class Guarded:
    """An object with a lock, which is re-entrant, for a finalizer or a signal handler may come in."""

    __slots__ = ("_guard",)

    def __init__(self) -> None:
        self._guard = (_forks, threading.RLock())

    @property
    def lock(self) -> threading.RLock:
        """This process's lock of the object."""
        forks, lock = self._guard
        if forks == _forks:
            return lock
        with _renewing:
            if self._guard[0] != _forks:
                self._guard = (_forks, threading.RLock())
            return self._guard[1]
