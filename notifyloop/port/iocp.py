"""Windows' completion ports: what the providers `winsock` and `afd` have in common.

What Windows offers: a port is a queue of packets in the kernel. Any number of threads wait on it, any thread
may post to it, and whatever file is associated with it has its overlapped operations' completions queued there.

What we make of it: a `Port`, which has the calls that the C provider of Linux has, written in Python, and
counts as it does. Upwards it is passed about in place of the handle, because Windows gives the number of a
closed handle to the next file that is opened: a thread that comes late must not post to somebody else's port.

Closing: a call announces itself in `inside` before it looks whether the port is being closed, and whoever
closes it looks into `inside` afterwards. So either the call sees that it came too late, or the handle stays
open for it; the last to leave closes it. Nobody waits for anybody: a finalizer that closes the port in the
midst of a call of the same thread would wait for itself.

Interrupts: Ctrl-C raises KeyboardInterrupt in the midst of a call, after whatever the call has done so far. What was
dequeued must not be lost, and what was disarmed not stay so. So the arguments of a packed call say themselves how far
it came, in what the kernel wrote there: the packets stay in `entries`, with their number in `received`, until the call
has returned, and the next call begins with them; `reported` stays until others take its place. What a provider keeps of
its own it puts in order again with the call after an interrupt, in `recover`. Somebody may be told twice by all this,
which readiness allows.

Sources: "CreateIoCompletionPort", "GetQueuedCompletionStatusEx" and "PostQueuedCompletionStatus function
(ioapiset.h)", "I/O Completion Ports", of Microsoft's reference.
"""

from __future__ import annotations

import errno
import re
import threading
from struct import calcsize
from time import perf_counter_ns
from types import SimpleNamespace
from typing import TYPE_CHECKING

from cffi import FFI

from notifyloop.port.abi import CONSTANTS, DECLARATIONS, ENTRY, FULL_ENTRY, WINDOWS_FUNCTIONS

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Port", "describe", "entry_point", "ffi", "kernel32", "library", "packed_call", "stdcall", "system_handle"]


def stdcall(declarations: str) -> str:
    """With the calling convention of Windows' functions, which is one of its own on 32-bit systems."""
    return re.sub(r"^(\w+) (?=\w+\()", r"\1 WINAPI ", declarations, flags=re.MULTILINE)


ffi = FFI()
ffi.cdef(stdcall(DECLARATIONS + WINDOWS_FUNCTIONS))
windows: Any = ffi  # what it has on Windows only
kernel32: Any = ffi.dlopen("kernel32.dll")
NULL = ffi.NULL

REGISTERED = 1 << (8 * calcsize("N") - 1)
LOWER = 0xFFFFFFFF & (REGISTERED - 1)
INPUT: int = kernel32.SOCK_NOTIFY_EVENT_IN
HANGUP: int = kernel32.SOCK_NOTIFY_EVENT_HANGUP

ERROR_SUCCESS = 0
ERROR_INVALID_HANDLE = 6
ERROR_NOT_ENOUGH_MEMORY = 8
WAIT_TIMEOUT = 258
ERROR_ABANDONED_WAIT_0 = 735
INFINITE = 0xFFFFFFFF

# What Windows has several words for, or Python none.
ERRNO = {
    14: errno.ENOMEM,  # ERROR_OUTOFMEMORY
    50: errno.ENOTSUP,  # ERROR_NOT_SUPPORTED
    1168: errno.ENOENT,  # ERROR_NOT_FOUND
    1450: errno.ENOMEM,  # ERROR_NO_SYSTEM_RESOURCES
    10055: errno.ENOMEM,  # WSAENOBUFS
}


def errno_of(code: int) -> int:
    return ERRNO.get(code) or OSError(0, "", None, code).errno or errno.EINVAL


def describe(result: int) -> tuple[int, str]:
    """The errno that is nearest to a registration's result, and what that means: here it is Windows' error code."""
    _, meaning = windows.getwinerror(result)
    return errno_of(result), f"{meaning} (Windows error {result})"


def system_handle(port: Port) -> int:
    """The handle by which Windows knows a port."""
    return int(ffi.cast("uintptr_t", port.handle))


def pairs(entries: Any, count: int) -> list[tuple[int, int]]:
    """The (key, events) of the first `count` packets."""
    return list(ENTRY.iter_unpack(ffi.buffer(entries, count * ENTRY.size)))


