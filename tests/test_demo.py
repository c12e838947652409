from __future__ import annotations

import asyncio
import dataclasses
import re
import socket
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

import notifyloop

aiohttp = pytest.importorskip("aiohttp", reason="the demo needs aiohttp, which notifyloop itself does not")

from notifyloop.demo.server import DemoServer, ListenError, _url, serve  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import ClientSession

pytestmark = pytest.mark.asyncio(loop_factories=["notifyloop"])

PAGE = files("notifyloop.demo").joinpath("page.html").read_text(encoding="utf-8")


@pytest_asyncio.fixture
async def demo() -> AsyncIterator[DemoServer]:
    server = DemoServer(asyncio.get_running_loop())
    yield server
    await server.close()


@pytest_asyncio.fixture
async def session(demo: DemoServer) -> AsyncIterator[ClientSession]:
    """A client of the demo."""
    [url] = await demo.listen("127.0.0.1", 0)
    async with aiohttp.ClientSession(url) as session:
        yield session


async def test_page_takes_nothing_from_elsewhere(session: ClientSession) -> None:
    async with session.get("/") as response:
        assert response.content_type == "text/html"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert await response.text() == PAGE
    addresses = set(re.findall(r"https?://[^\s'\"]+", PAGE)) - {"http://www.w3.org/2000/svg"}  # which is a name
    assert not addresses


async def test_page_shows_figures_that_exist(demo: DemoServer) -> None:
    used = set(re.findall(r"\b(?:now|before)\.(\w+)", PAGE)) | set(re.findall(r'\brate\("(\w+)"\)', PAGE))
    assert "re_arms" in used
    assert used <= demo.figures().keys()


async def test_json(session: ClientSession) -> None:
    async with session.get("/json") as response:
        answer = await response.json()
    assert answer["loop"] == "notifyloop.loop.NotifyLoop"
    assert answer["notifyloop"] == notifyloop.__version__


async def test_echo(session: ClientSession) -> None:
    async with session.ws_connect("/echo") as websocket:
        await websocket.send_str("text")
        assert await websocket.receive_str() == "text"
        await websocket.send_bytes(bytes(100_000))
        assert await websocket.receive_bytes() == bytes(100_000)


@pytest.mark.parametrize(("query", "megabytes"), [("", 10), ("?megabytes=1", 1), ("?megabytes=23", 23)])
async def test_stream(session: ClientSession, query: str, megabytes: int) -> None:
    async with session.get(f"/stream{query}") as response:
        assert response.content_length == megabytes * 1_000_000
        size = 0
        async for part in response.content.iter_any():
            size += len(part)
    assert size == megabytes * 1_000_000


@pytest.mark.parametrize("megabytes", ["0", "-1", "1001", "1.5", "many", ""])
async def test_stream_of_impossible_length(session: ClientSession, megabytes: str) -> None:
    async with session.get("/stream", params={"megabytes": megabytes}) as response:
        assert response.status == 400
        assert "from 1 to 1000" in await response.text()


async def test_statistics(session: ClientSession) -> None:
    async with session.get("/statistics") as response:
        figures = await response.json()
    counters = {field.name for field in dataclasses.fields(notifyloop.Statistics)}
    assert figures.keys() == counters | {"time", "connections"}
    assert figures["connections"] == 1
    assert figures["notifications"] > 0


async def test_live_figures_follow_what_happens(session: ClientSession) -> None:
    async with session.ws_connect("/live") as live:
        assert (await live.receive_json())["about"]["loop"] == "notifyloop.loop.NotifyLoop"
        first = (await live.receive_json())["figures"]
        assert first["connections"] == 1
        async with session.ws_connect("/echo"):
            second = (await live.receive_json())["figures"]
        assert second["connections"] == 2
        assert second["time"] > first["time"]
        assert second["iterations"] > first["iterations"]
        assert second["re_arms"] > first["re_arms"]


async def test_client_that_leaves_a_stream(session: ClientSession, caplog: pytest.LogCaptureFixture) -> None:
    async with session.ws_connect("/live") as live:
        await live.receive_json()
        async with session.get("/stream?megabytes=1000") as response:
            await response.content.read(1)
            response.close()
        while (await live.receive_json())["figures"]["connections"] > 1:
            pass
    assert not caplog.records


async def test_closing_tells_the_websockets(demo: DemoServer, session: ClientSession) -> None:
    async with session.ws_connect("/live") as live, session.ws_connect("/echo") as echo:
        await live.receive_json()
        await live.receive_json()
        closing = asyncio.create_task(demo.close())
        assert (await echo.receive()).data == aiohttp.WSCloseCode.GOING_AWAY
        async for message in live:
            assert message.type is aiohttp.WSMsgType.TEXT
        assert live.close_code == aiohttp.WSCloseCode.GOING_AWAY
        await closing


async def test_closing_lets_a_stream_finish(demo: DemoServer, session: ClientSession) -> None:
    async with session.get("/stream?megabytes=30") as response:
        await response.content.read(1)
        closing = asyncio.create_task(demo.close())
        assert len(await response.read()) == 30_000_000 - 1
        await closing


async def test_port_in_use(demo: DemoServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"port {port}: the port is in use$"):
            await demo.listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["name.invalid", "192.0.2.1", "x" * 70 + ".example"])
async def test_host_that_is_none_of_ours(demo: DemoServer, host: str) -> None:
    with pytest.raises(ListenError, match=f"^cannot listen on {host} port 0: .*[a-z]"):
        await demo.listen(host, 0)


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_serve_on_another_loop() -> None:
    with pytest.raises(TypeError, match="SelectorEventLoop"):
        await serve("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80/"),
        ("::1", "http://[::1]:80/"),
        ("0.0.0.0", "http://127.0.0.1:80/"),
        ("::", "http://[::1]:80/"),
    ],
)
async def test_url(host: str, url: str) -> None:
    assert _url(host, 80) == url
