"""Files that know no overlapped operations: consoles, standard input and output, the anonymous pipes of `os.pipe`
and `subprocess.PIPE`, files on disk. Each has a thread, which reads or writes for the loop.

It is a daemon: a program that ends does not wait for somebody to type. When the file is closed, the thread is called
back from what it waits for (`CancelSynchronousIo`), and closes the file itself, because Windows makes whoever closes a
file wait for the reads that are under way. A console does not hear that call; its thread stays until a line was
typed, and the line is lost.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import io
import msvcrt
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from cffi import FFI

from notifyloop.turn.handles import Handle
from notifyloop.turn.scheduling import wake_up
from notifyloop.windows.overlapped import AT_END

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = ["BlockingFile", "BlockingOperation", "is_overlapped", "system_handle"]

ffi = FFI()
ffi.cdef("""
typedef struct { void *status; uintptr_t information; } IO_STATUS_BLOCK;
long WINAPI NtQueryInformationFile(void *file, IO_STATUS_BLOCK *status, void *information,
                                 unsigned long size, int kind);
int WINAPI CancelSynchronousIo(void *thread);
void * WINAPI OpenThread(unsigned long access, int inherit, unsigned long thread);
int WINAPI CloseHandle(void *object);
""")
ntdll: Any = ffi.dlopen("ntdll.dll")
kernel32: Any = ffi.dlopen("kernel32.dll")

FILE_MODE_INFORMATION = 16
FILE_SYNCHRONOUS_IO = 0x10 | 0x20  # with alerts, without
THREAD_TERMINATE = 1  # the right that CancelSynchronousIo asks for
CALL_BACK_EVERY = 0.01  # seconds: the thread may not have come to its wait yet
CALLS_AT_THE_END = 5


def raw_file(pipe: Any) -> Any:
    """What is below the layers that decode and buffer: they would read ahead, and lock."""
    binary = getattr(pipe, "buffer", pipe)
    return getattr(binary, "raw", binary)


def system_handle(pipe: Any) -> int:
    """The handle by which Windows knows a file. `fileno()` of Python's own files is a number of the C library; that
    of other objects is, as in asyncio, the handle. Raises TypeError for objects without.
    """
    if not hasattr(pipe, "fileno"):
        raise TypeError(f"a file object is required, got {pipe!r}")
    raw = raw_file(pipe)
    if isinstance(raw, io.RawIOBase):
        return msvcrt.get_osfhandle(raw.fileno())
    return int(pipe.fileno())


def is_overlapped(handle: int) -> bool:
    """Whether a file was opened for overlapped operations. Raises OSError if it is none."""
    status, mode = ffi.new("IO_STATUS_BLOCK *"), ffi.new("unsigned long *")
    result = ntdll.NtQueryInformationFile(
        ffi.cast("void *", handle), status, mode, ffi.sizeof("unsigned long"), FILE_MODE_INFORMATION
    )
    if result < 0:  # not a file that can be asked: consoles were none before Windows 8
        _winapi.GetFileType(handle)
        return False
    return not mode[0] & FILE_SYNCHRONOUS_IO


class BlockingOperation(Handle):
    """One read or write: a callback, for when it has ended, and then its result."""

    __slots__ = ("_outcome",)

    _outcome: Any

    def _run(self) -> None:
        super()._run()
        self._loop._system.operations.called(self)

    def cancel(self) -> None:
        super().cancel()
        self._loop._system.operations.called(self)

    def ended(self) -> bool:
        """Whether it has a result."""
        return hasattr(self, "_outcome")

    def result(self) -> Any:
        """What it came to. Raises OSError if it failed."""
        if isinstance(self._outcome, OSError):
            raise self._outcome
        return self._outcome

    def received(self) -> bytes | None:
        """What was read, None at the end of the file. Raises OSError if it failed."""
        if isinstance(self._outcome, OSError) and self._outcome.winerror in AT_END:
            return None
        return self.result() or None


class BlockingFile:
    """A file and the thread that reads from it or writes to it."""

    __slots__ = ("__weakref__", "_called_off", "_closing", "_loop", "_orders", "_raw", "_thread", "_working", "pipe")

    def __init__(self, loop: Loop, pipe: Any, handle: int) -> None:
        self._loop = loop
        self._raw: Any = raw_file(pipe) if isinstance(raw_file(pipe), io.RawIOBase) else _Handle(handle)
        self.pipe = pipe
        self._orders: SimpleQueue[tuple[BlockingOperation, Callable[[Any], Any], Any] | None] = SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"notifyloop: {pipe!r}", daemon=True)
        self._thread.start()
        loop._system.blocking.add(self)

    def read(self, size: int, callback: Callable[[], object], context: Context | None = None) -> BlockingOperation:
        return self._order(self._raw.read, size, callback, context)

    def write(self, data: bytes, callback: Callable[[], object], context: Context | None = None) -> BlockingOperation:
        return self._order(self._write_all, data, callback, context)

    def _order(
        self, work: Callable[[Any], Any], what: Any, callback: Callable[[], object], context: Context | None
    ) -> BlockingOperation:
        operation: BlockingOperation = BlockingOperation(callback, (), self._loop, context)
        self._orders.put((operation, work, what))
        return operation

    def _write_all(self, data: bytes) -> None:
        left = memoryview(data)
        while left and not self._closing:
            left = left[self._raw.write(left) :]

    def _work(self) -> None:
        while not self._closing and (order := self._orders.get()) is not None:
            operation, work, what = order
            try:
                operation._outcome = work(what)
            except OSError as error:
                operation._outcome = error
            if self._closing:
                break
            self._loop._system.operations.call(operation)
            wake_up(self._loop)
        self.pipe.close()

    def close(self) -> None:
        """Have the thread close the file as soon as it can."""
        self._loop._system.blocking.discard(self)
        self._closing = True
        self._orders.put(None)
        self._call_back()

    def _call_back(self) -> None:
        if self._thread.is_alive():
            cancel_what_blocks(self._thread)
            if not self._loop.is_closed():
                self._loop.call_later(CALL_BACK_EVERY, self._call_back)

    def abandon(self) -> None:
        """The loop is about to be closed: end the thread if it can be ended, and do not wait for it if not."""
        self.close()
        for _ in range(CALLS_AT_THE_END):
            cancel_what_blocks(self._thread)
            self._thread.join(CALL_BACK_EVERY)
            if not self._thread.is_alive():
                break


def cancel_what_blocks(thread: threading.Thread) -> None:
    """End the read or write that a thread is waiting in, if it is."""
    if thread.native_id is not None:
        handle = kernel32.OpenThread(THREAD_TERMINATE, False, thread.native_id)
        if handle != ffi.NULL:
            kernel32.CancelSynchronousIo(handle)
            kernel32.CloseHandle(handle)


class _Handle:
    """Read and write a file of which only the handle is known."""

    __slots__ = ("_handle",)

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def read(self, size: int) -> bytes:
        data, _ = _winapi.ReadFile(self._handle, size)
        return data

    def write(self, data: memoryview) -> int:
        written, _ = _winapi.WriteFile(self._handle, bytes(data))
        return written
