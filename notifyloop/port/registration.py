"""Registrations and notifications: what a program orders from the port, and what it gets.

A *registration* is one socket's standing order: which events (`Event`), how they trigger (`Trigger`), and a
completion key that comes back with each of them. It is changed by operations (`Operation`) that travel in
the batch of a `process` call.

The rules of ownership, once:

* **One-shot.** A notification of a one-shot registration disables it, for both directions. Whoever dequeued
  it owns the socket alone until it enables the registration again. If enabling fails, it still owns it.
* **Generations.** A `Registration` object stands for one open socket, from registration to REMOVE or close,
  and carries a number that was never used before. A notification is attributed by that number, never by the
  descriptor, so one that was on its way when the socket was closed cannot reach whoever got the same
  descriptor next. For a new socket, make a new object, even if the descriptor is the same.
* **REMOVE is last.** After a successful REMOVE exactly one notification with `Event.REMOVE` comes, and none
  after it. Until it came, another thread may still be at work on an earlier one: per-socket state is freed
  at REMOVE, not before. A REMOVE that failed says that none will come.
* **Closing a socket deregisters it without a notice.** A program that frees state on REMOVE removes first
  and closes at the notice.

Source: "Winsock socket state notifications", Microsoft's reference; docs/port.md has the details and the
differences between providers.
"""

from __future__ import annotations

import enum
import itertools
import struct
from struct import calcsize
from typing import TYPE_CHECKING, NamedTuple, Protocol

from notifyloop.port.abi import REGISTRATION
from notifyloop.port.forks import Guarded
from notifyloop.port.provider import provider

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Event", "HasFileno", "Notification", "Operation", "Registration", "Trigger", "descriptor_of"]

lib = provider.lib

# Completion keys with the highest bit set belong to registrations, the others to whoever posts packets: the
# key is all that tells a socket's notification from another packet on the same port.
REGISTERED = 1 << (8 * calcsize("N") - 1)

# An operation of ours, for raw batches: the descriptor is about to be closed, or was just now. It brings no notice.
FORGET: int = lib.SOCK_NOTIFY_OP_FORGET

# Another: enable, also if the descriptor is another file's by now.
RENEW: int = lib.SOCK_NOTIFY_OP_RENEW


class Event(enum.IntFlag):
    """Conditions of a socket. A registration's filter takes IN, OUT and HANGUP; ERR and REMOVE come
    unasked.
    """

    NONE = 0
    IN = lib.SOCK_NOTIFY_EVENT_IN
    """Readable without blocking, or a connection can be accepted."""
    OUT = lib.SOCK_NOTIFY_EVENT_OUT
    """Writable without blocking; a connection was established."""
    HANGUP = lib.SOCK_NOTIFY_EVENT_HANGUP
    """The peer has finished sending, or the stream is gone. Never for datagrams."""
    ERR = lib.SOCK_NOTIFY_EVENT_ERR
    """The socket is in error: a failed connect, a reset. Read the error with SO_ERROR or by receiving."""
    REMOVE = lib.SOCK_NOTIFY_EVENT_REMOVE
    """The registration is gone; this is its last notification."""


class Operation(enum.IntEnum):
    """What a registration in a batch asks for."""

    NONE = lib.SOCK_NOTIFY_OP_NONE
    ENABLE = lib.SOCK_NOTIFY_OP_ENABLE
    """Register, change filter or trigger, or re-arm."""
    DISABLE = lib.SOCK_NOTIFY_OP_DISABLE
    """Keep the registration, deliver nothing."""
    REMOVE = lib.SOCK_NOTIFY_OP_REMOVE
    """Deregister; `Event.REMOVE` follows."""


NAMES = {RENEW: Operation.ENABLE.name, **{int(operation): operation.name for operation in Operation}}


