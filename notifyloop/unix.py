"""What a loop inherits on other systems than Windows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVarTuple

from notifyloop import subprocesses
from notifyloop.sockets import SocketOperations

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Unpack

assert sys.platform != "win32"

__all__ = ["System"]

Ts = TypeVarTuple("Ts")


class System(SocketOperations):
    """The methods of a loop that differ from system to system."""

    _ssock: Any

    # ---- child processes

    async def _make_subprocess_transport(self, *arguments: Any, **options: Any) -> Any:
        if not subprocesses.can_watch_children():
            return await super()._make_subprocess_transport(*arguments, **options)  # type: ignore[misc]
        waiter = self.create_future()
        child = subprocesses.ChildProcess(self, *arguments, waiter=waiter, **options)
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            child.close()
            await child._wait()
            raise
        return child

    # ---- signals

    def add_signal_handler(self, sig: int, callback: Callable[[Unpack[Ts]], Any], *args: *Ts) -> None:
        """As asyncio's. CPython announces signals on a descriptor of its own choice of format, so here a
        socket pair it is.
        """
        if self._ssock is None and not self.is_closed():
            super()._make_self_pipe()  # type: ignore[misc]
        super().add_signal_handler(sig, callback, *args)
