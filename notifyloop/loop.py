"""The event loop.

`NotifyLoop` is an `asyncio.SelectorEventLoop`, on every platform, because programs test for that class, and
because most of asyncio is right as it is: connection set-up, name resolution, servers, TLS, executors,
subprocesses. What it has of its own is what a loop is chosen for, a turn: see `notifyloop.turn`. Here is asyncio's
face of it: by which name of asyncio's each function is called.

Programs look into loops, and replace parts of them. The names that they know are here and hold what they hold in
asyncio.
"""

from __future__ import annotations

import sys
import warnings
from operator import attrgetter
from typing import TYPE_CHECKING

from notifyloop import connections, sendfile, tls
from notifyloop.backports import SelectorEventLoop
from notifyloop.selector import NotificationSelector
from notifyloop.statistics import Statistics
from notifyloop.turn import readiness, scheduling, sockets, turn
from notifyloop.turn.interests import AWAKE
from notifyloop.turn.scheduling import Scheduler
from notifyloop.turn.state import Turn

if sys.platform == "win32":
    from notifyloop.windows import system
else:
    from notifyloop.unix import system

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Loop", "NotifyLoop", "new_event_loop"]


def kept_in(path: str, name: str) -> Any:
    """An attribute of asyncio's loops that is the turn's, or of something below it."""
    holder = attrgetter(path)
    return property(lambda loop: getattr(holder(loop), name), lambda loop, value: setattr(holder(loop), name, value))


class NotifyLoop(Scheduler, SelectorEventLoop):
    """An asyncio event loop on a completion port.

    Made without arguments, so the class itself is a loop factory. `selector`, if given, must be a
    `NotificationSelector` that nobody else uses; anything else raises TypeError.
    """

    _closed = True  # until __init__ has made it a loop: __del__ looks
    _system: system.System
    _selector: NotificationSelector
    _debug: bool
    _stopping: bool
    _thread_id: int | None
    _ssock: Any
    _csock: Any
    _signal_handlers: dict[int, Any]
    _check_closed: Callable[[], None]
    _ensure_resolved: Callable[..., Any]

    _ready = kept_in("_turn", "ready")
    _scheduled = kept_in("_turn.timers", "scheduled")
    _timer_cancelled_count = kept_in("_turn.timers", "cancelled")
    _clock_resolution = kept_in("_turn.timers", "resolution")

    def __init__(self, selector: NotificationSelector | None = None) -> None:
        if selector is None:
            selector = NotificationSelector()
        elif not isinstance(selector, NotificationSelector):
            raise TypeError(f"NotifyLoop needs a NotificationSelector, not {type(selector).__name__}")
        self._ssock = self._csock = None
        self._turn = Turn(selector.interests, vars(self), vars(selector))
        super().__init__(selector)
        self._system = system.System(self)
        selector.interests.sleeping = AWAKE

    # ---- scheduling

    _write_to_self = scheduling.wake_up

    def set_debug(self, enabled: bool) -> None:
        """As asyncio's."""
        # Every future and every task that is made asks. A method of a bool answers without a frame of Python.
        self.get_debug = bool(enabled).__bool__  # type: ignore[method-assign]
        if not self._closed:
            self._turn.use_handles_again(not enabled)
        super().set_debug(enabled)

    # ---- the turn

    _run_once = turn.run_once
    _process_events = turn.process_events

    def run_forever(self) -> None:
        """As asyncio's."""
        if self._closed or self.is_running():
            super().run_forever()  # raises
        begun = self._system.begin(self)
        try:
            super().run_forever()
        finally:
            if not self._closed:
                self._system.end(begun)

    # ---- readiness

    _add_reader = readiness.add_reader
    _add_writer = readiness.add_writer
    _remove_reader = readiness.remove_reader
    _remove_writer = readiness.remove_writer
    _ensure_fd_no_transport = readiness.ensure_no_transport

    # ---- sockets that the program keeps

    sock_recv = sockets.sock_recv  # type: ignore[assignment]
    sock_recv_into = sockets.sock_recv_into
    sock_recvfrom = sockets.sock_recvfrom
    sock_recvfrom_into = sockets.sock_recvfrom_into
    sock_sendall = sockets.sock_sendall
    sock_sendto = sockets.sock_sendto
    sock_accept = sockets.sock_accept
    sock_connect = sockets.sock_connect

    # ---- connections

    create_server = connections.create_server  # type: ignore[assignment]
    create_datagram_endpoint = connections.create_datagram_endpoint  # type: ignore[assignment]
    connect_read_pipe = connections.connect_read_pipe
    connect_write_pipe = connections.connect_write_pipe
    start_tls = tls.start_tls
    _start_serving = connections.start_serving
    _stop_serving = connections.stop_serving
    _create_connection_transport = connections.create_connection_transport
    _make_socket_transport = connections.make_socket_transport
    _make_datagram_transport = connections.make_datagram_transport
    _make_ssl_transport = tls.make_ssl_transport
    _sendfile_native = sendfile.sendfile_native
    _sendfile_fallback = sendfile.sendfile_fallback
    _sock_sendfile_native = sendfile.sock_sendfile_native
    _sock_sendfile_fallback = sendfile.sock_sendfile_fallback

    # ---- the system

    add_signal_handler = system.add_signal_handler
    _make_read_pipe_transport = system.make_read_pipe_transport
    _make_write_pipe_transport = system.make_write_pipe_transport
    _make_subprocess_transport = system.make_subprocess_transport

    if sys.platform == "win32":
        remove_signal_handler = system.remove_signal_handler
        create_pipe_connection = system.create_pipe_connection
        start_serving_pipe = system.start_serving_pipe
        if system.COARSE:
            time = system.clock
    else:
        create_unix_server = connections.create_unix_server  # type: ignore[assignment]

    # ---- the beginning and the end

    def _make_self_pipe(self) -> None:
        """Wake-ups need no pipe."""

    def _close_self_pipe(self) -> None:
        if self._ssock is not None:
            super()._close_self_pipe()  # type: ignore[misc]

    def close(self) -> None:
        """As asyncio's. Sockets that were closed while a `sock_*` coroutine waited for them close now."""
        if self._closed or self.is_running():
            super().close()
            return
        sockets.release_waits(self)
        self._turn.use_handles_again(False)
        self._turn.own = {}  # it holds the turn, and this would be a cycle that CPython 3.13 never collects
        self._system.close(super().close)

    def __del__(self, _warn: Any = warnings.warn) -> None:
        try:
            super().__del__(_warn)  # type: ignore[call-arg]
        finally:  # asyncio's has not come to that if the warning is an exception
            if not self._closed and not self.is_running():
                self.close()

    def statistics(self) -> Statistics:
        """What the loop has done so far; any thread may ask. Raises RuntimeError if it is closed."""
        selector = self._selector
        self._check_closed()
        try:
            counters, registered = selector.port.counters(), len(selector.get_map())
        except (TypeError, ValueError):
            self._check_closed()  # by another thread meanwhile
            raise
        return Statistics(
            iterations=self._turn.iterations,
            callbacks=self._turn.callbacks,
            foreign_calls=counters.calls,
            waits=counters.waits,
            kernel_calls=counters.kernel_waits + counters.kernel_changes,
            registrations=counters.registrations,
            re_arms=counters.re_arms,
            notifications=counters.notifications,
            stale_notifications=counters.stale + self._turn.interests.stale_notifications,
            posted=counters.posted,
            registered=registered,
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
