"""What a coroutine waits with for a socket."""

from __future__ import annotations

import errno
from selectors import EVENT_READ
from typing import TYPE_CHECKING

from notifyloop.turn.primitives import TrueSocket

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

    from notifyloop.turn.interest import Interest
    from notifyloop.turn.interests import Interests

__all__ = ["Wait"]


class Wait:
    """What a coroutine waits with for a socket, one after another; it stands in an interest where a handle would."""

    __slots__ = ("_asked", "_cancelled", "event", "future", "interest", "interests", "operation", "sock")

    # Whatever looks at handles in debug mode finds these.
    _callback = None
    _source_traceback = None

    def __init__(self, interests: Interests, interest: Interest, event: int) -> None:
        self.interests = interests
        self.interest = interest
        self.event = event
        self.future: asyncio.Future[Any] | None = None  # None: at rest
        self.operation: Callable[[], Any] | None = None  # what is done at once when the socket is ready
        self.sock: Any = None  # the socket that is kept open
        self._cancelled = False
        self._asked = 0  # how often the port had been asked when this began

    def begin(self, sock: Any, future: asyncio.Future[Any], operation: Callable[[], Any] | None) -> None:
        self.future = future
        self.operation = operation
        self._asked = self.interests.asked
        if self.sock is None and issubclass(type(sock), TrueSocket):  # others close as they like
            self.sock, sock._io_refs = sock, sock._io_refs + 1  # both, or an interrupt comes in between

    def _run(self) -> None:
        """There is something to do. If nobody waits for that any more, let the port know."""
        future, interest = self.future, self.interest
        if future is None:
            self.interests.want(interest, interest.events)
            return
        # What was reported before this began is over: a coroutine is resumed a turn after its socket was reported, and
        # in that turn it is reported again, if there is still something to receive.
        if self._asked == self.interests.asked:
            return
        if self.operation is not None and not future.done():
            try:
                result = self.operation()
            except (BlockingIOError, InterruptedError):
                return
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
        interest.events &= ~self.event
        if not future.done():
            future.set_result(None)

    def end(self) -> None:
        """Rest. The coroutine was told and has done what it waited for, or does not wait any longer."""
        interest = self.interest
        if interest.events & self.event and not self._cancelled:
            self.interests.want(interest, interest.events & ~self.event)
        self.release()

    def cancel(self) -> None:
        """Somebody else watches the descriptor now: as in asyncio, the coroutine waits until it is cancelled."""
        self._cancelled = True

    def abort(self) -> None:
        """The transport whose socket it is closes it."""
        self._cancelled = True
        if self.future is not None and not self.future.done():
            self.future.set_exception(ConnectionAbortedError(errno.ECONNABORTED, "the transport was closed"))

    def fail(self, error: OSError) -> None:
        """The socket cannot be watched."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)

    def release(self) -> None:
        """Let the socket close, if it is to. May be called twice."""
        self.future = self.operation = None
        sock = self.sock
        if sock is not None:
            self.sock, sock._io_refs = None, sock._io_refs - 1  # both, as above
            if sock._closed:
                sock.close()

    def __repr__(self) -> str:
        return f"<Wait for {'reading' if self.event == EVENT_READ else 'writing'} {self.sock!r}>"
