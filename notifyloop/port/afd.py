"""The provider for Windows without the native call (Windows 10, Server 2019) and for wine: polls of Windows'
socket driver, AFD.

What Windows offers: every socket is a file of the driver AFD, and `select` is one of its requests,
IOCTL_AFD_POLL: which of these conditions does this socket have? Sent without waiting, on a *helper*, a handle
of the driver that is no socket and is associated with a completion port, the answer arrives as a packet on the
port, as soon as there is one.

What we make of it: an enabled registration is one request in flight. A poll is answered once and looks at the
present state, so it is a level-triggered one-shot registration by itself. A persistent one is polled again with
the next wait, when whoever was notified has looked after the socket, or at once if other threads wait already.
ENABLE always looks afresh: a poll that is in flight is given up, because its answer may be older. REMOVE posts
its own notice. Edges cannot be had: AFD does not say when a condition ends, and whoever guesses loses one or
spins; ERROR_NOT_SUPPORTED is the result.

The invariants:

* Never two polls of one socket in flight on a port, because Windows mixes their answers up (wepoll issue 35).
  Cancelling one completes it before the call returns.
* The kernel writes into a poll's memory until its packet has been dequeued. So this memory belongs to no Python
  object and is never given back; a poll whose packet came returns it to a list, and what is in flight when the
  interpreter ends is in nobody's way.
* An answer is attributed by the address of that memory, never by the socket's number, which Windows soon gives
  to another. A poll that was given up has no registration, and its answer is dropped.

The limits: the number is all that is known of a socket between two polls. Registered with another key, it is
taken for a new one. A helper with many polls in flight is slow to cancel one of them, so there is one for every
`POLLS_PER_HELPER`.

Sources, for nothing here is documented by Microsoft: wepoll, Trio's `_io_windows.py`, c-ares' and mio's
selectors for Windows, Len Holgate's "Adventures with \\Device\\Afd".
"""

from __future__ import annotations

import socket  # noqa: F401  (starts Winsock)
from struct import Struct, calcsize
from time import perf_counter_ns
from typing import TYPE_CHECKING

from notifyloop.port.abi import FULL_ENTRY, REGISTRATION
from notifyloop.port.iocp import (
    NULL,
    Port,
    describe,
    ffi,
    kernel32,
    library,
    milliseconds,
    packed_call,
    stdcall,
    system_handle,
)

if TYPE_CHECKING:
    from typing import Any

    from notifyloop.port.iocp import PackedCall

__all__ = ["describe", "ffi", "lib", "name", "packed_call", "system_handle"]

name = "afd"

ffi.cdef(
    """
typedef int32_t NTSTATUS;

typedef struct {
    UINT16 Length;
    UINT16 MaximumLength;
    const void *Buffer;
} UNICODE_STRING;

typedef struct {
    ULONG Length;
    HANDLE RootDirectory;
    UNICODE_STRING *ObjectName;
    ULONG Attributes;
    PVOID SecurityDescriptor;
    PVOID SecurityQualityOfService;
} OBJECT_ATTRIBUTES;

typedef struct {
    ULONG_PTR Status;
    ULONG_PTR Information;
} IO_STATUS_BLOCK;

typedef struct {
    HANDLE Handle;
    ULONG Events;
    NTSTATUS Status;
} AFD_POLL_HANDLE_INFO;

typedef struct {
    int64_t Timeout;
    ULONG NumberOfHandles;
    ULONG Exclusive;
    AFD_POLL_HANDLE_INFO Handles[1];
} AFD_POLL_INFO;

typedef struct {
    IO_STATUS_BLOCK status;
    AFD_POLL_INFO info;
} POLL;
"""
    + stdcall("""
NTSTATUS NtCreateFile(HANDLE *file, ULONG access, OBJECT_ATTRIBUTES *attributes, IO_STATUS_BLOCK *status,
                      int64_t *size, ULONG fileAttributes, ULONG share, ULONG disposition, ULONG options,
                      PVOID extended, ULONG extendedSize);
NTSTATUS NtDeviceIoControlFile(HANDLE file, HANDLE event, PVOID apc, PVOID context, IO_STATUS_BLOCK *status,
                               ULONG code, PVOID input, ULONG inputSize, PVOID output, ULONG outputSize);
NTSTATUS NtCancelIoFileEx(HANDLE file, IO_STATUS_BLOCK *request, IO_STATUS_BLOCK *status);
ULONG RtlNtStatusToDosError(NTSTATUS status);
HANDLE GetProcessHeap(void);
PVOID HeapAlloc(HANDLE heap, DWORD flags, size_t size);
BOOL SetFileCompletionNotificationModes(HANDLE file, UINT8 flags);
int getsockopt(SOCKET s, int level, int option, void *value, int *size);
int WSAIoctl(SOCKET s, DWORD code, PVOID input, DWORD inputSize, PVOID output, DWORD outputSize, DWORD *returned,
             PVOID overlapped, PVOID completion);
int WSAGetLastError(void);
""")
)
ntdll: Any = ffi.dlopen("ntdll.dll")
ws2_32: Any = ffi.dlopen("ws2_32.dll")

