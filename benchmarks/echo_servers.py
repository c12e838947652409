"""Echo servers, one for each way that asyncio has to serve a socket.

Each is written as one would write it for asyncio, and is the same for every loop. `SERVERS` maps the name
of an API to a coroutine function that takes a listening socket, starts to serve it, and returns what must be
kept as long as it is to be served.
"""

from __future__ import annotations

import asyncio
import socket

READ_SIZE = 64 * 1024  # bytes, where the program and not the loop chooses
BACKLOG = 4096  # room for all the connections that a cell opens at once


# ---- Protocol


class EchoProtocol(asyncio.Protocol):
    __slots__ = ("transport",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def serve_protocol(listener: socket.socket) -> asyncio.AbstractServer:
    loop = asyncio.get_running_loop()
    return await loop.create_server(EchoProtocol, sock=listener, backlog=BACKLOG)


# ---- BufferedProtocol


class BufferedEchoProtocol(asyncio.BufferedProtocol):
    __slots__ = ("buffer", "transport")

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(READ_SIZE))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        # A copy, because the transport may keep what it cannot send at once and this buffer is used again.
        self.transport.write(bytes(self.buffer[:nbytes]))


async def serve_buffered(listener: socket.socket) -> asyncio.AbstractServer:
    loop = asyncio.get_running_loop()
    return await loop.create_server(BufferedEchoProtocol, sock=listener, backlog=BACKLOG)


# ---- streams


async def echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(READ_SIZE):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def serve_streams(listener: socket.socket) -> asyncio.AbstractServer:
    return await asyncio.start_server(echo_stream, sock=listener, backlog=BACKLOG)


# ---- datagrams


class EchoDatagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


async def serve_datagrams(sock: socket.socket) -> asyncio.BaseTransport:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(EchoDatagrams, sock=sock)
    return transport


# ---- sock_*


async def echo_socket(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with connection:
        while data := await loop.sock_recv(connection, READ_SIZE):
            await loop.sock_sendall(connection, data)


async def accept_sockets(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as connections:
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections.create_task(echo_socket(connection))


async def serve_sock(listener: socket.socket) -> asyncio.Task[None]:
    return asyncio.create_task(accept_sockets(listener))


# ---- add_reader


class ReaderEcho:
    """Reads when there is something to read, except while the peer does not take what came before."""

    __slots__ = ("connection", "fd", "loop", "unsent")

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        self.loop = loop
        self.connection = connection
        self.fd = connection.fileno()
        self.unsent = memoryview(b"")
        loop.add_reader(self.fd, self.readable)

    def readable(self) -> None:
        try:
            data = self.connection.recv(READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            self.loop.remove_reader(self.fd)
            self.connection.close()
            return
        try:
            sent = self.connection.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.unsent = memoryview(data)[sent:]
            self.loop.remove_reader(self.fd)
            self.loop.add_writer(self.fd, self.writable)

    def writable(self) -> None:
        try:
            sent = self.connection.send(self.unsent)
        except BlockingIOError:
            return
        self.unsent = self.unsent[sent:]
        if not self.unsent:
            self.loop.remove_writer(self.fd)
            self.loop.add_reader(self.fd, self.readable)


async def serve_reader(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ReaderEcho(loop, connection)

    loop.add_reader(listener.fileno(), accept)


SERVERS = {
    "protocol": serve_protocol,
    "buffered": serve_buffered,
    "streams": serve_streams,
    "sock": serve_sock,
    "reader": serve_reader,
}
