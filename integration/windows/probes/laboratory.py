"""Where probes are made: the system's calls as they are, sockets, and the words for what came."""

from __future__ import annotations

import os
import re
import runpy
import select
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cffi

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Answer = dict[str, Any]
    Probe = Callable[["Laboratory"], Answer]

WINDOWS = sys.platform == "win32"
# Not an import: that would choose a provider, and this asks the system where notifyloop may not run.
ABI = runpy.run_path(str(Path(__file__).parents[3] / "notifyloop" / "port" / "abi.py"))
REGISTRATION = ABI["REGISTRATION"]
CONSTANTS = {name: int(value, 0) for name, value in re.findall(r"#define (\w+) (\w+)", ABI["CONSTANTS"])}

NONE, IN, OUT, HANGUP, ALL = (
    CONSTANTS[f"SOCK_NOTIFY_REGISTER_{name}"]
    for name in ("EVENT_NONE", "EVENT_IN", "EVENT_OUT", "EVENT_HANGUP", "EVENTS_ALL")
)
ENABLE, DISABLE, REMOVE = (CONSTANTS[f"SOCK_NOTIFY_OP_{name}"] for name in ("ENABLE", "DISABLE", "REMOVE"))
ONESHOT, PERSISTENT, LEVEL, EDGE = (
    CONSTANTS[f"SOCK_NOTIFY_TRIGGER_{name}"] for name in ("ONESHOT", "PERSISTENT", "LEVEL", "EDGE")
)
EVENTS = {"IN": 0x01, "OUT": 0x02, "HANGUP": 0x04, "ERR": 0x40, "REMOVE": 0x80}
FILTERS = {"IN": IN, "IN|HANGUP": IN | HANGUP, "OUT": OUT, "HANGUP": HANGUP, "all": ALL, "none": NONE}

SETTLE = int(os.environ.get("SETTLE", "200"))  # milliseconds in which something that was going to come has come
PATIENCE = 10.0  # seconds for what must come
AF_UNIX = 1

MORE_DECLARATIONS = """
int bind(SOCKET socket, const char *address, int length);
int connect(SOCKET socket, const char *address, int length);
SOCKET accept(SOCKET socket, char *address, int *length);
int WSAIoctl(SOCKET socket, DWORD code, const char *in, DWORD in_size, void *out, DWORD out_size, DWORD *returned,
             void *overlapped, void *routine);
"""

PROBES: dict[str, Probe] = {}


def probe(function: Probe) -> Probe:
    """The function asks what its docstring says."""
    PROBES[function.__name__] = function
    return function


class Laboratory:
    """The calls of the system, and sockets that live as long as the process."""

    def __init__(self, library: str | None) -> None:
        self.ffi = cffi.FFI()
        self.ffi.cdef(ABI["TYPES"] + ABI["CONSTANTS"] + ABI["FUNCTIONS"] + MORE_DECLARATIONS)
        # Another library that exports the call is for trying this program where the system has none.
        self.provider = self.ffi.dlopen(library or "ws2_32.dll")
        self.kernel = self.ffi.dlopen("kernel32.dll") if WINDOWS else self.provider
        self.winsock = self.ffi.dlopen("ws2_32.dll" if WINDOWS else None)
        self.kept: list[Any] = []

    def error(self) -> OSError:
        """Of the last call that failed."""
        if WINDOWS:
            code, meaning = self.ffi.getwinerror()
            return OSError(code, meaning)
        return OSError(self.ffi.errno, os.strerror(self.ffi.errno))

    def ioctl(self, sock: socket.socket, code: int, given: bytes, room: int) -> bytes:
        out, returned, null = self.ffi.new("char[]", room), self.ffi.new("DWORD *"), self.ffi.NULL
        if self.winsock.WSAIoctl(sock.fileno(), code, given, len(given), out, room, returned, null, null):
            raise self.error()
        return bytes(self.ffi.buffer(out, returned[0]))

    def port(self) -> Port:
        return Port(self)

    def keep(self, sock: socket.socket) -> socket.socket:
        sock.setblocking(False)
        self.kept.append(sock)
        return sock

    def tcp(self) -> socket.socket:
        return self.keep(socket.socket())

    def listener(self) -> socket.socket:
        return self.keep(socket.create_server(("127.0.0.1", 0)))

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Two ends of a TCP connection: the accepted one, the connecting one."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = self.keep(socket.create_connection(listener.getsockname()))
            return self.keep(listener.accept()[0]), theirs

    def udp(self) -> socket.socket:
        sock = self.keep(socket.socket(type=socket.SOCK_DGRAM))
        sock.bind(("127.0.0.1", 0))
        return sock

    def unix_pair(self) -> tuple[socket.socket, socket.socket]:
        """Python for Windows makes such sockets, but cannot address them."""
        listener, theirs = (self.keep(socket.socket(AF_UNIX, socket.SOCK_STREAM)) for _ in range(2))
        path = str(Path(tempfile.mkdtemp()) / "s")
        address = struct.pack("=H108s", AF_UNIX, path.encode())
        if self.winsock.bind(listener.fileno(), address, len(address)):
            raise self.error()
        listener.listen()
        theirs.setblocking(True)
        if self.winsock.connect(theirs.fileno(), address, len(address)):
            raise self.error()
        theirs.setblocking(False)
        until_readable(listener)
        accepted = self.winsock.accept(listener.fileno(), self.ffi.NULL, self.ffi.NULL)
        return self.keep(socket.socket(AF_UNIX, socket.SOCK_STREAM, 0, fileno=accepted)), theirs

    def queued(self) -> tuple[Port, socket.socket, socket.socket]:
        """A port, and a connection whose notification of IN waits to be dequeued from it."""
        port, (ours, theirs) = self.port(), self.pair()
        port.process(enable(ours, events=IN))
        theirs.send(b"x")
        until_readable(ours)
        time.sleep(SETTLE / 1000)  # nothing else tells that a packet is queued
        return port, ours, theirs

    def overlapped(self) -> Any:
        """An overlapped operation of the standard library's, kept alive for ever."""
        import _overlapped  # noqa: PLC0415  # Windows only

        operation = _overlapped.Overlapped(0)
        self.kept.append(operation)
        return operation


