"""`python -m benchmarks connections`: how fast connections come and go, and what each leaves behind.

The server is the Protocol echo. A visitor connects, sends 1 KiB, reads its echo and closes.

- The rate: connections per second, 20 at a time, the median of interleaved rounds.
- The soak: many connections, with the resident memory and the open descriptors of the server as they pass.
  Whatever grows with the number of connections closed is a leak.
- The idle: the resident memory that each open connection without traffic takes of the server. The kernel's
  part of a connection is not in it, and is the same for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.console import notice, progress
from benchmarks.processes import BUILD, LIMIT, PATIENCE, MeasurementError, Process, running, serving
from benchmarks.report import ratio, significant, table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.processes import Cores

CONCURRENCY = 20
SETTLE = 5.0  # seconds that a server may take to notice that the last visitors left
SPARE = 100  # descriptors that a server needs beside its connections


@dataclass(frozen=True)
class Sample:
    """The server after so many connections were closed."""

    closed: int
    resident: int  # bytes
    descriptors: int

    @classmethod
    def of(cls, server: Process, closed: int) -> Sample:
        process = Path("/proc") / str(server.pid)
        pages = int((process / "statm").read_text().split()[1])
        return cls(closed, pages * resource.getpagesize(), len(list((process / "fd").iterdir())))


def raise_descriptor_limit() -> int:
    """Allow as many descriptors as the system does, to our children as well. Returns the number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def visitors(cores: Cores, port: int, *arguments: object) -> Any:
    return running(cores.client, BUILD / "visitors", "--port", str(port), *map(str, arguments))


async def rate(cores: Cores, loop: str, seconds: float) -> float:
    """Connections opened, echoed and closed, per second."""
    async with (
        serving(cores.server, loop, "protocol") as (_, port),
        visitors(cores, port, "--concurrency", CONCURRENCY, "--seconds", seconds) as crowd,
    ):
        result = await crowd.read_json()
        await crowd.end()
    return result["per_second"]


async def soak(cores: Cores, loop: str, total: int, every: int) -> list[Sample]:
    """Samples at the start, at every so many connections closed, and when the last is gone."""
    async with serving(cores.server, loop, "protocol") as (server, port):
        samples = [Sample.of(server, 0)]
        options = ["--concurrency", CONCURRENCY, "--total", total, "--every", every]
        async with visitors(cores, port, *options) as crowd:
            for _ in range(total // every):
                closed = int(await crowd.read())
                samples.append(Sample.of(server, closed))
            await crowd.end()
        samples.append(await settled(server, total, samples[0].descriptors))
    return samples


async def settled(server: Process, closed: int, descriptors: int) -> Sample:
    """A sample once no more descriptors are open than there were, or when it is clear that they will stay."""
    deadline = asyncio.get_running_loop().time() + SETTLE
    while True:
        sample = Sample.of(server, closed)
        if sample.descriptors <= descriptors or asyncio.get_running_loop().time() >= deadline:
            return sample
        await asyncio.sleep(0.05)


async def idle(cores: Cores, loop: str, number: int) -> float:
    """Bytes of the server's resident memory for each idle connection."""
    async with serving(cores.server, loop, "protocol") as (server, port):
        # The first visitors pay for what a server allocates once.
        async with visitors(cores, port, "--concurrency", CONCURRENCY, "--total", 1000) as crowd:
            await crowd.end()
        before = Sample.of(server, 0)
        async with visitors(cores, port, "--hold", number) as crowd:
            await crowd.read()  # "open"
            after = Sample.of(server, 0)
    return (after.resident - before.resident) / number


@dataclass
class ConnectionsRun:
    """What was measured, loop by loop, and what was not and why."""

    cores: Cores
    seconds: float
    rounds: int
    total: int
    number_idle: int
    rates: dict[str, list[float]] = field(default_factory=dict)
    soaks: dict[str, list[Sample]] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    async def measure(self, loops: Sequence[str]) -> None:
        for number in range(self.rounds):
            for loop in [LIMIT, *loops]:
                async with self._attempt(loop, f"rate, round {number + 1} of {self.rounds}", self.seconds):
                    figure = await rate(self.cores, loop, self.seconds)
                    self.rates.setdefault(loop, []).append(figure)
        for loop in loops:
            # A slow server closes a thousand connections a second.
            async with self._attempt(loop, f"soak, {self.total} connections", self.total / 1000):
                self.soaks[loop] = await soak(self.cores, loop, self.total, max(self.total // 10, 1))
        for loop in loops:
            async with self._attempt(loop, f"{self.number_idle} idle connections", self.number_idle / 1000):
                self.idle[loop] = await idle(self.cores, loop, self.number_idle)

    @contextlib.asynccontextmanager
    async def _attempt(self, loop: str, name: str, seconds: float) -> AsyncIterator[None]:
        """One measurement, bounded in time; one that fails is reported and left out."""
        progress(f"{name}: {loop}")
        try:
            async with asyncio.timeout(seconds * 2 + PATIENCE):
                yield
        except (MeasurementError, TimeoutError) as error:
            reason = str(error) or f"no answer within {seconds * 2 + PATIENCE:.0f} s"
            self.left_out[f"{name}, {loop}"] = reason
            notice(f"left out: {name}, {loop}: {reason}")

    def as_json(self) -> dict[str, Any]:
        return {
            "settings": {
                "seconds": self.seconds,
                "rounds": self.rounds,
                "total": self.total,
                "idle": self.number_idle,
                "concurrency": CONCURRENCY,
            },
            "rates": {loop: {"figure": median(each), "rounds": each} for loop, each in self.rates.items()},
            "soaks": {loop: [asdict(sample) for sample in samples] for loop, samples in self.soaks.items()},
            "idle_bytes": self.idle,
            "left_out": [{"measurement": name, "reason": reason} for name, reason in self.left_out.items()],
        }

    def tables(self) -> str:
        blocks = []
        if self.rates:
            blocks += [
                f"### Connections that come and go ({CONCURRENCY} at a time, per second)",
                self._rates(),
            ]
        if self.soaks:
            title = f"### {significant(self.total)} connections opened and closed"
            blocks += [f"{title} (resident MiB, open descriptors)", self._soaks()]
        if self.idle:
            blocks += [
                f"### Resident memory of {significant(self.number_idle)} idle connections (KiB each)",
                table(["", "KiB"], [[loop, f"{each / 1024:.2f}"] for loop, each in self.idle.items()]),
            ]
        return "\n\n".join(blocks) + "\n"

    def _rates(self) -> str:
        medians = {loop: median(each) for loop, each in self.rates.items()}
        rows = []
        for loop, figure in medians.items():
            peers = [other for name, other in medians.items() if name not in (loop, LIMIT)]
            best = figure / max(peers) if peers and loop != LIMIT else None
            limit = figure / medians[LIMIT] if LIMIT in medians and loop != LIMIT else None
            rows.append([loop, significant(figure), ratio(best), ratio(limit)])
        return table(["", "connections/s", "/ best of the others", "/ C"], rows)

    def _soaks(self) -> str:
        points = [sample.closed for sample in next(iter(self.soaks.values()))]
        names = ["start", *(significant(closed) for closed in points[1:-1]), "end"]
        rows = [
            [loop, *(f"{sample.resident / 2**20:.1f}, {sample.descriptors}" for sample in samples)]
            for loop, samples in self.soaks.items()
        ]
        return table(["", *names], rows)
