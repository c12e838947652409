"""Signal handlers, and what a fork makes of them.

Python notes a signal by writing its number to a descriptor, one for all, of which asyncio's loop reads. A forked child
inherits all that. Of itself it does not end when it is sent SIGTERM, as by `multiprocessing.Process.terminate()`; and
what it writes, its parent's loop reads, for they share the socket.

So in a child the signals that a loop has handled do again what they do by default. Should the child run the loop, as a
program that becomes a daemon does, they are the loop's again from then on, by a socket pair of the child's own. What
comes while the child is made waits until it is known whose it is.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import os
import signal
import threading
import weakref
from typing import TYPE_CHECKING, TypeVarTuple

from notifyloop.backports import Asyncio

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Unpack

    from notifyloop.turn.surface import Loop

__all__ = ["Signals", "add_signal_handler", "take_over"]

Ts = TypeVarTuple("Ts")

listening: weakref.WeakSet[Loop] = weakref.WeakSet()  # loops that have, or had, handlers
forking = threading.local()


def default(sig: int) -> Any:
    return signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL


class Signals:
    """What a loop knows of its signals, besides asyncio's handlers."""

    __slots__ = ("inherited", "noted")

    def __init__(self) -> None:
        self.noted: Any = None  # what has Python note a signal: asyncio's handler, which does nothing
        self.inherited: frozenset[int] = frozenset()  # what the parent's loop has handled, and we do not yet


def add_signal_handler(loop: Any, sig: int, callback: Callable[[Unpack[Ts]], Any], *args: *Ts) -> None:
    """As asyncio's. CPython announces signals on a descriptor of its own choice of format, so here a
    socket pair it is.
    """
    take_over(loop)
    if loop._ssock is None and not loop.is_closed():
        Asyncio._make_self_pipe(loop)
    Asyncio.add_signal_handler(loop, sig, callback, *args)
    loop._system.signals.noted = signal.getsignal(sig)
    listening.add(loop)


def take_over(loop: Any) -> None:
    """In a forked child, handle what the parent's loop has handled."""
    signals = loop._system.signals
    if not signals.inherited or loop.is_closed() or threading.current_thread() is not threading.main_thread():
        return
    inherited, signals.inherited = signals.inherited, frozenset()
    loop._close_self_pipe()
    Asyncio._make_self_pipe(loop)
    signal.set_wakeup_fd(loop._csock.fileno())
    for sig in inherited & loop._signal_handlers.keys():
        if signal.getsignal(sig) is default(sig):  # or the child has had other ideas
            signal.signal(sig, signals.noted)
            signal.siginterrupt(sig, False)


def leave_to_parent(loop: Loop) -> bool:
    """In a forked child, handle no signals. Returns whether Python notes signals for this loop."""
    signals = loop._system.signals
    noted = {sig for sig in loop._signal_handlers if signal.getsignal(sig) is signals.noted}
    for sig in noted:
        signal.signal(sig, default(sig))
    signals.inherited |= noted
    return loop._csock is not None


def handled() -> set[int]:
    """The signals that loops have handlers of."""
    while True:
        try:
            return {sig for loop in listening for sig in loop._signal_handlers}
        except RuntimeError:  # meanwhile a loop has got one more: any thread forks, the main thread adds handlers
            continue


def before_fork() -> None:
    forking.mask = None
    signals = handled()
    if signals:
        forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)


def after_fork() -> None:
    mask, forking.mask = forking.mask, None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def after_fork_in_child() -> None:
    try:
        ours = {loop._csock.fileno() for loop in listening if leave_to_parent(loop)}
        written = signal.set_wakeup_fd(-1) if ours else -1
        if written != -1 and written not in ours:
            signal.set_wakeup_fd(written)
    finally:
        after_fork()


os.register_at_fork(before=before_fork, after_in_parent=after_fork, after_in_child=after_fork_in_child)
