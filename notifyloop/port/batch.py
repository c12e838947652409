"""The raw call: packed registrations in, packed notifications out, with one thread's buffers.

Every field of a foreign structure that Python touches costs about as much as a method call, so this module
touches none: a batch goes in as bytes, and comes out as a view on which `struct` iterates.
`CompletionPort.process` is built on it; so is the selector.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from notifyloop.port.abi import ENTRY, FAILURE, REGISTRATION
from notifyloop.port.provider import provider

if TYPE_CHECKING:
    from collections.abc import Callable
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


unpackers: dict[int, Callable[[Any], tuple[int, ...]]] = {}  # what takes so many numbers out of a buffer at once


class Batch:
    """One thread's buffers for raw calls on the port with this handle.

    After a call, `entries[: count * ENTRY.size]` holds what was dequeued, for `ENTRY.iter_unpack` (key, events) or
    `FULL_ENTRY.iter_unpack`, and `failures` the (index, key, result) of each registration that failed. It is for who
    called to take them from there: the next `turn` adds to them.
    """

    __slots__ = (
        "_call",
        "_capacity",
        "_entries",
        "_failures",
        "_handle",
        "_most",
        "_process",
        "_process_call",
        "_timeout",
        "_words",
        "count",
        "entries",
        "failures",
        "words",
    )

    def __init__(self, handle: Any, capacity: int) -> None:
        self._handle = handle
        self._capacity = capacity
        self._process = lib.ProcessPackedNotifications
        self._entries = ffi.new("OVERLAPPED_ENTRY[]", capacity)
        self.entries = memoryview(ffi.buffer(self._entries)).cast("B")
        self._words = ffi.new("int64_t[]", capacity)
        self.words = memoryview(ffi.buffer(self._words))
        self.failures: list[tuple[int, int, int]] = []
        self._process_call = lib.ProcessPackedCall
        self._timeout = 0
        self.count = 0  # of packets that the last turn has dequeued
        self._call = provider.packed_call(
            port=handle, timeoutNs=0, completionCount=capacity, entries=self._entries, words=self._words
        )
        self._make_room(64 * REGISTRATION.size)

    def _make_room(self, size: int) -> None:
        self._most = 2 * size
        self._failures = ffi.new("FAILED_REGISTRATION[]", self._most // REGISTRATION.size + self._capacity)
        self._call.failures = self._failures

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
            self._handle, packed, size, self._failures, timeout if room else 0, room, self._entries
        )
        if value > ONLY_COUNT:
            self._collect_failures(value >> 32)
            return value & ONLY_COUNT
        if value < 0:
            raise call_error(-value)
        return value

    def turn(self, packed: bytes | None, timeout: int) -> tuple[int, ...]:
        """The step that an event loop takes in every turn: `exchange` with all the room there is, which also enables
        again what the turn before has disarmed, unless `packed` orders something else for it. Returns each packet as
        one number, as abi.py says.
        """
        call = self._call
        if packed:
            size = call.size = len(packed)
            if size > self._most:
                self._make_room(size)
            call.packed = ffi.from_buffer(packed)  # whoever called has it until we return
        if timeout != self._timeout:
            call.timeoutNs = self._timeout = timeout
        count = self.count = self._process_call(call)
        try:
            return unpackers[count](self.words)
        except KeyError:
            return self._unpack_rare(count)

    def _unpack_rare(self, value: int) -> tuple[int, ...]:
        """After an error, failures, or the first time so many packets."""
        count = self.count = max(value, 0) & ONLY_COUNT
        if value < 0:
            raise call_error(-value)
        if value > ONLY_COUNT:
            self._collect_failures(value >> 32)
        if count not in unpackers:
            unpackers[count] = Struct(f"{count}q").unpack_from
        return unpackers[count](self.words)

    def _collect_failures(self, count: int) -> None:
        memory = ffi.buffer(self._failures, count * FAILURE.size)
        self.failures += [(index, key, result) for key, index, result in FAILURE.iter_unpack(memory)]

    def pairs(self, count: int) -> list[tuple[int, int]]:
        """The (key, events) of the `count` packets just dequeued."""
        return list(ENTRY.iter_unpack(self.entries[: count * ENTRY.size]))
