"""The run: every cell for every loop, interleaved.

Loops take turns within each cell and cells within each round, so that whatever else the machine does falls
on all alike. Each measurement has a fresh server; a cell's figure is the median of its rounds.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.console import notice, progress
from benchmarks.hello import HELLO
from benchmarks.processes import BUILD, LIMIT, PATIENCE, Cores, MeasurementError, running, serving

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.cells import Cell


@dataclass
class Interleaved:
    """What was measured, and what was not and why. Subclasses know how to measure a cell."""

    seconds: float
    rounds: int
    measurements: dict[tuple[Cell, str], list[dict[str, Any]]] = field(default_factory=dict)
    left_out: dict[tuple[Cell, str], str] = field(default_factory=dict)

    async def measure(self, cells: Sequence[Cell], loops: Sequence[str]) -> None:
        for number in range(self.rounds):
            notice(f"round {number + 1} of {self.rounds}")
            # Who begins changes with each round: the first after a pause may find the machine different.
            begin = number % len(loops) if loops else 0
            order = [*loops[begin:], *loops[:begin]]
            for cell, loop in with_limits(cells, order):
                if (cell, loop) not in self.left_out:
                    await self._measure_one(cell, loop)

    async def _measure_one(self, cell: Cell, loop: str) -> None:
        name = " ".join(filter(None, [cell.benchmark, cell.load.replace(",", ""), loop]))
        progress(name)
        try:
            async with asyncio.timeout(self.seconds * 2 + PATIENCE):
                measurement = await self.measure_cell(cell, loop)
        except (MeasurementError, TimeoutError) as error:
            reason = str(error) or f"no answer within {self.seconds * 2 + PATIENCE:.0f} s"
            self.left_out[cell, loop] = reason
            self.measurements.pop((cell, loop), None)
            notice(f"left out: {name}: {reason}")
        else:
            self.measurements.setdefault((cell, loop), []).append(measurement)

    async def measure_cell(self, cell: Cell, loop: str) -> dict[str, Any]:
        """The figure of one round, and whatever else there is to tell. Raises MeasurementError."""
        raise NotImplementedError


@dataclass
class Run(Interleaved):
    """The comparison on Linux."""

    cores: Cores = field(kw_only=True)

    async def measure_cell(self, cell: Cell, loop: str) -> dict[str, Any]:
        measure = measure_callback if cell.kind == "callback" else measure_server
        return await measure(self, cell, loop)


def with_limits(cells: Iterable[Cell], loops: Iterable[str]) -> Iterator[tuple[Cell, str]]:
    """Each cell with each loop, and the limit in C just before the first cell that it is the limit of."""
    limits = set()
    for cell in cells:
        if cell.limit is not None and cell.limit not in limits:
            limits.add(cell.limit)
            yield cell.limit, LIMIT
        for loop in loops:
            yield cell, loop


async def measure_callback(run: Run, cell: Cell, loop: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.callbacks", loop, cell.variant, str(run.seconds)]
    async with running(run.cores.server, *command) as process:
        answer = await process.read_json()
        await process.end()
    return {"figure": answer["nanoseconds"]}


async def measure_server(run: Run, cell: Cell, loop: str) -> dict[str, Any]:
    what = ["--http", HELLO] if cell.kind == "http" else ["--size", str(cell.size)]
    if cell.kind == "udp":
        what.append("--datagrams")
    timing = ["--seconds", str(run.seconds), "--warmup", str(run.seconds / 5)]
    async with serving(run.cores.server, loop, cell.variant) as (server, port):
        command = [
            BUILD / "load",
            "--port",
            str(port),
            "--connections",
            str(cell.connections),
            *timing,
            *what,
        ]
        async with running(run.cores.client, *command) as load:
            await load.read()  # "measuring"
            before = await server.ask()
            result = await load.read_json()
            after = await server.ask()
            await load.end()
    messages, seconds = result["messages"], result["seconds"]
    user, system = (after[key] - before[key] for key in ("user", "system"))
    return {
        "figure": result["per_second"],
        "latency_us": result["latency_us"],
        "server_us": {"user": user / messages * 1e6, "system": system / messages * 1e6},
        "server_busy": (user + system) / seconds,
        "client_busy": result["client_busy"],
    }
