"""The raw call: packed registrations in, packed notifications out, with one thread's buffers.

Every field of a foreign structure that Python touches costs about as much as a method call, so this module
touches none: a batch goes in as bytes, and comes out as a view on which `struct` iterates.
`CompletionPort.process` is built on it; so is the selector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from notifyloop.port.abi import ENTRY, REGISTRATION, SHORT_ENTRY
from notifyloop.port.provider import provider

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Batch", "call_error"]

ffi = provider.ffi
lib = provider.lib

ONLY_COUNT = 0xFFFFFFFF  # of what a packed call returns; above it is the number of failures


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

    __slots__ = ("_capacity", "_entries", "_handle", "_most", "_process", "_results", "entries", "failures")

    def __init__(self, handle: Any, capacity: int) -> None:
        self._handle = handle
        self._capacity = capacity
        self._process = lib.ProcessPackedNotifications
        self._entries = ffi.new("OVERLAPPED_ENTRY[]", capacity)
        self.entries = memoryview(ffi.buffer(self._entries)).cast("B")
        self.failures: list[tuple[int, int, int]] = []
        self._make_room(64 * REGISTRATION.size)

    def _make_room(self, size: int) -> None:
        self._most = 2 * size
        self._results = ffi.new("DWORD[]", self._most // REGISTRATION.size)

    def exchange(self, packed: bytes, timeout: int, room: int) -> int:
        """Apply packed registrations, then dequeue up to `room` packets (0: none, do not wait); in one
        foreign call.

        `timeout` is in nanoseconds; negative waits for ever. Returns the number of packets, 0 after the
        timeout or a signal. Raises ValueError if the port is closed, MemoryError or OSError if the whole
        call failed; then nothing was changed.
        """
        if self.failures:
            self.failures = []
        size = len(packed)
        if not size and not room:
            return 0
        if size > self._most:
            self._make_room(size)
        value: int = self._process(
            self._handle, packed, size, self._results, timeout if room else 0, room, self._entries
        )
        if value > ONLY_COUNT:
            self._collect_failures(packed)
            return value & ONLY_COUNT
        if value < 0:
            raise call_error(-value)
        return value

    def turn(self, packed: bytes, timeout: int) -> list[tuple[int, int]]:
        """`exchange` with all the room there is, in one step: an event loop takes it in every turn. Returns of each
        packet the lower 32 bits of its key, and the event mask.
        """
        if self.failures:
            self.failures = []
        size = len(packed)
        if size > self._most:
            self._make_room(size)
        count: int = self._process(self._handle, packed, size, self._results, timeout, self._capacity, self._entries)
        if count > ONLY_COUNT:
            self._collect_failures(packed)
            count &= ONLY_COUNT
        elif count < 0:
            raise call_error(-count)
        if count == 1:  # by far the most frequent, and half the price
            return [SHORT_ENTRY.unpack_from(self.entries)]
        return list(SHORT_ENTRY.iter_unpack(self.entries[: count * SHORT_ENTRY.size])) if count else []

    def _collect_failures(self, packed: bytes) -> None:
        for index, fields in enumerate(REGISTRATION.iter_unpack(packed)):
            if self._results[index]:
                self.failures.append((index, fields[1], int(self._results[index])))

    def pairs(self, count: int) -> list[tuple[int, int]]:
        """The (key, events) of the `count` packets just dequeued."""
        return list(ENTRY.iter_unpack(self.entries[: count * ENTRY.size]))
