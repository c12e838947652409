"""A selector over the completion port: what `selectors` wants, level-triggered readiness, reader and writer apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, SelectorKey
from typing import TYPE_CHECKING

from notifyloop.port.registration import descriptor_of
from notifyloop.turn.interests import ASLEEP, AWAKE, BETWEEN_WAITS, Interests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from notifyloop.port.completion_port import CompletionPort
    from notifyloop.port.registration import HasFileno

__all__ = ["NotificationSelector"]


class _InterestMap(Mapping["int | HasFileno", SelectorKey]):
    """The public view: file object or descriptor -> SelectorKey."""

    def __init__(self, selector: NotificationSelector) -> None:
        self._selector = selector

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, fileobj: int | HasFileno) -> SelectorKey:
        interest = self._selector.interests.find(fileobj)
        if interest is None:
            raise KeyError(f"{fileobj!r} is not registered")
        return interest.selector_key()

    def __iter__(self) -> Iterator[int | HasFileno]:
        return iter([fd for fd, interest in self._selector.interests.by_descriptor.copy().items() if interest.events])


class NotificationSelector(BaseSelector):
    """A `selectors.BaseSelector` on a completion port of its own.

    Any number of sockets, at a cost that does not depend on how many are idle. Use it as
    `selectors.DefaultSelector`, or as the selector of an `asyncio.SelectorEventLoop`. Not thread-safe, but
    for `wake_up`.
    """

    def __init__(self) -> None:
        self.interests = Interests()
        self._map: _InterestMap | None = _InterestMap(self)

    def register(self, fileobj: int | HasFileno, events: int, data: Any = None) -> SelectorKey:
        """As `selectors.BaseSelector.register`.

        Raises ValueError for invalid events or file objects and for a closed selector, KeyError if the
        descriptor is registered, OSError (EBADF, EPERM for a regular file, ...) if the system refuses it.
        """
        if not events or events & ~(EVENT_READ | EVENT_WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        fd = descriptor_of(fileobj)
        if self.interests.find(fd) is not None:
            raise KeyError(f"{fileobj!r} (FD {fd}) is already registered")
        return self.interests.watch(fileobj, fd, events, data).selector_key()

    def unregister(self, fileobj: int | HasFileno) -> SelectorKey:
        """As `selectors.BaseSelector.unregister`. Raises KeyError if it is not registered, ValueError for
        invalid file objects.
        """
        interest = self.interests.find(fileobj)
        if interest is None:
            raise KeyError(f"{fileobj!r} is not registered")
        key = interest.selector_key()
        self.interests.remove(interest)
        return key

    def modify(self, fileobj: int | HasFileno, events: int, data: Any = None) -> SelectorKey:
        """As `selectors.BaseSelector.modify`; a change of data alone stays in Python. Raises as `register`,
        then it is unregistered.
        """
        interest = self.interests.find(fileobj)
        if interest is None:
            raise KeyError(f"{fileobj!r} is not registered")
        if events != interest.events and (not events or events & ~(EVENT_READ | EVENT_WRITE)):
            raise ValueError(f"Invalid events: {events!r}")
        self.interests.change(interest, events)
        interest.data = data
        return interest.selector_key()

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """As `selectors.BaseSelector.select`; waits with the resolution of nanoseconds where the system
        can.
        """
        ns = -1 if timeout is None else math.ceil(timeout * 1e9) if timeout > 0 else 0
        interests = self.interests
        # Who calls this for a loop has looked for work before. If nobody was to tell of more since then, because the
        # loop was awake, there may be some: then do not wait. From now on tell always, also between two calls of this.
        if interests.sleeping == AWAKE:
            ns = 0
        interests.sleeping = ASLEEP
        try:
            words = interests.dequeue(ns)
        finally:
            interests.sleeping = BETWEEN_WAITS  # who made it AWAKE has posted a packet: among these, or for the next
        return [(interest.selector_key(), mask) for interest, mask in interests.ready(words)]

    @property
    def port(self) -> CompletionPort:
        """The selector's own port."""
        return self.interests.port

    def wake_up(self) -> None:
        """End the wait of another thread, or the next one, early. Raises ValueError if the selector is closed."""
        self.interests.wake_up()

    def close(self) -> None:
        """Close the port. Descriptors stay open; closing twice is no error."""
        self.interests.close()
        self._map = None

    def get_map(self) -> Mapping[int | HasFileno, SelectorKey]:
        """The registered file objects; None once closed, as for the standard selectors."""
        return self._map  # type: ignore[return-value]

    def get_key(self, fileobj: int | HasFileno) -> SelectorKey:
        """As `selectors.BaseSelector.get_key`. Raises RuntimeError if the selector is closed, KeyError if
        it is not registered.
        """
        if self._map is None:
            raise RuntimeError("Selector is closed")
        return self._map[fileobj]
