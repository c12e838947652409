"""Polls of Windows' socket driver, AFD: what `select` is made of there.

What Windows offers: every socket is a file of the driver, and one of the driver's requests is IOCTL_AFD_POLL: which of
these conditions does this socket have? Sent without waiting, on a *helper*, a handle of the driver that is no socket
and is associated with a completion port, the answer arrives as a packet on the port, as soon as there is one.

What we make of it: a `Poll` is the memory of one, a `Helper` sends and cancels them, and between the port's events and
the driver's there are `POLLED` and `reported`. Of a socket with layers over it `base_socket` tells which one the driver
knows.

The invariant: the kernel writes into a poll's memory until its packet has been dequeued. So this memory belongs to no
Python object and is never given back; a poll whose packet came returns it to a list, and what is in flight when the
interpreter ends is in nobody's way. Nor is that of a poll of which an interrupt makes it doubtful whether it is in
flight used again.

Sources, for nothing here is documented by Microsoft: wepoll, Trio's `_io_windows.py`, c-ares' and mio's
selectors for Windows, Len Holgate's "Adventures with \\Device\\Afd".
"""

from __future__ import annotations

import socket  # noqa: F401  (starts Winsock)
from struct import Struct, calcsize
from typing import TYPE_CHECKING, Generic, TypeVar

from notifyloop.port.iocp import NULL, ffi, kernel32, stdcall

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "AFD_POLL_LOCAL_CLOSE",
    "POLL_KEY",
    "WSAENOTSOCK",
    "Helper",
    "Poll",
    "RefusalError",
    "base_socket",
    "is_socket",
    "reported",
    "take_poll",
    "unused_polls",
]

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

POLLS_PER_SLAB = 256

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
FILTER: int = kernel32.SOCK_NOTIFY_REGISTER_EVENTS_ALL

ERROR_INVALID_HANDLE = 6
ERROR_NOT_ENOUGH_MEMORY = 8
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

    __slots__ = ("cancelled", "handle", "in_flight")

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
        self.cancelled = ffi.new("IO_STATUS_BLOCK *")
        if not (
            kernel32.CreateIoCompletionPort(self.handle, port, POLL_KEY, 0)
            and kernel32.SetFileCompletionNotificationModes(self.handle, FILE_SKIP_SET_EVENT_ON_HANDLE)
        ):
            code = kernel32.GetLastError()
            self.close()
            raise RefusalError(code)

    def send(self, poll: Poll[Any], base: int, events: int) -> None:
        """Ask whether a base socket has these events. After a RefusalError no answer will come."""
        POLL.pack_into(poll.memory, 0, STATUS_PENDING, 0, 2**63 - 1, 1, 0, base, POLLED[events], 0)
        info, size = poll.info, ffi.sizeof("AFD_POLL_INFO")
        status = ntdll.NtDeviceIoControlFile(
            self.handle, NULL, NULL, poll.context, poll.status, IOCTL_AFD_POLL, info, size, info, size
        )
        if status not in (STATUS_SUCCESS, STATUS_PENDING):
            code = ntdll.RtlNtStatusToDosError(status)
            raise RefusalError(WSAENOTSOCK if code == ERROR_INVALID_HANDLE else code)

    def cancel(self, poll: Poll[Any]) -> None:
        """Have it answered now, unless it has been."""
        ntdll.NtCancelIoFileEx(self.handle, poll.status, self.cancelled)

    def cancel_all(self) -> None:
        ntdll.NtCancelIoFileEx(self.handle, NULL, self.cancelled)

    def close(self) -> None:
        kernel32.CloseHandle(self.handle)


Owner = TypeVar("Owner")


class Poll(Generic[Owner]):
    """The memory of one poll. While it is in flight the kernel may write there."""

    __slots__ = ("address", "context", "helper", "info", "memory", "owner", "status")

    owner: Owner | None  # who is told the answer
    helper: Helper

    def __init__(self, address: int) -> None:
        self.address = address
        self.context = ffi.cast("PVOID", address)
        poll = ffi.cast("POLL *", address)
        self.status = ffi.addressof(poll, "status")
        self.info = ffi.addressof(poll, "info")
        self.memory = ffi.buffer(poll)
        self.owner = None

    def answer(self) -> int:
        """The driver's events; 0 if it was cancelled, also because the thread that had sent it has ended."""
        status, _, _, count, _, _, answer, _ = POLL.unpack_from(self.memory)
        return 0 if status & 0xFFFFFFFF or not count else int(answer)


unused_polls: list[Poll[Any]] = []  # every port's


def take_poll() -> Poll[Any]:
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
