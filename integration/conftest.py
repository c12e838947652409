"""Each test is a client on one of the loops, and its server runs on the same loop or in a process on another.

So what aiohttp does on the stock loop is stated by the same tests, and both ends of a connection meet a loop
that is not theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio
import trustme

from integration.http_application import LOOPS, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    Start = Callable[[str], dict[str, str]]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority that only these tests trust."""
    return trustme.CA()


@pytest.fixture(scope="session")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with the server's key and certificate, which is for ``localhost``."""
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that servers offer as ``/files``."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="session")
def start_server(files: Path, certificate: Path) -> Iterator[Start]:
    """A function that starts the application on the loop it names, in a process of its own, once."""
    with contextlib.ExitStack() as stack:
        started: dict[str, dict[str, str]] = {}

        def start(loop: str) -> dict[str, str]:
            if loop not in started:
                started[loop] = stack.enter_context(_server_process(loop, files, certificate))
            return started[loop]

        yield start


@contextlib.contextmanager
def _server_process(loop: str, files: Path, certificate: Path) -> Iterator[dict[str, str]]:
    program = Path(__file__).with_name("http_application.py")
    options = ["--loop", loop, "--files", str(files), "--certificate", str(certificate)]
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(program), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line, f"the server on {loop} did not start"
            yield json.loads(line)
        finally:
            _, complaints = process.communicate()
            assert (process.returncode, complaints) == (0, "")


@pytest_asyncio.fixture(params=["same-loop", "asyncio-process", "notifyloop-process"])
async def server(
    request: pytest.FixtureRequest, files: Path, certificate: Path, start_server: Start
) -> AsyncIterator[dict[str, str]]:
    """The server's URLs: ``http`` and ``https``."""
    if request.param == "same-loop":
        async with serving(files, certificate) as urls:
            yield urls
    else:
        yield start_server(request.param.removesuffix("-process"))


class _Connector(aiohttp.TCPConnector):
    """Knows when its connections are closed, given-up ones too: TLS takes its time to say goodbye."""

    def __init__(self) -> None:
        super().__init__(limit=0)
        self.closings: list[asyncio.Future[None]] = []

    async def _create_connection(self, *arguments: Any) -> Any:
        protocol = await super()._create_connection(*arguments)
        if protocol.closed is not None:
            self.closings.append(protocol.closed)
        return protocol


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that opens as many connections as it is asked to."""
    connector = _Connector()
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session
    await asyncio.gather(*connector.closings, return_exceptions=True)


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """What a client needs to verify the server's certificate."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def name() -> str:
    """A name that no other test gives to a note or a meeting."""
    return secrets.token_hex(8)
