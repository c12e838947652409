"""What a loop inherits on Windows."""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import time
from typing import TYPE_CHECKING, TypeVarTuple

from notifyloop.sockets import SocketOperations
from notifyloop.windows import named_pipes
from notifyloop.windows.blocking import BlockingFile, is_overlapped, system_handle
from notifyloop.windows.overlapped import Operations, OverlappedFile
from notifyloop.windows.pipes import DuplexPipeTransport, ReadPipeTransport, WritePipeTransport
from notifyloop.windows.processes import ChildProcess, Exits
from notifyloop.windows.signals import Signals

if TYPE_CHECKING:
    import asyncio
    from collections import deque
    from collections.abc import Callable
    from typing import Any, Unpack

    from notifyloop.selector import NotificationSelector

__all__ = ["System"]

Ts = TypeVarTuple("Ts")

# Before Python 3.13, time.monotonic() is a clock that ticks every 15.6 ms; there is a better one.
COARSE = time.get_clock_info("monotonic").resolution > time.get_clock_info("perf_counter").resolution


class Windows:
    """What a loop keeps of this. Apart, for the same reason as `notifyloop.loop.Turn`."""

    __slots__ = ("blocking", "exits", "operations", "signals")

    def __init__(self, loop: System) -> None:
        self.operations = Operations(loop)
        self.exits = Exits(loop)
        self.signals = Signals(loop)
        self.blocking: set[BlockingFile] = set()  # those whose thread was not told to end


class System(SocketOperations):
    """The methods of a loop that differ from system to system, on Windows."""

    _ready: deque[asyncio.Handle]
    _clock_resolution: float
    _write_to_self: Callable[[], None]

    def __init__(self, selector: NotificationSelector) -> None:
        super().__init__(selector)
        self._windows = Windows(self)
        if COARSE:
            self._clock_resolution = time.get_clock_info("perf_counter").resolution

    if COARSE:

        def time(self) -> float:
            return time.perf_counter()

    def run_forever(self) -> None:
        """As asyncio's. In the main thread, Ctrl-C ends the wait."""
        if self.is_running():
            super().run_forever()  # raises
        previous = self._windows.signals.listen() if not self.is_closed() else None
        try:
            super().run_forever()
        finally:
            if not self.is_closed():
                self._windows.signals.leave(previous)

    def close(self) -> None:
        """As asyncio's. What is in flight on pipes is cancelled, and its end waited for; for a second at most."""
        if not self.is_closed() and not self.is_running():
            windows = self._windows
            windows.signals.close()
            windows.exits.close()
            for file in list(windows.blocking):
                file.abandon()
            windows.operations.close()
        super().close()

    # ---- signals

    def add_signal_handler(self, sig: int, callback: Callable[[Unpack[Ts]], Any], *args: *Ts) -> None:
        """As asyncio's on other systems: for SIGINT, SIGBREAK and SIGTERM."""
        self._windows.signals.add(sig, callback, args)

    def remove_signal_handler(self, sig: int) -> bool:
        """As asyncio's on other systems."""
        return self._windows.signals.remove(sig)

    # ---- pipes

    def _file(self, pipe: Any) -> OverlappedFile | BlockingFile:
        handle = system_handle(pipe)
        return OverlappedFile(self, pipe, handle) if is_overlapped(handle) else BlockingFile(self, pipe, handle)

    def _make_read_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> ReadPipeTransport:
        return ReadPipeTransport(self, self._file(pipe), protocol, waiter, extra)

    def _make_write_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> WritePipeTransport:
        return WritePipeTransport(self, self._file(pipe), protocol, waiter, extra)

    async def create_pipe_connection(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], address: str
    ) -> tuple[DuplexPipeTransport, asyncio.BaseProtocol]:
        """As the Proactor loop's: connect to the server of a named pipe, like ``\\\\.\\pipe\\name``. Returns the
        transport and the protocol. Raises OSError (FileNotFoundError if nobody serves it).
        """
        pipe = await named_pipes.connect(address)
        try:
            protocol = protocol_factory()
            file = OverlappedFile(self, pipe, pipe.fileno())
        except BaseException:
            pipe.close()
            raise
        return DuplexPipeTransport(self, file, protocol, extra={"addr": address}), protocol

    async def start_serving_pipe(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], address: str
    ) -> list[named_pipes.PipeServer]:
        """As the Proactor loop's: serve a named pipe. Returns a list of one server, which has `close` and `closed`.
        Raises PermissionError if somebody else serves it.
        """
        return [named_pipes.PipeServer(self, protocol_factory, address)]

    # ---- child processes

    async def _make_subprocess_transport(self, *arguments: Any, **options: Any) -> ChildProcess:
        waiter = self.create_future()
        child = ChildProcess(self, *arguments, waiter=waiter, **options)
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            child.close()
            await child._wait()
            raise
        return child
