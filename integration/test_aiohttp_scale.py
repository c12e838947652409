"""A thousand connections at the same time."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import ClientSession

PARTIES = 1000
DESCRIPTORS = 4 * PARTIES  # both ends may be in this process, and other things are open as well


@pytest.fixture(scope="module", autouse=True)
def enough_descriptors() -> Iterator[None]:
    """Raise the limit on open descriptors, before a server process inherits it. Windows has none."""
    if sys.platform == "win32":
        yield
        return
    import resource  # noqa: PLC0415

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.asyncio
async def test_thousand_requests_are_in_flight_together(
    server: dict[str, str], session: ClientSession, name: str
) -> None:
    """None is answered before all have arrived."""

    async def meet() -> int:
        async with session.get(f"{server['http']}/meet/{name}", params={"parties": PARTIES}) as response:
            return await response.json()

    for _ in range(2):  # the second time on the connections of the first
        places = await asyncio.gather(*(meet() for _ in range(PARTIES)))
        assert sorted(places) == list(range(PARTIES))
    assert session.connector is not None
    assert sum(len(connections) for connections in session.connector._conns.values()) == PARTIES
