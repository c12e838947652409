"""Writing to what nobody reads any more, where SIGPIPE does what it does outside of Python: it ends the process.

asyncio and uvloop let it: gentoo/portage#1706, python/asyncio#351.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import pytest

if sys.platform == "win32":
    pytest.skip("Windows has no SIGPIPE", allow_module_level=True)

from notifyloop.unix import sigpipe

PREAMBLE = """
import asyncio, os, signal, socket, sys, tempfile, notifyloop
signal.signal(signal.SIGPIPE, signal.SIG_DFL)

class Protocol(asyncio.Protocol):
    def __init__(self):
        self.lost = asyncio.get_running_loop().create_future()
    def connection_lost(self, error):
        self.lost.set_result(error)

async def main():
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    await work(loop, ours, theirs)
    assert signal.SIGPIPE not in signal.sigpending()
    assert signal.SIGPIPE not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL
"""
WAYS = {
    "a pipe": """
        reading, writing = os.pipe()
        transport, protocol = await loop.connect_write_pipe(Protocol, os.fdopen(writing, "wb", 0))
        os.close(reading)
        transport.write(b"x")
        assert isinstance(await protocol.lost, BrokenPipeError)
    """,
    "a pipe that was full": """
        reading, writing = os.pipe()
        transport, protocol = await loop.connect_write_pipe(Protocol, os.fdopen(writing, "wb", 0))
        transport.write(bytes(1_000_000))
        os.close(reading)
        assert isinstance(await protocol.lost, BrokenPipeError)
    """,
    "a socket as a pipe": """
        transport, protocol = await loop.connect_write_pipe(Protocol, ours)
        theirs.close()
        transport.write(b"x")
        assert isinstance(await protocol.lost, BrokenPipeError)
    """,
    "a connection": """
        transport, protocol = await loop.create_connection(Protocol, sock=ours)
        transport.pause_reading()
        theirs.close()
        transport.write(b"x")
        transport.writelines([b"x", b"y"])
        assert isinstance(await protocol.lost, BrokenPipeError)
    """,
    "a child's standard input": """
        process = await asyncio.create_subprocess_exec("true", stdin=-1)
        await process.wait()
        process.stdin.write(b"x")
    """,
    "sock_sendall": """
        theirs.close()
        try:
            await loop.sock_sendall(ours, b"x")
        except BrokenPipeError:
            return
        raise AssertionError
    """,
    "sock_sendall that waits": """
        sending = loop.create_task(loop.sock_sendall(ours, bytes(1_000_000)))
        await asyncio.sleep(0)
        theirs.close()
        try:
            await sending
        except BrokenPipeError:
            return
        raise AssertionError
    """,
    "sock_sendto": """
        theirs.close()
        try:
            await loop.sock_sendto(ours, b"x", "")
        except OSError:
            return
        raise AssertionError
    """,
    "sendfile": """
        theirs.close()
        with tempfile.TemporaryFile() as file:
            file.write(b"content")
            file.flush()
            try:
                await loop.sock_sendfile(ours, file)
            except BrokenPipeError:
                return
            raise AssertionError
    """,
    "a datagram": """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        transport, protocol = await loop.create_datagram_endpoint(Protocol, sock=ours)
        protocol.error_received = lambda error: protocol.lost.set_result(error)
        ours.shutdown(socket.SHUT_WR)
        transport.sendto(b"x")
        assert isinstance(await protocol.lost, BrokenPipeError)
    """,
}


@pytest.mark.parametrize("way", WAYS)
def test_it_does_not_kill(way: str) -> None:
    work = "async def work(loop, ours, theirs):\n" + textwrap.indent(textwrap.dedent(WAYS[way]), "    ")
    command = [sys.executable, "-c", PREAMBLE + work + "\nnotifyloop.run(main())"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


def test_where_there_is_no_sigtimedwait(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS. The signal is taken away all the same."""
    monkeypatch.delattr(signal, "sigtimedwait", raising=False)
    reading, writing = os.pipe()
    os.close(reading)
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with pytest.raises(BrokenPipeError):
            sigpipe.write(writing, b"x")
        assert signal.SIGPIPE not in signal.sigpending()
    finally:
        signal.signal(signal.SIGPIPE, before)
        os.close(writing)


def test_it_is_left_to_who_holds_it_back() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        with pytest.raises(BrokenPipeError):
            sigpipe.write(writing, b"x")
        assert signal.SIGPIPE in signal.sigpending()
        assert signal.SIGPIPE in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.sigtimedwait({signal.SIGPIPE}, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGPIPE, before)
    os.close(writing)


@pytest.mark.asyncio(loop_factories=["notifyloop"])
async def test_a_handler_of_the_program_s_own_is_called() -> None:
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGPIPE)
    loop.add_signal_handler(signal.SIGPIPE, heard.set)
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        sigpipe.write(writing, b"x")
    os.close(writing)
    await heard.wait()
    loop.remove_signal_handler(signal.SIGPIPE)
    signal.signal(signal.SIGPIPE, before)
