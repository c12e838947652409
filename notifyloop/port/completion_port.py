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
from notifyloop.port.batch import LONGEST, MAX_BATCH, ONLY_COUNT, Batch, call_error, failures_of, was_applied
from notifyloop.port.forks import Guarded
from notifyloop.port.provider import provider
from notifyloop.port.registration import REGISTERED, Event, Notification, Operation, Registration

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Any

    _Change = tuple[Registration, Operation, Registration | None, bool]

__all__ = ["CompletionPort", "PortCounters"]

ffi = provider.ffi
lib = provider.lib

REMOVED = int(Event.REMOVE)
GONE = (errno.ENOENT, errno.EBADF, errno.ENOTSOCK)  # what a removal fails with if nothing is left to remove
NOTHING_CHANGED = -1  # the result of each registration of a call that failed as a whole


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


class CompletionPort(Guarded):
    """A queue of notifications, and the registrations that fill it; any number of threads may use it at once.

        with CompletionPort() as port:
            registration = Registration(sock, key="client", events=Event.IN | Event.HANGUP)
            for notification in port.process([registration], timeout=1.0):
                ...

    `process` is the article's call. `enable`, `disable` and `remove` do the same for one registration,
    without waiting, and raise its error. The rules of ownership are explained in
    `notifyloop.port.registration`.

    A child that is forked has the port as it was, with the same registrations and packets, and from then on its own.

    Raises OSError where the system has no descriptors left for a port.
    """

    __slots__ = ("__weakref__", "_buffers", "_by_socket", "_handle", "_live")

    def __init__(self) -> None:
        self._handle: Any = None
        super().__init__()
        handle = lib.CreateIoCompletionPort(ffi.cast("HANDLE", -1), ffi.NULL, 0, 0)
        if handle == ffi.NULL:
            raise OSError(ffi.errno, f"cannot create a completion port: {os.strerror(ffi.errno)}")
        self._handle = handle
        self._buffers = _Buffers()
        # The port keeps registrations, and with them their keys, alive until REMOVE was dequeued. Those that
        # have not been removed are found by their socket, too.
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
        only registers. A registration that fails has its `result` set and does not fail the call. It ends the wait,
        but not that of Windows' own call.

        Raises ValueError for a negative timeout or a closed port, also if it is closed during the wait, and
        MemoryError or OSError if the call failed as a whole: then nothing was changed.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be None or not negative, not {timeout!r}")
        if not 0 <= max_notifications <= MAX_BATCH:
            raise ValueError(f"max_notifications must be from 0 to {MAX_BATCH}, not {max_notifications!r}")
        ns = -1 if timeout is None else int(min(timeout, LONGEST // 10**9) * 1e9)
        changes = list(registrations)
        packed = b"".join([registration.pack() for registration in changes])
        batch, live = self._take_batch(), self._live
        noted: list[_Change] = []
        landed: list[Any] = []
        removed: list[Registration] = []
        try:
            if changes:
                self._note(changes, noted)
            value = batch.call(landed, packed, ns, max_notifications)
            if noted:
                self._settle(noted, failures_of(landed) if value > ONLY_COUNT else [])
            notifications = self._notifications(live, batch, value & ONLY_COUNT) if value & ONLY_COUNT else []
            self._forget(live, notifications, removed)
            return self._put_batch(batch, notifications)
        except BaseException:
            self._buffers.batch = batch
            if was_applied(landed):
                # An interrupt. What was changed stays changed; what was dequeued, and would be handed out to nobody,
                # will be dequeued again.
                self._settle(noted, failures_of(landed))
            else:
                self._settle(noted, [(index, 0, NOTHING_CHANGED) for index in range(len(noted))])
            live.update((registration.generation, registration) for registration in removed)
            batch.put_back(landed)
            raise

    def _take_batch(self) -> Batch:
        """This thread's buffers, its own until it puts them back: a finalizer or a signal handler that calls
        in between gets others.
        """
        handle, batch = self._handle, self._buffers.batch
        if handle is None:
            raise ValueError("the completion port is closed")
        self._buffers.batch = None
        return batch or Batch(handle, MAX_BATCH)

    def _put_batch(self, batch: Batch, notifications: list[Notification]) -> list[Notification]:
        self._buffers.batch = batch
        return notifications

    def _note(self, changes: list[Registration], noted: list[_Change]) -> None:
        """Notes the changes before the call. Where it waits, other threads may long have dequeued what they
        brought about, and changed the registrations again, when it returns.
        """
        with self.lock:
            for registration in changes:
                registration.result = 0
                operation, socket = registration.operation, registration.socket
                previous = self._by_socket.get(socket)
                noted.append((registration, operation, previous, registration.generation in self._live))
                if operation == Operation.ENABLE:
                    self._live[registration.generation] = self._by_socket[socket] = registration
                elif operation == Operation.REMOVE and previous is registration:
                    del self._by_socket[socket]

    def _settle(self, noted: list[_Change], failures: list[tuple[int, int, int]]) -> None:
        """Takes back what failed, and forgets what was replaced. To do it twice does no harm."""
        results = {index: result for index, _, result in failures}
        with self.lock:
            for index, (registration, operation, previous, known) in enumerate(noted):
                socket, result = registration.socket, results.get(index, 0)
                if result and result != NOTHING_CHANGED:
                    registration.result = result
                if operation == Operation.ENABLE and previous is not registration:
                    if not result:
                        if previous is not None:  # its socket was closed, which gave no notice
                            self._live.pop(previous.generation, None)
                        continue
                    if not known:
                        self._live.pop(registration.generation, None)
                    if self._by_socket.get(socket) is registration:
                        del self._by_socket[socket]
                        if previous is not None and previous.generation in self._live:
                            self._by_socket[socket] = previous
                elif operation == Operation.REMOVE and previous is registration and result:
                    if result != NOTHING_CHANGED and provider.describe(result)[0] in GONE:  # no notice will come
                        self._live.pop(registration.generation, None)
                    else:
                        self._by_socket.setdefault(socket, registration)

    def _notifications(self, live: dict[int, Registration], batch: Batch, count: int) -> list[Notification]:
        entries = FULL_ENTRY.iter_unpack(batch.entries[: count * FULL_ENTRY.size])
        return [self._notification(live, *entry) for entry in entries]

    def _notification(
        self, live: dict[int, Registration], key: int, overlapped: int, _internal: int, value: int
    ) -> Notification:
        if not key & REGISTERED:
            return Notification(key, Event.NONE, None, value, overlapped)
        events = Event(value)
        registration = live.get(key)
        if registration is None:
            return Notification(key, events, None, value, 0)
        return Notification(registration.key, events, registration, value, 0)  # the rest is Winsock's own

    def _forget(
        self, live: dict[int, Registration], notifications: list[Notification], removed: list[Registration]
    ) -> None:
        """Forget whose last notifications these are; notes them before."""
        for notification in notifications:
            registration = notification.registration
            if registration is not None and notification.value & REMOVED:
                removed.append(registration)
                with self.lock:
                    if self._by_socket.get(registration.socket) is not registration:  # or it was made again
                        live.pop(registration.generation, None)

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
        Raises ValueError for others or if the port is closed, MemoryError, OSError.
        """
        if not 0 <= key < REGISTERED:
            raise ValueError(f"key must be from 0 to {REGISTERED - 1}, not {key!r}")
        if not 0 <= value < 2**32:
            raise ValueError(f"value must be from 0 to {2**32 - 1}, not {value!r}")
        handle = self._handle
        if handle is None:
            raise ValueError("the completion port is closed")
        if not lib.PostQueuedCompletionStatus(handle, value, key, ffi.NULL):
            if ffi.errno == errno.ENOMEM:
                raise MemoryError("out of memory for a posted packet")
            raise call_error(lib.ERROR_INVALID_HANDLE if ffi.errno == errno.EBADF else ffi.errno)

    def associate(self, file: int, key: int) -> None:
        """Have the completions of a file's overlapped operations come to this port: on Windows, for a file that
        was opened for such, by its operating system handle.

        They come out of `process` as notifications with this `key` (see `post` for the range), the number of
        bytes as `value` and the address of the OVERLAPPED structure as `overlapped`; how the operation ended is
        in that structure. A file stays associated until it is closed. Raises OSError if the system refuses,
        which Linux always does, ValueError for keys out of range or if the port is closed.
        """
        if not 0 <= key < REGISTERED:
            raise ValueError(f"key must be from 0 to {REGISTERED - 1}, not {key!r}")
        handle = self._handle
        if handle is None:
            raise ValueError("the completion port is closed")
        if lib.CreateIoCompletionPort(ffi.cast("HANDLE", file), handle, key, 0) == ffi.NULL:
            raise OSError(ffi.errno, f"{os.strerror(ffi.errno)}: cannot associate file {file} with the completion port")

    @property
    def handle(self) -> int:
        """Windows' handle of the port, for other calls of Windows that queue packets. Good until the port is
        closed. Raises ValueError if it is, OSError on Linux, where a port has none.
        """
        if self._handle is None:
            raise ValueError("the completion port is closed")
        return provider.system_handle(self._handle)

    def batch(self, capacity: int = MAX_BATCH) -> Batch:
        """Buffers for raw calls by one thread, for programs that pack their own registrations and keep
        their own generations.
        """
        handle = self._handle
        if handle is None:
            raise ValueError("the completion port is closed")
        return Batch(handle, capacity)

    def counters(self) -> PortCounters:
        """What the port has done so far. Raises ValueError if it is closed, OSError as `process`."""
        handle, counters = self._handle, ffi.new("PORT_COUNTERS *")
        if handle is None or not lib.GetPortCounters(handle, counters):
            raise call_error(lib.ERROR_INVALID_HANDLE if handle is None or ffi.errno == errno.EBADF else ffi.errno)
        return PortCounters(*ffi.unpack(ffi.cast("uint64_t *", counters), len(fields(PortCounters))))

    @property
    def closed(self) -> bool:
        return self._handle is None

    def close(self) -> None:
        """Close the port; waits of other threads end with ValueError. Sockets stay open; closing twice is
        no error.
        """
        with self.lock:  # or two threads could close it
            self._close()

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.CloseHandle(handle)
            self._live = {}  # not cleared: a thread may be about to look up what it dequeued
            self._by_socket = {}

    def __enter__(self) -> CompletionPort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Without the lock: nobody else has it, and a Python that is ending may have taken apart what makes locks.
        if self._handle is not None:
            self._close()

    def __repr__(self) -> str:
        state = "closed" if self._handle is None else f"{len(self._by_socket)} sockets"
        return f"<CompletionPort provider={provider.name} {state}>"
