"""What a loop has of the system, elsewhere than on Windows: `notifyloop.loop` makes these its methods."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

from typing import TYPE_CHECKING

from notifyloop.backports import Asyncio
from notifyloop.unix import processes
from notifyloop.unix.pipes import ReadPipeTransport, WritePipeTransport
from notifyloop.unix.signals import Signals, add_signal_handler, take_over

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = [
    "System",
    "add_signal_handler",
    "make_read_pipe_transport",
    "make_subprocess_transport",
    "make_write_pipe_transport",
]


class System:
    """What a loop keeps of it."""

    __slots__ = ("signals",)

    def __init__(self, loop: Loop) -> None:
        self.signals = Signals()

    def begin(self, loop: Loop) -> Any:
        """The loop is about to run."""
        take_over(loop)

    def end(self, begun: Any) -> None:
        """It does not run any more. `begun` is what `begin` has returned."""

    def close(self, close: Callable[[], None]) -> None:
        """And never will; `close` does the rest."""
        close()


def make_read_pipe_transport(
    loop: Loop,
    pipe: Any,
    protocol: asyncio.BaseProtocol,
    waiter: asyncio.Future[None] | None = None,
    extra: dict[str, Any] | None = None,
) -> ReadPipeTransport:
    return ReadPipeTransport(loop, pipe, protocol, waiter, extra)


def make_write_pipe_transport(
    loop: Loop,
    pipe: Any,
    protocol: asyncio.BaseProtocol,
    waiter: asyncio.Future[None] | None = None,
    extra: dict[str, Any] | None = None,
) -> WritePipeTransport:
    return WritePipeTransport(loop, pipe, protocol, waiter, extra)


async def make_subprocess_transport(
    loop: Any,
    protocol: asyncio.BaseProtocol,
    args: Any,
    shell: bool,
    stdin: Any,
    stdout: Any,
    stderr: Any,
    bufsize: int,
    extra: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    arguments = (protocol, args, shell, stdin, stdout, stderr, bufsize)
    if not processes.can_watch_children():
        return await Asyncio._make_subprocess_transport(loop, *arguments, extra, **kwargs)
    waiter = loop.create_future()
    child = processes.ChildProcess(loop, *arguments, waiter=waiter, extra=extra, **kwargs)
    return await child.connected(waiter)
