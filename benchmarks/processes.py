"""The processes of a measurement: compiled when needed, pinned to a core, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from typing import Any

HERE = Path(__file__).parent
BUILD = HERE / "build"
LIMIT = "C"  # the name under which the server in C stands among the loops
PATIENCE = 30  # seconds that a measurement may take beyond its own time


class MeasurementError(Exception):
    """A measurement that gave no figure; the message says why."""


def compile_programs(*names: str) -> None:
    """Compile the C programs that are older than their sources. Raises MeasurementError if that fails."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise MeasurementError("no C compiler: set CC, or on Debian and Ubuntu apt-get install gcc libc6-dev")
    BUILD.mkdir(exist_ok=True)
    for name in names:
        program, sources = BUILD / name, [HERE / f"{name}.c", HERE / "net.h"]
        if program.exists() and program.stat().st_mtime >= max(s.stat().st_mtime for s in sources):
            continue
        # Under another name first, so that an interrupted compiler leaves nothing that looks finished.
        unfinished = BUILD / f"{name}.{os.getpid()}"
        command = [compiler, "-O2", "-Wall", "-Wextra", "-std=gnu11", "-o", unfinished, HERE / f"{name}.c"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise MeasurementError(f"{compiler} cannot compile {name}.c:\n{result.stderr}")
        unfinished.rename(program)


@dataclass(frozen=True)
class Cores:
    """Where the processes run: what is measured on one core, everything else on another."""

    server: int
    client: int

    @classmethod
    def choose(cls) -> Cores:
        """The last core that we may use, and one that shares no execution units with it, if there is one."""
        allowed = sorted(os.sched_getaffinity(0))
        server = allowed[-1]
        others = [core for core in allowed if core != server]
        apart = [core for core in others if core not in siblings(server)]
        return cls(server, (apart or others or allowed)[0])

    @property
    def shared(self) -> bool:
        return self.server == self.client

    @property
    def siblings(self) -> bool:
        return not self.shared and self.client in siblings(self.server)


def siblings(core: int) -> set[int]:
    """The logical cores on the same physical core, `core` among them."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    if not path.exists():
        return {core}
    found: set[int] = set()
    for part in path.read_text().strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


class Process:
    """A process that speaks in lines, and complains on its standard error."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        self._process = process
        self._complaints = asyncio.create_task(process.stderr.read())
        self.pid = process.pid

    async def read(self) -> str:
        """The next line. Raises MeasurementError when the process ended instead."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            status = await self._process.wait()
            raise MeasurementError(await self.complaints() or f"ended with status {status}")
        return line.decode().rstrip("\r\n")

    async def read_json(self) -> dict[str, Any]:
        return json.loads(await self.read())

    def nudge(self) -> None:
        """Give it a line on its standard input. It knows what that means."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def ask(self) -> dict[str, Any]:
        """The answer of a server to the one question that it understands: its processor time, in seconds."""
        self.nudge()
        return await self.read_json()

    async def end(self) -> None:
        """Wait for the end. Raises MeasurementError unless it is a good one."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if await self._process.wait():
            raise MeasurementError(await self.complaints() or f"ended with status {self._process.returncode}")

    async def kill(self) -> None:
        """Be sure that it has ended, with what it has started."""
        with contextlib.suppress(ProcessLookupError):
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()

    async def complaints(self) -> str:
        """The last line of what it wrote to its standard error until it ended: of a traceback, the exception."""
        lines = (await self._complaints).decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """What is started inside runs on this core; None: where the system likes."""
    if core is None:
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})  # inherited
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


@contextlib.asynccontextmanager
async def running(core: int | None, *command: str | Path) -> AsyncIterator[Process]:
    """A process pinned to a core, killed at the end if it has not ended by itself.

    What goes wrong inside is the process's fault as soon as it has something to complain about, so a
    MeasurementError then carries its words as well.
    """
    pipe = subprocess.PIPE
    with pinned(core):
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=HERE.parent, start_new_session=True
        )
    started = Process(process)
    try:
        yield started
    except MeasurementError as error:
        await started.kill()
        if (words := await started.complaints()) and words not in str(error):
            raise MeasurementError(f"{error} ({words})") from None
        raise
    finally:
        await started.kill()


@contextlib.asynccontextmanager
async def serving(core: int, loop: str, api: str) -> AsyncIterator[tuple[Process, int]]:
    """A server and its port."""
    command: Iterable[str | Path] = [BUILD / "limit", api]
    if loop != LIMIT:
        command = [sys.executable, "-m", "benchmarks.server", loop, api]
    async with running(core, *command) as server:
        yield server, int(await server.read())
