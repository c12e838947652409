"""Child processes, on Windows.

A process is an object one can wait for, and Windows has threads of its own that wait for many such objects each:
`RegisterWaitForSingleObject`. `_overlapped.RegisterWaitWithQueue` has them post a packet to the loop's port when a
process ends.

A wait that is taken back may be posting at that very moment. Whoever takes it back waits for that (it is one call
into the system), so that nothing is posted to a port that is closed.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _overlapped  # type: ignore[import-not-found]
import atexit
import itertools
import weakref
from asyncio import base_subprocess, windows_utils
from contextlib import ExitStack
from typing import TYPE_CHECKING

from notifyloop.children import Child
from notifyloop.windows.pipes import WritePipeTransport

if TYPE_CHECKING:
    from typing import Any

    from notifyloop.turn.surface import Loop

__all__ = ["ChildProcess", "Exits"]

EXITED = 0  # the completion key of `_overlapped.RegisterWaitWithQueue`

# Of what is collected together, the handle of a process may be the first to be closed, before those who ask it for the
# process are finalized: let it live as long as they.
handles: weakref.WeakKeyDictionary[windows_utils.Popen[Any], Any] = weakref.WeakKeyDictionary()


@atexit.register
def leave_to_windows() -> None:
    """At the end of the interpreter, `handles` is collected together with the rest: let Windows close them."""
    for handle in handles.values():
        handle.Detach()


class Exits:
    """The children whose end a loop waits for."""

    __slots__ = ("_loop", "_numbers", "_waits")

    def __init__(self, loop: Loop) -> None:
        self._loop: Any = loop
        self._numbers = itertools.count(1)  # where the packet of an overlapped operation has its address
        self._waits: dict[int, tuple[int, ChildProcess]] = {}
        loop._turn.interests.foreign[EXITED] = self._exited

    def watch(self, child: ChildProcess, process: int) -> None:
        """Have a child's `_exited` called when the process with this handle has ended. Raises OSError."""
        number = next(self._numbers)
        port = self._loop._turn.interests.port.handle
        wait = _overlapped.RegisterWaitWithQueue(process, port, number, _overlapped.INFINITE)
        self._waits[number] = wait, child

    def _exited(self, number: int, _timed_out: int) -> None:
        wait, child = self._waits.pop(number, (0, None))
        if child is None:
            self._loop._turn.interests.stale_notifications += 1
            return
        unregister(wait)
        self._loop.call_soon(child._exited)

    def close(self) -> None:
        with ExitStack() as every:
            for wait, _ in self._waits.values():
                every.callback(unregister, wait)
            self._waits.clear()


def unregister(wait: int) -> None:
    _overlapped.UnregisterWaitEx(wait, _overlapped.INVALID_HANDLE_VALUE)


class ChildProcess(Child, base_subprocess.BaseSubprocessTransport):
    """The transport of a child process; made by the loop's subprocess methods."""

    def _start(
        self, args: Any, shell: bool, stdin: Any, stdout: Any, stderr: Any, bufsize: int, **options: Any
    ) -> None:
        self._proc = windows_utils.Popen(
            args, shell=shell, stdin=stdin, stdout=stdout, stderr=stderr, bufsize=bufsize, **options
        )
        handles[self._proc] = self._proc._handle  # type: ignore[attr-defined, unused-ignore]
        try:
            self._loop._system.exits.watch(self, int(self._proc._handle))  # type: ignore[attr-defined, unused-ignore]
        except OSError:  # no child that nobody watches
            with self._proc:
                self._proc.kill()
            raise

    def _exited(self) -> None:
        assert self._proc is not None
        returncode = self._proc.poll()
        assert returncode is not None
        # Its end of the pipe was closed before, but there may be no packet of that yet: then who writes to it when
        # `wait` has returned would not hear that he does so for nobody.
        stdin = self._pipes.get(0)
        if stdin is not None and isinstance(stdin.pipe, WritePipeTransport):
            stdin.pipe.look_for_its_end()
        self._process_exited(returncode)

    def _check_proc(self) -> None:
        # The pipes may be open still, and then asyncio would have `Popen` say nothing of a signal for nobody.
        if self._returncode is not None:
            raise ProcessLookupError
        super()._check_proc()
