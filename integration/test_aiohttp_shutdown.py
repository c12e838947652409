"""A server that closes while clients are connected: who is served to the end, and who is sent away."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import WSCloseCode, WSMsgType, web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio


class Server:
    """An application whose slow requests last until `finish` is set."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.finish = asyncio.Event()
        self.sockets: list[web.WebSocketResponse] = []
        self.application = web.Application()
        self.application.add_routes(
            [
                web.get("/fast", self._fast),
                web.get("/slow", self._slow),
                web.get("/websocket", self._websocket),
            ]
        )
        self.application.on_shutdown.append(self._say_goodbye)
        self.runner = web.AppRunner(self.application, access_log=None)
        self.port = 0

    async def start(self) -> None:
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.port = self.runner.addresses[0][1]

    async def _fast(self, request: web.Request) -> web.Response:
        return web.Response(text="fast")

    async def _slow(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"slow ")
        self.began.set()
        await self.finish.wait()
        await response.write(b"but sure")
        await response.write_eof()
        return response

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        async for _ in socket:
            pass
        return socket

    async def _say_goodbye(self, application: web.Application) -> None:
        for websocket in self.sockets:
            await websocket.close(code=WSCloseCode.GOING_AWAY, message=b"closing time")


@pytest_asyncio.fixture
async def closing() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    server.finish.set()
    await server.runner.cleanup()


async def _get(session: aiohttp.ClientSession, server: Server, path: str) -> str:
    async with session.get(f"http://127.0.0.1:{server.port}{path}") as response:
        return await response.text()


async def test_request_in_flight_finishes(closing: Server, session: aiohttp.ClientSession) -> None:
    request = asyncio.create_task(_get(session, closing, "/slow"))
    await closing.began.wait()
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", closing.port)
    idle_writer.write(b"GET /fast HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await idle_reader.readuntil(b"fast")).startswith(b"HTTP/1.1 200")

    shutdown = asyncio.create_task(closing.runner.cleanup())
    assert await idle_reader.read() == b""  # a kept-alive connection without a request is closed at once
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", closing.port)
    assert not request.done()
    assert not shutdown.done()

    closing.finish.set()
    assert await request == "slow but sure"
    await shutdown
    idle_writer.close()
    await idle_writer.wait_closed()


async def test_request_that_outlasts_the_grace_is_broken_off(closing: Server, session: aiohttp.ClientSession) -> None:
    closing.runner._shutdown_timeout = 0.1
    request = asyncio.create_task(_get(session, closing, "/slow"))
    await closing.began.wait()
    await closing.runner.cleanup()
    with pytest.raises(aiohttp.ClientError):
        await request


async def test_websockets_are_told(closing: Server, session: aiohttp.ClientSession) -> None:
    async with session.ws_connect(f"http://127.0.0.1:{closing.port}/websocket") as socket:
        shutdown = asyncio.create_task(closing.runner.cleanup())
        message = await socket.receive()
        assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 1001, "closing time")
        await shutdown


async def test_port_is_free_again(closing: Server, session: aiohttp.ClientSession) -> None:
    assert await _get(session, closing, "/fast") == "fast"
    await closing.runner.cleanup()
    again = web.AppRunner(web.Application(), access_log=None)
    await again.setup()
    await web.TCPSite(again, "127.0.0.1", closing.port).start()
    async with session.get(f"http://127.0.0.1:{closing.port}/") as response:
        assert response.status == 404
    await again.cleanup()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Python for Windows has no Unix sockets")
async def test_unix_socket(tmp_path: Path) -> None:
    server = Server()
    path = str(tmp_path / "server.sock")
    await server.runner.setup()
    await web.UnixSite(server.runner, path).start()
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session,
        session.get("http://localhost/fast") as response,
    ):
        assert await response.text() == "fast"
    await server.runner.cleanup()