POLLS_PER_HELPER = 128  # what c-ares has; wepoll has 32, Trio 500
POLLS_PER_SLAB = 256
DRAIN_MS = 1000  # for the answers of cancelled polls, which come at once

IOCTL_AFD_POLL = 0x00012024
SIO_BASE_HANDLE = 0x48000022
SIO_BSP_HANDLE_POLL = 0x4800001D
SOL_SOCKET = 0xFFFF
SO_TYPE = 0x1008
SYNCHRONIZE = 0x00100000
FILE_SHARE_READ_WRITE = 3
FILE_OPEN = 1
FILE_SKIP_SET_EVENT_ON_HANDLE = 2

STATUS_SUCCESS = 0
STATUS_PENDING = 0x103

AFD_POLL_RECEIVE = 0x001
AFD_POLL_SEND = 0x004
AFD_POLL_DISCONNECT = 0x008  # the peer has finished sending
AFD_POLL_ABORT = 0x010
AFD_POLL_LOCAL_CLOSE = 0x020
AFD_POLL_ACCEPT = 0x080
AFD_POLL_CONNECT_FAIL = 0x100

IN: int = kernel32.SOCK_NOTIFY_EVENT_IN
OUT: int = kernel32.SOCK_NOTIFY_EVENT_OUT
HANGUP: int = kernel32.SOCK_NOTIFY_EVENT_HANGUP
ERR: int = kernel32.SOCK_NOTIFY_EVENT_ERR
REMOVED: int = kernel32.SOCK_NOTIFY_EVENT_REMOVE
FILTER: int = kernel32.SOCK_NOTIFY_REGISTER_EVENTS_ALL
NONE: int = kernel32.SOCK_NOTIFY_OP_NONE
ENABLE: int = kernel32.SOCK_NOTIFY_OP_ENABLE
DISABLE: int = kernel32.SOCK_NOTIFY_OP_DISABLE
REMOVE: int = kernel32.SOCK_NOTIFY_OP_REMOVE
ONESHOT: int = kernel32.SOCK_NOTIFY_TRIGGER_ONESHOT
PERSISTENT: int = kernel32.SOCK_NOTIFY_TRIGGER_PERSISTENT
LEVEL: int = kernel32.SOCK_NOTIFY_TRIGGER_LEVEL
EDGE: int = kernel32.SOCK_NOTIFY_TRIGGER_EDGE
TRIGGERS = {often | kind for often in (ONESHOT, PERSISTENT) for kind in (LEVEL, EDGE)}

ERROR_INVALID_HANDLE = 6
ERROR_NOT_ENOUGH_MEMORY = 8
ERROR_NOT_SUPPORTED = 50
ERROR_INVALID_PARAMETER = 87
WAIT_TIMEOUT = 258
ERROR_ABANDONED_WAIT_0 = 735
ERROR_NOT_FOUND = 1168
WSAENOTSOCK = 10038

POLL_KEY = 2 ** (8 * calcsize("N")) - 2  # of the helpers; as a generation it would come after all others

