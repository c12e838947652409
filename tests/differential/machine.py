"""Runs a program on a loop, and records what the program could tell.

All of a program happens in the loop's thread, so what stock asyncio does is a function of the program: between two
steps nothing happens, `turn()` lets the loop turn once, `settle()` lets it turn until it would sleep, and time passes
by steps, or when the loop would sleep until a timer is due. Of every callback that is called, every exception that is
raised and all that the exception handler and the log are told, there is a line in the record, in order.

At the end all that is still open is read to the end, looked at and closed: what was left is part of the record, too. Or
the loop is closed first, and what is then left to do to the rest must fail alike.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from .actions import Actions
from .differences import leave_out, unheard
from .ends import PROTOCOLS, End, Recorder, connected, describe, describe_data
from .language import Step
from .waiting import Stuck, Waiting

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

    from .language import Program

MOST_LINES = 400  # in the record


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Log(logging.Handler):
    """asyncio's warnings go to the record."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(logging.WARNING)
        self.machine = machine

    def emit(self, entry: logging.LogRecord) -> None:
        if not self.machine.debug_changes or not entry.msg.startswith("Executing "):
            self.machine.record(f"logged: {entry.msg.splitlines()[0]}")


class Machine(Actions):
    """A loop, what a program has made on it, and the record. `Actions` has the methods that carry out the steps."""

    def __init__(
        self,
        program: Program,
        new_loop: Callable[[Waiting], asyncio.AbstractEventLoop],
        tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    ) -> None:
        super().__init__()
        self.descriptors = count_descriptors()
        self.program = program
        self.tls = tls  # for a server named localhost, and for its clients
        self.waiting = Waiting()
        self.loop = new_loop(self.waiting)
        self.loop.set_debug(program.debug)
        self.loop.set_exception_handler(self.handle_exception)
        self.lines: list[str] = []
        self.speaker = ""  # whose callback's steps are carried out

    # ---- the record

    def record(self, line: str) -> None:
        if len(self.lines) >= MOST_LINES:
            raise Stuck("records for ever")
        self.lines.append(self.speaker + line)

    def called(self, end: End, callback: str, detail: str = "") -> None:
        """By a transport. The steps that the program has put there are carried out."""
        if unheard(end, callback):
            return
        self.record(f"{end.name}: {callback} {detail}".rstrip())
        scripts = end.scripts.get(callback)
        if scripts:
            speaker, self.speaker = self.speaker, f"{end.name}: "
            try:
                self.run(scripts.popleft())
            finally:
                self.speaker = speaker

    def handle_exception(self, loop: object, context: dict[str, Any]) -> None:
        message = context["message"]
        if message.startswith("Exception in "):
            message = "Exception in callback"
        self.record(f"reported: {message}: {describe(context.get('exception'))}")
        if self.on_reports:
            self.run(self.on_reports.popleft())

    # ---- the whole program

    def execute(self) -> list[str]:
        """Run the program, in a context of its own. Returns the record."""
        return copy_context().run(self.execute_here)

    def execute_here(self) -> list[str]:
        logger = logging.getLogger("asyncio")
        log = Log(self)
        logger.addHandler(log)
        propagate, logger.propagate = logger.propagate, False
        clean = False
        try:
            if self.run_until(self.drive()):
                if self.program.abandon:
                    self.abandon()
                elif self.run_until(self.end()):
                    self.loop.close()
                    left = count_descriptors() - self.descriptors
                    self.record(f"{left} descriptors left")
                    clean = not left
        finally:
            logger.removeHandler(log)
            logger.propagate = propagate
            lines, self.lines = self.lines, []
            self.tidy()
            if not clean and count_descriptors() != self.descriptors:
                del self.loop, self.tasks, self.ends, self.server
                gc.collect()  # the next program counts descriptors, too
        return lines

    def run_until(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        """Run the loop, on and on, until a coroutine has ended. Returns whether it has."""
        main = self.loop.create_task(coroutine)
        main.add_done_callback(lambda _: self.loop.stop())
        try:
            while not main.done():
                try:
                    self.loop.run_forever()
                except (KeyboardInterrupt, SystemExit) as error:
                    self.record(f"run_forever() raised {describe(error)}")
                else:
                    if not main.done():
                        self.record("stopped")
                        if self.between:
                            self.run_and_catch(self.between.popleft())
        except Stuck as error:
            self.lines.append(f"the loop {error}")
            return False
        main.result()
        return True

    async def drive(self) -> None:
        """Make the connections, carry out the steps."""
        names = iter("abcd")
        begun = []
        for kind, *roles in self.program.ends:
            pair = [
                self.new_end(next(names), kind, role, sock) for role, sock in zip(roles, connected(kind), strict=True)
            ]
            pair[0].peer, pair[1].peer = pair[1], pair[0]
            begun += [self.loop.create_task(self.connect(end)) for end in pair if not end.plain]
        if self.program.server:
            await self.serve(self.program.server)
        if begun:
            await asyncio.wait(begun)
        await self.carry_out(self.program.steps)
        await self.settle()

    def new_end(self, name: str, kind: str, role: str, sock: socket.socket | None) -> End:
        end = self.ends[name] = End(name, kind, role)
        if sock is not None:
            end.sock = sock
            self.waiting.name(sock.fileno())
        return end

    async def connect(self, end: End) -> None:
        """Whoever is "a" or "c" has opened the connection."""

        def factory() -> Any:
            return PROTOCOLS[end.role](self, end)

        opener = end.name in "ac"
        options: dict[str, Any] = {}
        if end.kind == "tls" and self.tls is not None:
            options = {"ssl": self.tls[opener]} | ({"server_hostname": "localhost"} if opener else {})
        if end.role == "datagrams":
            await self.loop.create_datagram_endpoint(factory, sock=end.sock)
        elif opener:
            await self.loop.create_connection(factory, sock=end.sock, **options)
        else:
            await self.loop.connect_accepted_socket(factory, end.sock, **options)

    async def serve(self, kind: str) -> None:
        """With a server, or with nothing but a listening socket."""
        if kind.endswith("unix"):
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind("")  # the kernel chooses a name
            self.listener.listen()
            create: Any = self.loop.create_unix_server
        else:
            self.listener = socket.create_server(("127.0.0.1", 0))
            create = self.loop.create_server
        self.listener.setblocking(False)
        self.address, self.family = self.listener.getsockname(), self.listener.family
        if kind.startswith("plain "):
            end = self.new_end("l", kind, "listener", self.listener)
            end.peer = end  # what it may receive are its own doings
        else:
            self.waiting.name(self.listener.fileno())
            self.server = await create(self.accepted, sock=self.listener)

    def accepted(self) -> Recorder:
        """The server's protocol factory."""
        self.on_the_way -= 1
        self.record("accepted")
        return Recorder(self, self.new_accepted("protocol", None))

    async def end(self) -> None:
        """Read all that is left, look at what there is, and close it."""
        self.record("end")
        ends = self.ends.values()
        for end in ends:
            end.scripts.clear()
            end.buffer_sizes.clear()
            if end.transport is not None and not end.lost and end.role != "datagrams":
                self.run([Step("resume_reading", (end.name,))])
        await self.settle()
        before = -1
        while before < len(self.lines):
            before = len(self.lines)
            for end in ends:
                if end.plain and end.sock is not None:
                    self.drain(end)
            await self.settle()
        steps = [Step("look", (end.name,)) for end in ends]
        self.run(steps + [Step("look_at_handle", (number,)) for number in range(len(self.handles))])
        self.record(f"{sum(not task.done() for task in self.tasks)} tasks left")
        for task in self.tasks:
            task.cancel()
        await self.settle()
        if self.server is not None:
            self.server.close()
        for end in ends:
            if end.plain:
                self.close(end.name)
            elif end.transport is not None and not end.lost:
                end.transport.abort()
        await self.settle()
        if self.server is not None:
            await self.server.wait_closed()
        elif self.listener is not None:
            self.listener.close()
        self.record("closed")

    def drain(self, end: End) -> None:
        while not end.ended:
            try:
                data = end.sock.recv(1_000_000)
            except BlockingIOError:
                return
            except OSError as error:
                self.record(f"{end.name}: read {describe(error)}")
                end.ended = not isinstance(error, ConnectionError)
                return
            self.record(f"{end.name}: read {describe_data(data)}")
            end.ended = not data and end.kind in ("unix", "tcp")

    def abandon(self) -> None:
        """Close the loop while all is open, and try the rest."""
        self.loop.close()
        self.record("loop closed")
        steps = [
            Step(name, (end,))
            for end in self.ends
            for name in ("pause_reading", "resume_reading", "close", "abort", "look", "remove_reader")
        ]
        steps += [Step(name, (end, [], 1)) for end in self.ends for name in ("add_reader", "add_writer")]
        steps += [Step("call_soon", ([], True)), Step("call_soon_threadsafe", ([], True))]
        steps += [Step("call_later", (1, [], True)), Step("look_at_handle", (0,)), Step("cancel_handle", (0,))]
        self.run(steps)
        try:
            self.loop.run_forever()
        except RuntimeError:
            self.record("a loop that is closed does not run")

    def tidy(self) -> None:
        """Close whatever a program has left that was abandoned or stuck."""
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        for task in self.tasks:
            if task.done() and not task.cancelled():
                task.exception()
        if self.listener is not None:
            self.listener.close()
        for end in self.ends.values():
            transport = getattr(end.transport, "_ssl_protocol", end.transport)
            transport = getattr(transport, "_transport", transport)
            if getattr(transport, "_sock", None) is not None:
                end.sock, transport._sock, transport._server = transport._sock, None, None
            if end.sock is not None and end.sock.fileno() != -1:
                os.close(end.sock.detach())
        self.loop.close()

    # ---- carrying out steps

    async def carry_out(self, steps: list[Step]) -> None:
        """In a coroutine."""
        for step in steps:
            if step.name in ("turn", "sleep", "settle", "signal"):
                self.record(f"> {step}")
                await getattr(self, step.name)(*step.arguments)
            else:
                self.run_and_catch([step])

    def run_and_catch(self, steps: list[Step]) -> None:
        try:
            self.run(steps)
        except Stuck:
            raise
        except BaseException as error:
            self.record(f"  raised {describe(error)}")

    def run(self, steps: list[Step]) -> None:
        """In a callback. What the program raises on purpose leaves it."""
        for step in steps:
            self.record(f"> {step}")
            if leave_out(self, step):
                self.record("  left out")
                continue
            try:
                result = getattr(self, step.name)(*step.arguments)
            except Exception as error:
                if step.name == "fail":
                    raise
                result = describe(error)
            if result is not None:
                self.record(f"  {result}")
