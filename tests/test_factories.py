"""Protocol factories that raise: no transport takes what was meant for it, so it is closed.

asyncio leaks it; uvloop 0.23.0 closes what it has made itself.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

pytestmark = pytest.mark.asyncio(loop_factories=["notifyloop"])

LOCAL = ("127.0.0.1", 0)
counts_descriptors = pytest.mark.only("linux", reason="descriptors are counted in /proc")


def refuse() -> Any:
    raise ZeroDivisionError


def descriptors() -> set[str]:
    return {str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(LOCAL) as listener:
        yield listener


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@counts_descriptors
@pytest.mark.parametrize(
    "call",
    [
        "create_connection",
        "create_connection with TLS",
        "create_unix_connection",
        "create_datagram_endpoint",
        "subprocess_exec",
    ],
)
async def test_what_the_loop_has_made_is_closed(call: str, listener: socket.socket, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    path = str(tmp_path / "socket")
    unix_listener = socket.socket(socket.AF_UNIX)
    unix_listener.bind(path)
    unix_listener.listen()
    ways = {
        "create_connection": lambda: loop.create_connection(refuse, *listener.getsockname()),
        "create_connection with TLS": lambda: loop.create_connection(
            refuse, *listener.getsockname(), ssl=True, server_hostname="localhost"
        ),
        "create_unix_connection": lambda: loop.create_unix_connection(refuse, path),
        "create_datagram_endpoint": lambda: loop.create_datagram_endpoint(refuse, LOCAL),
        "subprocess_exec": lambda: loop.subprocess_exec(refuse, sys.executable, "-c", ""),
    }
    before = descriptors()
    with pytest.raises(ZeroDivisionError) as caught:
        await ways[call]()
    assert descriptors() == before
    assert caught.traceback  # which has all locals
    unix_listener.close()


@pytest.mark.parametrize("call", ["create_connection", "connect_accepted_socket", "create_datagram_endpoint"])
async def test_a_socket_that_was_given_to_the_loop_is_closed(
    call: str, pair: tuple[socket.socket, socket.socket], listener: socket.socket
) -> None:
    loop = asyncio.get_running_loop()
    sock = socket.create_connection(listener.getsockname())
    if call == "create_datagram_endpoint":
        sock.close()
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with pytest.raises(ZeroDivisionError):
        await getattr(loop, call)(refuse, sock=sock)
    assert sock.fileno() == -1


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_a_pipe_that_was_given_to_the_loop_is_closed(direction: str) -> None:
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", 0) as reading, os.fdopen(write_end, "wb", 0) as writing:
        pipe = reading if direction == "read" else writing
        with pytest.raises(ZeroDivisionError):
            await getattr(loop, f"connect_{direction}_pipe")(refuse, pipe)
        assert pipe.closed


@pytest.mark.parametrize("tls_too", [False, True])
async def test_an_accepted_connection_is_closed(tls_too: bool, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    server = await loop.create_server(refuse, *LOCAL, ssl=tls[0] if tls_too else None)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    server.close()
    gc.collect()
    assert all("exception" in context for context in told)


async def test_a_socket_that_is_a_transports_stays_open(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, *listener.getsockname())
    sock = transport.get_extra_info("socket")._sock
    with pytest.raises(RuntimeError, match="is used by transport"):
        await loop.create_connection(asyncio.Protocol, sock=sock)
    assert sock.fileno() != -1
    transport.write(b"still there")
    connection, _ = listener.accept()
    with connection:
        assert await loop.run_in_executor(None, connection.recv, 100) == b"still there"
    transport.close()


@counts_descriptors
async def test_tls_that_cannot_begin(listener: socket.socket) -> None:
    before = descriptors()
    with pytest.raises(ValueError, match="ssl_handshake_timeout") as caught:
        await asyncio.get_running_loop().create_connection(
            asyncio.Protocol,
            *listener.getsockname(),
            ssl=True,
            server_hostname="localhost",
            ssl_handshake_timeout=-1,
        )
    assert descriptors() == before
    assert caught.traceback
