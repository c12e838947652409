"""The provider for Windows 11 and Server 2022: the article's call itself, ProcessSocketNotifications of
ws2_32.dll.

What Windows offers is what the contract was written after, so there is little to do: the packed registrations
are copied into memory that the kernel writes its results to, nanoseconds are rounded up to milliseconds, and
what happened is counted. One call of ours is one call of Windows.

Whether the DLL has the call is the test for it, never a version number, which Windows tells as it likes. Where
it has not, importing this module raises ImportError. NOTIFYLOOP_WINSOCK_DLL, in the environment, names a DLL to
load in place of ws2_32.dll: for tests.

Sources: "ProcessSocketNotifications function (winsock2.h)" and "Winsock socket state notifications" of
Microsoft's reference.
"""

from __future__ import annotations

import os
import socket  # noqa: F401  (starts Winsock)
from typing import TYPE_CHECKING

from notifyloop.port.abi import REGISTRATION
from notifyloop.port.iocp import (
    NULL,
    REGISTERED,
    Port,
    describe,
    entry_point,
    ffi,
    kernel32,
    library,
    milliseconds,
    packed_call,
    system_handle,
    word,
)

if TYPE_CHECKING:
    from typing import Any

    from notifyloop.port.iocp import PackedCall

__all__ = ["describe", "entry_point", "ffi", "lib", "name", "packed_call", "system_handle"]

name = "winsock"


def find_call() -> Any:
    forced = os.environ.get("NOTIFYLOOP_WINSOCK_DLL")
    names = [forced] if forced else ["ws2_32.dll", "mswsock.dll"]  # the first only passes the call on to the second
    for name in names:
        try:
            dll: Any = ffi.dlopen(name)
            return dll.ProcessSocketNotifications
        except (AttributeError, OSError):
            continue
    raise ImportError(f"{names[0]} has no ProcessSocketNotifications, which Windows has from 11 and Server 2022 on")


ProcessSocketNotifications: Any = find_call()

ENABLE: int = kernel32.SOCK_NOTIFY_OP_ENABLE
REMOVE: int = kernel32.SOCK_NOTIFY_OP_REMOVE
REMOVED: int = kernel32.SOCK_NOTIFY_EVENT_REMOVE
ONESHOT: int = kernel32.SOCK_NOTIFY_TRIGGER_ONESHOT
ERROR_SUCCESS = 0
WAIT_TIMEOUT = 258
ERROR_ABANDONED_WAIT_0 = 735
ERROR_TIMEOUT = 1460
TIMEOUTS = (WAIT_TIMEOUT, ERROR_TIMEOUT)  # the reference names both
SUCCESSES = (ERROR_SUCCESS, *TIMEOUTS)


class Buffers:
    """What one call has Windows read and write; then kept for the next, for making them costs more than the rest."""

    __slots__ = ("memory", "received", "registrations")

    def __init__(self) -> None:
        self.received = ffi.new("UINT32 *")  # for a call that does not bring its own
        self.make_room(64 * REGISTRATION.size)

    def make_room(self, size: int) -> None:
        self.registrations = ffi.new("SOCK_NOTIFY_REGISTRATION[]", size // REGISTRATION.size)
        self.memory = memoryview(ffi.buffer(self.registrations)).cast("B")


class WinsockPort(Port):
    """A completion port that Winsock notifies."""

    __slots__ = ("enabled", "keys", "unused_buffers")

    def __init__(self, handle: Any) -> None:
        super().__init__(handle)
        self.keys: dict[int, int] = {}  # by socket, to tell new registrations from re-armed ones
        self.enabled: dict[int, bytes] = {}  # by key: the order that does it again, if a notification disables it
        self.unused_buffers: list[Buffers] = []

    def carry_out(
        self, packed: bytes, size: int, failures: Any, timeout: int, room: int, entries: Any, call: PackedCall | None
    ) -> int:
        orders, again = packed, b""
        if call is not None and call.reported:
            again = self.orders_again(packed, call.reported)
            orders = packed + again
            size = len(orders)
        buffers = self.unused_buffers.pop() if self.unused_buffers else Buffers()
        registrations = NULL
        if size:
            if size > len(buffers.memory):
                buffers.make_room(2 * size)
            buffers.memory[:size] = orders
            registrations = buffers.registrations
        received = buffers.received if call is None else call.received
        count, code = size // REGISTRATION.size, ERROR_SUCCESS
        if room and not received[0]:
            entered = self.enter_wait()
            try:
                code = ProcessSocketNotifications(
                    self.handle, count, registrations, milliseconds(timeout), room, entries, received
                )
            except BaseException:
                if call is None:
                    self.put_back(entries, received[0])
                raise
            if code != ERROR_SUCCESS:
                received[0] = 0
            self.kernel_waits += 1
            self.leave_wait(entered)
        elif count:  # nothing to wait for
            code = ProcessSocketNotifications(self.handle, count, registrations, 0, 0, NULL, NULL)
            self.kernel_changes += 1
        if self.closing:
            return -ERROR_ABANDONED_WAIT_0
        if code not in SUCCESSES:
            return -int(code)
        results = bytes(buffers.memory[:size])
        if results == orders:  # none failed, and what was enabled again is as it was
            self.re_arms += len(again) // REGISTRATION.size
            results = packed
        failed = self.note(results, failures) if results else 0
        arrived: int = received[0]
        if call is None:
            received[0] = 0
        self.unused_buffers.append(buffers)
        self.hand_out(entries, arrived, call)
        return failed << 32 | arrived

    def orders_again(self, packed: bytes, reported: list[tuple[int, int]]) -> bytes:
        """The orders that enable again what these packets have disarmed, but for what is ordered anyway."""
        keys = [key for key, _ in reported]
        if packed:
            ordered = {key for _, key, _, _, _, _ in REGISTRATION.iter_unpack(packed)}
            keys = [key for key in keys if key not in ordered]
        enabled = self.enabled
        return b"".join([enabled[key] for key in keys if key in enabled])

    def note(self, results: bytes, failures: Any) -> int:
        """Look through the results of orders, and count; returns how many failed."""
        failed = 0
        for index, (sock, key, _, operation, trigger, result) in enumerate(REGISTRATION.iter_unpack(results)):
            if result:
                failures[failed] = (key, index, result)
                failed += 1
            if operation != ENABLE:
                self.enabled.pop(key, None)
                if operation == REMOVE and not result:
                    self.keys.pop(sock, None)
            elif not result:
                if self.keys.get(sock) == key:
                    self.re_arms += 1
                else:
                    self.enabled.pop(self.keys.get(sock, 0), None)  # whose socket was closed
                    self.keys[sock] = key
                    self.registrations += 1
                here = index * REGISTRATION.size
                self.enabled[key] = results[here : here + REGISTRATION.size] if trigger & ONESHOT else b""
        return failed

    def hand_out(self, entries: Any, count: int, call: PackedCall | None) -> None:
        super().hand_out(entries, count, call)
        if call is not None:
            # Windows queues what happens, and so a packet may come long after its registration was disabled or its
            # socket closed. Programs that know the owner by a number shall not take his successor for him.
            for index, (key, events) in enumerate(call.reported):
                if key & REGISTERED and key not in self.enabled:
                    call.words[index] = word(key, events | REMOVED)


lib = library(WinsockPort)
