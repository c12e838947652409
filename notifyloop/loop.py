"""The event loop.

`NotifyLoop` is an `asyncio.SelectorEventLoop`, on every platform, because programs test for that class, and
because most of asyncio is right as it is: connection set-up, name resolution, servers, TLS, executors,
subprocesses. What it replaces is what a loop is chosen for, the turn.

`_run_turns` asks the port for notifications, in the same foreign call that re-arms what it handled last, and
calls back what is ready. A turn is one batch of callbacks: those that are ready at one moment; what they
schedule is the next turn's. While there is a next turn the port is asked only after `POLL_EVERY` turns, or
after the turn in which `POLL_AFTER` seconds have passed: a chain of `call_soon` does not pay for a system
call at each link, and I/O waits no longer than that. Timers are looked at in every turn.

There is no self-pipe. `call_soon_threadsafe` posts a packet to the port, and only if the loop is asleep or
about to be: `Turn.sleeping` says so, and whoever sets it back posts. So at most one wake-up is ever pending.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from asyncio import base_events
from contextvars import copy_context
from selectors import EVENT_READ, EVENT_WRITE
from sys import getrefcount
from time import monotonic
from typing import TYPE_CHECKING, TypeVarTuple

from notifyloop.connections import Connections
from notifyloop.handles import (
    LOCKED_HANDLES,
    MOST_SPARE,
    NO_ARGUMENTS,
    UNSHARED,
    Handle,
    LockedHandle,
    StandingHandle,
    report,
)
from notifyloop.port.registration import descriptor_of
from notifyloop.selector import NotificationSelector
from notifyloop.sockets import Wait
from notifyloop.statistics import Statistics
from notifyloop.timers import Timers
from notifyloop.transports import SocketTransport, StreamTransport

if TYPE_CHECKING:
    import socket
    from collections import deque
    from collections.abc import Callable, Iterable
    from contextvars import Context
    from typing import Any, Unpack

    from notifyloop.selector import Interest

__all__ = ["Loop", "NotifyLoop", "new_event_loop"]

Ts = TypeVarTuple("Ts")

# While callbacks are ready, the port is asked after so many turns (tokio and Go: 61), or so many seconds.
POLL_EVERY = 64
POLL_AFTER = 0.001

# If at least so many callbacks are ready, what they write is held until all have run, or so many seconds.
MANY = 8
HOLD = 0.001


def A_TRANSPORT() -> None:  # noqa: N802 - a constant
    """The owner of interests that are transports'. A weak reference to each would say which, and cost each memory."""


class Turn:
    """What one turn hands to the next.

    Apart from the loop, because CPython's fast way to an attribute ends at thirty names in one object, and the base
    class has nearly as many.
    """

    __slots__ = (
        "callbacks",
        "checked",
        "hold_until",
        "iterations",
        "queued",
        "sleeping",
        "spare",
        "spare_for_threads",
        "timers",
        "to_flush",
        "waking",
    )

    def __init__(self) -> None:
        self.iterations = 0
        self.callbacks = 0  # called from the ready queue
        self.queued = 0  # of them, for notifications
        self.timers = 0  # made so far
        self.use_handles_again(True)
        self.sleeping = False  # or about to; who sets this back wakes the loop
        self.waking = threading.RLock()  # a signal handler may come in between
        self.hold_until = 0.0  # what is written now; 0 if it is not held
        self.to_flush: list[StreamTransport] = []  # transports with something to send when the turn ends

    def use_handles_again(self, again: bool) -> None:
        """Or make asyncio's own, which check and remember more: in debug mode, and when the loop is closed."""
        self.checked = not again
        self.spare: list[Handle] = []  # handles that have run
        self.spare_for_threads: list[Handle] = [] if LOCKED_HANDLES else self.spare


