"""The self-test of `python -m notifyloop doctor`: what the port guarantees, and what a loop is chosen for, tried
for real.

Each check makes a port or a loop of its own, and its own sockets on 127.0.0.1, so one that fails spoils no other.
It returns if everything was as docs/port.md promises, and raises if not. Every wait has an end, and should a call
into the system never come back, the interpreter says where it stands and ends the process with status 1.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notifyloop.port import CompletionPort, Event, Registration
from notifyloop.runner import run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping
    from typing import Any

    Check = Callable[[], None]

__all__ = ["LOOP", "PORT", "CheckError", "Outcome", "examine"]

PATIENCE = 5.0  # seconds until what should come at once is called lost
MOMENT = 0.02  # seconds in which nothing should come
HANGING = 20.0  # seconds after which a check that still runs ends the process

TICK = 0.016  # seconds: Windows may end a wait by one tick of its clock too early
NOBODY_LINGERS = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)  # closing resets the connection


class CheckError(Exception):
    """Something was not as it should be. The message says what."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one check."""

    name: str
    seconds: float
    traceback: str | None
    """None if it passed."""


def examine(name: str, check: Check) -> Outcome:
    """Carry out one check. Raises nothing but an interrupt."""
    faulthandler.dump_traceback_later(HANGING, exit=True, file=2)  # to stderr itself, whatever stands before it
    started = time.perf_counter()
    problem = None
    try:
        check()
    except Exception:
        problem = traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
    return Outcome(name, time.perf_counter() - started, problem)


def expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise CheckError(otherwise)


# ---- the port


