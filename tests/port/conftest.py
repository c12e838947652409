"""What the port is driven with: real sockets, and an oracle that is not the port (`select`), so that a test waits
for the state that it speaks of before it asks the port.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort

if TYPE_CHECKING:
    from collections.abc import Iterator

    Pair = tuple[socket.socket, socket.socket]

LINGER_NOT = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Network:
    """Makes sockets, all non-blocking, and closes them after the test."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def adopt(self, sock: socket.socket) -> socket.socket:
        sock.setblocking(False)
        return self._open.enter_context(sock)

    def tcp(self) -> socket.socket:
        """Neither connected nor listening."""
        return self.adopt(socket.socket())

    def listener(self, backlog: int = 16) -> socket.socket:
        sock = self.tcp()
        sock.bind(("127.0.0.1", 0))
        sock.listen(backlog)
        return sock

    def refusing(self) -> tuple[str, int]:
        """An address that refuses connections for the length of the test: bound, but not listening."""
        sock = self.tcp()
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()

    def pair(self) -> Pair:
        """Two ends of a TCP connection."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = self.adopt(socket.create_connection(listener.getsockname()))
            theirs = self.adopt(listener.accept()[0])
        return ours, theirs

    def unix_pair(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> Pair:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        return self.adopt(ours), self.adopt(theirs)

    def any_pair(self) -> Pair:
        """Two ends of whatever the system connects fastest."""
        ours, theirs = socket.socketpair()
        return self.adopt(ours), self.adopt(theirs)

    def udp(self) -> socket.socket:
        sock = self.adopt(socket.socket(type=socket.SOCK_DGRAM))
        sock.bind(("127.0.0.1", 0))
        return sock

    def reuse(self, descriptor: int) -> socket.socket:
        """A new datagram socket under a descriptor that is free."""
        sock = self.udp()
        if sys.platform == "win32":  # which gives out the lowest that is free, sooner or later
            others = []
            while sock.fileno() != descriptor:
                assert len(others) < 1000, f"{descriptor} is not given out again"
                others.append(sock)
                sock = self.udp()
            for other in others:
                other.close()
        elif sock.fileno() != descriptor:
            os.dup2(sock.fileno(), descriptor, inheritable=False)
            sock.close()
            sock = self.adopt(socket.socket(fileno=descriptor))
        return sock

    def pipe(self) -> tuple[int, int]:
        """The reading and the writing end."""
        ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for end in ends:
            self._open.callback(self.close, end)
        return ends

    @staticmethod
    def close(descriptor: int) -> None:
        with suppress(OSError):  # the test has closed it
            os.close(descriptor)

    @staticmethod
    def connect(sock: socket.socket, address: tuple[str, int]) -> None:
        with suppress(BlockingIOError):
            sock.connect(address)

    @staticmethod
    def reset(sock: socket.socket) -> None:
        """Close so that the peer gets a reset."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        sock.close()

    @staticmethod
    def until_readable(*sockets: socket.socket | int) -> None:
        for sock in sockets:
            assert select.select([sock], [], [], 10)[0], f"{sock} did not become readable"

    @staticmethod
    def until_writable(*sockets: socket.socket | int) -> None:
        for sock in sockets:
            # Windows calls a connection that failed exceptional.
            assert any(select.select([], [sock], [sock], 10)), f"{sock} did not become writable"

    def shut_down(self) -> None:
        self._open.close()


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.shut_down()


@pytest.fixture
def pair(network: Network) -> Pair:
    return network.pair()


@pytest.fixture
def port() -> Iterator[CompletionPort]:
    with CompletionPort() as port:
        yield port
