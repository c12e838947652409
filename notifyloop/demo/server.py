"""An unmodified aiohttp application on notifyloop, and a live page of what the loop does meanwhile.

==================  ===================================================================
``/``               the live page
``/json``           a small JSON document
``/echo``           a websocket that sends back each message
``/stream``         a streamed body, ``?megabytes=10`` long
``/statistics``     the loop's figures as JSON, once
``/live``           the same figures through a websocket, twice a second
==================  ===================================================================

The figures are running totals. The page makes rates of them, from two snapshots and the loop's clock, so a
snapshot that comes late or gets lost costs resolution but never correctness.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import importlib.resources
import ipaddress
import platform
import signal
import sys
from typing import TYPE_CHECKING

from aiohttp import WSCloseCode, web

from notifyloop import NotifyLoop, __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_LIVE_INTERVAL = 0.5  # seconds between two snapshots
_GRACE = 5.0  # seconds that requests in flight get to finish once the server closes
_CHUNK = bytes(64 * 1024)
_MEGABYTE = 1_000_000
_LONGEST_STREAM = 1_000  # megabytes

# The page is one file; with this header the browser itself refuses anything from elsewhere.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
)


class ListenError(Exception):
    """The demo cannot listen where it was told to. The message names the host, the port and the reason."""

    def __init__(self, host: str, port: int, reason: str | None) -> None:
        super().__init__(f"cannot listen on {host} port {port}: {reason}")


class DemoServer:
    """The demo application and the sockets that it listens on.

    Args:
        loop: the loop that runs the server, and whose statistics it shows.
    """

    def __init__(self, loop: NotifyLoop) -> None:
        self._loop = loop
        self._page = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        self._websockets: set[web.WebSocketResponse] = set()
        application = web.Application()
        application.add_routes(
            [
                web.get("/", self._get_page),
                web.get("/json", self._get_json),
                web.get("/echo", self._echo),
                web.get("/stream", self._stream),
                web.get("/statistics", self._get_statistics),
                web.get("/live", self._live),
            ]
        )
        application.on_shutdown.append(self._close_websockets)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=_GRACE)

    async def listen(self, host: str, port: int) -> list[str]:
        """Listen on every address of ``host`` and return one URL for each.

        Port 0 takes a free port. Raises ListenError when ``host`` has no address here or the port is taken.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            raise ListenError(host, port, "the port is in use" if in_use else error.strerror) from error
        except UnicodeError as error:  # from the encoding of host names
            raise ListenError(host, port, "that is no host name") from error
        return [_url(address[0], address[1]) for address in self._runner.addresses]

    async def close(self) -> None:
        """Stop listening, let requests in flight finish, and close every connection."""
        await self._runner.cleanup()

    def figures(self) -> dict[str, int | float]:
        """Return `NotifyLoop.statistics`, the loop's time in seconds, and the connections open now."""
        server = self._runner.server
        return {
            "time": self._loop.time(),
            "connections": len(server.connections) if server is not None else 0,
            **dataclasses.asdict(self._loop.statistics()),
        }

    async def _get_page(self, request: web.Request) -> web.Response:
        return web.Response(
            text=self._page,
            content_type="text/html",
            headers={"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache"},
        )

    async def _get_json(self, request: web.Request) -> web.Response:
        return web.json_response(self._identity() | {"message": "Hello from notifyloop"})

    async def _get_statistics(self, request: web.Request) -> web.Response:
        return web.json_response(self.figures())

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        try:
            megabytes = int(request.query.get("megabytes", "10"))
        except ValueError:
            megabytes = 0
        if not 1 <= megabytes <= _LONGEST_STREAM:
            raise web.HTTPBadRequest(text=f"megabytes must be a number from 1 to {_LONGEST_STREAM}\n")
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = left = megabytes * _MEGABYTE
        await response.prepare(request)
        with _until_the_client_leaves():
            while left:
                chunk = _CHUNK[:left]
                await response.write(chunk)  # waits while the client reads more slowly than this writes
                left -= len(chunk)
            await response.write_eof()
        return response

    async def _echo(self, request: web.Request) -> web.WebSocketResponse:
        async with self._websocket(request) as websocket:
            async for message in websocket:
                if message.type is web.WSMsgType.TEXT:
                    await websocket.send_str(message.data)
                elif message.type is web.WSMsgType.BINARY:
                    await websocket.send_bytes(message.data)
        return websocket

    async def _live(self, request: web.Request) -> web.WebSocketResponse:
        async with self._websocket(request) as websocket:
            await websocket.send_json({"about": self._identity()})
            while not websocket.closed:
                await websocket.send_json({"figures": self.figures()})
                # The browser sends nothing; receiving is how its close is noticed.
                with contextlib.suppress(TimeoutError):
                    await websocket.receive(timeout=_LIVE_INTERVAL)
        return websocket

    @contextlib.asynccontextmanager
    async def _websocket(self, request: web.Request) -> AsyncIterator[web.WebSocketResponse]:
        websocket = web.WebSocketResponse(timeout=_GRACE)
        await websocket.prepare(request)
        self._websockets.add(websocket)
        try:
            with _until_the_client_leaves():
                yield websocket
        finally:
            self._websockets.discard(websocket)

    async def _close_websockets(self, application: web.Application) -> None:
        closing = [
            websocket.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops") for websocket in self._websockets
        ]
        await asyncio.gather(*closing)

    def _identity(self) -> dict[str, str]:
        return {
            "loop": f"{type(self._loop).__module__}.{type(self._loop).__qualname__}",
            "notifyloop": __version__,
            "python": f"{platform.python_implementation()} {platform.python_version()}",
        }


async def serve(host: str, port: int) -> None:
    """Run the demo until SIGINT or SIGTERM arrives, then close it gracefully.

    Prints the URLs once the server listens. Raises ListenError when it cannot listen, and TypeError when the
    running loop is not a `NotifyLoop`.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, NotifyLoop):
        raise TypeError(f"the demo shows a NotifyLoop at work, and runs on {loop!r}")
    server = DemoServer(loop)
    try:
        for url in await server.listen(host, port):
            print(f"notifyloop {__version__} serves {url}", flush=True)
        print("Open it in a browser. Ctrl-C ends it.", flush=True)
        await _stop_signal(loop)
        print("Closing, once requests in flight are done. Ctrl-C ends it at once.", flush=True)
    finally:
        await server.close()


def _until_the_client_leaves() -> contextlib.AbstractContextManager[None]:
    """End a handler quietly when its client is gone in the middle of the answer, as browsers are often."""
    return contextlib.suppress(ConnectionError)


async def _stop_signal(loop: NotifyLoop) -> None:
    """Wait for SIGINT or SIGTERM. The next one ends the process at once, whatever is still in flight."""
    stop = asyncio.Event()
    signals = [signal.SIGINT, signal.SIGTERM]
    if sys.platform == "win32":
        signals.append(signal.SIGBREAK)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
    for number in signals:
        signal.signal(number, signal.SIG_DFL)  # a KeyboardInterrupt would only begin another graceful end


def _url(host: str, port: int) -> str:
    """Return a URL that a browser on this machine can open, also where ``host`` means every interface."""
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return f"http://[{host}]:{port}/" if address.version == 6 else f"http://{host}:{port}/"