def milliseconds(ns: int) -> int:
    """The timeout as Windows takes it, rounded up: a wait that ends too early is one more wait."""
    return INFINITE if ns < 0 else min(-(-ns // 1_000_000), INFINITE - 1)


def word(key: int, events: int) -> int:
    """What PACKED_CALL says of a packet."""
    if not key & REGISTERED:
        return 2 << 32 | key & LOWER
    return (key & LOWER) >> 8 if events & ~HANGUP == INPUT else 1 << 32 | key & LOWER | events & 0xFF


class PackedCall:
    """PACKED_CALL, for a caller that need not know that this is not C."""

    __slots__ = (
        "completionCount",
        "entries",
        "failed",
        "failures",
        "packed",
        "port",
        "received",
        "reported",
        "size",
        "timeoutNs",
        "words",
    )

    failures: Any
    packed: Any

    def __init__(self, port: Port, timeoutNs: int, completionCount: int, entries: Any, words: Any) -> None:  # noqa: N803 - as in C
        self.port = port
        self.size = 0
        self.failed = 0
        self.timeoutNs = timeoutNs
        self.completionCount = completionCount
        self.entries = entries
        self.words = words
        self.received = ffi.new("ULONG *")  # packets in `entries` of which the caller does not know yet
        self.reported: list[tuple[int, int]] = []  # the packets of the call before

    def process(self) -> int:
        """ProcessPackedCall."""
        if self.failed:
            return self.failed << 32
        packed, self.size = bytes(ffi.buffer(self.packed, self.size)) if self.size else b"", 0
        value = self.port.process(
            packed, len(packed), self.failures, self.timeoutNs, self.completionCount, self.entries, self
        )
        if value > 0:
            self.failed = value >> 32
        self.received[0] = 0
        return value


packed_call = PackedCall


def entry_point(name: str) -> None:
    """There is none: what is called is Python's."""


class Port:
    """A completion port; its subclasses say how sockets are registered with it.

    The counters are those of `PortCounters`, and are kept without a lock: where the interpreter has no global
    one, threads may lose a count.
    """

    __slots__ = (
        "busy_longest_ns",
        "busy_ns",
        "busy_recent_ns",
        "calls",
        "closing",
        "handle",
        "inside",
        "interrupted",
        "kernel_changes",
        "kernel_waits",
        "left_at",
        "lock",
        "notifications",
        "posted",
        "re_arms",
        "rebuilds",
        "registrations",
        "stale",
        "torn_down",
        "waiting_ns",
        "waits",
        "withheld",
    )

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.inside: set[object] = set()  # one for each call that is under way
        self.closing = self.torn_down = self.interrupted = False
        self.lock = threading.RLock()  # a finalizer may come in
        self.left_at = 0
        self.calls = self.waits = self.kernel_waits = self.kernel_changes = 0
        self.registrations = self.re_arms = self.notifications = self.withheld = self.stale = self.posted = (
            self.rebuilds
        ) = 0
        self.busy_ns = self.busy_recent_ns = self.busy_longest_ns = self.waiting_ns = 0

    @classmethod
    def create(cls, file: Any, existing: Any, key: int, threads: int) -> Any:
        """CreateIoCompletionPort: a new port, or a file's completions come to an existing one. NULL after an error."""
        if not isinstance(existing, Port):
            handle = kernel32.CreateIoCompletionPort(file, existing, key, threads)
            if handle:
                return cls(handle)
            ffi.errno = errno_of(kernel32.GetLastError())
            return NULL
        visit = object()
        try:
            existing.inside.add(visit)
            if not existing.closing and kernel32.CreateIoCompletionPort(file, existing.handle, key, threads):
                return existing
            ffi.errno = errno.EBADF if existing.closing else errno_of(kernel32.GetLastError())
            return NULL
        finally:
            existing.inside.discard(visit)
            existing.leave()

    def process(
        self,
        packed: bytes,
        size: int,
        failures: Any,
        timeout: int,
        room: int,
        entries: Any,
        call: PackedCall | None = None,
    ) -> int:
        """ProcessPackedNotifications, also as a part of ProcessPackedCall."""
        visit = object()
        try:
            self.inside.add(visit)
            if self.closing:
                return -ERROR_INVALID_HANDLE
            self.calls += 1
            if self.interrupted:
                self.recover()
            return self.carry_out(packed, size, failures, timeout, room, entries, call)
        except BaseException:
            self.interrupted = True
            raise
        finally:
            self.inside.discard(visit)
            self.leave()

    def carry_out(
        self, packed: bytes, size: int, failures: Any, timeout: int, room: int, entries: Any, call: PackedCall | None
    ) -> int:
        """The call itself."""
        raise NotImplementedError

    def recover(self) -> None:
        """Called once after an interrupt, which may have come anywhere."""
        self.interrupted = False

    def hand_out(self, entries: Any, count: int, call: PackedCall | None) -> None:
        """Say what is in `entries` now."""
        self.notifications += count
        if call is not None:
            reported = call.reported = pairs(entries, count)
            call.words[0:count] = [word(key, events) for key, events in reported]

    def post(self, value: int, key: int, overlapped: Any) -> int:
        """PostQueuedCompletionStatus."""
        visit = object()
        try:
            self.inside.add(visit)
            if self.closing:
                ffi.errno = errno.EBADF
                return 0
            if not kernel32.PostQueuedCompletionStatus(self.handle, value, key, overlapped):
                ffi.errno = errno_of(kernel32.GetLastError())
                return 0
            self.posted += 1
            return 1
        finally:
            self.inside.discard(visit)
            self.leave()

    def counters(self, counters: Any) -> int:
        """GetPortCounters."""
        if self.closing:
            ffi.errno = errno.EBADF
            return 0
        for name, _ in ffi.typeof("PORT_COUNTERS").fields:
            setattr(counters, name, getattr(self, name))
        return 1

    def close(self) -> int:
        """CloseHandle."""
        if self.closing:
            ffi.errno = errno.EBADF
            return 0
        self.closing = True
        self.leave()
        return 1

    def leave(self) -> None:
        """The way out of every call: the last one closes the port, if it is to be closed."""
        if self.closing:
            with self.lock:
                if self.torn_down:
                    return
                if not self.inside:
                    self.torn_down = True
                else:  # who waits is woken, and wakes the next
                    kernel32.PostQueuedCompletionStatus(self.handle, 0, 0, NULL)
                    return
            self.tear_down()

    def tear_down(self) -> None:
        """Called once, when no thread is inside and none can come in."""
        kernel32.CloseHandle(self.handle)

    # How long the program was away since the last wait is how long a ready socket may have had to wait for it.

    def enter_wait(self) -> int:
        self.waits += 1
        now = perf_counter_ns()
        if self.left_at:
            busy = now - self.left_at
            self.busy_ns += busy
            self.busy_recent_ns = (self.busy_recent_ns * 15 + busy) // 16
            self.busy_longest_ns = max(self.busy_longest_ns, busy)
        return now

    def leave_wait(self, entered: int) -> None:
        self.left_at = perf_counter_ns()
        self.waiting_ns += self.left_at - entered

    def put_back(self, entries: Any, count: int) -> int:
        """PutBackPackets: queue again what a call that is not packed had dequeued when an interrupt came."""
        for key, overlapped, _, value in FULL_ENTRY.iter_unpack(ffi.buffer(entries, count * FULL_ENTRY.size)):
            kernel32.PostQueuedCompletionStatus(self.handle, value, key, ffi.cast("PVOID", overlapped))
        return 1


def library(port: type[Port]) -> SimpleNamespace:
    """The constants and calls of the C provider's `lib`, on ports of this class."""
    return SimpleNamespace(
        **{name: getattr(kernel32, name) for name in re.findall(r"#define (\w+)", CONSTANTS)},
        CreateIoCompletionPort=port.create,
        CloseHandle=port.close,
        PostQueuedCompletionStatus=port.post,
        ProcessPackedNotifications=port.process,
        ProcessPackedCall=PackedCall.process,
        PutBackPackets=port.put_back,
        GetPortCounters=port.counters,
        ForgetRegistration=lambda *arguments: 1,
        SOCK_NOTIFY_OP_FORGET=kernel32.SOCK_NOTIFY_OP_DISABLE,  # for what is closed there is no more to do
        SOCK_NOTIFY_OP_RENEW=kernel32.SOCK_NOTIFY_OP_ENABLE,  # nobody can put another socket under a handle
        ERROR_SYSTEM_CALL=kernel32.ERROR_SYSTEM_CALL,
        ERROR_AFTER_FORK=kernel32.ERROR_AFTER_FORK,
        fork_count=0,
    )
