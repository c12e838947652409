"""TLS with certificates made on the spot: what is right is accepted, what is wrong is refused."""

from __future__ import annotations

import asyncio
import functools
import io
import random
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import ClientSession

pytestmark = pytest.mark.asyncio

Urls = dict[str, str]
NEVER = 3600.0  # seconds; what waits for a peer that does not answer fails the test


async def _assert_serves(session: ClientSession, server: Urls, trusting: ssl.SSLContext) -> None:
    async with session.get(f"{server['https']}/connection", ssl=trusting) as response:
        assert (await response.json())["tls"].startswith("TLSv1.")


async def test_connection_is_encrypted_and_kept(server: Urls, session: ClientSession, trusting: ssl.SSLContext) -> None:
    ports = set()
    for _ in range(20):
        async with session.get(f"{server['https']}/connection", ssl=trusting) as response:
            answer = await response.json()
            assert answer["tls"] == "TLSv1.3"
            ports.add(answer["port"])
    assert len(ports) == 1


async def test_tls_1_2(server: Urls, session: ClientSession, trusting: ssl.SSLContext) -> None:
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    async with session.get(f"{server['https']}/connection", ssl=trusting) as response:
        assert (await response.json())["tls"] == "TLSv1.2"


async def test_large_bodies_both_ways(server: Urls, session: ClientSession, trusting: ssl.SSLContext) -> None:
    body = random.Random(4).randbytes(10_000_000)
    async with session.post(f"{server['https']}/echo", data=io.BytesIO(body), ssl=trusting) as response:
        assert await response.read() == body


async def test_file_is_sent(
    server: Urls, session: ClientSession, trusting: ssl.SSLContext, files: Path, name: str
) -> None:
    content = random.Random(5).randbytes(3_000_000)
    (files / name).write_bytes(content)
    async with session.get(f"{server['https']}/files/{name}", ssl=trusting) as response:
        assert await response.read() == content


async def test_many_handshakes_at_once(
    server: Urls, session: ClientSession, trusting: ssl.SSLContext, name: str
) -> None:
    async def meet() -> int:
        async with session.get(f"{server['https']}/meet/{name}", params={"parties": 30}, ssl=trusting) as response:
            return await response.json()

    places = await asyncio.gather(*(meet() for _ in range(30)))
    assert sorted(places) == list(range(30))


async def test_unknown_authority_is_refused(server: Urls, session: ClientSession, trusting: ssl.SSLContext) -> None:
    with pytest.raises(aiohttp.ClientConnectorCertificateError, match="CERTIFICATE_VERIFY_FAILED"):
        await session.get(f"{server['https']}/connection", ssl=ssl.create_default_context())
    await _assert_serves(session, server, trusting)


async def test_wrong_host_name_is_refused(server: Urls, session: ClientSession, trusting: ssl.SSLContext) -> None:
    url = server["https"].replace("localhost", "127.0.0.1")
    with pytest.raises(aiohttp.ClientConnectorCertificateError, match="IP address mismatch"):
        await session.get(f"{url}/connection", ssl=trusting)
    await _assert_serves(session, server, trusting)


async def test_client_that_speaks_plain_http_is_refused(
    server: Urls, session: ClientSession, trusting: ssl.SSLContext
) -> None:
    with pytest.raises(aiohttp.ClientConnectionError):
        await session.get(f"{server['https'].replace('https', 'http')}/connection")
    await _assert_serves(session, server, trusting)


async def test_client_that_leaves_during_the_handshake(
    server: Urls, session: ClientSession, trusting: ssl.SSLContext
) -> None:
    _, writer = await asyncio.open_connection("localhost", int(server["https"].rpartition(":")[2]))
    writer.write(b"\x16\x03\x01")  # a record that begins a handshake, and no more
    writer.close()
    await writer.wait_closed()
    await _assert_serves(session, server, trusting)


@pytest.mark.asyncio
@pytest.mark.differs(
    asyncio="3.13.0", reason="reads the whole file for nobody, or asks a transport that is gone", run=False
)
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_client_that_leaves_a_download(
    certificate: Path,
    trusting: ssl.SSLContext,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    loop = asyncio.get_running_loop()
    for_ever = functools.partial(loop.create_server, ssl_shutdown_timeout=NEVER)  # what waits for the peer, waits
    monkeypatch.setattr(loop, "create_server", for_ever)
    (tmp_path / "file").write_bytes(bytes(30_000_000))
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Download(web.FileResponse):
        async def prepare(self, request: web.BaseRequest) -> Any:
            try:
                return await super().prepare(request)
            finally:
                ended.set_result(None)

    async def send(request: web.Request) -> web.StreamResponse:
        return Download(tmp_path / "file")

    application = web.Application()
    application.router.add_get("/", send)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0, ssl_context=context)
    await site.start()
    reader, writer = await asyncio.open_connection("localhost", runner.addresses[0][1], ssl=trusting)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readexactly(1_000_000)
    getattr(writer.transport, how)()
    await ended
    await runner.cleanup()
    complaints = [record for record in caplog.records if record.levelname != "INFO"]
    assert [record.getMessage() for record in complaints] == []
