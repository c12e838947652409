"""The smallest aiohttp application: one handler that says hello."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.echo_servers import BACKLOG

if TYPE_CHECKING:
    import socket

HELLO = "Hello, world!\n"


async def serve_hello(listener: socket.socket) -> object:
    """As the echo servers do it: serve a listening socket, and return what must be kept."""
    from aiohttp import web  # noqa: PLC0415 - no other server needs it

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=HELLO)

    application = web.Application()
    application.router.add_get("/", hello)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
    return runner
