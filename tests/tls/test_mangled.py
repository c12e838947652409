"""What arrives mangled, drawn by lot: a handshake or a connection ends, delivers nothing that was not said, and leaves
nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import notifyloop

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from typing import Any

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


class Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.events: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(error)


@pytest.fixture(scope="module")
def loop_for_all() -> Iterator[notifyloop.NotifyLoop]:
    loop = notifyloop.NotifyLoop()
    yield loop
    loop.close()


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "repeat", "insert"]), st.integers(0, 3000), st.binary(min_size=1, max_size=8)
    ),
    min_size=1,
    max_size=4,
)


def mangle(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    changed = bytearray(data)
    for kind, anywhere, what in changes:
        place = anywhere % (len(changed) + 1)
        if kind == "flip":
            for number, byte in enumerate(what):
                if place + number < len(changed):
                    changed[place + number] ^= byte
        elif kind == "cut":
            del changed[place : place + len(what)]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + 16 * len(what)]
        else:
            changed[place:place] = what
    return bytes(changed)


async def a_mangled_life(tls: Contexts, peer_class: Any, changes: list[tuple[str, int, bytes]], at_once: bool) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    peer = peer_class(theirs)
    peer.speak(tls[1], server_side=False)
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    protocol = Recorder()
    accepting = asyncio.ensure_future(
        asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, ours, ssl=tls[0])
    )
    told = b"intact" * 100
    with contextlib.suppress(OSError, EOFError):
        if at_once:
            await peer.send(mangle(peer.hello(), changes))
        else:
            said = await peer.shake_hands() + peer.encrypt(told) + peer.encrypt(told)
            await peer.send(mangle(said, changes))
    with contextlib.suppress(OSError):
        theirs.shutdown(socket.SHUT_WR)
    try:
        await accepting
    except OSError:
        assert protocol.events == []
    else:
        error = await protocol.lost
        assert error is None or isinstance(error, OSError)
        assert (told + told).startswith(protocol.received)
        assert protocol.events == ["made", "lost"]
    theirs.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert reports == []
    assert ours.fileno() == -1


@pytest.mark.skipif(sys.platform == "win32", reason="OpenSSL has the socket itself only elsewhere")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, at_once=st.booleans())
def test_a_mangled_life(
    loop_for_all: notifyloop.NotifyLoop, tls: Contexts, peer: Any, changes: list[tuple[str, int, bytes]], at_once: bool
) -> None:
    loop_for_all.run_until_complete(a_mangled_life(tls, type(peer), changes, at_once))
