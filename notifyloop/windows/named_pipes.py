"""Named pipes: servers, which wait for the next client with a new end of the pipe each time, and clients."""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _overlapped  # type: ignore[import-not-found]
import _winapi
import asyncio
import logging
from asyncio.windows_utils import PipeHandle
from typing import TYPE_CHECKING

from notifyloop.windows.overlapped import OverlappedFile
from notifyloop.windows.pipes import DuplexPipeTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from notifyloop.turn.surface import Loop
    from notifyloop.windows.overlapped import Operation

__all__ = ["PipeServer", "connect"]

logger = logging.getLogger("asyncio")

# Seconds between two attempts to connect to a server all whose ends are taken.
FIRST_DELAY = 0.001
LONGEST_DELAY = 0.1

RETRY_DELAY = 1  # seconds before a server that could not accept tries again; asyncio's

BUFFER_SIZE = 8192  # bytes; asyncio's
PIPE_TYPE_MESSAGE = 4
PIPE_READMODE_MESSAGE = 2


class PipeServer:
    """A named pipe that is served; made by the loop's `start_serving_pipe`."""

    def __init__(self, loop: Loop, protocol_factory: Callable[[], asyncio.BaseProtocol], address: str) -> None:
        self._loop = loop
        self._protocol_factory = protocol_factory
        self._address = address
        self._closed = False
        self._connecting: Operation | None = None
        self._file: OverlappedFile | None = self._new_end(_winapi.FILE_FLAG_FIRST_PIPE_INSTANCE)
        loop.call_soon(self._listen)

    def _new_end(self, flags: int = 0) -> OverlappedFile:
        handle = _winapi.CreateNamedPipe(
            self._address,
            _winapi.PIPE_ACCESS_DUPLEX | _winapi.FILE_FLAG_OVERLAPPED | flags,
            PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE | _winapi.PIPE_WAIT,  # as asyncio's: `multiprocessing` needs it
            _winapi.PIPE_UNLIMITED_INSTANCES,
            BUFFER_SIZE,
            BUFFER_SIZE,
            _winapi.NMPWAIT_WAIT_FOREVER,
            _winapi.NULL,
        )
        return OverlappedFile(self._loop, PipeHandle(handle), handle)

    def _listen(self) -> None:
        if self._closed:
            return
        try:
            if self._file is None:
                self._file = self._new_end()
            self._connecting = self._file.connect(self._connected)
        except BrokenPipeError:  # somebody came and went
            self._drop_end()
            self._loop.call_soon(self._listen)
        except OSError as error:
            self._drop_end()
            self._loop.call_exception_handler({"message": "Pipe accept failed", "exception": error, "server": self})
            self._loop.call_later(RETRY_DELAY, self._listen)
        else:
            if self._connecting is None:  # somebody came before we waited
                self._loop.call_soon(self._connected)

    def _connected(self) -> None:
        if self._connecting is not None and not self._connecting.ended():
            return  # called again, after an interrupt
        connecting, self._connecting = self._connecting, None
        if self._closed:
            return
        if self._file is None:  # likewise, and that one was lost
            self._listen()
            return
        try:
            if connecting is not None:
                connecting.result()
        except OSError:  # nothing that happens to one client ends the serving
            if self._loop.get_debug():
                logger.warning("%r: accepting failed", self, exc_info=True)
            self._drop_end()
        else:
            file, self._file = self._file, None
            self._serve(file)
        self._listen()

    def _serve(self, file: OverlappedFile) -> None:
        protocol = None
        try:
            protocol = self._protocol_factory()
            DuplexPipeTransport(self._loop, file, protocol, extra={"addr": self._address})
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            file.close()
            self._loop.call_exception_handler(
                {
                    "message": "Error on transport creation for incoming connection",
                    "exception": error,
                    "protocol": protocol,
                }
            )

    def _drop_end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Take no more clients. Those that came stay. May be called twice."""
        if self._closed:
            return
        self._closed = True
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        self._drop_end()

    def __repr__(self) -> str:
        return f"<PipeServer {'closed ' if self._closed else ''}{self._address!r}>"


async def connect(address: str) -> PipeHandle:
    """Our end of a connection to a named pipe's server. Waits while all its ends are taken. Raises OSError
    (FileNotFoundError if nobody serves it).
    """
    delay = FIRST_DELAY
    while True:
        try:
            return PipeHandle(_overlapped.ConnectPipe(address))
        except OSError as error:
            if error.winerror != _overlapped.ERROR_PIPE_BUSY:
                raise
        await asyncio.sleep(delay)
        delay = min(delay * 2, LONGEST_DELAY)
