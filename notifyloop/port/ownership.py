"""When may the state of a socket be freed? The article's hardest question, answered by an object.

A port with several threads has three traps. A thread re-arms a socket that another has just closed, and with
it a descriptor that already belongs to somebody else. A thread frees the state of a socket while a second is
still at work on it. Or everybody waits for a REMOVE that never comes, because removing failed or because the
socket or the port was closed.

An `OwnedSocket` is a socket and its one-shot, level-triggered registration, and is always in one of five
states. Every change of state is made under the object's lock, together with the one call of the port that
belongs to it, so the two cannot disagree:

    new --register()--> armed --a notification--> owned --on_ready returns--> armed ...
    new --close()--------------------------------------------------------------------> released
    armed --close()--> removing --REMOVE--> released
    owned --close(), on_ready returns--> removing --REMOVE--> released

* `on_ready` runs in one thread at a time: the one that moved the object from armed to owned. A notification
  that finds it in another state comes too late, and is dropped.
* Nobody removes, closes or releases while it is owned. `close()` then only says what its owner is to do when
  `on_ready` returns. From removing on, nobody can own it any more. So whoever releases it is the last.
* Whatever makes a REMOVE impossible (removing fails, the socket or the port was closed) leads to released at
  once, and closing the socket deregisters it in any case.
* `on_release` is called exactly once.
* An exception that comes in between (an interrupt by the keyboard, what a signal handler raises) leaves the object as
  it was, to be used or closed, or closes it if it was in its owner's hands, as does what `on_ready` raises.
* A forked child has a copy, whose owner, if that was another thread, exists in the parent only: then nobody owns it.

Re-arming is a call of its own here, one for each notification that was handled, where a program that keeps
its own books passes the registration to the next wait. On Linux that costs no system call.
"""

from __future__ import annotations

import enum
import errno
import os
import threading
from functools import partial
from typing import TYPE_CHECKING

from notifyloop.port.forks import Guarded, forks
from notifyloop.port.registration import Event, Registration

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from notifyloop.port.completion_port import CompletionPort
    from notifyloop.port.registration import Notification

__all__ = ["OwnedSocket"]


class _State(enum.Enum):
    NEW = enum.auto()
    ARMED = enum.auto()
    OWNED = enum.auto()
    REMOVING = enum.auto()
    RELEASED = enum.auto()


