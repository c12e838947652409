"""Lives of connections, drawn by lot: whatever both ends do, and in whatever order, nothing is lost that is not given
up, nothing comes out of order, and the end comes once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from random import Random
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typing import Any

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

SIZES = [1, 100, 20_000, 200_000]  # of what is written at once
PATIENCE = 20_000  # turns: more than a small buffer needs for all that is sent


class Program(asyncio.Protocol):
    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.received = bytearray()
        self.written = bytearray()
        self.closed = self.aborted = False
        self.ends: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        assert not self.closed
        assert not self.ends
        self.received += data
        self.act_at_times()

    def eof_received(self) -> None:
        assert not self.ends
        self.act_at_times()

    def pause_writing(self) -> None:
        self.act_at_times()

    def resume_writing(self) -> None:
        self.act_at_times()

    def connection_lost(self, error: Exception | None) -> None:
        self.ends.append(error)

    def act_at_times(self) -> None:
        if self.chance.random() < 0.15:
            self.act()

    def act(self) -> None:
        lot = self.chance.random()
        if lot < 0.5:
            data = self.chance.randbytes(self.chance.choice(SIZES))
            if not self.transport.is_closing():
                self.written += data
            self.transport.write(data)
        elif lot < 0.65:
            self.transport.pause_reading()
        elif lot < 0.9:
            self.transport.resume_reading()
        else:
            self.closed = True
            self.aborted = self.aborted or lot > 0.98
            self.transport.abort() if lot > 0.98 else self.transport.close()


class Buffering(Program, asyncio.BufferedProtocol):
    def __init__(self, chance: Random) -> None:
        super().__init__(chance)
        self.buffer = bytearray(chance.choice([997, 16_384, 100_000]))

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.buffer[:nbytes]))


class Partner:
    """The other end, which never waits."""

    def __init__(self, peer: Any) -> None:
        self.sock, self.tls, self.incoming, self.outgoing = peer.sock, peer.tls, peer.incoming, peer.outgoing
        self.sent, self.heard, self.rest = bytearray(), bytearray(), b""
        self.has_ended = self.is_alone = False

    def write(self, data: bytes) -> None:
        self.sent += data
        self.tls.write(data)
        self.flush()

    def flush(self) -> None:
        self.rest += self.outgoing.read()
        with contextlib.suppress(BlockingIOError):
            while self.rest and not self.is_alone:
                self.rest = self.rest[self.sock.send(self.rest) :]

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self.sock.recv(65536):
                self.incoming.write(data)
            self.is_alone = True
        with contextlib.suppress(ssl.SSLError):
            while data := self.tls.read(65536):
                self.heard += data

    def say_goodbye(self) -> None:
        self.has_ended = True
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.flush()

    def end(self) -> None:
        if not self.rest:
            self.has_ended = True
            with contextlib.suppress(OSError):  # it was reset
                self.sock.shutdown(socket.SHUT_WR)


@pytest.mark.asyncio(loop_factories=["notifyloop"])  # the other tests say what asyncio and uvloop lose
@pytest.mark.parametrize("seed", range(60))
async def test_a_life(ours: socket.socket, peer: Any, tls: Contexts, seed: int) -> None:
    chance = Random(seed)
    loop = asyncio.get_running_loop()
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, report: reports.append(report))
    program = chance.choice([Program, Buffering])(chance)
    server, client = tls
    if chance.random() < 0.5:
        peer.speak(client, server_side=False)
        begin: Any = loop.connect_accepted_socket(lambda: program, ours, ssl=server, ssl_shutdown_timeout=3600.0)
    else:
        peer.speak(server, server_side=True)
        begin = loop.create_connection(
            lambda: program, sock=ours, ssl=client, server_hostname="localhost", ssl_shutdown_timeout=3600.0
        )
    beginning = asyncio.ensure_future(begin)
    await peer.send(await peer.shake_hands())
    await beginning

    partner = Partner(peer)
    with contextlib.suppress(ConnectionError):  # what was aborted
        for _ in range(chance.randrange(5, 60)):
            lot = chance.random()
            if lot < 0.3 and not partner.has_ended:
                partner.write(chance.randbytes(chance.choice(SIZES)))
            elif lot < 0.5:
                program.act()
            elif lot < 0.7:
                partner.read()
            elif lot < 0.72 and not partner.has_ended:
                partner.say_goodbye()
            elif lot < 0.73 and not partner.has_ended:
                partner.end()
            else:
                for _ in range(chance.randrange(1, 5)):
                    await asyncio.sleep(0)
            partner.flush()

        # Now both come to an end: the program reads what there is, the partner too, and says goodbye.
        program.act_at_times = lambda: None  # type: ignore[method-assign]
        for _ in range(PATIENCE):
            if program.ends and partner.is_alone:
                break
            program.transport.resume_reading()
            partner.flush()
            partner.read()
            if not partner.has_ended and not partner.rest:
                partner.say_goodbye()
            await asyncio.sleep(0)
    for _ in range(PATIENCE):
        if program.ends:
            break
        await asyncio.sleep(0)

    assert len(program.ends) == 1
    assert partner.sent.startswith(program.received)
    assert program.written.startswith(partner.heard)
    if not program.closed:
        assert program.received == partner.sent
    if not program.aborted:
        assert partner.heard == program.written
    assert reports == []
