"""Tests of the loop state asyncio's behaviour: each runs on the stock loop, on uvloop if installed, on ours.

What the other loops do otherwise, tests say as well: see `conftest.py`, one folder up. Those that cannot hold on every
system: `pytest.mark.only(*traits, reason=...)` and `pytest.mark.never(*traits, reason=...)`, with the traits of
`find_traits()`.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib.util
import os
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import notifyloop
from notifyloop import doctor
from notifyloop.port import CompletionPort, Registration, Trigger
from notifyloop.port.provider import provider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "notifyloop": notifyloop.NotifyLoop,
}
if importlib.util.find_spec("uvloop"):
    import uvloop

    FACTORIES["uvloop"] = uvloop.new_event_loop


@functools.cache
def find_traits() -> set[str]:
    """What can be said of the system that the tests run on, of the port's provider, and of our own form."""
    traits = {provider.name, "windows" if sys.platform == "win32" else sys.platform}
    traits.add("compiled" if notifyloop.compiled else "plain")
    if provider.name in ("epoll", "kqueue"):
        traits.add("descriptors")  # are watched, and the kernel knows whether one still is what was registered
    if sys.platform == "win32":
        import ctypes  # noqa: PLC0415

        if hasattr(ctypes.WinDLL("ntdll"), "wine_get_version"):
            traits.add("wine")
        if os.environ.get("NOTIFYLOOP_WINSOCK_DLL"):
            traits.add("double")  # of the native call
    if hasattr(socket, "AF_UNIX"):
        traits.add("unix sockets")
    with CompletionPort() as port, socket.socket() as sock:
        registration = Registration(sock, trigger=Trigger.EDGE | Trigger.ONESHOT)
        port.process([registration], max_notifications=0)
        if not registration.result:
            traits.add("edges")
    return traits


@pytest.fixture
def traits() -> set[str]:
    return find_traits()


def pytest_report_header() -> str:
    return f"python build: {doctor.facts()['python_build']}"  # which says whether the interpreter has a lock


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only(*traits, reason): the test holds only where these are all true")
    config.addinivalue_line("markers", "never(*traits, reason): the test does not hold where one of these is true")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("only"):
            if not set(mark.args) <= find_traits():
                item.add_marker(pytest.mark.skip(reason=mark.kwargs["reason"]))
        for mark in item.iter_markers("never"):
            if set(mark.args) & find_traits():
                item.add_marker(pytest.mark.skip(reason=mark.kwargs["reason"]))


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


@pytest.fixture(params=FACTORIES)
def make_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a loop, of each kind."""
    return FACTORIES[request.param]


@pytest.fixture
def notify_loop() -> Iterator[notifyloop.NotifyLoop]:
    """A loop of ours, not running."""
    loop = notifyloop.NotifyLoop()
    yield loop
    loop.close()


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Preloaded:
    """A library in C that stands before the system's, in Python programs of their own."""

    def __init__(self, source: Path, path: Path) -> None:
        self.path = path
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", source, "-o", path, "-ldl"], check=True)

    def run(self, *arguments: object) -> str:
        """What a program prints that Python is started with."""
        ended = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, "LD_PRELOAD": str(self.path)},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@pytest.fixture(scope="session")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Preloaded]:
    """Builds one of a source."""
    folder = tmp_path_factory.mktemp("preloaded")
    return lambda source: Preloaded(source, folder / f"{source.stem}.so")


@pytest.fixture(scope="session")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server named localhost needs, and a client that trusts it."""
    import trustme  # noqa: PLC0415

    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client