@contextmanager
def connected() -> Iterator[tuple[CompletionPort, socket.socket, socket.socket]]:
    """A port, and the two ends of a TCP connection: ours to be registered, theirs to act."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), PATIENCE) as theirs,
        listener.accept()[0] as ours,
        CompletionPort() as port,
    ):
        ours.setblocking(False)
        yield port, ours, theirs


def arrival(port: CompletionPort, registration: Registration, events: Event) -> None:
    """Wait for the one notification that is due."""
    notifications = port.process(timeout=PATIENCE)
    expect(len(notifications) == 1, f"{events!r} was due, and {notifications} came")
    [notification] = notifications
    expect(notification.registration is registration, f"{registration} was due to be notified, not {notification}")
    expect(notification.key is registration.key, f"the key is {notification.key!r}, not {registration.key!r}")
    expect(notification.events & events == events, f"{notification.events!r} was reported instead of {events!r}")


def silence(port: CompletionPort) -> None:
    notifications = port.process(timeout=MOMENT)
    expect(not notifications, f"nothing was due, and {notifications} came")


def register() -> None:
    with connected() as (port, ours, _):
        port.enable(Registration(ours, key=ours, events=Event.IN | Event.HANGUP))
        silence(port)


def readable() -> None:
    with connected() as (port, ours, theirs):
        registration = Registration(ours, key=ours, events=Event.IN | Event.HANGUP)
        port.enable(registration)
        theirs.sendall(b"ping")
        arrival(port, registration, Event.IN)
        data = ours.recv(16)
        expect(data == b"ping", f"received {data!r}")


def writable() -> None:
    with connected() as (port, ours, _):
        registration = Registration(ours, key=ours, events=Event.OUT)
        port.enable(registration)
        arrival(port, registration, Event.OUT)


def hang_up() -> None:
    with connected() as (port, ours, theirs):
        registration = Registration(ours, key=ours, events=Event.IN | Event.HANGUP)
        port.enable(registration)
        theirs.shutdown(socket.SHUT_WR)
        arrival(port, registration, Event.HANGUP)


def reset() -> None:
    with connected() as (port, ours, theirs):
        registration = Registration(ours, key=ours, events=Event.IN | Event.HANGUP)
        port.enable(registration)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOBODY_LINGERS)
        theirs.close()
        arrival(port, registration, Event.ERR)


def one_shot() -> None:
    with connected() as (port, ours, theirs):
        registration = Registration(ours, key=ours)
        port.enable(registration)
        theirs.sendall(b"left unread")
        arrival(port, registration, Event.IN)
        silence(port)


def re_arm() -> None:
    with connected() as (port, ours, theirs):
        registration = Registration(ours, key=ours)
        port.enable(registration)
        theirs.sendall(b"left unread")
        for _ in range(3):
            arrival(port, registration, Event.IN)
            port.enable(registration)


def disable() -> None:
    with connected() as (port, ours, theirs):
        registration = Registration(ours, key=ours)
        port.enable(registration)
        port.disable(registration)
        theirs.sendall(b"ping")
        silence(port)
        port.enable(registration)
        arrival(port, registration, Event.IN)


def remove() -> None:
    with connected() as (port, ours, theirs):
        registration = Registration(ours, key=ours)
        port.enable(registration)
        port.remove(registration)
        arrival(port, registration, Event.REMOVE)
        theirs.sendall(b"ping")
        silence(port)


def post_from_a_thread() -> None:
    with CompletionPort() as port:
        thread = threading.Timer(MOMENT, port.post, (2**31 - 1, 2**32 - 1))  # by then we wait
        thread.start()
        packets = port.process(timeout=PATIENCE)
        thread.join(PATIENCE)
        expect(len(packets) == 1, f"one packet was posted, and {packets} came")
        [packet] = packets
        expect(packet.registration is None, f"{packet} is not of a socket")
        expect((packet.key, packet.value) == (2**31 - 1, 2**32 - 1), f"{packet} is not as it was posted")


def timeout() -> None:
    with connected() as (port, ours, _):
        started = time.perf_counter()
        notifications = port.process([Registration(ours, key=ours)], timeout=2 * TICK)
        waited = time.perf_counter() - started
        expect(not notifications, f"nothing was due, and {notifications} came")
        expect(waited >= TICK, f"a wait of {2 * TICK} s ended after {waited:.6f} s")


def failed_registration() -> None:
    with connected() as (port, ours, theirs):
        closed = socket.socket()
        bad, good = Registration(closed, key="closed"), Registration(ours, key=ours)
        closed.close()
        theirs.sendall(b"ping")
        port.process([bad, good], max_notifications=0)
        try:
            bad.check()
        except OSError:
            pass  # as it should be
        else:
            raise CheckError("a closed socket was registered")
        good.check()
        arrival(port, good, Event.IN)


def close() -> None:
    endings: list[BaseException | None] = []

    def wait() -> None:
        try:
            port.process(timeout=PATIENCE)
        except Exception as error:
            endings.append(error)
        else:
            endings.append(None)

    with connected() as (port, ours, _):
        port.enable(Registration(ours, key=ours))
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        thread.join(MOMENT)  # by then it waits; if not, it finds the port closed, with the same end
        port.close()
        thread.join(2 * PATIENCE)
        expect(endings, "a thread goes on waiting on a closed port")
        expect(isinstance(endings[0], ValueError), f"waiting on a closed port ended with {endings[0]!r}")
        try:
            port.post(1)
        except ValueError:
            pass
        else:
            raise CheckError("a closed port took a packet")


# ---- the loop


def on_the_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a check on a loop of its own. What the loop would only log fails the check, too."""
    complaints: list[dict[str, Any]] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(PATIENCE):
            await main()

    run(bounded())
    if complaints:
        raise CheckError(complaints[0]["message"]) from complaints[0].get("exception")


async def timer() -> None:
    loop = asyncio.get_running_loop()
    fired: asyncio.Future[float] = loop.create_future()
    due = loop.time() + MOMENT
    loop.call_at(due, lambda: fired.set_result(loop.time()))
    early = due - await fired
    expect(early <= time.get_clock_info("monotonic").resolution, f"a timer fired {early:.6f} s too early")


