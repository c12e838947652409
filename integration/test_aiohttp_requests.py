"""Requests: kept-alive connections, bodies of every framing, clients and servers that give up."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import re
from typing import TYPE_CHECKING

import aiohttp
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from aiohttp import ClientSession

pytestmark = pytest.mark.asyncio

Urls = dict[str, str]


async def _port(session: ClientSession, url: str, **options: object) -> int:
    async with session.get(f"{url}/connection", **options) as response:  # type: ignore[arg-type]
        return (await response.json())["port"]


async def _read_note(session: ClientSession, server: Urls, name: str) -> object:
    async with session.get(f"{server['http']}/notes/{name}") as response:
        return await response.json()


async def _stream(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_sequential_requests_share_one_connection(server: Urls, session: ClientSession) -> None:
    ports = {await _port(session, server["http"]) for _ in range(50)}
    assert len(ports) == 1


async def test_connection_close_is_obeyed(server: Urls, session: ClientSession) -> None:
    first = await _port(session, server["http"], headers={"Connection": "close"})
    assert await _port(session, server["http"]) != first


async def test_parallel_requests_have_connections_of_their_own_and_keep_them(
    server: Urls, session: ClientSession, name: str
) -> None:
    async def meet() -> None:
        async with session.get(f"{server['http']}/meet/{name}", params={"parties": 10}) as response:
            assert response.status == 200
            await response.read()

    await asyncio.gather(*(meet() for _ in range(10)))
    assert session.connector is not None
    idle = sum(len(connections) for connections in session.connector._conns.values())
    assert idle == 10


async def test_pipelined_requests_are_answered_in_order(server: Urls) -> None:
    port = int(server["http"].rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
    requests = [head + "\r\n" + digit for digit in "12345678"] + [head + "Connection: close\r\n\r\n9"]
    writer.write("".join(requests).encode())
    answer = (await reader.read()).decode()
    assert "".join(re.findall(r"\r\n1\r\n(\d)\r\n0\r\n\r\n", answer)) == "123456789"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_000])
async def test_body_with_a_length(server: Urls, session: ClientSession, size: int) -> None:
    body = random.Random(size).randbytes(size)
    async with session.post(f"{server['http']}/echo", data=io.BytesIO(body)) as response:
        assert response.headers["X-Request-Framing"] == "length"
        assert await response.read() == body


async def test_chunked_bodies_both_ways(server: Urls, session: ClientSession) -> None:
    numbers = random.Random(7)
    parts = [numbers.randbytes(numbers.choice([1, 2, 100, 4096, 65_537, 300_000])) for _ in range(60)]
    async with session.post(f"{server['http']}/echo", data=_stream(parts)) as response:
        assert response.headers["X-Request-Framing"] == "chunked"
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert await response.read() == b"".join(parts)


async def test_conversation_within_one_exchange(server: Urls, session: ClientSession) -> None:
    """The client sends each part of its body only when the one before came back."""
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def parts() -> AsyncIterator[bytes]:
        part = b"0"
        for _ in range(100):
            yield part
            answer = await answers.get()
            assert answer == part
            part = str(int(answer) + 1).encode()

    async with session.post(f"{server['http']}/echo", data=parts()) as response:
        async for part in response.content.iter_any():
            answers.put_nowait(part)
    assert answers.empty()


async def test_form_with_a_file(server: Urls, session: ClientSession, tmp_path: Path) -> None:
    path = tmp_path / "upload.bin"
    path.write_bytes(random.Random(1).randbytes(2_000_000))
    file = path.open("rb")
    try:
        form = aiohttp.FormData({"text": "value"})
        form.add_field("file", file, filename="upload.bin")
        async with session.post(f"{server['http']}/form", data=form) as response:
            assert await response.json() == {"text": 5, "file": 2_000_000}
    finally:  # aiohttp closes it, too, in another thread, perhaps at the same time
        with contextlib.suppress(ValueError):
            file.close()


async def test_file_is_sent(server: Urls, session: ClientSession, files: Path, name: str) -> None:
    """aiohttp gives files to the loop's sendfile."""
    content = random.Random(2).randbytes(5_000_000)
    (files / name).write_bytes(content)
    async with session.get(f"{server['http']}/files/{name}") as response:
        assert await response.read() == content
    async with session.get(f"{server['http']}/files/{name}", headers={"Range": "bytes=1000000-1999999"}) as part:
        assert part.status == 206
        assert await part.read() == content[1_000_000:2_000_000]


async def test_request_that_times_out_is_cancelled_on_the_server(
    server: Urls, session: ClientSession, name: str
) -> None:
    with pytest.raises(TimeoutError):
        await session.get(f"{server['http']}/hang/{name}", timeout=aiohttp.ClientTimeout(total=0.2))
    await _read_note(session, server, f"{name}-cancelled")


async def test_response_that_stalls_times_out(server: Urls, session: ClientSession, name: str) -> None:
    with pytest.raises(aiohttp.SocketTimeoutError):
        await session.get(f"{server['http']}/hang/{name}", timeout=aiohttp.ClientTimeout(sock_read=0.2))
    await _read_note(session, server, f"{name}-cancelled")


async def test_cancelled_request_is_cancelled_on_the_server(server: Urls, session: ClientSession, name: str) -> None:
    request = asyncio.create_task(session.get(f"{server['http']}/hang/{name}"))
    await _read_note(session, server, f"{name}-began")
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await _read_note(session, server, f"{name}-cancelled")


async def test_client_that_leaves_an_upload(server: Urls, session: ClientSession) -> None:
    """To a handler that answers only to a whole body: an answer that began would be what the client gets."""

    async def parts() -> AsyncIterator[bytes]:
        yield bytes(100_000)
        raise ZeroDivisionError

    with pytest.raises(aiohttp.ClientConnectionError):
        await session.post(f"{server['http']}/consume", data=parts(), raise_for_status=True).__aenter__()
    assert await _port(session, server["http"])


async def test_connection_broken_in_the_middle_of_a_response(server: Urls, session: ClientSession) -> None:
    async with session.get(f"{server['http']}/abort") as response:
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    assert await _port(session, server["http"])


async def test_refused_connection(session: ClientSession, unused_tcp_port: int) -> None:
    with pytest.raises(aiohttp.ClientConnectorError) as refused:
        await session.get(f"http://127.0.0.1:{unused_tcp_port}/")
    assert isinstance(refused.value.os_error, ConnectionRefusedError)
