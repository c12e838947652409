"""The raw call: packed registrations in, packed notifications out, with one thread's buffers.

Every field of a foreign structure that Python touches costs about as much as a method call, so this module
touches none: a batch goes in as bytes, and comes out as a view on which `struct` iterates.
`CompletionPort.process` is built on it; so is the selector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from notifyloop.port.abi import ENTRY, REGISTRATION
from notifyloop.port.provider import provider

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Batch", "call_error"]

ffi = provider.ffi
lib = provider.lib

NOT_DEQUEUED = (lib.WAIT_TIMEOUT, lib.ERROR_TIMEOUT, lib.WAIT_IO_COMPLETION)


def call_error(code: int) -> Exception:
    """The exception for a failed call, which has changed nothing: every registration is as it was."""
    if code in (lib.ERROR_INVALID_HANDLE, lib.ERROR_ABANDONED_WAIT_0):
        return ValueError("the completion port is closed")
    if code == lib.ERROR_NOT_ENOUGH_MEMORY:
        return MemoryError("ProcessSocketNotifications: out of memory; nothing was changed, try again")
    return OSError(code, f"ProcessSocketNotifications failed with code {code}; nothing was changed")


class Batch:
    """One thread's buffers for raw calls on the port with this handle.

    After `exchange`, `entries[: count * ENTRY.size]` holds what was dequeued, for `ENTRY.iter_unpack` (key,
    events) or `FULL_ENTRY.iter_unpack`, and `failures` the (index, key, result) of each registration that
    failed.
    """

    __slots__ = (
        "_capacity",
        "_entries",
        "_handle",
        "_process",
        "_received",
        "_registrations",
        "_space",
        "entries",
        "failures",
    )

    def __init__(self, handle: Any, capacity: int) -> None:
        self._handle = handle
        self._process = lib.ProcessSocketNotificationsNs
        self._capacity = capacity
        self._entries = ffi.new("OVERLAPPED_ENTRY[]", capacity)
        self._received = ffi.new("UINT32 *")
        self.entries = memoryview(ffi.buffer(self._entries)).cast("B")
        self.failures: list[tuple[int, int, int]] = []
        self._grow(64 * REGISTRATION.size)

    def _grow(self, size: int) -> None:
        count = 2 * size // REGISTRATION.size
        self._registrations = ffi.new("SOCK_NOTIFY_REGISTRATION[]", count)
        self._space = memoryview(ffi.buffer(self._registrations)).cast("B")

    def exchange(self, packed: bytes, timeout: int, room: int) -> int:
        """Apply packed registrations, then dequeue up to `room` packets (0: none, do not wait); in one
        foreign call.

        `timeout` is in nanoseconds; negative waits for ever. Returns the number of packets, 0 after the
        timeout or a signal. Raises ValueError if the port is closed, MemoryError or OSError if the whole
        call failed; then nothing was changed.
        """
        if packed:
            size = len(packed)
            if size > len(self._space):
                self._grow(size)
            self._space[:size] = packed
            count, registrations = size // REGISTRATION.size, self._registrations
        elif not room:
            return 0
        else:
            count, registrations = 0, ffi.NULL
        if room:
            code = self._process(self._handle, count, registrations, timeout, room, self._entries, self._received)
        else:
            code = self._process(self._handle, count, registrations, 0, 0, ffi.NULL, ffi.NULL)
        if self.failures:
            self.failures = []
        if packed and self._space[:size] != packed:  # a result other than zero
            self._collect_failures(size)
        if code == 0:
            return int(self._received[0]) if room else 0
        if code in NOT_DEQUEUED:
            return 0
        raise call_error(code)

    def _collect_failures(self, size: int) -> None:
        for index, fields in enumerate(REGISTRATION.iter_unpack(self._space[:size])):
            if fields[-1]:
                self.failures.append((index, fields[1], fields[-1]))

    def pairs(self, count: int) -> list[tuple[int, int]]:
        """The (key, events) of the `count` packets just dequeued."""
        return list(ENTRY.iter_unpack(self.entries[: count * ENTRY.size]))