async def call_soon_threadsafe() -> None:
    loop = asyncio.get_running_loop()
    called: asyncio.Future[int] = loop.create_future()

    def call() -> None:
        loop.call_soon_threadsafe(lambda: called.set_result(threading.get_ident()))

    thread = threading.Timer(MOMENT, call)  # by then the loop sleeps
    thread.start()
    where = await called
    thread.join(PATIENCE)
    expect(where == threading.get_ident(), "the callback ran in another thread than the loop")


async def add_reader_and_writer() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        received: asyncio.Future[bytes] = loop.create_future()

        def write() -> None:
            loop.remove_writer(ours)
            theirs.sendall(b"ping")

        loop.add_writer(ours, write)
        loop.add_reader(ours, lambda: received.set_result(ours.recv(16)))
        data = await received
        expect(data == b"ping", f"received {data!r}")
        expect(loop.remove_reader(ours), "there was no reader to be removed")
        expect(not loop.remove_writer(ours), "a writer was still there after it was removed")


async def tcp_echo() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    message = bytes(range(256)) * 1024  # more than the sockets' buffers and the transports' high-water mark hold
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    with closing(server):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with closing(writer):
            writer.write(message)
            writer.write_eof()
            expect(await reader.read(-1) == message, "what came back is not what was sent")
        await writer.wait_closed()
    await server.wait_closed()


async def udp_echo() -> None:
    loop = asyncio.get_running_loop()
    echoed: asyncio.Future[bytes] = loop.create_future()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def datagram_received(self, data: bytes, address: Any) -> None:
            self.transport.sendto(data.upper(), address)

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, address: Any) -> None:
            echoed.set_result(data)

    server, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    with closing(server):
        client, _ = await loop.create_datagram_endpoint(Client, remote_addr=server.get_extra_info("sockname"))
        with closing(client):
            client.sendto(b"ping")
            data = await echoed
    expect(data == b"PING", f"received {data!r}")


async def child_process() -> None:
    program = "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.exit(7)"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await child.communicate(b"ping")
    finally:
        if child.returncode is None:
            child.kill()
    expect(output == b"PING", f"the child said {output!r}")
    expect(child.returncode == 7, f"the child's status is {child.returncode}, not 7")


async def signal_handler() -> None:
    """With SIGINT: every platform has it, and Python survives it if the handler is not there."""
    loop = asyncio.get_running_loop()
    handled: asyncio.Future[None] = loop.create_future()
    loop.add_signal_handler(signal.SIGINT, handled.set_result, None)
    thread = threading.Timer(MOMENT, signal.raise_signal, (signal.SIGINT,))  # by then the loop sleeps
    thread.start()
    await handled
    thread.join(PATIENCE)
    expect(loop.remove_signal_handler(signal.SIGINT), "there was no handler to be removed")


def interrupt() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        on_the_loop(signal_handler)
    except KeyboardInterrupt:
        raise CheckError("the signal interrupted the loop instead of calling its handler") from None
    finally:
        if before is not None:  # whoever embeds Python may have a handler of its own
            signal.signal(signal.SIGINT, before)


PORT: Mapping[str, Check] = {
    "register": register,
    "IN": readable,
    "OUT": writable,
    "HANGUP": hang_up,
    "ERR": reset,
    "one-shot": one_shot,
    "re-arm": re_arm,
    "disable": disable,
    "remove, and its notice": remove,
    "post from a thread": post_from_a_thread,
    "timeout": timeout,
    "failed registration alone": failed_registration,
    "close": close,
}

LOOP: Mapping[str, Check] = {
    "timer": lambda: on_the_loop(timer),
    "call_soon_threadsafe": lambda: on_the_loop(call_soon_threadsafe),
    "add_reader, add_writer": lambda: on_the_loop(add_reader_and_writer),
    "TCP echo": lambda: on_the_loop(tcp_echo),
    "UDP echo": lambda: on_the_loop(udp_echo),
    "subprocess": lambda: on_the_loop(child_process),
    "signal handler": interrupt,
}
