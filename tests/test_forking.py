"""A program that makes its loop before it becomes a daemon; a server whose child processes hold its connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

import notifyloop

pytestmark = pytest.mark.only("linux", reason="Windows does not fork")

KINDS = ["asyncio.SelectorEventLoop", "notifyloop.NotifyLoop", "uvloop.Loop"]

PREAMBLE = """
import asyncio, os, signal, socket, sys, traceback

def in_child(work):
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def run(kind: str, program: str) -> None:
    package = kind.partition(".")[0]
    pytest.importorskip(package)
    text = f"{PREAMBLE}\nimport {package}\nloop = {kind}()\n{textwrap.dedent(program)}"
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", text]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_that_is_made_before_the_program_becomes_a_daemon(kind: str) -> None:
    run(
        kind,
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        received = loop.create_future()
        loop.add_reader(ours, lambda: received.done() or received.set_result(ours.recv(10)))

        async def main():
            theirs.send(b"x")
            assert await received == b"x"
            assert await loop.run_in_executor(None, lambda: 7) == 7  # a thread wakes the loop
            reader, writer = await asyncio.open_connection(sock=theirs)
            ours.send(b"more")
            assert await reader.readexactly(4) == b"more"
            writer.close()

        in_child(lambda: loop.run_until_complete(asyncio.wait_for(main(), 30)))
        """,
    )


@pytest.mark.parametrize("kind", KINDS[:2])
def test_the_parent_s_loop_goes_on(kind: str) -> None:
    """With asyncio's, they share what is watched: what the child removes, it removes for the parent."""
    run(
        kind,
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        received = []

        async def have(text):
            received.clear()
            theirs.send(text)
            while not received:
                await asyncio.sleep(0)
            assert received == [text]

        loop.add_reader(ours, lambda: received.append(ours.recv(10)))
        loop.run_until_complete(have(b"before"))

        def child():
            loop.run_until_complete(have(b"child"))
            if "notifyloop" in sys.modules:
                loop.remove_reader(ours)
            loop.close()

        in_child(child)
        loop.run_until_complete(have(b"after"))
        loop.close()
        """,
    )


@pytest.mark.only("epoll", reason="only epoll has to be told, and its reports counted")
def test_connections_that_a_child_holds_are_closed_at_no_cost_to_the_others() -> None:
    """epoll goes on reporting what is closed while a child has it open, unless it was taken out before."""
    run(
        "notifyloop.NotifyLoop",
        """
        class Discard(asyncio.Protocol):
            pass

        async def main():
            pairs = [socket.socketpair() for _ in range(100)]
            transports = [(await loop.create_connection(Discard, sock=ours))[0] for ours, _ in pairs]
            await asyncio.sleep(0)
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            for transport, (_, theirs) in zip(transports, pairs):
                transport.close()
                theirs.send(b"x")
            for _ in range(100):
                await asyncio.sleep(0)
            counters = loop._selector.port.counters()
            assert (counters.stale, counters.rebuilds) == (0, 0), counters
            # What comes after the fork is in no child.
            before = counters.kernel_changes
            for _ in range(10):
                ours, theirs = socket.socketpair()
                transport, _ = await loop.create_connection(Discard, sock=ours)
                await asyncio.sleep(0)
                transport.close()
                await asyncio.sleep(0)
            assert loop._selector.port.counters().kernel_changes == before + 10
            os.close(writing)
            os.waitpid(child, 0)

        loop.run_until_complete(main())
        """,
    )


class TestADuplicateUnderTheOldNumber:
    """A file lives on in a duplicate of its descriptor, and comes back under the number of the one that was closed. The
    system takes it for what it was.
    """

    async def duplicate_of(self, sock: socket.socket, transport: asyncio.Transport) -> socket.socket:
        descriptor = sock.fileno()
        spare = transport.get_extra_info("socket").dup()
        transport.close()
        while transport.get_extra_info("socket").fileno() != -1:
            await asyncio.sleep(0)
        os.dup2(spare.fileno(), descriptor)
        spare.close()
        again = socket.socket(fileno=descriptor)
        again.setblocking(False)
        return again

    @pytest.mark.asyncio
    @pytest.mark.parametrize("paused", [False, True])
    async def test_is_watched(self, paused: bool) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            await asyncio.sleep(0.01)
            if paused:
                transport.pause_reading()
                await asyncio.sleep(0.01)
            with await self.duplicate_of(ours, transport) as again:
                received = loop.create_future()
                loop.add_reader(again, lambda: received.done() or received.set_result(again.recv(10)))
                theirs.send(b"x")
                assert await asyncio.wait_for(received, 60) == b"x"
                loop.remove_reader(again)

    @pytest.mark.asyncio
    async def test_is_a_transport_s(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            await asyncio.sleep(0.01)
            again = await self.duplicate_of(ours, transport)
            reader, writer = await asyncio.open_connection(sock=again)
            theirs.send(b"x")
            assert await asyncio.wait_for(reader.readexactly(1), 60) == b"x"
            writer.close()
            await writer.wait_closed()


def test_a_thread_forks_while_handlers_come_and_go() -> None:
    """Signals are held back during a fork, whatever the main thread does. Forks themselves would take long."""
    from notifyloop.unix import signals  # noqa: PLC0415

    failures: list[BaseException] = []
    forks = 0
    stop = threading.Event()

    def fork() -> None:
        nonlocal forks
        try:
            while not stop.is_set():
                signals.before_fork()
                signals.after_fork()
                forks += 1
        except BaseException as failure:
            failures.append(failure)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=fork)
    thread.start()
    try:
        while forks < 20000 and not failures:
            with contextlib.ExitStack() as stack:
                for _ in range(4):
                    loop = stack.enter_context(contextlib.closing(notifyloop.NotifyLoop()))
                    for sig in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH):
                        loop.add_signal_handler(sig, int)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert failures == []
