"""What the steps of a program do. A step that has no object says "nobody"; what others return is recorded."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import struct
import threading
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .ends import PROTOCOLS, End, Recorder, describe, describe_data

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .language import Program, Step
    from .waiting import Waiting

SIGNAL = getattr(signal, "SIGUSR1", signal.SIGINT)
MOST_SIGNALS = 3  # of one program
CLIENTS, ACCEPTED = "egi", "fhj"  # the names of the ends of connections to the server
RECEIVING = ("sock_recv", "sock_recv_into", "sock_accept")
VARIABLE: ContextVar[int] = ContextVar("VARIABLE", default=0)


class Failure(Exception):  # noqa: N818 - it stands in for any
    """Raised by a program."""


class BaseFailure(BaseException):
    """Likewise."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "Exception": Failure,
    "OSError": lambda: OSError(errno.ENOTTY, "raised by the program"),
    "BaseException": BaseFailure,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": SystemExit,
    "CancelledError": asyncio.CancelledError,
}


def seen() -> str:
    """What the context has of the program."""
    value = VARIABLE.get()
    return f" with {value}" if value else ""


class Actions:
    """The methods of a `Machine` that are called by the names of steps."""

    names = (*"abcdl", *CLIENTS, *ACCEPTED)  # of ends
    program: Program
    waiting: Waiting
    loop: Any
    new_end: Callable[[str, str, str, socket.socket | None], End]
    record: Callable[[str], None]
    run: Callable[[list[Step]], None]
    carry_out: Callable[[list[Step]], Coroutine[Any, Any, None]]

    def __init__(self) -> None:
        self.ends: dict[str, End] = {}
        self.handles: list[Any] = []  # that the program keeps
        self.labels = 0  # given to callbacks
        self.tasks: list[asyncio.Task[Any]] = []
        self.server: Any = None
        self.listener: socket.socket | None = None
        self.address: Any = None
        self.family = 0
        self.on_the_way = 0  # connections to the server that it has not begun with
        self.between: deque[list[Step]] = deque()  # for when the loop does not run
        self.on_reports: deque[list[Step]] = deque()  # for the exception handler
        self.handles_signal = False
        self.signals = 0
        self.debug_changes = 0  # in this turn

    # ---- waiting, in coroutines

    async def turn(self) -> None:
        await asyncio.sleep(0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def settle(self) -> None:
        """Wait until the loop would sleep."""
        quiet = self.loop.create_future()
        self.waiting.when_quiet.append(lambda: quiet.set_result(None))
        await quiet
        for end in self.ends.values():
            end.settled = end.doings

    async def signal(self) -> None:
        """Send the process a signal, if it has a handler, when all is quiet: else nobody could say when it is seen."""
        if self.handles_signal:
            await self.settle()
            signal.raise_signal(SIGNAL)

    # ---- ends of both kinds

    def found(self, name: str) -> End | None:
        end = self.ends.get(name)
        if end is None or (end.sock is None if end.plain else end.transport is None):
            return None
        return end

    def write(self, name: str, size: int, kind: str) -> Any:
        end = self.found(name)
        if end is None:
            return "nobody"
        data: Any = end.data(size)
        if kind == "bytearray":
            data = bytearray(data)
        elif kind == "memoryview":
            data = memoryview(data)
        if end.role == "datagrams":
            return end.transport.sendto(data)
        if not end.plain:
            return end.transport.write(data)
        sent = 0
        try:
            sent = end.sock.send(data)
        finally:
            end.sent -= len(data) - sent
        return sent

    def write_many(self, name: str, count: int) -> None:
        """So many small datagrams."""
        for _ in range(count):
            self.write(name, 10, "bytes")

    def write_eof(self, name: str) -> Any:
        end = self.found(name)
        if end is None:
            return "nobody"
        end.doings += 1
        return end.sock.shutdown(socket.SHUT_WR) if end.plain else end.transport.write_eof()

    def close(self, name: str) -> Any:
        end = self.found(name)
        if end is None:
            return "nobody"
        end.doings += 1
        end.closed = True
        if not end.plain:
            return end.transport.close()
        if end.waiting:
            return "in use"
        self.loop.remove_reader(end.sock)
        self.loop.remove_writer(end.sock)
        self.waiting.forget(end.sock.fileno())
        end.sock.close()
        end.sock = None
        return None

    def abort(self, name: str) -> Any:
        """As close, but a TCP connection is reset."""
        end = self.found(name)
        if end is None:
            return "nobody"
        end.doings += 1
        end.closed = True
        if not end.plain:
            return end.transport.abort()
        end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return self.close(name)

    # ---- transports

    def look(self, name: str) -> Any:
        end = self.found(name)
        if end is None or end.plain:
            return "nobody"
        transport = end.transport
        states = ["closing"] if end.role == "datagrams" else ["closing", "reading"]
        state = [word for word in states if getattr(transport, f"is_{word}")()]
        size, limits = transport.get_write_buffer_size(), transport.get_write_buffer_limits()
        return f"{' '.join(state)} buffer {size} {limits} {type(transport.get_protocol()).__name__}".strip()

    def transport(self, name: str) -> Any:
        end = self.found(name)
        return None if end is None or end.plain else end.transport

    def writelines(self, name: str, sizes: list[int]) -> Any:
        transport = self.transport(name)
        if transport is None:
            return "nobody"
        end = self.ends[name]
        return transport.writelines([end.data(size) for size in sizes])

    def pause_reading(self, name: str) -> Any:
        transport = self.transport(name)
        return "nobody" if transport is None else transport.pause_reading()

    def resume_reading(self, name: str) -> Any:
        transport = self.transport(name)
        return "nobody" if transport is None else transport.resume_reading()

    def set_write_buffer_limits(self, name: str, water: tuple[int | None, int | None]) -> Any:
        transport = self.transport(name)
        return "nobody" if transport is None else transport.set_write_buffer_limits(*water)

    def set_protocol(self, name: str, kind: str) -> Any:
        transport = self.transport(name)
        return "nobody" if transport is None else transport.set_protocol(PROTOCOLS[kind](self, self.ends[name]))

    def on(self, name: str, callback: str, steps: list[Step]) -> Any:
        """What its protocol does when it is next called so."""
        end = self.ends.get(name)
        if end is None:
            return "nobody"
        end.scripts.setdefault(callback, deque()).append(steps)
        return None

    def keep_open(self, name: str, keep: bool) -> None:
        """What eof_received() returns."""
        if name in self.ends:
            self.ends[name].keep_open = keep

    def set_buffers(self, name: str, sizes: list[int]) -> None:
        """How much the next results of get_buffer() have room for."""
        if name in self.ends:
            self.ends[name].buffer_sizes.extend(sizes)

    # ---- sockets

    def recv(self, name: str, size: int) -> Any:
        end = self.found(name)
        if end is None or not end.plain:
            return "nobody"
        return describe_data(end.sock.recv(size))

    def add_reader(self, name: str, steps: list[Step], times: int) -> Any:
        return self.watch("reader", name, steps, times)

    def add_writer(self, name: str, steps: list[Step], times: int) -> Any:
        return self.watch("writer", name, steps, times)

    def watch(self, kind: str, name: str, steps: list[Step], times: int) -> Any:
        """When it was called so many times, it removes itself: it need not receive anything."""
        end = self.found(name)
        if end is None or end.sock is None:
            return "nobody"
        sock, calls = end.sock, iter(range(1, times + 1))

        def ready() -> None:
            call = next(calls)
            self.record(f"{name}: {kind} called{seen()}")
            if call == times:
                getattr(self.loop, f"remove_{kind}")(sock)
            self.run(steps)

        return getattr(self.loop, f"add_{kind}")(sock, ready)

    def remove_reader(self, name: str) -> Any:
        end = self.found(name)
        return "nobody" if end is None or end.sock is None else self.loop.remove_reader(end.sock)

    def remove_writer(self, name: str) -> Any:
        end = self.found(name)
        return "nobody" if end is None or end.sock is None else self.loop.remove_writer(end.sock)

    def sock_recv(self, name: str, size: int, timeout: float | None) -> Any:
        async def receive(end: End) -> str:
            return describe_data(await self.loop.sock_recv(end.sock, size))

        return self.begin_operation("sock_recv", name, receive, timeout)

    def sock_recv_into(self, name: str, size: int, timeout: float | None) -> Any:
        async def receive(end: End) -> str:
            buffer = bytearray(size)
            count = await self.loop.sock_recv_into(end.sock, buffer)
            return describe_data(buffer[:count])

        return self.begin_operation("sock_recv_into", name, receive, timeout)

    def sock_sendall(self, name: str, size: int, timeout: float | None) -> Any:
        async def send(end: End) -> None:
            await self.loop.sock_sendall(end.sock, end.data(size))

        return self.begin_operation("sock_sendall", name, send, timeout)

    def begin_operation(
        self, what: str, name: str, operation: Callable[[End], Coroutine[Any, Any, Any]], timeout: float | None
    ) -> Any:
        end = self.ends.get(name)
        if end is None or end.sock is None or end.role not in ("socket", "listener"):
            return "nobody"
        task = self.begin(f"{name}: {what}", lambda: operation(end))
        if what in RECEIVING and end.peer is not None:
            # What the peer has not sent yet counts as if it sent it after this.
            end.receiving[task] = end.peer.doings - end.peer.unsent
        timer = None if timeout is None else self.loop.call_later(timeout, self.give_up, end, task)
        end.waiting += 1

        def done(task: asyncio.Task[Any]) -> None:
            end.waiting -= 1
            end.receiving.pop(task, None)
            if timer is not None:
                timer.cancel()

        task.add_done_callback(done)
        return None

    def give_up(self, end: End, task: asyncio.Task[Any]) -> None:
        """Cancel an operation, unless that is left out: see `differences.receiving_in_the_coroutine`."""
        if task not in end.receiving or not end.may_have_received:
            task.cancel()

    # ---- servers and listening sockets

    def new_client(self, role: str) -> End | None:
        """A new end, with a socket that is not connected."""
        free = [name for name in CLIENTS if name not in self.ends]
        if self.address is None or not free:
            return None
        sock = socket.socket(self.family)
        sock.setblocking(False)
        end = self.new_end(free[0], self.program.server.split()[-1], role, sock)
        end.connected = False
        if self.server is not None:
            self.on_the_way += 1
        else:
            self.ends["l"].doings += 1
        return end

    def new_accepted(self, role: str, sock: socket.socket | None) -> End:
        pairs = zip(CLIENTS, ACCEPTED, strict=True)
        client, name = next(pair for pair in pairs if pair[0] in self.ends and pair[1] not in self.ends)
        end = self.new_end(name, self.program.server.split()[-1], role, sock)
        end.peer = self.ends[client]
        end.peer.peer = end
        return end

    def accept_none(self, end: End) -> None:
        """A client did not come."""
        if self.server is not None:
            self.on_the_way -= 1
        if end.sock is not None:
            self.waiting.forget(end.sock.fileno())
            end.sock.close()
            end.sock = None

    def dial(self) -> Any:
        end = self.new_client("socket")
        if end is None:
            return "nobody"
        code = end.sock.connect_ex(self.address)
        if code in (0, errno.EINPROGRESS):
            end.connected = True
            return None
        self.accept_none(end)
        return errno.errorcode[code]

    def sock_connect(self, timeout: float | None) -> Any:
        end = self.new_client("socket")
        if end is None:
            return "nobody"

        async def connect(end: End) -> None:
            await self.loop.sock_connect(end.sock, self.address)
            end.connected = True

        return self.begin_operation("sock_connect", end.name, connect, timeout)

    def open_connection(self) -> Any:
        """The client is a transport, too."""
        end = self.new_client("protocol")
        if end is None:
            return "nobody"

        async def connect() -> None:
            try:
                await self.loop.sock_connect(end.sock, self.address)
                await self.loop.create_connection(lambda: Recorder(self, end), sock=end.sock)
            except OSError:
                self.accept_none(end)
                raise

        self.begin(f"{end.name}: open_connection", connect)
        return None

    def sock_accept(self, name: str, timeout: float | None) -> Any:
        async def accept(end: End) -> str:
            sock, _ = await self.loop.sock_accept(end.sock)
            return self.new_accepted("socket", sock).name

        return self.begin_operation("sock_accept", name, accept, timeout)

    def close_server(self) -> Any:
        return "nobody" if self.server is None else self.server.close()

    # ---- callbacks and tasks

    def call(self, label: str, steps: list[Step]) -> None:
        self.record(f"{label} called{seen()}")
        self.run(steps)

    def label(self, kind: str) -> str:
        self.labels += 1
        return f"{kind} {self.labels}"

    def keep(self, keep: bool, handle: asyncio.Handle) -> None:
        """Or not: ours uses the handles again that nobody has."""
        if keep:
            self.handles.append(handle)

    def call_soon(self, steps: list[Step], keep: bool) -> None:
        self.keep(keep, self.loop.call_soon(self.call, self.label("callback"), steps))

    def call_soon_threadsafe(self, steps: list[Step], keep: bool) -> None:
        self.keep(keep, self.loop.call_soon_threadsafe(self.call, self.label("callback"), steps))

    def call_later(self, delay: float, steps: list[Step], keep: bool) -> None:
        self.keep(keep, self.loop.call_later(delay, self.call, self.label("timer"), steps))

    def call_at(self, delay: float, steps: list[Step], keep: bool) -> None:
        self.keep(keep, self.loop.call_at(self.loop.time() + delay, self.call, self.label("timer"), steps))

    def call_in_thread(self, steps: list[Step], keep: bool) -> None:
        """Have another thread call `call_soon_threadsafe`, while the loop's does nothing."""
        thread = threading.Thread(target=self.call_soon_threadsafe, args=(steps, keep))
        thread.start()
        thread.join()

    def call_when_asleep(self, steps: list[Step], keep: bool) -> None:
        """The same when the loop sleeps."""
        self.waiting.when_asleep.append(lambda: self.call_soon_threadsafe(steps, keep))

    def handle_signal(self, steps: list[Step]) -> None:
        self.loop.add_signal_handler(SIGNAL, self.call, self.label("signal handler"), steps)
        self.handles_signal = True

    def signal_when_asleep(self) -> Any:
        if not self.handles_signal or self.signals == MOST_SIGNALS:
            return "nobody"
        self.signals += 1
        self.waiting.when_asleep.append(lambda: signal.raise_signal(SIGNAL))
        return None

    def cancel_handle(self, number: int) -> Any:
        return self.handles[number].cancel() if number < len(self.handles) else "nobody"

    def look_at_handle(self, number: int) -> Any:
        if number >= len(self.handles):
            return "nobody"
        handle = self.handles[number]
        when = f" at {handle.when()}" if isinstance(handle, asyncio.TimerHandle) else ""
        return f"{'cancelled' if handle.cancelled() else 'not cancelled'}{when}"

    def task(self, steps: list[Step]) -> None:
        self.begin("task", lambda: self.carry_out(steps))

    def begin(self, label: str, function: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        label = f"{label} {len(self.tasks)}"

        async def run() -> None:
            try:
                result = await function()
            except BaseException as error:
                self.record(f"{label}: raised {describe(error)}")
                if not isinstance(error, Exception):
                    raise
            else:
                self.record(f"{label}: {result}{seen()}")

        self.tasks.append(self.loop.create_task(run()))
        return self.tasks[-1]

    def cancel_task(self, number: int) -> Any:
        return self.tasks[number].cancel() if number < len(self.tasks) else "nobody"

    def set_variable(self, value: int) -> None:
        """In the context of whoever does this."""
        VARIABLE.set(value)

    # ---- the loop

    def fail(self, kind: str) -> None:
        raise ERRORS[kind]()

    def stop(self, steps: list[Step]) -> None:
        """Stop the loop, do this while it does not run, and run on."""
        self.between.append(steps)
        self.loop.stop()

    def on_report(self, steps: list[Step]) -> None:
        """What the exception handler does when it is next called."""
        self.on_reports.append(steps)

    def set_debug(self, enabled: bool) -> None:
        # Ours looks for slow callbacks from the next turn on.
        self.debug_changes += 1
        self.loop.call_soon(self.debug_has_changed)
        self.loop.set_debug(enabled)

    def debug_has_changed(self) -> None:
        self.debug_changes -= 1

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.waiting.now += seconds