POLL = Struct("@NNqIINIi")  # what a poll is sent as, and comes back as: the fields of the structure

# What to ask for, by filter. A stream's end is something to read; what is in no filter is asked for always.
POLLED = [
    AFD_POLL_ABORT
    | AFD_POLL_CONNECT_FAIL
    | AFD_POLL_LOCAL_CLOSE
    | (AFD_POLL_RECEIVE | AFD_POLL_ACCEPT | AFD_POLL_DISCONNECT if events & IN else 0)
    | (AFD_POLL_SEND if events & OUT else 0)
    | (AFD_POLL_DISCONNECT if events & HANGUP else 0)
    for events in range(FILTER + 1)
]


def reported(answer: int, wanted: int) -> int:
    """The events of a notification. A connection that failed or was reset is not writable."""
    events = 0
    if answer & (AFD_POLL_RECEIVE | AFD_POLL_ACCEPT):
        events |= IN
    if answer & AFD_POLL_DISCONNECT:
        events |= IN | HANGUP
    if answer & (AFD_POLL_ABORT | AFD_POLL_CONNECT_FAIL):
        return (events | HANGUP) & wanted | ERR
    if answer & AFD_POLL_SEND:
        events |= OUT
    return events & wanted


class RefusalError(Exception):
    """Windows does not do it; `code` says why."""

    def __init__(self, code: int) -> None:
        self.code = code


class Helper:
    """A handle of the driver, associated with a port, on which polls are sent."""

    __slots__ = ("handle", "in_flight")

    def __init__(self, port: Any) -> None:
        path = ffi.new("wchar_t[]", r"\Device\Afd\notifyloop")  # the last part is anything
        size = ffi.sizeof(path) - ffi.sizeof("wchar_t")
        file_name = ffi.new("UNICODE_STRING *", (size, size, path))
        attributes = ffi.new(
            "OBJECT_ATTRIBUTES *", {"Length": ffi.sizeof("OBJECT_ATTRIBUTES"), "ObjectName": file_name}
        )
        handle, status = ffi.new("HANDLE *"), ffi.new("IO_STATUS_BLOCK *")
        code = ntdll.NtCreateFile(
            handle, SYNCHRONIZE, attributes, status, NULL, 0, FILE_SHARE_READ_WRITE, FILE_OPEN, 0, NULL, 0
        )
        if code:
            raise RefusalError(ntdll.RtlNtStatusToDosError(code))
        self.handle = handle[0]
        self.in_flight = 0
        if not (
            kernel32.CreateIoCompletionPort(self.handle, port, POLL_KEY, 0)
            and kernel32.SetFileCompletionNotificationModes(self.handle, FILE_SKIP_SET_EVENT_ON_HANDLE)
        ):
            code = kernel32.GetLastError()
            kernel32.CloseHandle(self.handle)
            raise RefusalError(code)


class Poll:
    """The memory of one poll. While it is in flight the kernel may write there."""

    __slots__ = ("address", "context", "helper", "info", "memory", "registered", "status")

    registered: Registered | None
    helper: Helper

    def __init__(self, address: int) -> None:
        self.address = address
        self.context = ffi.cast("PVOID", address)
        poll = ffi.cast("POLL *", address)
        self.status = ffi.addressof(poll, "status")
        self.info = ffi.addressof(poll, "info")
        self.memory = ffi.buffer(poll)
        self.registered = None


unused_polls: list[Poll] = []  # every port's


def take_poll() -> Poll:
    while True:
        try:
            return unused_polls.pop()
        except IndexError:
            size = ffi.sizeof("POLL")
            slab = kernel32.HeapAlloc(kernel32.GetProcessHeap(), 0, size * POLLS_PER_SLAB)
            if not slab:
                raise RefusalError(ERROR_NOT_ENOUGH_MEMORY) from None
            first = int(ffi.cast("uintptr_t", slab))
            unused_polls.extend([Poll(first + size * index) for index in range(POLLS_PER_SLAB)])


def is_socket(sock: int) -> bool:
    value, size = ffi.new("int *"), ffi.new("int *", ffi.sizeof("int"))
    return not ws2_32.getsockopt(sock, SOL_SOCKET, SO_TYPE, value, size)


