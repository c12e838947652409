"""Overlapped operations: reads and writes that Windows carries out while the loop does something else.

What Windows offers: an operation is begun with a structure (OVERLAPPED) and a buffer, which the kernel keeps and
writes to until the operation has ended. Then it queues a packet with the structure's address to the port with which
the file is associated. An operation that is cancelled ends, too, and so do those of a file that is closed; always
later, and always with a packet, unless it could not even be begun.

What we make of it: an `Operation` is a handle, a callback that is called once, when the packet has come. Whoever
cancels it is not called any more, and whatever had been read is lost with it: so the transports do not cancel reads
to pause, but only when they close.

The danger: memory that is freed while the kernel writes to it. So each operation is kept in `Operations` until its
packet was dequeued, cancelled or not, and a loop that closes waits for those packets; for a second at most, for there
are drivers that do not hear. What has not come by then is never freed.

Sources: "Synchronization and Overlapped Input and Output", "CancelIoEx function (ioapiset.h)", of Microsoft's
reference.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import ctypes
from _overlapped import Overlapped  # type: ignore[import-not-found]
from contextlib import ExitStack
from time import perf_counter_ns
from typing import TYPE_CHECKING

from notifyloop.turn.handles import Handle

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = ["Operation", "Operations", "OverlappedFile"]

COMPLETED = 1  # the completion key of all our files: the operation's address says the rest
NO_EVENT = 0
PATIENCE_NS = 1_000_000_000

ERROR_INVALID_HANDLE = 6
ERROR_NETNAME_DELETED = 64
ERROR_BROKEN_PIPE = 109
ERROR_SEM_TIMEOUT = 121
ERROR_NO_DATA = 232  # the other end is closing
ERROR_PIPE_NOT_CONNECTED = 233
ERROR_OPERATION_ABORTED = 995
ERROR_CONNECTION_ABORTED = 1236
AT_END = (ERROR_BROKEN_PIPE, ERROR_NO_DATA, ERROR_PIPE_NOT_CONNECTED)
DISCONNECTED = (
    ERROR_NETNAME_DELETED,
    ERROR_SEM_TIMEOUT,
    ERROR_PIPE_NOT_CONNECTED,
    ERROR_OPERATION_ABORTED,
    ERROR_CONNECTION_ABORTED,
)


class Operation(Handle):
    """One operation in flight: a callback, for when it has ended, and then its result."""

    __slots__ = ("_overlapped",)

    def __init__(self, callback: Callable[[], object], loop: Loop, context: Context | None) -> None:
        super().__init__(callback, (), loop, context)
        self._overlapped = Overlapped(NO_EVENT)

    def _run(self) -> None:
        self._cancelled = True  # from now on: an interrupt may have had it queued twice
        super()._run()
        self._loop._system.operations.called(self)

    def ended(self) -> bool:
        """Whether it has a result."""
        return not self._overlapped.pending

    def cancel(self) -> None:
        """Do not call back, and have Windows end it early, if it can."""
        self._loop._system.operations.called(self)
        if self._cancelled:
            return
        super().cancel()
        try:
            self._overlapped.cancel()
        except OSError as error:  # its file was closed, which ends it, too; though not at once in wine
            if error.winerror != ERROR_INVALID_HANDLE:
                raise

    def result(self) -> Any:
        """What the operation came to. Raises OSError if it failed."""
        try:
            return self._overlapped.getresult()
        except OSError as error:
            if error.winerror in DISCONNECTED:
                raise ConnectionResetError(error.errno, error.strerror, None, error.winerror) from None
            raise

    def received(self) -> bytes | None:
        """What was read, None at the end of the file. A message may be empty. Raises OSError if it failed."""
        try:
            data: bytes = self._overlapped.getresult()
        except OSError as error:
            if error.winerror in AT_END:
                return None
            return self.result()  # type: ignore[no-any-return]
        return None if not data and self._overlapped.error in AT_END else data


class Operations:
    """The overlapped operations of a loop, and its blocking ones that have ended."""

    __slots__ = ("_in_flight", "_loop", "_uncalled")

    def __init__(self, loop: Loop) -> None:
        self._loop: Any = loop
        self._in_flight: dict[int, Operation] = {}  # by the address that their packet has
        # Have ended, and their callback has not returned yet: an interrupt may come before its first instruction. It
        # may be called again, and looks whether the operation that it waits for has ended.
        self._uncalled: dict[int, Handle] = {}
        loop._turn.interests.foreign[COMPLETED] = self._completed

    def associate(self, handle: int) -> None:
        """Have the completions of a file come to the loop's port. Raises OSError if they cannot."""
        self._loop._turn.interests.port.associate(handle, COMPLETED)

    def begin(
        self, method: str, arguments: tuple[Any, ...], callback: Callable[[], object], context: Context | None
    ) -> Operation:
        """Begin one of `_overlapped`'s operations on a file that is associated. Raises OSError if it fails at once;
        then nobody is called back.
        """
        operation = Operation(callback, self._loop, context)
        self.start(operation, method, arguments)
        return operation

    def start(self, operation: Operation, method: str, arguments: tuple[Any, ...]) -> Any:
        """As `begin`. Returns what the method returns: something true if there is nothing to wait for."""
        address = operation._overlapped.address
        self._in_flight[address] = operation  # first: an interrupt may come when it was begun
        try:
            over = getattr(operation._overlapped, method)(*arguments)
        except OSError:
            del self._in_flight[address]
            raise
        except BaseException:
            operation.cancel()
            raise
        if over:
            del self._in_flight[address]
        return over

    def expects(self, operation: Operation) -> bool:
        """Whether an operation has its packet or its turn before it."""
        return self._in_flight.get(operation._overlapped.address) is operation or operation in self._loop._turn.ready

    def _completed(self, address: int, _count: int) -> None:
        operation = self._in_flight.get(address)
        if operation is None:
            self._loop._turn.interests.stale_notifications += 1
            return
        if not operation._cancelled:
            self.call(operation)
        del self._in_flight[address]  # last: after an interrupt we are told again

    def call(self, operation: Handle) -> None:
        """It has ended. May be called in another thread."""
        self._uncalled[id(operation)] = operation
        self._loop._turn.ready.append(operation)

    def called(self, operation: Handle) -> None:
        """Its callback has returned, or is not to be called."""
        self._uncalled.pop(id(operation), None)

    def call_again(self) -> None:
        """What an interrupt has kept from being called, or from returning."""
        ready = list(self._loop._turn.ready)
        for operation in list(self._uncalled.values()):
            if all(handle is not operation for handle in ready):
                operation._cancelled = False
                self._loop._turn.ready.append(operation)

    def close(self) -> None:
        """Cancel what is in flight, and take in its packets."""
        self._uncalled.clear()
        with ExitStack() as every:
            for operation in self._in_flight.values():
                every.callback(operation.cancel)
            every.callback(self._take_in)

    def _take_in(self) -> None:
        interests, deadline = self._loop._turn.interests, perf_counter_ns() + PATIENCE_NS
        while self._in_flight and (left := deadline - perf_counter_ns()) > 0:
            interests.ready(interests.dequeue(left))
        for operation in self._in_flight.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(operation._overlapped))
        self._in_flight.clear()

    def __len__(self) -> int:
        return len(self._in_flight)


