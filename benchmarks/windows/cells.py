"""What is measured on Windows."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cells import KIB, Cell

CONNECTIONS = (1, 20)
IDLE = (10, 500, 2000)  # 500: about as many as the stock selector takes

THROUGHPUT = ("echo-protocol", "echo-reader", "http-aiohttp")
CALLS = ("calls-protocol", "calls-reader", "calls-aiohttp")
IDLE_TIME, IDLE_CALLS = ("idle-protocol", "calls-protocol")
BENCHMARKS = (*THROUGHPUT, *CALLS, IDLE_TIME)


@dataclass(frozen=True)
class WindowsCell(Cell):
    """One comparison: throughput, calls into the system, or the time of a message beside idle connections."""

    idle: int = 0  # connections

    @property
    def unit(self) -> str:
        return {"calls": "calls", "idle": "us"}.get(self.kind) or super().unit

    @property
    def more_is_better(self) -> bool:
        return self.kind not in ("calls", "idle")

    @property
    def load(self) -> str:
        return super().load + (f", {self.idle} idle" if self.idle else "")

    @property
    def limit(self) -> None:
        """There is none: the server in C is written for epoll."""


def throughput(benchmark: str, connections: int) -> WindowsCell:
    return WindowsCell(benchmark, None if benchmark.endswith("aiohttp") else KIB, connections)


def beside_idle(benchmark: str, idle: int) -> WindowsCell:
    return WindowsCell(benchmark, KIB, 1, idle)


def cells(quick: bool = False) -> list[WindowsCell]:
    connections, idle = (CONNECTIONS[-1:], IDLE[:1]) if quick else (CONNECTIONS, IDLE)
    return [
        *(throughput(benchmark, number) for benchmark in (*THROUGHPUT, *CALLS) for number in connections),
        *(beside_idle(benchmark, number) for benchmark in (IDLE_TIME, IDLE_CALLS) for number in idle),
    ]
