"""The event loop.

`NotifyLoop` is an `asyncio.SelectorEventLoop`, on every platform, because programs test for that class, and
because most of asyncio is right as it is: connection set-up, name resolution, servers, TLS, executors,
subprocesses. What it replaces is what a loop is chosen for, the turn.

One turn: `_run_once` asks the port for notifications, in the same foreign call that re-arms what the last
turn handled, appends the callbacks of what is ready and of timers that are due, and runs what is ready at
that moment. While callbacks are ready the port is asked only every `POLL_EVERY` turns: a chain of
`call_soon` does not pay for a system call at each link, and I/O waits for at most so many.

There is no self-pipe. `call_soon_threadsafe` posts a packet to the port, and only if the loop is asleep or
about to be: `Turn.sleeping` holds one token while it is, and whoever takes the token posts. So at most one
wake-up is ever pending.
"""

from __future__ import annotations

import asyncio
import heapq
import ssl
from asyncio import base_events
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, TypeVarTuple

from notifyloop.backports import SelectorEventLoop
from notifyloop.port.registration import descriptor_of
from notifyloop.selector import NotificationSelector
from notifyloop.statistics import Statistics
from notifyloop.transports import StreamTransport, TLSProtocol

if TYPE_CHECKING:
    import socket
    from collections import deque
    from collections.abc import Callable, Iterable
    from contextvars import Context
    from typing import Any, Unpack
    from weakref import WeakValueDictionary

    from notifyloop.selector import Interest

__all__ = ["Loop", "NotifyLoop", "new_event_loop"]

Ts = TypeVarTuple("Ts")

RECEIVE_BUFFER = 256 * 1024  # bytes
POLL_EVERY = 32  # turns; tokio asks every 61, Go every 61 scheduling rounds
LONGEST_WAIT = 24 * 3600  # seconds

# A heap with more cancelled timers than this share, and more timers than this, is built anew.
CANCELLED_SHARE = 0.5
MIN_TIMERS = 100


class Turn:
    """What one turn hands to the next.

    Apart from the loop, because CPython's fast way to an attribute ends at thirty names in one object, and the base
    class has nearly as many.
    """

    __slots__ = ("callbacks", "iterations", "receive_buffer", "sleeping", "to_flush", "turns_to_poll")

    def __init__(self) -> None:
        self.iterations = 0
        self.callbacks = 0
        self.turns_to_poll = 0
        self.sleeping: list[None] = []  # holds a token while the loop sleeps; who takes it wakes the loop
        self.receive_buffer = memoryview(bytearray(RECEIVE_BUFFER))  # every transport's, for the length of one read
        self.to_flush: list[StreamTransport] = []  # transports with writes that joined in this turn


