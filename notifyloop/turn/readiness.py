"""Who is called when a descriptor is ready: one interest for each, with the handles of its reader and its writer."""

from __future__ import annotations

import asyncio
import weakref
from asyncio import Future
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

from notifyloop.port.registration import descriptor_of
from notifyloop.turn.handles import Handle
from notifyloop.turn.interest import InterestInTheEnd
from notifyloop.turn.waits import Wait

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any

    from notifyloop.turn.interest import Interest
    from notifyloop.turn.surface import Loop

__all__ = [
    "add_reader",
    "add_writer",
    "adopt",
    "begin_wait",
    "end_wait",
    "ensure_no_transport",
    "forget",
    "remove_reader",
    "remove_writer",
    "rest",
    "wait_in",
    "watch_the_end",
]


def add_reader(
    loop: Loop, fd: int, callback: Callable[..., object], *args: Any, context: Context | None = None
) -> asyncio.Handle:
    return watch(loop, fd, EVENT_READ, callback, args, context)


def add_writer(
    loop: Loop, fd: int, callback: Callable[..., object], *args: Any, context: Context | None = None
) -> asyncio.Handle:
    return watch(loop, fd, EVENT_WRITE, callback, args, context)


def remove_reader(loop: Loop, fd: int) -> bool:
    return unwatch(loop, fd, EVENT_READ)


def remove_writer(loop: Loop, fd: int) -> bool:
    return unwatch(loop, fd, EVENT_WRITE)


def make_handle(
    loop: Any, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
) -> asyncio.Handle:
    return (asyncio.Handle if loop._debug else Handle)(callback, args, loop, context)


def watch(
    loop: Loop, fd: int, event: int, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
) -> asyncio.Handle:
    loop._check_closed()
    handle = make_handle(loop, callback, args, context)
    interests = loop._turn.interests
    interest = interests.find(fd)
    replaced: Any = None if interest is None else interest.hand_to(event, handle)
    if interest is None or not interests.renew(interest, interest.events | event):
        handles = (handle, None) if event == EVENT_READ else (None, handle)
        interests.watch(fd, descriptor_of(fd), event, None, *handles)
    if hasattr(replaced, "cancel"):  # or it is a transport, whose descriptor was closed behind its back
        replaced.cancel()
    return handle


def unwatch(loop: Loop, fd: int, event: int) -> bool:
    interests = loop._turn.interests
    try:
        interest = None if loop._closed else interests.find(fd)
    except ValueError:
        if not hasattr(fd, "fileno"):
            raise
        return False  # it is closed, and nobody watches it any more
    if interest is None or not interest.events & event:
        return False
    replaced = interest.hand_to(event, None)
    if hasattr(replaced, "cancel"):  # unless an interrupt came in between
        replaced.cancel()
    if interest.events != event:
        interests.change(interest, interest.events & ~event)
    elif interest.owner is not None:
        interests.want(interest, 0)
    else:
        interests.remove(interest)
    return True


def watch_the_end(loop: Loop, fd: int, callback: Callable[[], object]) -> None:
    """Have the callback called when the other end is gone, and not for what there is to read, as a reader that
    nobody else has. Raises OSError.
    """
    handle = make_handle(loop, callback, (), None)
    loop._turn.interests.watch(fd, fd, EVENT_READ, reader=handle, kind=InterestInTheEnd)


# ---- the interests of transports, which are called themselves


def adopt(loop: Loop, sock: socket.socket, transport: asyncio.BaseTransport) -> Interest:
    """The interest in a new transport's socket, of which nothing is wanted yet. Raises RuntimeError if it is
    another transport's.
    """
    fd = sock.fileno()
    if fd == -1:
        raise ValueError(f"Invalid file descriptor: {fd}")
    interests = loop._turn.interests
    if fd in interests.by_descriptor:
        ensure_no_transport(loop, sock)
    return interests.adopt(sock, fd, weakref.ref(transport))


def rest(loop: Loop, interest: Interest) -> None:
    """Want nothing more of a transport's socket. Others may watch it until it is closed."""
    if loop._closed:
        return
    reader, writer = interest.reader, interest.writer
    interest.reader = interest.writer = None
    loop._turn.interests.want(interest, 0)
    if type(reader) is Wait:
        reader.abort()
    if writer is not None:
        writer.abort() if type(writer) is Wait else writer.cancel()


def forget(loop: Loop, interest: Interest) -> None:
    """A transport is about to close its socket."""
    if not loop._closed:
        loop._turn.interests.forget(interest)


def ensure_no_transport(loop: Loop, fd: object) -> None:
    """Raises RuntimeError if a transport has that descriptor, and does not close it yet."""
    if loop._closed:
        return
    try:
        interest = loop._turn.interests.by_descriptor.get(descriptor_of(fd))  # type: ignore[arg-type]
    except ValueError:
        if not hasattr(fd, "fileno"):
            raise
        return  # it is closed: no transport's, for they keep their sockets open
    owner = None if interest is None or interest.owner is None else interest.owner()
    if isinstance(owner, asyncio.BaseTransport) and not owner.is_closing():
        raise RuntimeError(f"File descriptor {fd!r} is used by transport {owner!r}")


# ---- the waits of coroutines, one after another: between two, the socket's interest rests


def reference_to(sock: object) -> Callable[[], object]:
    """A weak one, unless that is impossible."""
    try:
        return weakref.ref(sock)
    except TypeError:  # only acts as a socket
        return lambda: sock


def interest_in(loop: Loop, sock: socket.socket) -> Interest | None:
    """The interest that belongs to this socket, if one was needed yet."""
    interest = loop._turn.interests.by_descriptor.get(sock.fileno())
    if interest is None or interest.owner is None or interest.owner() is not sock:
        return None
    return interest


def wait_in(loop: Loop, sock: socket.socket, event: int) -> Wait:
    """The wait in a socket's interest; it rests until `begin_wait`."""
    interests = loop._turn.interests
    interest = interest_in(loop, sock)
    if interest is None:
        ensure_no_transport(loop, sock)
        interest = interests.adopt(sock, descriptor_of(sock), reference_to(sock))
    standing = interest.handle_for(event)
    if type(standing) is Wait and standing.future is None:
        return standing
    wait = Wait(interests, interest, event)
    interest.hand_to(event, wait)
    if standing is not None:
        standing.cancel()
    return wait


def begin_wait(
    loop: Loop, sock: socket.socket, wait: Wait, operation: Callable[[], Any] | None = None
) -> asyncio.Future[Any]:
    """What is awaited. Whoever begins one ends it, also if this raises."""
    future: asyncio.Future[Any] = Future(loop=loop)  # type: ignore[arg-type]
    wait.begin(sock, future, operation)
    interest = wait.interest
    interests = wait.interests
    if interest.armed & wait.event:  # since the last wait; but the program may have put another socket under its number
        interest.events |= wait.event
        interests.disbelieve((interest,))
    else:
        interests.want(interest, interest.events | wait.event)
    return future


def end_wait(wait: Wait) -> None:
    """As a function, for compiled coroutines do not know of what kind their variables are."""
    wait.end()
