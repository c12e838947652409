"""What this interpreter and its sockets offer below asyncio, each under one name."""

from __future__ import annotations

import os
import socket
import sys
import sysconfig
from contextvars import Context
from itertools import islice
from sys import getrefcount
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections import deque
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "FREE_THREADED",
    "INTERNET",
    "LOCKED_HANDLES",
    "NO_SIGNAL",
    "RECEIVE",
    "TCP",
    "UNSHARED",
    "TrueSocket",
    "call_in",
    "call_in_all",
    "call_in_alone",
    "call_method_in",
    "family_of",
    "getrefcount",
    "has_method",
    "leave_out",
    "peer_of",
    "receive",
    "receive_from",
    "receive_into",
    "send",
    "send_many",
    "send_to",
    "true_family",
    "true_kind",
]

AnyHandle = TypeVar("AnyHandle", bound="asyncio.Handle")

# What sys.getrefcount() says of an object that only one local variable refers to. Its own argument counts, but since
# Python 3.14 it may be borrowed from the variable. Should it not be, no handle is used again, which costs time only.
UNSHARED = 1 if sys.version_info >= (3, 14) else 2
# Not whether there is a lock now: such builds switch it on while they import some modules, and off again.
FREE_THREADED = sys.version_info >= (3, 13) and bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
if FREE_THREADED:
    UNSHARED = -1

# Since Python 3.14 asyncio's handles of other threads have a lock. Whoever cancels one waits until it has run.
LOCKED_HANDLES = sys.version_info >= (3, 14)

call_in = Context.run  # call_in(context, callback, argument)
call_in_alone = Context.run  # with none


def call_in_all(context: Context, callback: Callable[..., object], arguments: tuple[Any, ...]) -> object:
    """With any number of them."""
    return context.run(callback, *arguments)


def call_method_in(context: Context, target: object, name: str, argument: object) -> object:
    """With one, the method of that name."""
    return context.run(getattr(target, name), argument)


def has_method(kind: type, name: str, method: object) -> bool:
    """Whether that is still the class's method of that name."""
    return getattr(kind, name) is method


def leave_out(handle: AnyHandle, frames: int) -> AnyHandle:
    """The handle. In debug mode it remembers who made it: that was not these frames of ours, which are the last."""
    if handle._source_traceback:  # type: ignore[attr-defined]  # not where another thread ends debug mode
        del handle._source_traceback[-frames:]  # type: ignore[attr-defined]
    return handle


# ---- sockets

TrueSocket = socket.socket  # as it is now: programs put something of their own in its place

# The numbers without their names, of true sockets: to look for one name costs more than to make the socket.
true_family: Callable[[socket.socket], int] = socket.SocketType.family.__get__
true_kind: Callable[[socket.socket], int] = socket.SocketType.type.__get__

INTERNET = (int(socket.AF_INET), int(socket.AF_INET6))
TCP = int(socket.IPPROTO_TCP)

# Where SIGPIPE has its default action, as in command line tools, a process must not die of a peer that has gone.
NO_SIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))

# Bytes to make room for. Until a program has freed a block that large, glibc's malloc() maps every one of 128 KiB and
# more, and gives the end of the heap back as soon as as much is free there: both cost page faults for each message. The
# first mapped block that is freed teaches it what is usual here (see M_MMAP_THRESHOLD in mallopt(3)), so let it learn
# that from the start. Other C libraries do not learn.
if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()):
    RECEIVE = 256 * 1024
    bytes(4 * RECEIVE)
else:
    RECEIVE = 64 * 1024

MOST_BUFFERS = 1024  # of one vectored send; Linux' IOV_MAX
MOST_JOINED = 64 * 1024  # bytes


# What does not wait, and says so when there is nothing to be done: an exception would cost more than all the rest.


def receive(sock: Any, size: int) -> bytes | None:
    """As `sock.recv`; None if there is nothing to receive now."""
    try:
        return sock.recv(size)  # type: ignore[no-any-return]
    except (BlockingIOError, InterruptedError):
        return None


def receive_into(sock: Any, buffer: Any) -> int:
    """As `sock.recv_into`; -1 if there is nothing to receive now."""
    try:
        return sock.recv_into(buffer)  # type: ignore[no-any-return]
    except (BlockingIOError, InterruptedError):
        return -1


def receive_from(sock: Any, size: int) -> tuple[bytes, Any] | None:
    """As `sock.recvfrom`; None if there is no datagram now."""
    try:
        return sock.recvfrom(size)  # type: ignore[no-any-return]
    except (BlockingIOError, InterruptedError):
        return None


def send(sock: Any, data: Any) -> int:
    """As `sock.send`, without SIGPIPE; 0 if the socket has no room now."""
    try:
        if type(sock) is TrueSocket or issubclass(type(sock), TrueSocket):
            return sock.send(data, NO_SIGNAL)  # type: ignore[no-any-return]
        return sock.send(data)  # type: ignore[no-any-return]  # others may take no flags
    except (BlockingIOError, InterruptedError):
        return 0


def send_to(sock: Any, data: Any, address: Any) -> bool:
    """As `sock.sendto`, or as `sock.send` if there is no address; False if the socket has no room now."""
    try:
        if address is None:
            sock.send(data)
        else:
            sock.sendto(data, address)
    except (BlockingIOError, InterruptedError):
        return False
    return True


def family_of(sock: socket.socket) -> int:
    return true_family(sock) if isinstance(sock, TrueSocket) else sock.family


def peer_of(sock: socket.socket) -> Any:
    """The peer's address, or None. Asked while there is a peer: once it is gone, the system does not know it."""
    try:
        return sock.getpeername()
    except OSError:
        return None


if sys.platform != "win32":

    def send_many(sock: socket.socket, pieces: deque[Any]) -> int:
        """Send of several pieces what the socket takes. Returns the number of bytes; raises OSError."""
        try:
            return sock.sendmsg(islice(pieces, MOST_BUFFERS), (), NO_SIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0

else:  # Python has no vectored send there: what is sent together is copied together

    def send_many(sock: socket.socket, pieces: deque[Any]) -> int:
        """Send of several pieces what the socket takes. Returns the number of bytes; raises OSError."""
        joined: list[Any] = []
        size = 0
        for piece in pieces:
            size += len(piece)
            if joined and size > MOST_JOINED:
                break
            joined.append(piece)
        return send(sock, b"".join(joined) if len(joined) > 1 else joined[0])