def base_socket(sock: int) -> int:
    """The socket of Microsoft's own provider, below whatever others are layered over it: only that one is AFD's."""
    if not is_socket(sock):
        raise RefusalError(ws2_32.WSAGetLastError())
    while True:
        base = asked_of(sock, SIO_BASE_HANDLE)
        if base is not None:
            return base
        code = ws2_32.WSAGetLastError()
        # Some layers do not want to be looked under, but tell what they would poll.
        below = asked_of(sock, SIO_BSP_HANDLE_POLL)
        if below is None or below == sock:
            raise RefusalError(code)
        sock = below


def asked_of(sock: int, code: int) -> int | None:
    answer, size = ffi.new("SOCKET *"), ffi.new("DWORD *")
    failed = ws2_32.WSAIoctl(sock, code, NULL, 0, answer, ffi.sizeof("SOCKET"), size, NULL, NULL)
    return None if failed else int(answer[0])


class Registered:
    """What is registered of a socket."""

    __slots__ = ("base", "enabled", "events", "key", "poll", "sock", "trigger")

    def __init__(self, sock: int, key: int) -> None:
        self.sock = sock
        self.key = key
        self.base = base_socket(sock)
        self.events = self.trigger = 0
        self.enabled = False
        self.poll: Poll | None = None  # in flight


