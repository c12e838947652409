"""The raw call: packed registrations in, packed notifications out, with one thread's buffers.

Every field of a foreign structure that Python touches costs about as much as a method call, so this module
touches none: a batch goes in as bytes, and comes out as a view on which `struct` iterates.
`CompletionPort.process` is built on it; so is the selector.

An exception may come in between any two lines: an interrupt by the keyboard, or what a signal handler or a finalizer
raises; and those may call the same port. So C is given no memory but the batch's own, which is not freed while the
batch lives. Orders are copied there before the one assignment that says so, and C takes it back when it has applied
them: they are applied once, by this call or by the next. Failures stay there until they have been read.
"""

from __future__ import annotations

import errno
import os
from itertools import starmap
from operator import index
from typing import TYPE_CHECKING

from notifyloop.port import foreign
from notifyloop.port.abi import ENTRY, FAILURE, REGISTRATION
from notifyloop.port.provider import provider

if TYPE_CHECKING:
    from typing import Any

__all__ = ["MAX_BATCH", "Batch", "call_error"]

ffi = provider.ffi
lib = provider.lib

MAX_BATCH = 512  # what one call dequeues at most
FEW = 32 * REGISTRATION.size  # bytes of orders for which there is memory from the start
LONGEST = 2**62  # nanoseconds; longer timeouts are no different
ONLY_COUNT = 0xFFFFFFFF  # of what a packed call returns; above it is the number of failures


def call_error(code: int) -> Exception:
    """The exception for a failed call, which has changed nothing: every registration is as it was."""
    if code in (lib.ERROR_INVALID_HANDLE, lib.ERROR_ABANDONED_WAIT_0):
        return ValueError("the completion port is closed")
    if code == lib.ERROR_NOT_ENOUGH_MEMORY:
        return MemoryError("ProcessSocketNotifications: out of memory; nothing was changed, try again")
    if code & lib.ERROR_SYSTEM_CALL:
        number = code & 0xFFFF
        after_fork = code & lib.ERROR_AFTER_FORK == lib.ERROR_AFTER_FORK
        what = "make the completion port this process's own after a fork" if after_fork else "wait for notifications"
        return OSError(number, f"{os.strerror(number)}: cannot {what}; nothing was changed, try again")
    return OSError(code, f"ProcessSocketNotifications failed with code {code}; nothing was changed")


def was_applied(landed: list[Any]) -> bool:
    """Whether `Batch.call` has made its call, and the call did not fail as a whole."""
    return len(landed) > 1 and landed[1] >= 0


def failures_of(landed: list[Any]) -> list[tuple[int, int, int]]:
    """The (index, key, result) of each registration that failed in `Batch.call`."""
    memory, value = landed
    count = value >> 32
    return [
        (index, key, result) for key, index, result in FAILURE.iter_unpack(ffi.buffer(memory, count * FAILURE.size))
    ]


