"""The other end of a connection, moved by hand: what goes into one segment, and what never comes, is up to the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 64 * 1024


class Peer:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def speak(self, context: ssl.SSLContext, server_side: bool) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        hostname = None if server_side else "localhost"
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side, hostname)

    def hello(self) -> bytes:
        """A client's first words."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    async def shake_hands(self) -> bytes:
        """Returns the last words of its own, which are not sent yet."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send(self.outgoing.read())
                await self.hear()
            else:
                return self.outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    def goodbye(self) -> bytes:
        """A close_notify, whatever is still to be read."""
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        return self.outgoing.read()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def hear(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self.sock, CHUNK)
        if not data:
            raise EOFError
        self.incoming.write(data)

    async def receive(self) -> bytes:
        """What was sent next, or nothing for a close_notify. Raises EOFError without one, and ssl.SSLError for what
        the other end says of an error.
        """
        while True:
            try:
                return self.tls.read(CHUNK)
            except ssl.SSLWantReadError:
                await self.hear()
            except ssl.SSLZeroReturnError:  # the answer to our own
                return b""

    async def receive_all(self) -> bytes:
        received = bytearray()
        while data := await self.receive():
            received += data
        return bytes(received)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def ours(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    return pair[0]


@pytest.fixture
def peer(pair: tuple[socket.socket, socket.socket]) -> Peer:
    pair[1].setblocking(False)
    return Peer(pair[1])