class Port:
    """A completion port, and calls on it as they are."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        self.ffi = laboratory.ffi
        self.handle = laboratory.kernel.CreateIoCompletionPort(self.ffi.cast("HANDLE", -1), self.ffi.NULL, 0, 0)
        if self.handle == self.ffi.NULL:
            raise OSError("there is no completion port to be had")

    def process(self, *orders: bytes, wait: int | None = None, room: int = 16) -> Answer:
        """Registrations, and a wait of so many milliseconds; None does not ask for packets."""
        ffi = self.ffi
        packed = bytearray(b"".join(orders))
        registrations = ffi.from_buffer("SOCK_NOTIFY_REGISTRATION[]", packed) if orders else ffi.NULL
        count = len(orders)
        started = time.perf_counter()
        if wait is None:
            code = self.laboratory.provider.ProcessSocketNotifications(
                self.handle, count, registrations, 0, 0, ffi.NULL, ffi.NULL
            )
            packets = None
        else:
            entries, received = ffi.new("OVERLAPPED_ENTRY[]", room), ffi.new("UINT32 *")
            code = self.laboratory.provider.ProcessSocketNotifications(
                self.handle, count, registrations, wait, room, entries, received
            )
            packets = [self._packet(entries[index]) for index in range(received[0] if code == 0 else 0)]
        answer: Answer = {"code": named(code), "ms": round((time.perf_counter() - started) * 1000, 3)}
        if orders:
            answer["results"] = [named(fields[-1]) for fields in REGISTRATION.iter_unpack(packed)]
        if packets is not None:
            answer["packets"] = packets
        return answer

    def _packet(self, entry: Any) -> Answer:
        value = int(entry.dwNumberOfBytesTransferred)
        packet: Answer = {"key": int(entry.lpCompletionKey), "events": event_names(value)}
        overlapped = int(self.ffi.cast("uintptr_t", entry.lpOverlapped))
        if overlapped:
            packet["overlapped"] = hex(overlapped)
        if entry.Internal:
            packet["internal"] = hex(entry.Internal)
        return packet

    def wait(self, milliseconds: int = SETTLE) -> Answer:
        return self.process(wait=milliseconds)

    def waits(self, number: int) -> list[Answer]:
        return [self.wait() for _ in range(number)]

    def post(self, key: int) -> None:
        self.laboratory.kernel.PostQueuedCompletionStatus(self.handle, 0, key, self.ffi.NULL)

    def associate(self, sock: socket.socket, key: int) -> str:
        """CreateIoCompletionPort for a socket: "ok", or why not."""
        handle = self.ffi.cast("HANDLE", sock.fileno())
        if self.laboratory.kernel.CreateIoCompletionPort(handle, self.handle, key, 0) == self.ffi.NULL:
            return f"refused: {self.laboratory.error()}"
        return "ok"

    def close(self) -> bool:
        return bool(self.laboratory.kernel.CloseHandle(self.handle))


def order(sock: socket.socket | int, key: int, events: int, operation: int, trigger: int) -> bytes:
    number = sock if isinstance(sock, int) else sock.fileno()
    packed: bytes = REGISTRATION.pack(number, key, events, operation, trigger, 0)
    return packed


def enable(sock: socket.socket | int, key: int = 7, events: int = ALL, trigger: int = LEVEL | ONESHOT) -> bytes:
    return order(sock, key, events, ENABLE, trigger)


def disable(sock: socket.socket | int, key: int = 7) -> bytes:
    return order(sock, key, NONE, DISABLE, 0)


def remove(sock: socket.socket | int, key: int = 7) -> bytes:
    return order(sock, key, NONE, REMOVE, 0)


def named(code: int) -> str:
    """A code with its name, where the declarations or the system know one."""
    for name, value in CONSTANTS.items():
        if value == code and name.startswith(("ERROR_", "WAIT_")):
            return f"{code} {name}"
    if not WINDOWS:
        return f"{code} {os.strerror(code)}"
    return f"{code} {cffi.FFI().getwinerror(code)[1].strip()}"


def event_names(value: int) -> str:
    names = [name for name, bit in EVENTS.items() if value & bit]
    rest = value & ~sum(EVENTS.values())
    return "|".join([*names, hex(rest)] if rest else names) or "0"


def until_readable(sock: socket.socket) -> None:
    """Wait, by other means, for what the port is then asked about."""
    if not select.select([sock], [], [], PATIENCE)[0]:
        raise TimeoutError(f"{sock} did not become readable")


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("HH" if WINDOWS else "ii", 1, 0))
    sock.close()


def outcome(action: Callable[[], object]) -> str:
    """What a call of the socket module gives, or which error."""
    try:
        return repr(action())
    except OSError as error:
        return f"{type(error).__name__} {getattr(error, 'winerror', None) or error.errno}"
