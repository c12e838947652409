"""Tests of the loop state asyncio's behaviour: each runs on the stock loop, on uvloop if installed, on ours."""

from __future__ import annotations

import asyncio
import importlib.util
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

import notifyloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "notifyloop": notifyloop.NotifyLoop,
}
if importlib.util.find_spec("uvloop"):
    import uvloop

    FACTORIES["uvloop"] = uvloop.new_event_loop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return FACTORIES


@pytest.fixture(params=FACTORIES)
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop of each kind, not running."""
    loop = FACTORIES[request.param]()
    yield loop
    loop.close()


@pytest.fixture
def notify_loop() -> Iterator[notifyloop.NotifyLoop]:
    """A loop of ours, not running."""
    loop = notifyloop.NotifyLoop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server named localhost needs, and a client that trusts it."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client