class NotifyLoop(SelectorEventLoop):
    """An asyncio event loop on a completion port.

    Made without arguments, so the class itself is a loop factory. `selector`, if given, must be a
    `NotificationSelector` that nobody else uses; anything else raises TypeError.
    """

    _closed = True  # until __init__ has made it a loop: __del__ looks
    _selector: NotificationSelector
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int
    _clock_resolution: float
    _stopping: bool
    _debug: bool
    _current_handle: asyncio.Handle | None
    _ssock: Any
    _csock: Any
    _internal_fds: int
    _check_closed: Callable[[], None]
    _ensure_fd_no_transport: Callable[[socket.socket], None]
    _transports: WeakValueDictionary[int, StreamTransport]

    def __init__(self, selector: NotificationSelector | None = None) -> None:
        if selector is None:
            selector = NotificationSelector()
        elif not isinstance(selector, NotificationSelector):
            raise TypeError(f"NotifyLoop needs a NotificationSelector, not {type(selector).__name__}")
        self._ssock = self._csock = None
        self._turn = Turn()
        super().__init__(selector)

    # ---- the turn

    def run_forever(self) -> None:
        """Run until `stop()` is called. The first turn always asks for notifications."""
        self._turn.turns_to_poll = 0
        super().run_forever()

    def _run_once(self) -> None:
        ready = self._ready
        turn = self._turn
        turn.iterations += 1
        turn.turns_to_poll -= 1
        if self._scheduled:
            self._drop_cancelled_timers()
        if not ready or turn.turns_to_poll < 0:
            turn.turns_to_poll = POLL_EVERY
            self._poll()
        if self._scheduled:
            self._schedule_due_timers()

        if ready:
            # Callbacks that these callbacks schedule run in the next turn. Counting first, instead of swapping the
            # queue, keeps this safe against threads that append.
            count = len(ready)
            turn.callbacks += count
            if self._debug:
                self._run_timed(count)
            else:
                handle = None
                for _ in range(count):
                    handle = ready.popleft()
                    if not handle._cancelled:
                        handle._run()
                handle = None  # a callback's arguments must not live until the next turn
        if turn.to_flush:
            self._flush_writes()

    def _flush_writes(self) -> None:
        flushing, self._turn.to_flush = self._turn.to_flush, []
        for transport in flushing:
            transport._flush()

    def _poll(self) -> None:
        turn = self._turn
        if turn.to_flush:  # written while the loop did not run
            self._flush_writes()
        timeout: float | None = None
        # First say that we sleep, then look whether there is work: another thread appends its work first,
        # then looks whether we sleep.
        turn.sleeping.append(None)
        if self._ready or self._stopping:
            timeout = 0
        elif self._scheduled:
            timeout = min(max(self._scheduled[0].when() - self.time(), 0), LONGEST_WAIT)
        try:
            notifications = self._selector.dequeue(timeout)
        finally:
            turn.sleeping.clear()
        if not notifications:
            return
        if self._ready or self._debug:
            self._queue(notifications)
            return
        # Nothing is waiting, so these are next: call them from here. Each looks at what is wanted now, for
        # an earlier one may have changed it.
        remaining = iter(notifications)
        try:
            for interest, mask in remaining:
                reader, writer = interest.data
                if mask & EVENT_READ and reader is not None and not reader._cancelled:
                    reader._run()
                if mask & EVENT_WRITE and writer is not None and not writer._cancelled:
                    writer._run()
        except BaseException:
            self._queue(remaining)  # an interrupt must not lose what was dequeued
            raise

    def _queue(self, notifications: Iterable[tuple[Interest, int]]) -> None:
        for interest, mask in notifications:
            reader, writer = interest.data
            if mask & EVENT_READ and reader is not None:
                self._ready.append(reader)
            if mask & EVENT_WRITE and writer is not None:
                self._ready.append(writer)

    def _drop_cancelled_timers(self) -> None:
        scheduled = self._scheduled
        if len(scheduled) > MIN_TIMERS and self._timer_cancelled_count > CANCELLED_SHARE * len(scheduled):
            for handle in scheduled:
                if handle._cancelled:
                    handle._scheduled = False  # type: ignore[attr-defined]
            self._scheduled = [handle for handle in scheduled if not handle._cancelled]
            heapq.heapify(self._scheduled)
            self._timer_cancelled_count = 0
            return
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]

    def _schedule_due_timers(self) -> None:
        scheduled = self._scheduled
        now = self.time() + self._clock_resolution
        while scheduled and scheduled[0].when() < now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False  # type: ignore[attr-defined]
            self._ready.append(handle)

    def _run_timed(self, count: int) -> None:
        """The same with debug mode's report of slow callbacks."""
        for _ in range(count):
            handle = self._ready.popleft()
            if handle._cancelled:
                continue
            self._current_handle = handle
            try:
                started = self.time()
                handle._run()
                seconds = self.time() - started
                if seconds >= self.slow_callback_duration:
                    base_events.logger.warning(  # type: ignore[attr-defined]
                        "Executing %s took %.3f seconds",
                        base_events._format_handle(handle),  # type: ignore[attr-defined]
                        seconds,
                    )
            finally:
                self._current_handle = None

    # ---- readiness: one interest per descriptor, whose data are the handles of its reader and its writer

    def _add_reader(
        self, fd: int, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self._watch(fd, EVENT_READ, asyncio.Handle(callback, args, self, context))

    def _add_writer(
        self, fd: int, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self._watch(fd, EVENT_WRITE, asyncio.Handle(callback, args, self, context))

    def _remove_reader(self, fd: int) -> bool:
        return self._unwatch(fd, EVENT_READ)

    def _remove_writer(self, fd: int) -> bool:
        return self._unwatch(fd, EVENT_WRITE)

    def _watch(self, fd: int, event: int, handle: asyncio.Handle) -> asyncio.Handle:
        self._check_closed()
        reading = event == EVENT_READ
        interest = self._selector.find(fd)
        if interest is None:
            self._selector.watch(fd, descriptor_of(fd), event, (handle, None) if reading else (None, handle))
            return handle
        reader, writer = interest.data
        self._selector.change(interest, interest.events | event, (handle, writer) if reading else (reader, handle))
        replaced = reader if reading else writer
        if replaced is not None:
            replaced.cancel()
        return handle

    def _unwatch(self, fd: int, event: int) -> bool:
        interest = None if self.is_closed() else self._selector.find(fd)
        if interest is None or not interest.events & event:
            return False
        reader, writer = interest.data
        (reader if event == EVENT_READ else writer).cancel()
        if interest.events == event:
            self._selector.remove(interest)
        else:
            self._selector.change(
                interest, interest.events & ~event, (None, writer) if event == EVENT_READ else (reader, None)
            )
        return True

    def _forget(self, fd: int) -> None:
        """Watch a descriptor no more, because its owner is about to close it."""
        interest = None if self.is_closed() else self._selector.find(fd)
        if interest is not None:
            for handle in interest.data:
                if handle is not None:
                    handle.cancel()
            self._selector.forget(interest)

    # ---- transports

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: base_events.Server | None = None,
    ) -> StreamTransport:
        self._ensure_fd_no_transport(sock)
        return StreamTransport(self, sock, protocol, waiter, extra, server)

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: base_events.Server | None = None,
        **timeouts: Any,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(rawsock)
        tls = TLSProtocol(self, protocol, sslcontext, waiter, server_side, server_hostname, **timeouts)
        StreamTransport(self, rawsock, tls, None, extra, server)
        transport: asyncio.Transport = tls._app_transport
        return transport

    async def start_tls(
        self,
        transport: Any,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport:
        """As asyncio's: speak TLS on a transport from here on. Returns the transport that the protocol is to
        use now; no data reaches the protocol before it can know it.
        """
        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        waiter = self.create_future()
        tls = TLSProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            call_connection_made=False,
        )
        tls._pause_reading()
        # The handshake's first bytes must not come before connection_made().
        transport.pause_reading()
        transport.set_protocol(tls)
        begin = self.call_soon(tls.connection_made, transport)
        go_on = self.call_soon(transport.resume_reading)
        try:
            await waiter
        except BaseException:
            transport.close()
            begin.cancel()
            go_on.cancel()
            raise
        tls._resume_reading()
        upgraded: asyncio.Transport = tls._app_transport
        return upgraded

    # ---- child processes

    async def _make_subprocess_transport(self, *arguments: Any, **options: Any) -> Any:
        from notifyloop.subprocesses import ChildProcess, can_watch_children  # noqa: PLC0415  # not on Windows

        if not can_watch_children():
            return await super()._make_subprocess_transport(*arguments, **options)  # type: ignore[misc]
        waiter = self.create_future()
        child = ChildProcess(self, *arguments, waiter=waiter, **options)
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            child.close()
            await child._wait()
            raise
        return child

    # ---- wake-ups

    def _write_to_self(self) -> None:
        """Called after work was added from another thread or a signal handler."""
        try:
            self._turn.sleeping.pop()
        except IndexError:
            return  # awake, or somebody else has woken it
        try:
            self._selector.wake_up()
        except (AttributeError, ValueError):
            return  # closed meanwhile: nobody sleeps there any more

    def _make_self_pipe(self) -> None:
        """Wake-ups need no pipe."""

    def _close_self_pipe(self) -> None:
        if self._ssock is not None:
            super()._close_self_pipe()  # type: ignore[misc]

    def add_signal_handler(self, sig: int, callback: Callable[[Unpack[Ts]], Any], *args: *Ts) -> None:
        """As asyncio's. CPython announces signals on a descriptor of its own choice of format, so here a
        socket pair it is.
        """
        if self._ssock is None and not self.is_closed():
            super()._make_self_pipe()  # type: ignore[misc]
        super().add_signal_handler(sig, callback, *args)

    # ---- statistics

    def statistics(self) -> Statistics:
        """What the loop has done so far. Raises RuntimeError if it is closed."""
        self._check_closed()
        counters = self._selector.port.counters()
        return Statistics(
            iterations=self._turn.iterations,
            callbacks=self._turn.callbacks,
            foreign_calls=counters.calls,
            waits=counters.waits,
            kernel_calls=counters.kernel_waits + counters.kernel_changes,
            registrations=counters.registrations,
            re_arms=counters.re_arms,
            notifications=counters.notifications,
            stale_notifications=counters.stale + self._selector.stale_notifications,
            posted=counters.posted,
            registered=len(self._selector.interests),
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
