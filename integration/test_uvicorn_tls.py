"""uvicorn over TLS, on each loop: a client that is turned away in the middle of its upload hears why, and is gone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

uvicorn = pytest.importorskip("uvicorn")

CHUNK = bytes(64 * 1024)
NEVER = 3600.0  # seconds; what waits for a peer that does not answer fails the test


class Connections(set[Any]):
    """uvicorn's, that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = asyncio.Event()

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        if not self:
            self.empty.set()


@pytest.mark.asyncio
@pytest.mark.differs(asyncio="3.13.0", reason="resets the connection")
@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_an_upload_that_is_not_read(
    certificate: Path, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, http: str
) -> None:
    pytest.importorskip(http)
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "create_server", functools.partial(loop.create_server, ssl_shutdown_timeout=NEVER))
    refuse = asyncio.Event()

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await refuse.wait()
        headers = [(b"content-length", b"9"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": b"too large"})

    config = uvicorn.Config(
        application, port=0, ssl_certfile=str(certificate), lifespan="off", http=http, log_config=None
    )
    server = uvicorn.Server(config)
    server.server_state.connections = connections = Connections()
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]

    reader, writer = await asyncio.open_connection("localhost", port, ssl=trusting)
    writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n")
    while writer.transport.get_write_buffer_size() < 10 * len(CHUNK):  # until nobody reads any more
        writer.write(CHUNK)
        await asyncio.sleep(0)
    refuse.set()
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    assert (await reader.read()).endswith(b"\r\n\r\ntoo large")
    await connections.empty.wait()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    server.should_exit = True
    await serving
