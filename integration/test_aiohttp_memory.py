"""A hundred megabytes go through a connection, and neither end holds more than a little of it at any time.

The receiving end takes small bites, so the sending end is always ahead of it. Were a loop to read on while
reading is paused, or to accept writes without ever making the writer wait, most of the body would pile up.
"""

from __future__ import annotations

import asyncio
import sysconfig
from typing import TYPE_CHECKING

import pytest

from integration.http_application import BITE, MemoryGrowth

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import ClientSession

pytestmark = pytest.mark.asyncio

MUCH = 100_000_000
# Buffers and the allocator take about one; where there is no interpreter lock, with another allocator, up to thirty.
BOUND = 50_000_000 if sysconfig.get_config_var("Py_GIL_DISABLED") else 15_000_000


async def _upload(session: ClientSession, url: str, size: int, memory: MemoryGrowth) -> None:
    async def body() -> AsyncIterator[bytes]:
        left = size
        chunk = bytes(64 * 1024)
        while left:
            part = chunk[:left]
            yield part
            left -= len(part)
            memory.sample()

    async with session.post(f"{url}/consume", data=body()) as response:
        assert await response.json() == {"bytes": size}


async def _download(session: ClientSession, url: str, size: int, memory: MemoryGrowth) -> None:
    received = 0
    async with session.get(f"{url}/produce", params={"bytes": size}) as response:
        while bite := await response.content.read(BITE):
            received += len(bite)
            memory.sample()
            await asyncio.sleep(0)
    assert received == size


@pytest.mark.parametrize("transfer", [_upload, _download])
async def test_memory_is_bounded(server: dict[str, str], session: ClientSession, transfer: object) -> None:
    url = server["http"]
    here = MemoryGrowth()
    await transfer(session, url, MUCH // 50, here)  # what is allocated once is no growth
    here.start()
    await session.post(f"{url}/memory")
    await transfer(session, url, MUCH, here)
    async with session.get(f"{url}/memory") as response:
        there = await response.json()
    assert here.bytes < BOUND
    assert there < BOUND