class NotifyLoop(Timers, Connections):
    """An asyncio event loop on a completion port.

    Made without arguments, so the class itself is a loop factory. `selector`, if given, must be a
    `NotificationSelector` that nobody else uses; anything else raises TypeError.
    """

    _closed = True  # until __init__ has made it a loop: __del__ looks
    _selector: NotificationSelector
    _ready: deque[asyncio.Handle]
    _stopping: bool
    _debug: bool
    _current_handle: asyncio.Handle | None
    _ssock: Any
    _csock: Any
    _internal_fds: int
    _check_closed: Callable[[], None]
    _check_thread: Callable[[], None]

    def __init__(self, selector: NotificationSelector | None = None) -> None:
        if selector is None:
            selector = NotificationSelector()
        elif not isinstance(selector, NotificationSelector):
            raise TypeError(f"NotifyLoop needs a NotificationSelector, not {type(selector).__name__}")
        self._ssock = self._csock = None
        self._turn = Turn()
        super().__init__(selector)

    # ---- scheduling

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's."""
        spare = self._turn.spare
        if not spare:
            return self._call_soon_anew("call_soon", callback, args, context)
        try:
            handle = spare.pop()
        except IndexError:  # a signal handler that came in between took the last
            return self._call_soon_anew("call_soon", callback, args, context)
        handle._callback = callback
        handle._args = args
        handle._context = copy_context() if context is None else context
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's: `call_soon` from any thread, or a signal handler. It ends the wait, if the loop waits."""
        turn = self._turn
        spare = turn.spare_for_threads
        if not spare:
            return self._call_soon_anew("call_soon_threadsafe", callback, args, context)
        try:
            handle = spare.pop()
        except IndexError:  # another thread took the last
            return self._call_soon_anew("call_soon_threadsafe", callback, args, context)
        handle._callback = callback
        handle._args = args
        handle._context = copy_context() if context is None else context
        self._ready.append(handle)
        if turn.sleeping:
            self._write_to_self()
        return handle

    def _call_soon_anew(
        self, method: str, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> asyncio.Handle:
        """As the method of that name, with a handle that was not used before."""
        handle: asyncio.Handle
        if self._turn.checked:
            handle = getattr(super(), method)(callback, *args, context=context)
            if handle._source_traceback:  # type: ignore[attr-defined]  # not where another thread ends debug mode
                del handle._source_traceback[-2:]  # type: ignore[attr-defined]  # our own frames
            return handle
        kind = LockedHandle if method == "call_soon_threadsafe" else Handle
        handle = kind(callback, args, self, context)
        self._ready.append(handle)
        if method == "call_soon_threadsafe":
            self._write_to_self()
        return handle

    def set_debug(self, enabled: bool) -> None:
        """As asyncio's."""
        # Every future and every task that is made asks. A method of a bool answers without a frame of Python.
        self.get_debug = bool(enabled).__bool__  # type: ignore[method-assign]
        if not self._closed:
            self._turn.use_handles_again(not enabled)
        super().set_debug(enabled)

    # ---- the turn

    def _run_once(self) -> None:
        """Poll and call back, turn after turn, until `stop()` was called."""
        if self._turn.to_flush:  # written while the loop did not run
            self._flush_writes()
        try:
            self._run_turns()
        finally:
            self._turn.hold_until = 0.0
            if self._turn.to_flush:  # written in a turn that an exception has ended
                self._flush_writes()

    def _run_turns(self) -> None:
        turn, ready, selector = self._turn, self._ready, self._selector
        places = selector.places
        while True:
            turn.iterations += 1
            # First say that we sleep, then look whether there is work: another thread appends its work first,
            # then looks whether we sleep.
            turn.sleeping = True
            if ready or self._stopping:
                timeout = 0
            elif self._scheduled:
                timeout = self._until_next_timer()
            else:
                timeout = -1
            words = selector.dequeue(timeout)
            turn.sleeping = False
            if ready or self._stopping or self._debug:
                self._queue(words)
            else:
                # Nothing else is waiting, so these are next: call them from here. Each looks at what is wanted now,
                # for an earlier one may have changed it.
                remaining = iter(words)
                handle: Any
                try:
                    for word in remaining:
                        try:
                            handle = places[word].reader
                        except IndexError:
                            self._dispatch(word)
                            continue
                        if handle is None:
                            selector.unwanted(places[word])
                            continue
                        try:
                            handle._run()
                        except (SystemExit, KeyboardInterrupt):
                            raise
                        except BaseException as error:
                            report(handle, error)
                except BaseException:
                    self._queue(remaining)  # an interrupt must not lose what was dequeued
                    raise
                handle = None  # it must not live until the next turn
                if turn.to_flush:
                    self._flush_writes()
                if self._stopping:
                    return
            # Where none was due before, and a packet has ended the wait, none is, or the next turn will see it.
            if self._scheduled and not (words and timeout):
                self._schedule_due_timers()
            if ready:
                self._run_ready()
                if self._stopping:
                    return

    def _run_ready(self) -> None:
        """Run what is ready, and what that makes ready, until the port is to be asked again."""
        turn, ready = self._turn, self._ready
        popleft = ready.popleft
        batches = 0
        while True:
            # Callbacks that these callbacks schedule run in the next turn. Counting first, instead of swapping the
            # queue, keeps this safe against threads that append.
            count = len(ready)
            turn.callbacks += count
            if count >= MANY:
                turn.hold_until = monotonic() + HOLD
            if turn.checked:
                self._run_timed(count)
            else:
                # Not those that a callback makes, which switches to debug mode.
                spare, spare_for_threads = turn.spare, turn.spare_for_threads
                for _ in range(count):
                    handle: Any = popleft()
                    try:
                        if type(handle) is not Handle:
                            if type(handle) is LockedHandle:
                                handle._run()
                                if getrefcount(handle) == UNSHARED:
                                    handle._callback = handle._args = handle._context = None  # type: ignore[assignment]
                                    spare_for_threads.append(handle)
                            elif not handle._cancelled:
                                handle._run()
                            continue
                        callback = handle._callback
                        # As in Handle._run(), without the price of a call.
                        args = handle._args
                        if args is NO_ARGUMENTS:
                            handle._context.run(callback)
                        elif len(args) == 1:
                            handle._context.run(callback, args[0])
                        else:
                            handle._run()
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:
                        report(handle, error)
                    if getrefcount(handle) == UNSHARED:
                        handle._callback = handle._args = handle._context = None
                        spare.append(handle)
            handle = callback = args = None  # type: ignore[assignment]  # they must not live until the next turn
            if count >= MANY:
                turn.hold_until = 0.0
                del turn.spare[MOST_SPARE:], turn.spare_for_threads[MOST_SPARE:]
            if turn.to_flush:
                self._flush_writes()
            # In debug mode other threads, which look for their source lines, give way each time: let them in each turn.
            if self._stopping or not ready or turn.checked:
                return
            if not batches:
                deadline = monotonic() + POLL_AFTER
            elif batches == POLL_EVERY or monotonic() > deadline:
                return
            batches += 1
            turn.iterations += 1
            if self._scheduled:
                self._schedule_due_timers()

    def _flush_writes(self) -> None:
        flushing, self._turn.to_flush = self._turn.to_flush, []
        remaining = iter(flushing)
        try:
            for transport in remaining:
                transport._flush()
        except BaseException:
            self._turn.to_flush.extend(remaining)  # an interrupt must not keep what others have written
            raise

    def _hold_no_more(self) -> None:
        """What was written in this turn has waited long enough for the rest of it."""
        self._turn.hold_until = 0.0
        for transport in self._turn.to_flush:
            if transport._held is not None:
                transport._flush()

    def _dispatch(self, word: int) -> None:
        """Call back for a packet that does not only say that there is something to receive."""
        for interest, mask in self._selector.ready((word,)):
            for event in (EVENT_READ, EVENT_WRITE):
                handle = interest.handle_for(event)  # not before, for the reader may change it
                if mask & event and handle is not None:
                    try:
                        handle._run()
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:
                        report(handle, error)

    def _queue(self, words: Iterable[int]) -> None:
        for interest, mask in self._selector.ready(words):
            self._turn.queued += 1
            if mask & EVENT_READ and interest.reader is not None:
                self._ready.append(interest.reader)
            if mask & EVENT_WRITE and interest.writer is not None:
                self._ready.append(interest.writer)

    def _run_timed(self, count: int) -> None:
        """The same with debug mode's report of slow callbacks."""
        for _ in range(count):
            handle = self._ready.popleft()
            if handle._cancelled:
                continue
            self._current_handle = handle
            try:
                started = self.time()
                try:
                    handle._run()
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    report(handle, error)
                seconds = self.time() - started
                if seconds >= self.slow_callback_duration:
                    base_events.logger.warning(  # type: ignore[attr-defined]
                        "Executing %s took %.3f seconds",
                        base_events._format_handle(handle),  # type: ignore[attr-defined]
                        seconds,
                    )
            finally:
                self._current_handle = None
        handle = None  # type: ignore[assignment]  # an exception may keep this frame

    # ---- readiness: one interest per descriptor, whose data are the handles of its reader and its writer

    def _handle(self, callback: Callable[..., object], args: tuple[Any, ...]) -> asyncio.Handle:
        return (asyncio.Handle if self._debug else StandingHandle)(callback, args, self)

    def _add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        return self._watch(fd, EVENT_READ, self._handle(callback, args))

    def _add_writer(self, fd: int, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        return self._watch(fd, EVENT_WRITE, self._handle(callback, args))

    def _remove_reader(self, fd: int) -> bool:
        return self._unwatch(fd, EVENT_READ)

    def _remove_writer(self, fd: int) -> bool:
        return self._unwatch(fd, EVENT_WRITE)

    def _watch(self, fd: int, event: int, handle: asyncio.Handle) -> asyncio.Handle:
        self._check_closed()
        interest = self._selector.find(fd)
        if interest is None:
            interest = self._selector.watch(fd, descriptor_of(fd), event)
        else:
            self._selector.change(interest, interest.events | event)
        replaced = interest.hand_to(event, handle)
        if replaced is not None:
            replaced.cancel()
        return handle

    def _unwatch(self, fd: int, event: int) -> bool:
        interest = None if self.is_closed() else self._selector.find(fd)
        if interest is None or not interest.events & event:
            return False
        interest.hand_to(event, None).cancel()
        if interest.events != event:
            self._selector.change(interest, interest.events & ~event)
        elif interest.owner is not None:
            self._selector.want(interest, 0)
        else:
            self._selector.remove(interest)
        return True

    def _adopt(self, sock: socket.socket) -> Interest:
        """The interest in a new transport's socket, of which nothing is wanted yet. Raises RuntimeError if it is
        another transport's.
        """
        fd = sock.fileno()
        if fd == -1 or fd in self._selector.interests:
            self._ensure_fd_no_transport(sock)
        return self._selector.adopt(sock, fd, A_TRANSPORT)

    def _forget(self, fd: int) -> None:
        """Watch a descriptor no more, because its owner is about to close it."""
        interest = None if self._closed else self._selector.interests.get(fd)
        if interest is None:
            return
        if type(interest.reader) is Wait:
            interest.reader.abort()
        writer = interest.writer
        if writer is not None:
            writer.abort() if type(writer) is Wait else writer.cancel()
        self._selector.forget(interest)

    def _ensure_fd_no_transport(self, fd: object) -> None:
        if self.is_closed():
            return
        interest = self._selector.interests.get(descriptor_of(fd))  # type: ignore[arg-type]
        if interest is not None and interest.owner is A_TRANSPORT:
            reader = interest.reader
            user = (
                reader
                if isinstance(reader, SocketTransport)
                else getattr(interest.writer, "_transport", "that is paused")
            )
            raise RuntimeError(f"File descriptor {fd!r} is used by transport {user!s}")

    async def _sendfile_native(self, transp: StreamTransport, file: Any, offset: int, count: int | None) -> int:
        reading = transp.is_reading()
        transp.pause_reading()
        await transp._make_empty_waiter()
        interest = transp._interest
        interest.owner = weakref.ref(transp._sock)  # for as long as it sends, the socket is not the transport's
        try:
            return await self.sock_sendfile(transp._sock, file, offset, count, fallback=False)
        finally:
            interest.owner = A_TRANSPORT
            transp._reset_empty_waiter()
            if reading:
                transp.resume_reading()

    def close(self) -> None:
        """As asyncio's. Sockets that were closed while a `sock_*` coroutine waited for them close now."""
        if not self.is_closed() and not self.is_running():
            self._release_waits()
            self._turn.use_handles_again(False)
        super().close()

    # ---- wake-ups

    def _write_to_self(self) -> None:
        """Called after work was added from another thread or a signal handler."""
        turn = self._turn
        if not turn.sleeping:
            return
        with turn.waking:
            if not turn.sleeping:
                return  # somebody else has woken it
            turn.sleeping = False
        try:
            self._selector.wake_up()
        except (AttributeError, ValueError):
            return  # closed meanwhile: nobody sleeps there any more

    def _make_self_pipe(self) -> None:
        """Wake-ups need no pipe."""

    def _close_self_pipe(self) -> None:
        if self._ssock is not None:
            super()._close_self_pipe()  # type: ignore[misc]

    # ---- statistics

    def statistics(self) -> Statistics:
        """What the loop has done so far. Raises RuntimeError if it is closed."""
        self._check_closed()
        counters = self._selector.port.counters()
        return Statistics(
            iterations=self._turn.iterations,
            callbacks=self._turn.callbacks - self._turn.queued + counters.notifications,
            foreign_calls=counters.calls,
            waits=counters.waits,
            kernel_calls=counters.kernel_waits + counters.kernel_changes,
            registrations=counters.registrations,
            re_arms=counters.re_arms,
            notifications=counters.notifications,
            stale_notifications=counters.stale + self._selector.stale_notifications,
            posted=counters.posted,
            registered=len(self._selector.get_map()),
            callback_latency=counters.busy_recent_ns / 1e9,
            callback_latency_max=counters.busy_longest_ns / 1e9,
            busy_time=counters.busy_ns / 1e9,
            waiting_time=counters.waiting_ns / 1e9,
        )


Loop = NotifyLoop  # the name that uvloop has for it


def new_event_loop() -> NotifyLoop:
    """A new loop: for `asyncio.Runner(loop_factory=...)`, `asyncio.run(..., loop_factory=...)`, uvicorn's
    `--loop` and the like.
    """
    return NotifyLoop()