class AfdPort(Port):
    """A completion port whose sockets are polled."""

    __slots__ = ("cancelled", "helpers", "polls", "registered", "spare", "spent", "to_poll", "with_room")

    def __init__(self, handle: Any) -> None:
        super().__init__(handle)
        self.registered: dict[int, Registered] = {}  # by socket
        self.spent: dict[int, Registered] = {}  # by key: disabled by a notification, and nothing was ordered since
        self.polls: dict[int, Poll] = {}  # in flight, by address
        self.to_poll: list[Registered] = []  # persistent, and notified since the last wait began
        self.helpers: list[Helper] = []
        self.with_room: list[Helper] = []  # of these, for more polls
        self.cancelled = ffi.new("IO_STATUS_BLOCK *")
        self.spare: list[Any] = []  # ULONGs for the kernel to count in

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
        self.inside.append(None)
        try:
            if self.closing:
                return -ERROR_INVALID_HANDLE
            self.calls += 1
            failed = self.apply(packed, failures) if size else 0
            if call is not None and call.reported:
                failed = self.enable_again(call.reported, failures, failed)
                call.reported = []
            if not room:
                return failed << 32
            entered = self.enter_wait()
            received = self.dequeue(entered, timeout, room, entries)
            self.leave_wait(entered)
            if received < 0:
                return received
            self.hand_out(entries, received, call)
            return failed << 32 | received
        finally:
            self.leave()

    # ---- registrations

    def apply(self, packed: bytes, failures: Any) -> int:
        """The changes of a batch; returns how many failed."""
        failed = 0
        with self.lock:
            for index, (sock, key, events, operation, trigger, _) in enumerate(REGISTRATION.iter_unpack(packed)):
                try:
                    self.change(sock, key, events, operation, trigger)
                except RefusalError as refusal:
                    failures[failed] = (key, index, refusal.code)
                    failed += 1
        return failed

    def enable_again(self, packets: list[tuple[int, int]], failures: Any, failed: int) -> int:
        """What packets have disarmed, as it was; returns how many have failed now."""
        with self.lock:
            for key, _ in packets:
                spent = self.spent.pop(key, None)
                if spent is not None:
                    self.re_arms += 1
                    try:
                        self.arm(spent)
                    except RefusalError as refusal:
                        failures[failed] = (key, 0, refusal.code)
                        failed += 1
        return failed

    def change(self, sock: int, key: int, events: int, operation: int, trigger: int) -> None:
        if operation == NONE:
            return
        if operation == ENABLE:
            self.enable(sock, key, events, trigger)
            return
        if operation not in (DISABLE, REMOVE):
            raise RefusalError(ERROR_INVALID_PARAMETER)
        registered = self.registered.get(sock)
        if registered is None or registered.key != key:
            raise RefusalError(ERROR_NOT_FOUND)
        if operation == DISABLE:
            registered.enabled = False
            self.spent.pop(key, None)
        else:
            self.remove(registered)

    def enable(self, sock: int, key: int, events: int, trigger: int) -> None:
        self.spent.pop(key, None)
        if trigger not in TRIGGERS or events & ~FILTER:
            raise RefusalError(ERROR_INVALID_PARAMETER)
        if trigger & EDGE:
            raise RefusalError(ERROR_NOT_SUPPORTED)
        registered = self.registered.get(sock)
        if registered is None or registered.key != key:
            newcomer = Registered(sock, key)
            if registered is not None:
                self.forget(registered)
            registered = self.registered[sock] = newcomer
            self.registrations += 1
        else:
            self.re_arms += not registered.enabled
            self.give_up(registered)
        registered.events, registered.trigger = events, trigger
        self.arm(registered)

    def arm(self, registered: Registered) -> None:
        try:
            self.poll(registered)
        except RefusalError as refusal:
            registered.enabled = False
            if refusal.code == WSAENOTSOCK:
                self.forget(registered)
            raise
        registered.enabled = True

    def remove(self, registered: Registered) -> None:
        if not is_socket(registered.sock):
            self.forget(registered)  # closed behind our back: that deregistered it, without a notice
            raise RefusalError(ERROR_NOT_FOUND)
        if not kernel32.PostQueuedCompletionStatus(self.handle, REMOVED, registered.key, NULL):
            raise RefusalError(kernel32.GetLastError())
        self.forget(registered)

    def forget(self, registered: Registered) -> None:
        self.give_up(registered)
        registered.enabled = False
        self.spent.pop(registered.key, None)
        if self.registered.get(registered.sock) is registered:
            del self.registered[registered.sock]

    # ---- polls

    def poll(self, registered: Registered) -> None:
        """Ask for what the registration wants to know."""
        if not self.with_room:
            self.helpers.append(Helper(self.handle))
            self.with_room.append(self.helpers[-1])
        helper = self.with_room[-1]
        poll = take_poll()
        POLL.pack_into(
            poll.memory, 0, STATUS_PENDING, 0, 2**63 - 1, 1, 0, registered.base, POLLED[registered.events], 0
        )
        poll.registered, poll.helper, registered.poll = registered, helper, poll
        self.polls[poll.address] = poll  # before it is sent, for another thread may have the answer first
        helper.in_flight += 1
        if helper.in_flight == POLLS_PER_HELPER:
            self.with_room.remove(helper)
        self.kernel_changes += 1
        info, size = poll.info, ffi.sizeof("AFD_POLL_INFO")
        status = ntdll.NtDeviceIoControlFile(
            helper.handle, NULL, NULL, poll.context, poll.status, IOCTL_AFD_POLL, info, size, info, size
        )
        if status not in (STATUS_SUCCESS, STATUS_PENDING):  # no answer will come
            registered.poll = None
            self.landed(poll)
            code = ntdll.RtlNtStatusToDosError(status)
            raise RefusalError(WSAENOTSOCK if code == ERROR_INVALID_HANDLE else code)

    def give_up(self, registered: Registered) -> None:
        """Want no answer any more. It comes, but to nobody."""
        poll, registered.poll = registered.poll, None
        if poll is not None:
            poll.registered = None
            self.kernel_changes += 1
            ntdll.NtCancelIoFileEx(poll.helper.handle, poll.status, self.cancelled)  # or it has been answered

    def landed(self, poll: Poll) -> None:
        del self.polls[poll.address]
        if poll.helper.in_flight == POLLS_PER_HELPER:
            self.with_room.append(poll.helper)
        poll.helper.in_flight -= 1
        poll.registered = None
        unused_polls.append(poll)

    def answered(self, poll: Poll) -> tuple[int, int, int, int] | None:
        """The notification that an answer is, if it is one."""
        registered = poll.registered
        status, _, _, count, _, _, answer, _ = POLL.unpack_from(poll.memory)
        self.landed(poll)
        if registered is None:
            self.stale += 1
            return None
        registered.poll = None
        if status & 0xFFFFFFFF or not count:
            answer = 0  # cancelled, because the thread that had sent it has ended
        if answer & AFD_POLL_LOCAL_CLOSE:
            self.forget(registered)
            return None
        if not registered.enabled:
            self.withheld += 1
            return None
        events = reported(answer, registered.events)
        if not events:
            self.poll_again(registered)
            return None
        if registered.trigger & ONESHOT:
            registered.enabled = False
            self.spent[registered.key] = registered
        elif len(self.inside) > 1:  # others may be waiting for it already
            self.poll_again(registered)
        else:
            self.to_poll.append(registered)
        return registered.key, 0, 0, events

    def poll_again(self, registered: Registered) -> None:
        try:
            self.poll(registered)
        except RefusalError as refusal:
            if refusal.code == WSAENOTSOCK:
                self.forget(registered)  # closed: no notice
            else:  # whoever owns it then learns the reason from its next ENABLE
                registered.enabled = False
                kernel32.PostQueuedCompletionStatus(self.handle, ERR, registered.key, NULL)

    # ---- waiting

    def dequeue(self, entered: int, timeout: int, room: int, entries: Any) -> int:
        """Wait; returns the number of packets in `entries`, 0 after the timeout, or a negative error code."""
        received = self.spare.pop() if self.spare else ffi.new("ULONG *")
        remaining = timeout
        while True:
            self.poll_persistent()
            received[0] = 0
            try:
                done = kernel32.GetQueuedCompletionStatusEx(
                    self.handle, entries, room, received, milliseconds(remaining), 0
                )
            except BaseException:
                self.put_back(entries, received[0])
                raise
            self.kernel_waits += 1
            if self.closing:
                return -ERROR_ABANDONED_WAIT_0
            if not done:
                code: int = kernel32.GetLastError()
                self.spare.append(received)
                return 0 if code == WAIT_TIMEOUT else -code
            count = self.translate(entries, received[0])
            if count:
                self.spare.append(received)
                return count
            if timeout > 0:  # there were only answers that nobody wants
                remaining = max(entered + timeout - perf_counter_ns(), 0)

    def poll_persistent(self) -> None:
        if self.to_poll:
            with self.lock:
                while self.to_poll:
                    registered = self.to_poll.pop()
                    current = self.registered.get(registered.sock) is registered
                    if current and registered.enabled and registered.poll is None:
                        self.poll_again(registered)

    def translate(self, entries: Any, count: int) -> int:
        """Put notifications in the place of answers; returns how many packets there are then."""
        buffer = ffi.buffer(entries, count * FULL_ENTRY.size)
        packets: list[tuple[int, int, int, int] | None] = list(FULL_ENTRY.iter_unpack(buffer))
        with self.lock:
            for index, packet in enumerate(packets):
                if packet is not None and packet[0] == POLL_KEY:
                    poll = self.polls.get(packet[1])  # or it was put back, and came twice
                    packets[index] = None if poll is None else self.answered(poll)
        packed = b"".join([FULL_ENTRY.pack(*packet) for packet in packets if packet is not None])
        buffer[: len(packed)] = packed
        return len(packed) // FULL_ENTRY.size

    def tear_down(self) -> None:
        for helper in self.helpers:
            ntdll.NtCancelIoFileEx(helper.handle, NULL, self.cancelled)
        entries, received = ffi.new("OVERLAPPED_ENTRY[]", 64), ffi.new("ULONG *")
        while self.polls and kernel32.GetQueuedCompletionStatusEx(self.handle, entries, 64, received, DRAIN_MS, 0):
            for key, address, _, _ in FULL_ENTRY.iter_unpack(ffi.buffer(entries, received[0] * FULL_ENTRY.size)):
                if key == POLL_KEY and address in self.polls:
                    self.landed(self.polls[address])
        for helper in self.helpers:
            kernel32.CloseHandle(helper.handle)
        super().tear_down()


lib = library(AfdPort)