class OwnedSocket(Guarded):
    """A socket on a port, used by one thread at a time and released once, after the last has left it.

        def on_ready(owned, events):
            if not owned.socket.recv_into(buffer):
                owned.close()

        OwnedSocket(port, client, on_ready).register()

        for notification in port.process(timeout=None):  # in any number of threads
            if isinstance(notification.key, OwnedSocket):
                notification.key.deliver(notification)

    The object takes the socket over and makes it non-blocking; use it in `on_ready` only, and never close it
    other than by `close()`. `on_ready(owned, events)` may be called without need: operations on the socket
    must expect BlockingIOError. `on_release(owned)` is called when the socket has been closed and its state
    can be freed, by the thread that found out.

    All methods may be called from any thread, also from `on_ready`; from signal handlers and finalizers, which could
    interrupt the very method they call, only `close()`. After closing the port, `close()` each object: no notices
    come any more.

    Raises ValueError if the socket is closed.
    """

    __slots__ = (
        "__weakref__",
        "_closing",
        "_known",
        "_on_ready",
        "_owner",
        "_port",
        "_registration",
        "_state",
        "_to_tell",
        "error",
        "socket",
    )

    error: Exception | None
    """Why the object gave the socket up by itself: it could not be re-armed. Otherwise None."""

    def __init__(
        self,
        port: CompletionPort,
        socket: socket.socket,
        on_ready: Callable[[OwnedSocket, Event], object],
        on_release: Callable[[OwnedSocket], object] | None = None,
        *,
        events: Event = Event.IN | Event.HANGUP,
    ) -> None:
        super().__init__()
        self._registration = Registration(socket, key=self, events=events)
        socket.setblocking(False)
        self.socket = socket
        self.error = None
        self._port = port
        self._on_ready = on_ready
        self._to_tell = {"on_release": on_release}  # until it has been
        self._state = _State.NEW
        self._owner = (forks(), 0)  # each deliver() that owns it is another, of this process and thread
        self._known = False  # to the port, perhaps
        self._closing = False

    @property
    def released(self) -> bool:
        """Whether the socket was closed, and nobody uses it any more."""
        return self._state is _State.RELEASED

    def register(self) -> None:
        """Register with the port. From now on `on_ready` may be called, in another thread even before this
        returns.

        Raises OSError if the system refuses, ValueError if the port is closed, MemoryError: then the object
        is as before, to try again or to `close()`. Raises RuntimeError if it was registered or closed.
        """
        with self.lock:
            if self._state is not _State.NEW:
                raise RuntimeError("an OwnedSocket is registered once")
            self._arm()

    def deliver(self, notification: Notification) -> None:
        """Act on a notification whose key is this object: call `on_ready` and re-arm, or release.

        What `on_ready` raises is raised here, and the socket is closed, as after `close()`; what `on_release`
        raises too.
        """
        owner = (forks(), threading.get_ident())
        try:
            events = self._take(notification.events, owner)
            if events:
                self._on_ready(self, events)
            self._leave(owner)
        except BaseException:
            self._abandon(owner)
            raise

    def watch(self, events: Event) -> None:
        """Change the events that `on_ready` is called for; at once, or when the owner has left.

        `Event.NONE` leaves errors only. Raises as `register`, and then it should be closed.
        """
        with self.lock:
            self._registration.events = events
            if self._state is _State.ARMED:
                self._arm()

    def close(self) -> None:
        """Deregister, close the socket and release, as soon as nobody uses it; closing again is no error.

        The peer sees the end of the connection when the socket is closed, not before.
        """
        with self.lock:
            self._closing = True
            if self._state in (_State.NEW, _State.ARMED) or self._has_lost_its_owner():
                self._remove()
            elif self._state is _State.REMOVING and self._port.closed:
                self._state = _State.RELEASED
            # Otherwise its owner, or whoever gets the notice, does the rest.
        self._release_if_due()

    def _take(self, events: Event, owner: tuple[int, int]) -> Event:
        """What this owner has to act on; none if the notification comes too late."""
        with self.lock:
            if events & Event.REMOVE:
                if self._state in (_State.REMOVING, _State.ARMED):
                    self._state = _State.RELEASED
                return Event.NONE
            if self._state is not _State.ARMED:
                return Event.NONE  # on its way when the state changed
            self._owner = owner
            self._state = _State.OWNED
            return events & (self._registration.events | Event.ERR)  # the filter may have changed since

    def _is_owned_by(self, owner: tuple[int, int]) -> bool:
        return self._state is _State.OWNED and self._owner is owner

    def _leave(self, owner: tuple[int, int]) -> None:
        """The owner's way out: re-arm, or begin the end."""
        with self.lock:
            if self._is_owned_by(owner):
                if not self._closing:
                    try:
                        self._arm()
                    except (OSError, ValueError, MemoryError) as error:
                        # Still this thread's, and no notification would ever come: there is only the end.
                        self.error = error
                        self._closing = True
                if self._closing and self._state in (_State.OWNED, _State.ARMED):
                    self._remove()
        self._release_if_due()

    def _abandon(self, owner: tuple[int, int]) -> None:
        """The way out of an owner to whom something has happened, or who has not become the owner because of it."""
        with self.lock:
            if self._is_owned_by(owner) or self._state is _State.ARMED:
                self._closing = True
                self._remove()
        self._release_if_due()

    def _arm(self) -> None:
        if self._has_lost_its_descriptor():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        before = self._state
        try:
            self._known = True
            self._state = _State.ARMED
            self._port.enable(self._registration)
        except BaseException:
            if self._state is _State.ARMED:  # and was not closed meanwhile, by a signal handler
                self._state = before
            raise

    def _remove(self) -> None:
        """Deregister; it is released already if no notice will come."""
        if self._known and not self._has_lost_its_descriptor():
            try:
                self._port.remove(self._registration)
            except (OSError, ValueError, MemoryError):
                pass  # closing the socket deregisters it, too
            else:
                self._state = _State.REMOVING
                return
        self._state = _State.RELEASED

    def _has_lost_its_owner(self) -> bool:
        process, thread = self._owner
        return self._state is _State.OWNED and process != forks() and thread != threading.get_ident()

    def _has_lost_its_descriptor(self) -> bool:
        # Closed behind our back. The number may be somebody else's by now: keep off it.
        return self.socket.fileno() != self._registration.socket

    def _release_if_due(self) -> None:
        """Once, however often it is called: who was interrupted tries again."""
        if self._state is _State.RELEASED:
            try:
                # A socket does not care who else closes it: without an interpreter lock both close the descriptor.
                with self.lock:
                    self.socket.close()
            finally:
                # In one line, for whom the iterator has given out must be called. What is popped, one thread has; of an
                # iterator that threads share each may get the same.
                [on_release(self) for on_release in iter(partial(self._to_tell.pop, "on_release", None), None)]

    def __repr__(self) -> str:
        return f"<OwnedSocket {self._state.name.lower()} {self.socket!r}>"
