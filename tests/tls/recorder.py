"""A protocol that keeps what it is told, and turns to wait for."""

from __future__ import annotations

import asyncio
from typing import Any

TURNS = 20  # more than anything takes that does not wait for the peer


class Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.news = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)

    async def until(self, size: int) -> None:
        while len(self.received) < size:
            self.news.clear()
            await self.news.wait()


async def some_turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)
