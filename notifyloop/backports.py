"""What asyncio has only since Python 3.12, 3.13 or a point release of that, for the versions before."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    import ssl as tls
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import Context

__all__ = ["Asyncio", "SelectorEventLoop"]

logger = logging.getLogger("asyncio")


class SelectorEventLoop(asyncio.SelectorEventLoop):
    """asyncio's, where `create_unix_server` has `cleanup_socket`, `shutdown_default_executor` a timeout, and
    `create_task` options for the task.
    """

    if (3, 12) <= sys.version_info < (3, 13, 3):
        _check_closed: Callable[[], None]

        def create_task(
            self, coro: Any, *, name: Any = None, context: Context | None = None, **options: Any
        ) -> asyncio.Task[Any]:
            """As asyncio's: other options, like `eager_start`, are for the task."""
            self._check_closed()
            factory: Any = self.get_task_factory()
            if factory is None:
                task = asyncio.Task(coro, loop=self, name=name, context=context, **options)
                if task._source_traceback:  # type: ignore[attr-defined]
                    del task._source_traceback[-1]  # type: ignore[attr-defined]  # this frame
                try:
                    return task
                finally:
                    del task  # which its exception would hold by this frame, had it failed at once
            if context is not None:
                options["context"] = context
            made: asyncio.Task[Any] = factory(self, coro, **options)
            if name is not None:
                made.set_name(name)
            return made

    if (3, 13) <= sys.version_info < (3, 14):  # the first of them forget that they run if they are run once more
        _check_running: Callable[[], None]

        def run_forever(self) -> None:
            self._check_running()
            super().run_forever()

    if sys.version_info < (3, 13) and sys.platform != "win32":

        def __init__(self, selector: Any = None) -> None:
            super().__init__(selector)
            # descriptors of servers whose files are to be removed -> their inodes
            self._socket_files: dict[int, int] = {}

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
            server: asyncio.Server = await super().create_unix_server(
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
                [listener] = server.sockets
                name = listener.getsockname()
                if name and isinstance(name, str) and Path(name).exists():  # abstract sockets' names are bytes
                    self._socket_files[listener.fileno()] = Path(name).stat().st_ino
            return server

        def _stop_serving(self, sock: socket.socket) -> None:
            inode = self._socket_files.pop(sock.fileno(), None)
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

            def tell(error: BaseException | None) -> None:
                if ended.done():  # nobody waits any more
                    return
                if error is None:
                    ended.set_result(None)
                else:
                    ended.set_exception(error)

            def shut_down() -> None:
                failure = None
                try:
                    executor.shutdown(wait=True)
                except Exception as error:
                    failure = error
                if not self.is_closed():
                    self.call_soon_threadsafe(tell, failure)

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


Asyncio: Any = SelectorEventLoop  # for functions that do what its methods do with a loop, and more
