"""What a loop has of Windows: `notifyloop.loop` makes these its methods."""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVarTuple

from notifyloop.windows import named_pipes
from notifyloop.windows.blocking import BlockingFile, is_overlapped, system_handle
from notifyloop.windows.overlapped import Operations, OverlappedFile
from notifyloop.windows.pipes import DuplexPipeTransport, ReadPipeTransport, WritePipeTransport
from notifyloop.windows.processes import ChildProcess, Exits
from notifyloop.windows.signals import Signals

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any, Unpack

    from notifyloop.turn.surface import Loop

__all__ = [
    "COARSE",
    "System",
    "add_signal_handler",
    "clock",
    "create_pipe_connection",
    "make_read_pipe_transport",
    "make_subprocess_transport",
    "make_write_pipe_transport",
    "remove_signal_handler",
    "start_serving_pipe",
]

Ts = TypeVarTuple("Ts")

# Before Python 3.13, time.monotonic() is a clock that ticks every 15.6 ms; there is a better one.
COARSE = time.get_clock_info("monotonic").resolution > time.get_clock_info("perf_counter").resolution


class System:
    """What a loop keeps of it."""

    __slots__ = ("blocking", "exits", "operations", "signals")

    def __init__(self, loop: Loop) -> None:
        self.operations = Operations(loop)
        self.exits = Exits(loop)
        self.signals = Signals(loop)
        self.blocking: set[BlockingFile] = set()  # those whose thread was not told to end
        if COARSE:
            loop._turn.timers.resolution = time.get_clock_info("perf_counter").resolution

    def begin(self, loop: Loop) -> int | None:
        """The loop is about to run. In the main thread, Ctrl-C ends the wait."""
        loop._turn.interests.hand_on()  # what an interrupt has left
        self.operations.call_again()
        return self.signals.listen()

    def end(self, begun: int | None) -> None:
        """It does not run any more. `begun` is what `begin` has returned."""
        self.signals.leave(begun)

    def close(self, close: Callable[[], None]) -> None:
        """And never will. What is in flight on pipes is cancelled, and its end waited for; for a second at most.
        `close` does the rest.
        """
        with ExitStack() as every:  # in the other order, and whatever one of them raises
            every.callback(self._let_go)
            every.callback(close)
            every.callback(self.operations.close)
            for file in list(self.blocking):
                every.callback(file.abandon)
            every.callback(self.exits.close)
            every.callback(self.signals.close)

    def _let_go(self) -> None:
        """Refer to the loop no more, which is closed: of a cycle CPython 3.13's collector may never hear."""
        self.operations._loop = self.exits._loop = self.signals._loop = None


def clock(loop: Loop) -> float:
    """The time, where `time.monotonic()` is `COARSE`."""
    return time.perf_counter()


# ---- signals


def add_signal_handler(loop: Loop, sig: int, callback: Callable[[Unpack[Ts]], Any], *args: *Ts) -> None:
    """As asyncio's on other systems: for SIGINT, SIGBREAK and SIGTERM."""
    loop._system.signals.add(sig, callback, args)


def remove_signal_handler(loop: Loop, sig: int) -> bool:
    """As asyncio's on other systems."""
    removed: bool = loop._system.signals.remove(sig)
    return removed


# ---- pipes


def file_of(loop: Loop, pipe: Any) -> OverlappedFile | BlockingFile:
    handle = system_handle(pipe)
    return OverlappedFile(loop, pipe, handle) if is_overlapped(handle) else BlockingFile(loop, pipe, handle)


def make_read_pipe_transport(
    loop: Loop,
    pipe: Any,
    protocol: asyncio.BaseProtocol,
    waiter: asyncio.Future[None] | None = None,
    extra: dict[str, Any] | None = None,
) -> ReadPipeTransport:
    return ReadPipeTransport(loop, file_of(loop, pipe), protocol, waiter, extra)


def make_write_pipe_transport(
    loop: Loop,
    pipe: Any,
    protocol: asyncio.BaseProtocol,
    waiter: asyncio.Future[None] | None = None,
    extra: dict[str, Any] | None = None,
) -> WritePipeTransport:
    return WritePipeTransport(loop, file_of(loop, pipe), protocol, waiter, extra)


async def create_pipe_connection(
    loop: Loop, protocol_factory: Callable[[], asyncio.BaseProtocol], address: str
) -> tuple[DuplexPipeTransport, asyncio.BaseProtocol]:
    """As the Proactor loop's: connect to the server of a named pipe, like ``\\\\.\\pipe\\name``. Returns the
    transport and the protocol. Raises OSError (FileNotFoundError if nobody serves it).
    """
    pipe = await named_pipes.connect(address)
    try:
        protocol = protocol_factory()
        file = OverlappedFile(loop, pipe, pipe.fileno())
    except BaseException:
        pipe.close()
        raise
    return DuplexPipeTransport(loop, file, protocol, extra={"addr": address}), protocol


async def start_serving_pipe(
    loop: Loop, protocol_factory: Callable[[], asyncio.BaseProtocol], address: str
) -> list[named_pipes.PipeServer]:
    """As the Proactor loop's: serve a named pipe. Returns a list of one server, which has `close` and `closed`.
    Raises PermissionError if somebody else serves it.
    """
    return [named_pipes.PipeServer(loop, protocol_factory, address)]


# ---- child processes


async def make_subprocess_transport(
    loop: Loop,
    protocol: asyncio.BaseProtocol,
    args: Any,
    shell: bool,
    stdin: Any,
    stdout: Any,
    stderr: Any,
    bufsize: int,
    extra: dict[str, Any] | None = None,
    **kwargs: Any,
) -> ChildProcess:
    arguments = (protocol, args, shell, stdin, stdout, stderr, bufsize)
    waiter = loop.create_future()
    child = ChildProcess(loop, *arguments, waiter=waiter, extra=extra, **kwargs)
    return await child.connected(waiter)