class OverlappedFile:
    """A file that was opened for overlapped operations. Its methods raise OSError for what fails at once."""

    __slots__ = ("_handle", "_operations", "pipe")

    def __init__(self, loop: Loop, pipe: Any, handle: int) -> None:
        self._operations: Operations = loop._system.operations
        self._operations.associate(handle)
        self._handle = handle
        self.pipe = pipe

    def read(self, size: int, callback: Callable[[], object], context: Context | None = None) -> Operation:
        return self._operations.begin("ReadFile", (self._handle, size), callback, context)

    def write(self, data: bytes, callback: Callable[[], object], context: Context | None = None) -> Operation:
        return self._operations.begin("WriteFile", (self._handle, data), callback, context)

    def connect(self, callback: Callable[[], object]) -> Operation | None:
        """Wait for a client, as the server of a named pipe. None if one is there already: then nobody is called."""
        operation = Operation(callback, self._operations._loop, None)
        return None if self._operations.start(operation, "ConnectNamedPipe", (self._handle,)) else operation

    def ended(self) -> bool:
        """Whether this is a pipe that may be read from, with nothing in it and the other end closed."""
        try:
            _winapi.PeekNamedPipe(self._handle, 0)
        except OSError as error:
            return error.winerror in AT_END
        return False

    def close(self) -> None:
        self.pipe.close()
