"""The completion port, as the article has it: one call that applies a batch of registrations and dequeues
notifications.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from notifyloop.port.abi import FULL_ENTRY
from notifyloop.port.batch import Batch
from notifyloop.port.provider import provider
from notifyloop.port.registration import REGISTERED, Event, Notification, Operation, Registration

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Any

__all__ = ["CompletionPort", "PortCounters"]

ffi = provider.ffi
lib = provider.lib

MAX_BATCH = 512  # what one call dequeues at most


@dataclass(frozen=True, slots=True)
class PortCounters:
    """What a port has done since it was made: counts, and times in nanoseconds."""

    calls: int
    """Foreign calls that processed registrations or notifications."""
    waits: int
    """Those of them that asked for notifications."""
    kernel_waits: int
    """Times the kernel was asked for notifications."""
    kernel_changes: int
    """Times the kernel was told of a changed registration."""
    registrations: int
    """Sockets registered."""
    re_arms: int
    """One-shot registrations enabled again."""
    notifications: int
    """Packets dequeued, posted ones included."""
    withheld: int
    """Reports of the kernel for registrations that were not enabled."""
    stale: int
    """Reports of the kernel for registrations that no longer existed."""
    posted: int
    """Packets posted."""
    rebuilds: int
    """Times the kernel's set was made anew, because a closed descriptor went on being reported."""
    busy_ns: int
    """Nanoseconds spent between waits (meaningful where one thread waits)."""
    busy_recent_ns: int
    """Nanoseconds between two waits, averaged over the last sixteen or so."""
    busy_longest_ns: int
    """The longest time between two waits, in nanoseconds."""
    waiting_ns: int
    """Nanoseconds spent waiting."""


class _Buffers(threading.local):
    """Each thread that waits on a port has its own buffers."""

    batch: Batch | None = None


