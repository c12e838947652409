"""aiofastnet, which puts transports of its own on whatever loop there is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import ssl

    import trustme

aiofastnet: Any = pytest.importorskip("aiofastnet")

SIZES = (1, 1000, 100_000, 3_000_000)  # bytes


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("secured", [False, True], ids=["plain", "TLS"])
async def test_streams_on_its_transports(authority: trustme.CA, trusting: ssl.SSLContext, secured: bool) -> None:
    import ssl  # noqa: PLC0415

    aiofastnet.patch_loop(asyncio.get_running_loop())
    serving = None
    if secured:
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(serving)
    server = await asyncio.start_server(echo, "localhost", 0, ssl=serving)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("localhost", port, ssl=trusting if secured else None)
    assert type(writer.transport).__module__.startswith("aiofastnet.")
    for size in SIZES:
        writer.write(b"x" * size)
        assert await reader.readexactly(size) == b"x" * size
    writer.write_eof() if writer.can_write_eof() else writer.close()
    if not secured:
        assert await reader.read() == b""
        writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