class Trigger(enum.IntFlag):
    """When notifications come: exactly one of LEVEL and EDGE with exactly one of ONESHOT and PERSISTENT."""

    ONESHOT = lib.SOCK_NOTIFY_TRIGGER_ONESHOT
    PERSISTENT = lib.SOCK_NOTIFY_TRIGGER_PERSISTENT
    LEVEL = lib.SOCK_NOTIFY_TRIGGER_LEVEL
    EDGE = lib.SOCK_NOTIFY_TRIGGER_EDGE


class HasFileno(Protocol):
    """A socket, or anything else that has a descriptor."""

    def fileno(self) -> int: ...


def descriptor_of(socket: int | HasFileno) -> int:
    """The descriptor of a socket or of an int, as `selectors` takes them.

    Raises ValueError for what has none and for closed sockets.
    """
    if isinstance(socket, int):
        descriptor = socket
    else:
        try:
            descriptor = int(socket.fileno())
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"Invalid file object: {socket!r}") from None
    if not 0 <= descriptor < 2 * REGISTERED:  # a SOCKET is an unsigned pointer
        raise ValueError(f"Invalid file descriptor: {descriptor}")
    return descriptor


_generations = itertools.count(1)
_guarded = Guarded()  # for interpreters without a global lock


def next_generation() -> int:
    """A completion key for a registration that no registration of this process had before."""
    with _guarded.lock:
        return REGISTERED | next(_generations) & (REGISTERED - 1)


class Registration:
    """One open socket's registration, to be passed to `CompletionPort.process` as often as it changes.

    `socket` is a descriptor or has `fileno()`; `key` is any object and comes back in `Notification.key`.
    After each call `result` is 0, or the provider's error code for this registration alone: the others of
    the batch went through. `check()` turns it into an exception.

    Raises ValueError for a socket without a valid descriptor.
    """

    __slots__ = ("events", "generation", "key", "operation", "result", "socket", "trigger")

    def __init__(
        self,
        socket: int | HasFileno,
        key: object = None,
        events: Event = Event.IN,
        trigger: Trigger = Trigger.LEVEL | Trigger.ONESHOT,
        operation: Operation = Operation.ENABLE,
    ) -> None:
        self.socket = descriptor_of(socket)
        self.key = key
        self.events = events
        self.trigger = trigger
        self.operation = operation
        self.result = 0
        self.generation = next_generation()

    def pack(self) -> bytes:
        """This registration as the operating system's structure. Raises ValueError for what does not fit into it."""
        try:
            return REGISTRATION.pack(self.socket, self.generation, self.events, self.operation, self.trigger, 0)
        except struct.error as error:
            raise ValueError(f"{self!r} is no registration: {error}") from None

    def check(self) -> None:
        """Raise the OSError of the last call's result for this registration, if it failed."""
        if self.result:
            raise registration_error(self.result, self.socket, self.operation)

    def __repr__(self) -> str:
        failed = f" result={self.result}" if self.result else ""
        operation = getattr(self.operation, "name", self.operation)
        return (
            f"<Registration socket={self.socket} key={self.key!r} events={self.events!r}"
            f" trigger={self.trigger!r} operation={operation}{failed}>"
        )


def registration_error(result: int, descriptor: int, operation: int) -> OSError:
    """The OSError (PermissionError, FileExistsError, ... by its errno) that names what failed, and on which
    descriptor.
    """
    errno, meaning = provider.describe(result)
    name = NAMES.get(operation, f"apply {operation!r} to")
    return OSError(errno, f"{meaning}: cannot {name} the registration of descriptor {descriptor}")


class Notification(NamedTuple):
    """One packet from the port.

    A socket's: `registration` is set, `key` is its key, `events` what happened. Any other: `registration`
    is None, `key` is the integer it was posted with (or its file associated with), `value` the integer
    posted beside it or the number of bytes transferred, `overlapped` the address of the operation that
    completed, 0 for posted packets. An integer key of 2**63 or more belongs to a registration that this
    `CompletionPort` does not know: it was made by a raw batch, or its socket was closed and replaced while
    another thread was about to hand out the notification.
    """

    key: Any
    events: Event
    registration: Registration | None
    value: int
    overlapped: int