class CompletionPort:
    """A queue of notifications, and the registrations that fill it; any number of threads may use it at once.

        with CompletionPort() as port:
            registration = Registration(sock, key="client", events=Event.IN | Event.HANGUP)
            for notification in port.process([registration], timeout=1.0):
                ...

    `process` is the article's call. `enable`, `disable` and `remove` do the same for one registration,
    without waiting, and raise its error. The rules of ownership are explained in
    `notifyloop.port.registration`.

    Raises OSError where the system has no descriptors left for a port.
    """

    __slots__ = ("__weakref__", "_buffers", "_by_socket", "_handle", "_live")

    def __init__(self) -> None:
        self._handle: Any = None
        handle = lib.CreateIoCompletionPort(ffi.cast("HANDLE", -1), ffi.NULL, 0, 0)
        if handle == ffi.NULL:
            raise OSError(ffi.errno, f"cannot create a completion port: {os.strerror(ffi.errno)}")
        self._handle = handle
        self._buffers = _Buffers()
        # The port keeps registrations, and with them their keys, alive until REMOVE was dequeued.
        self._live: dict[int, Registration] = {}
        self._by_socket: dict[int, Registration] = {}

    def process(
        self,
        registrations: Iterable[Registration] = (),
        timeout: float | None = 0.0,
        max_notifications: int = 64,
    ) -> list[Notification]:
        """Apply a batch of registrations, then wait for notifications: one foreign call.

        `timeout` is in seconds, None waits for ever. At most `max_notifications` (1 to 512) are returned; 0
        only registers. A registration that fails has its `result` set and neither fails the call nor
        shortens the wait.

        Raises ValueError for a negative timeout or a closed port, also if it is closed during the wait, and
        MemoryError or OSError if the call failed as a whole: then nothing was changed.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be None or not negative, not {timeout!r}")
        if not 0 <= max_notifications <= MAX_BATCH:
            raise ValueError(f"max_notifications must be from 0 to {MAX_BATCH}, not {max_notifications!r}")
        batch = self._batch()
        changes = list(registrations)
        for registration in changes:
            if registration.operation is Operation.ENABLE:
                self._live[registration.generation] = registration
        ns = -1 if timeout is None else min(int(timeout * 1e9), 2**62)
        try:
            count = batch.exchange(b"".join([change.pack() for change in changes]), ns, max_notifications)
        except (MemoryError, OSError):
            for registration in changes:
                if self._by_socket.get(registration.socket) is not registration:
                    self._live.pop(registration.generation, None)
            raise
        if changes:
            self._note_results(changes, {index: result for index, _, result in batch.failures})
        return [
            self._notification(*entry)
            for entry in FULL_ENTRY.iter_unpack(batch.entries[: count * FULL_ENTRY.size])
        ]

    def _batch(self) -> Batch:
        if self._handle is None:
            raise ValueError("the completion port is closed")
        batch = self._buffers.batch
        if batch is None:
            batch = self._buffers.batch = Batch(self._handle, MAX_BATCH)
        return batch

    def _note_results(self, changes: list[Registration], failures: dict[int, int]) -> None:
        for index, registration in enumerate(changes):
            registration.result = failures.get(index, 0)
            if registration.operation is Operation.ENABLE:
                previous = self._by_socket.get(registration.socket)
                if registration.result == 0 and previous is not registration:
                    self._by_socket[registration.socket] = registration
                    if previous is not None:  # its socket was closed, which gave no notice
                        self._live.pop(previous.generation, None)
                elif registration.result and previous is not registration:
                    self._live.pop(registration.generation, None)
            elif registration.operation is Operation.REMOVE and registration.result:
                self._forget(registration)  # no notice will come

    def _forget(self, registration: Registration) -> None:
        self._live.pop(registration.generation, None)
        if self._by_socket.get(registration.socket) is registration:
            del self._by_socket[registration.socket]

    def _notification(self, key: int, overlapped: int, _internal: int, value: int) -> Notification:
        if not key & REGISTERED:
            return Notification(key, Event.NONE, None, value, overlapped)
        registration = self._live.get(key)
        events = Event(value)
        if registration is None:
            return Notification(None, events, None, value, overlapped)
        if events & Event.REMOVE:
            self._forget(registration)
        return Notification(registration.key, events, registration, value, overlapped)

    def _apply(self, registration: Registration, operation: Operation) -> None:
        registration.operation = operation
        self.process([registration], max_notifications=0)
        registration.check()

    def enable(self, registration: Registration) -> None:
        """Register or re-arm now. Raises OSError that names the descriptor, ValueError if the port is
        closed.
        """
        self._apply(registration, Operation.ENABLE)

    def disable(self, registration: Registration) -> None:
        """Deliver nothing more until enabled; a notification already dequeued is not recalled. Raises as
        `enable`.
        """
        self._apply(registration, Operation.DISABLE)

    def remove(self, registration: Registration) -> None:
        """Deregister; a last notification with `Event.REMOVE` follows. Raises as `enable`, and then none
        follows.
        """
        self._apply(registration, Operation.REMOVE)

    def post(self, key: int, value: int = 0) -> None:
        """Queue a packet: some thread's `process` returns it with this key and value, after those posted
        before it.

        `key` is from 0 to 2**63 - 1 (2**31 - 1 where pointers have 32 bits), `value` from 0 to 2**32 - 1.
        Raises ValueError for others or if the port is closed, MemoryError.
        """
        if not 0 <= key < REGISTERED:
            raise ValueError(f"key must be from 0 to {REGISTERED - 1}, not {key!r}")
        if not 0 <= value < 2**32:
            raise ValueError(f"value must be from 0 to {2**32 - 1}, not {value!r}")
        if self._handle is None:
            raise ValueError("the completion port is closed")
        self._post(key, value)

    def _post(self, key: int, value: int) -> None:
        if not lib.PostQueuedCompletionStatus(self._handle, value, key, ffi.NULL):
            if ffi.errno == errno.ENOMEM:
                raise MemoryError("out of memory for a posted packet")
            raise ValueError("the completion port is closed")

    def batch(self, capacity: int = MAX_BATCH) -> Batch:
        """Buffers for raw calls by one thread, for programs that pack their own registrations and keep
        their own generations.
        """
        if self._handle is None:
            raise ValueError("the completion port is closed")
        return Batch(self._handle, capacity)

    def counters(self) -> PortCounters:
        """What the port has done so far. Raises ValueError if it is closed."""
        counters = ffi.new("PORT_COUNTERS *")
        if self._handle is None or not lib.GetPortCounters(self._handle, counters):
            raise ValueError("the completion port is closed")
        return PortCounters(*ffi.unpack(ffi.cast("uint64_t *", counters), len(fields(PortCounters))))

    @property
    def closed(self) -> bool:
        return self._handle is None

    def close(self) -> None:
        """Close the port; waits of other threads end with ValueError. Sockets stay open; closing twice is
        no error.
        """
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.CloseHandle(handle)
            self._live.clear()
            self._by_socket.clear()

    def __enter__(self) -> CompletionPort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._handle is not None:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._handle is None else f"{len(self._by_socket)} sockets"
        return f"<CompletionPort provider={provider.name} {state}>"
