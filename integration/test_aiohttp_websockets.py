"""Websockets: messages of every kind and size, pings, floods, and the ways a conversation ends."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import WSMsgType

if TYPE_CHECKING:
    import ssl

    from aiohttp import ClientSession

pytestmark = pytest.mark.asyncio

Urls = dict[str, str]


async def _close_code_there(session: ClientSession, server: Urls, name: str) -> int:
    async with session.get(f"{server['http']}/notes/{name}-closed") as response:
        return await response.json()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_messages_of_every_size_come_back(
    server: Urls, session: ClientSession, trusting: ssl.SSLContext, name: str, scheme: str
) -> None:
    numbers = random.Random(3)
    url = f"{server[scheme]}/websocket/{name}"
    async with session.ws_connect(url, max_msg_size=0, ssl=trusting) as socket:
        for size in (0, 1, 125, 126, 65_535, 65_536, 4_000_000):
            data = numbers.randbytes(size)
            await socket.send_bytes(data)
            assert await socket.receive_bytes() == data
            text = data[:100_000].hex()
            await socket.send_str(text)
            assert await socket.receive_str() == text


async def test_compressed_messages(server: Urls, session: ClientSession, name: str) -> None:
    async with session.ws_connect(f"{server['http']}/websocket/{name}", compress=15) as socket:
        assert socket.compress
        for number in range(20):
            await socket.send_str(f"{number} " * 10_000)
            assert await socket.receive_str() == f"{number} " * 10_000


async def test_flood_is_echoed_in_order(server: Urls, session: ClientSession, name: str) -> None:
    """Far more is under way than the sockets' buffers hold, so both ends have to wait for each other."""
    async with session.ws_connect(f"{server['http']}/websocket/{name}") as socket:

        async def send() -> None:
            for number in range(300):
                await socket.send_bytes(number.to_bytes(4, "big") * 16_384)

        sending = asyncio.create_task(send())
        for number in range(300):
            assert await socket.receive_bytes() == number.to_bytes(4, "big") * 16_384
        await sending


async def test_ping_is_answered(server: Urls, session: ClientSession, name: str) -> None:
    async with session.ws_connect(f"{server['http']}/websocket/{name}", autoping=False) as socket:
        await socket.ping(b"are you there")
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.PONG, b"are you there")


async def test_heartbeats(server: Urls, session: ClientSession) -> None:
    """The client sends each ping only if the one before was answered in time."""
    async with session.ws_connect(f"{server['http']}/heartbeats", heartbeat=0.4) as socket:
        assert await socket.receive_str() == "two pings"


async def test_client_closes_with_a_code(server: Urls, session: ClientSession, name: str) -> None:
    async with session.ws_connect(f"{server['http']}/websocket/{name}") as socket:
        await socket.close(code=4000, message=b"enough")
    assert await _close_code_there(session, server, name) == 4000


async def test_server_closes_with_a_code(server: Urls, session: ClientSession, name: str) -> None:
    async with session.ws_connect(f"{server['http']}/websocket/{name}") as socket:
        await socket.send_str("close 4001 had enough")
        message = await socket.receive()
        assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4001, "had enough")
        assert socket.close_code == 4001
    assert await _close_code_there(session, server, name) == 1000  # with which aiohttp's client confirms


async def test_connection_lost_without_a_close(server: Urls, session: ClientSession, name: str) -> None:
    socket = await session.ws_connect(f"{server['http']}/websocket/{name}")
    transport = socket._response.connection.transport
    transport.abort()
    assert await _close_code_there(session, server, name) != aiohttp.WSCloseCode.OK
    await socket.close()


async def test_many_conversations_at_once(server: Urls, session: ClientSession, name: str) -> None:
    async def converse(index: int) -> None:
        async with session.ws_connect(f"{server['http']}/websocket/{name}-{index}") as socket:
            for number in range(20):
                await socket.send_str(f"{index} {number}")
                assert await socket.receive_str() == f"{index} {number}"

    await asyncio.gather(*(converse(index) for index in range(50)))