class Batch:
    """One thread's buffers for raw calls on the port with this handle.

    After `exchange`, `entries[: count * ENTRY.size]` holds what was dequeued, for `ENTRY.iter_unpack` (key, events) or
    `FULL_ENTRY.iter_unpack`, and `failures` the (index, key, result) of each registration that failed. It is for who
    called to take them from there: `turn` adds to them, `exchange` begins anew. Better have a batch for each.

    Raises ValueError for a `capacity`, the most packets to be dequeued at once, that is not from 1 to 512.
    """

    __slots__ = (
        "_address",
        "_address_of_call",
        "_address_of_words",
        "_call",
        "_capacity",
        "_entries",
        "_failures",
        "_handle",
        "_kept",
        "_orders",
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
        if not 1 <= capacity <= MAX_BATCH:
            raise ValueError(f"capacity must be from 1 to {MAX_BATCH}, not {capacity!r}")
        self._handle = handle
        self._capacity = capacity
        self._process = lib.ProcessPackedNotifications
        entries = self._entries = ffi.new("OVERLAPPED_ENTRY[]", capacity)
        self.entries = memoryview(ffi.buffer(entries)).cast("B")
        words = self._words = ffi.new("int64_t[]", capacity)
        self.words = memoryview(ffi.buffer(words))
        self._failures: Any = None  # memory of `exchange`, while it is not in use
        self.failures: list[tuple[int, int, int]] = []
        self._process_call = lib.ProcessPackedCall
        self._timeout: int | None = 0
        self.count = 0  # of packets that the last turn has dequeued
        call = self._call = provider.packed_call(
            port=handle, timeoutNs=0, completionCount=capacity, entries=entries, words=words
        )
        self._address, self._address_of_call, self._address_of_words = foreign.addresses(
            ffi, provider.entry_point("ProcessPackedCall"), call, words
        )
        self._kept: list[Any] = []  # all the memory that C was ever told of
        self._orders = memoryview(b"")
        self._make_room(FEW)

    def exchange(self, packed: bytes, timeout: int, room: int) -> int:
        """Apply packed registrations, then dequeue up to `room` packets (0: none, do not wait); in one
        foreign call.

        `timeout` is in nanoseconds; negative waits for ever. If a registration fails it does not wait (Windows' own
        call does). Returns the number of packets, 0 after the timeout or a signal. Raises ValueError for what is no
        packed registration, for more room than there is, or if the port is closed; MemoryError or OSError if the whole
        call failed. Then nothing was changed.
        """
        landed: list[Any] = []
        try:
            value = self.call(landed, packed, timeout, room)
            self.failures = failures_of(landed) if value > ONLY_COUNT else []
            return value & ONLY_COUNT
        except BaseException:
            self.put_back(landed)
            raise

    def call(self, landed: list[Any], packed: bytes, timeout: int, room: int) -> int:
        """`exchange`, for somebody who must know after an interrupt what the call has done, if it was made:
        `was_applied` tells from what has `landed`, `failures_of` has what failed, and `put_back` undoes the dequeuing.
        Returns the number of packets and, above ONLY_COUNT, of failures.
        """
        if type(packed) is not bytes:
            packed = bytes(memoryview(packed))
        size = len(packed)
        if size % REGISTRATION.size:
            raise ValueError(f"packed registrations have {REGISTRATION.size} bytes each, not {size} altogether")
        if type(room) is not int or type(timeout) is not int:
            room, timeout = index(room), index(timeout)
        if not 0 <= room <= self._capacity:
            raise ValueError(f"room must be from 0 to {self._capacity}, not {room!r}")
        if not room:
            if not size:
                return 0
            timeout = 0
        elif not -1 <= timeout <= LONGEST:
            timeout = LONGEST if timeout > 0 else -1
        memory, self._failures = self._failures, None  # a signal handler or a finalizer that calls gets its own
        if memory is None or size > FEW:
            memory = ffi.new("FAILED_REGISTRATION[]", max(size, FEW) // REGISTRATION.size)
        landed.append(memory)
        # Nothing comes in between the call and where it leaves its value, for `extend` is no code of Python's.
        process, handle, entries = self._process, self._handle, self._entries
        landed.extend(starmap(process, ((handle, packed, size, memory, timeout, room, entries),)))
        self._failures = memory
        value: int = landed[1]
        if value < 0:
            raise call_error(-value)
        return value

    def put_back(self, landed: list[Any]) -> None:
        """Have the packets that `call` has dequeued dequeued again: nobody has looked at them. Raises MemoryError if
        they are lost.
        """
        count = landed[1] & ONLY_COUNT if was_applied(landed) else 0
        handle, entries = self._handle, self._entries
        if count and not lib.PutBackPackets(handle, entries, count) and ffi.errno == errno.ENOMEM:
            raise MemoryError("out of memory for packets that were dequeued in vain")

    def forget(self, descriptor: int, key: int) -> None:
        """Say at once that a registered descriptor is about to be closed; see ForgetRegistration in abi.py."""
        handle = self._handle
        lib.ForgetRegistration(handle, descriptor, key)

    def order(self, packed: bytes) -> None:
        """Leave packed registrations to the next turn, after what was left to it before. Raises ValueError for what is
        none. What raises anything has ordered nothing.
        """
        call = self._call
        start = call.size  # 0, but after an interrupt
        end = start + len(packed)
        if end % REGISTRATION.size:
            raise ValueError(f"packed registrations have {REGISTRATION.size} bytes each, not {len(packed)} altogether")
        if end > len(self._orders):
            self._make_room(end)
        self._orders[start:end] = packed
        call.size = end

    def _make_room(self, size: int) -> None:
        """Memory for orders, and for each of them, and each packet that was dequeued, to fail."""
        packed = ffi.new("char[]", 2 * size)
        failures = ffi.new("FAILED_REGISTRATION[]", 2 * size // REGISTRATION.size + self._capacity)
        orders = memoryview(ffi.buffer(packed)).cast("B")
        orders[: len(self._orders)] = self._orders
        self._kept.append((packed, failures))
        self._call.failures = failures
        self._call.packed = packed
        self._orders = orders

    def turn(self, packed: bytes | None, timeout: int) -> tuple[int, ...]:
        """The step that an event loop takes in every turn: `exchange` with all the room there is, which also enables
        again what the turn before has disarmed, unless `packed` orders something else for it. Returns each packet as
        one number, as abi.py says. If it raises, `packed` was applied or will not be: it is for who called to order
        again what he still wants.
        """
        if packed:
            return self._turn_with(packed, timeout)
        call = self._call
        if timeout != self._timeout:
            self._timeout = None  # until C knows the new one
            try:
                call.timeoutNs = timeout
            except OverflowError:
                call.timeoutNs = LONGEST if timeout > 0 else -1
            self._timeout = timeout
        try:
            count = foreign.process(self._process_call, call, self._address, self._address_of_call)
            self.count = count
        except BaseException:  # an interrupt
            self.count = 0
            raise
        if 0 <= count <= self._capacity:
            return foreign.unpack(self.words, self._address_of_words, count)
        return self._unpack_rare(count)

    def _turn_with(self, packed: bytes, timeout: int) -> tuple[int, ...]:
        call = self._call
        before = call.size
        try:
            self.order(packed)
            return self.turn(None, timeout)
        except BaseException:
            # 0 if C has come to it. No call of min(): another interrupt would come in.
            call.size = call.size if call.size < before else before  # noqa: FURB136
            raise

    def _unpack_rare(self, value: int) -> tuple[int, ...]:
        """After an error or failures."""
        count = self.count = max(value, 0) & ONLY_COUNT
        if value < 0:
            raise call_error(-value)
        if value > ONLY_COUNT:
            self.failures += failures_of([self._call.failures, value])
            self._call.failed = 0
            if self._call.size:  # those were of a call before, which an interrupt hid, and C has come no further
                return self.turn(None, 0)
        return foreign.unpack(self.words, self._address_of_words, count)

    def pairs(self, count: int) -> list[tuple[int, int]]:
        """The (key, events) of the `count` packets just dequeued."""
        return list(ENTRY.iter_unpack(self.entries[: count * ENTRY.size]))
