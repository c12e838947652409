"""What asyncio has only since Python 3.12, 3.13 or 3.13.3, for the versions before."""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from asyncio import futures
from asyncio.log import logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    import ssl as tls
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import Context

__all__ = ["SelectorEventLoop"]


class SelectorEventLoop(asyncio.SelectorEventLoop):
    """asyncio's, where `create_unix_server` has `cleanup_socket`, `shutdown_default_executor` a timeout, and
    `create_task` options for the task.
    """

    if (3, 12) <= sys.version_info < (3, 13, 3):
        _task_factory: Callable[..., asyncio.Task[Any]] | None
        _check_closed: Callable[[], None]

        def create_task(
            self, coro: Any, *, name: Any = None, context: Context | None = None, **options: Any
        ) -> asyncio.Task[Any]:
            """As asyncio's: other options, like `eager_start`, are for the task."""
            self._check_closed()
            if self._task_factory is None:
                task = asyncio.Task(coro, loop=self, name=name, context=context, **options)
                if task._source_traceback:  # type: ignore[attr-defined]
                    del task._source_traceback[-1]  # type: ignore[attr-defined]  # this frame
                return task
            if context is not None:
                options["context"] = context
            task = self._task_factory(self, coro, **options)
            if name is not None:
                task.set_name(name)
            return task

    if sys.version_info < (3, 13) and sys.platform != "win32":

        def __init__(self, selector: Any = None) -> None:
            super().__init__(selector)
            self._unix_server_sockets: dict[socket.socket, int] = {}  # those to remove -> their inodes

        async def create_unix_server(
            self,
            protocol_factory: Callable[[], asyncio.BaseProtocol],
            path: Any = None,
            *,
            sock: socket.socket | None = None,
            backlog: int = 100,
            ssl: bool | tls.SSLContext | None = None,
            ssl_handshake_timeout: float | None = None,
            ssl_shutdown_timeout: float | None = None,
            start_serving: bool = True,
            cleanup_socket: bool = False,
        ) -> asyncio.Server:
            """As asyncio's. With `cleanup_socket`, the server removes the socket's file when it is closed, unless
            the file is another socket's by then.
            """
            server: Any = await super().create_unix_server(
                protocol_factory,
                path,
                sock=sock,
                backlog=backlog,
                ssl=ssl,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
                start_serving=start_serving,
            )
            if cleanup_socket:
                [listener] = server._sockets
                name = listener.getsockname()
                if name and isinstance(name, str) and Path(name).exists():  # abstract sockets' names are bytes
                    self._unix_server_sockets[listener] = Path(name).stat().st_ino
            return server  # type: ignore[no-any-return]

        def _stop_serving(self, sock: socket.socket) -> None:
            inode = self._unix_server_sockets.pop(sock, None)
            path = Path(sock.getsockname()) if inode is not None else None
            super()._stop_serving(sock)  # type: ignore[misc]
            if path is None:
                return
            try:
                if path.stat().st_ino == inode:
                    path.unlink()
            except FileNotFoundError:
                pass
            except OSError as error:
                logger.error("Unable to clean up listening UNIX socket %r: %r", str(path), error)

    if sys.version_info < (3, 13):  # Python 3.12 has the timeout, but its first versions wait all the same
        _default_executor: ThreadPoolExecutor | None
        _executor_shutdown_called: bool

        async def shutdown_default_executor(self, timeout: float | None = None) -> None:
            """As asyncio's: wait until the default executor's threads have ended; after `timeout` seconds warn,
            and wait no longer.
            """
            executor = self._default_executor
            if timeout is None or executor is None:
                await super().shutdown_default_executor()
                return
            self._executor_shutdown_called = True
            ended = self.create_future()

            def shut_down() -> None:
                executor.shutdown(wait=True)
                if not self.is_closed():
                    self.call_soon_threadsafe(futures._set_result_unless_cancelled, ended, None)  # type: ignore[attr-defined]

            thread = threading.Thread(target=shut_down)
            thread.start()
            try:
                async with asyncio.timeout(timeout):
                    await ended
            except TimeoutError:
                warnings.warn(
                    f"The executor did not finish joining its threads within {timeout} seconds.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                executor.shutdown(wait=False)
            else:
                thread.join()
