"""An aiohttp application for the tests to talk to, in their own loop or, as a program, in another process.

As a program it listens on two free ports, one of them with TLS, prints both URLs as a line of JSON, and ends
when its standard input does. What its handlers see of the client, they note; the tests ask for the notes over
HTTP as well, and so need not know where the server runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import ssl
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from aiohttp import WSMsgType, web

import notifyloop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    # asyncio.run()'s: on Windows the other one ends at 512 sockets
    "asyncio": asyncio.ProactorEventLoop if sys.platform == "win32" else asyncio.SelectorEventLoop,
    "notifyloop": notifyloop.new_event_loop,
}
if importlib.util.find_spec("uvloop"):
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop

MANY = 1024  # connections that a listening socket queues: more than any test opens at once
BITE = 4096  # bytes that a slow reader takes at a time
MUCH = 16 * 1024 * 1024  # bytes that a part of a form may have


class Notebook:
    """What the handlers saw, by name. Reading a note waits until it is written."""

    def __init__(self) -> None:
        self._notes: defaultdict[str, asyncio.Future[Any]] = defaultdict(
            lambda: asyncio.get_running_loop().create_future()
        )

    def write(self, name: str, value: Any = None) -> None:
        self._notes[name].set_result(value)

    async def read(self, name: str) -> Any:
        return await asyncio.shield(self._notes[name])  # the reader may be cancelled, the note may not


class MemoryGrowth:
    """How much larger this process has been, at any sample, than it was at first. In bytes."""

    SELDOM = 16  # looking takes as long as moving a few kilobytes

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.start()

    def start(self) -> None:
        self._first = self._process.memory_info().rss
        self._calls = 0
        self.bytes = 0

    def sample(self) -> None:
        self._calls += 1
        if self._calls % self.SELDOM == 0:
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._first)


NOTEBOOK = web.AppKey("notebook", Notebook)
MEMORY = web.AppKey("memory", MemoryGrowth)
BARRIERS = web.AppKey("barriers", dict[str, asyncio.Barrier])

routes = web.RouteTableDef()


@routes.get("/connection")
async def connection(request: web.Request) -> web.Response:
    """Tell who the client is: the same connection has the same port."""
    assert request.transport is not None
    encryption = request.transport.get_extra_info("ssl_object")
    peer = request.transport.get_extra_info("peername")
    return web.json_response({"port": peer[1], "tls": encryption.version() if encryption else None})


@routes.post("/echo")
async def echo(request: web.Request) -> web.StreamResponse:
    """Send the body back while it still comes in, and in a header how it was framed."""
    framing = request.headers.get("Transfer-Encoding", "length")
    response = web.StreamResponse(headers={"X-Request-Framing": framing})
    with contextlib.suppress(ConnectionError):  # clients of some tests leave on the way
        await response.prepare(request)
        async for part in request.content.iter_any():
            await response.write(part)
        await response.write_eof()
    return response


@routes.post("/consume")
async def consume(request: web.Request) -> web.Response:
    """Read the body in small bites, one a turn, so that the client is always ahead."""
    memory = request.app[MEMORY]
    size = 0
    while bite := await request.content.read(BITE):
        size += len(bite)
        memory.sample()
        await asyncio.sleep(0)
    return web.json_response({"bytes": size})


@routes.get("/produce")
async def produce(request: web.Request) -> web.StreamResponse:
    """Send ``bytes`` zeros as fast as the client takes them."""
    left = int(request.query["bytes"])
    memory = request.app[MEMORY]
    response = web.StreamResponse()
    await response.prepare(request)
    chunk = bytes(64 * 1024)
    while left:
        part = chunk[:left]
        await response.write(part)
        left -= len(part)
        memory.sample()
    await response.write_eof()
    return response


@routes.post("/memory")
async def start_measuring(request: web.Request) -> web.Response:
    request.app[MEMORY].start()
    return web.Response()


@routes.get("/memory")
async def memory_growth(request: web.Request) -> web.Response:
    return web.json_response(request.app[MEMORY].bytes)


@routes.post("/form")
async def form(request: web.Request) -> web.Response:
    """Tell the size of each part of a form."""
    sizes = {}
    async for part in await request.multipart():
        sizes[part.name] = len(await part.read())
    return web.json_response(sizes)


@routes.get("/hang/{name}")
async def hang(request: web.Request) -> web.Response:
    """Never answer. The notes tell that the request came, and that its client gave up."""
    notebook, name = request.app[NOTEBOOK], request.match_info["name"]
    notebook.write(f"{name}-began")
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        notebook.write(f"{name}-cancelled")
        raise
    raise AssertionError("nothing finishes this request")


@routes.get("/notes/{name}")
async def read_note(request: web.Request) -> web.Response:
    return web.json_response(await request.app[NOTEBOOK].read(request.match_info["name"]))


@routes.get("/abort")
async def abort(request: web.Request) -> web.Response:
    """Break the connection in the middle of the answer."""
    response = web.StreamResponse()
    response.content_length = 1000
    await response.prepare(request)
    await response.write(b"not a thousand bytes")
    assert request.transport is not None
    request.transport.abort()
    return response


@routes.get("/meet/{name}")
async def meet(request: web.Request) -> web.Response:
    """Answer when ``parties`` requests are here at the same time."""
    name, parties = request.match_info["name"], int(request.query["parties"])
    barrier = request.app[BARRIERS].setdefault(name, asyncio.Barrier(parties))
    return web.json_response(await barrier.wait())


@routes.get("/websocket/{name}")
async def websocket(request: web.Request) -> web.WebSocketResponse:
    """Send each message back, close when asked to, and note how the conversation ended."""
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    try:
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
            elif message.data.startswith("close "):
                _, code, reason = message.data.split(" ", 2)
                await socket.close(code=int(code), message=reason.encode())
            else:
                await socket.send_str(message.data)
    finally:
        request.app[NOTEBOOK].write(f"{request.match_info['name']}-closed", socket.close_code)
    return socket


@routes.get("/heartbeats")
async def heartbeats(request: web.Request) -> web.WebSocketResponse:
    """Answer pings, and after the second say so."""
    socket = web.WebSocketResponse(autoping=False)
    await socket.prepare(request)
    for _ in range(2):
        message = await socket.receive()
        assert message.type is WSMsgType.PING
        await socket.pong(message.data)
    await socket.send_str("two pings")
    await socket.close()
    return socket


def make_application(files: Path) -> web.Application:
    application = web.Application(client_max_size=MUCH)
    application.add_routes(routes)
    application.router.add_static("/files", files)
    application[NOTEBOOK] = Notebook()
    application[MEMORY] = MemoryGrowth()
    application[BARRIERS] = {}
    return application


@contextlib.asynccontextmanager
async def serving(files: Path, certificate: Path) -> AsyncIterator[dict[str, str]]:
    """Run the application on the running loop. Gives the URLs: ``http`` and ``https``."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    runner = web.AppRunner(make_application(files), handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=MANY).start()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=MANY, ssl_context=context).start()
        (_, http), (_, https) = runner.addresses
        yield {"http": f"http://127.0.0.1:{http}", "https": f"https://localhost:{https}"}
    finally:
        await runner.cleanup()


async def main(files: Path, certificate: Path) -> None:
    async with serving(files, certificate) as urls:
        print(json.dumps(urls), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the application of the aiohttp tests.")
    parser.add_argument("--loop", choices=LOOPS, required=True)
    parser.add_argument("--files", type=Path, required=True, help="folder served as /files")
    parser.add_argument("--certificate", type=Path, required=True, help="PEM file with key and chain")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=LOOPS[options.loop]) as runner:
        runner.run(main(options.files, options.certificate))
