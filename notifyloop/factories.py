"""Protocol factories that raise. What their protocol was to be given is closed then: asyncio loses it.

Nearly always that is known before the factory is called. Only `create_datagram_endpoint` makes a socket that nobody
else sees; there a `Failure` stands for the protocol, as far as where the transport is made.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Failure", "closing", "deferring"]


def closing(factory: Callable[[], asyncio.BaseProtocol], file: Any) -> Callable[[], asyncio.BaseProtocol]:
    """The factory, which closes the file if it raises."""

    def make() -> asyncio.BaseProtocol:
        try:
            return factory()
        except BaseException:
            file.close()
            raise

    return make


class Failure(asyncio.DatagramProtocol):
    """No protocol, but what the factory has raised instead."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def deferring(factory: Callable[[], asyncio.BaseProtocol]) -> Callable[[], asyncio.BaseProtocol]:
    """The factory, which returns a `Failure` instead of raising."""

    def make() -> asyncio.BaseProtocol:
        try:
            return factory()
        except BaseException as error:
            return Failure(error)

    return make
