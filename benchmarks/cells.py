"""What is measured: the cells of the comparison, each one server or one figure under one load."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.callbacks import FIGURES
from benchmarks.echo_servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

KIB = 1024
SIZES = (KIB, 16 * KIB, 64 * KIB, KIB * KIB)
CONNECTIONS = (1, 20, 500)

# The whole product would take an hour. Connections matter while a message is one read: the other sizes show
# where copying takes over.
ECHO_CELLS = [
    *((KIB, number) for number in CONNECTIONS),
    (16 * KIB, 20),
    *((64 * KIB, number) for number in CONNECTIONS),
    (KIB * KIB, 20),
]
HELLO_CONNECTIONS = (1, 8, 50)
DATAGRAM_CELLS = [(KIB, 1), (KIB, 20)]
QUICK_CELLS = [(KIB, 20)]

BENCHMARKS = (
    *(f"echo-{api}" for api in SERVERS),
    "udp-datagrams",
    "http-aiohttp",
    *(f"callback-{figure}" for figure in FIGURES),
)


@dataclass(frozen=True)
class Cell:
    """One comparison. Callbacks have neither a size nor connections, HTTP has no size."""

    benchmark: str
    size: int | None = None  # bytes
    connections: int | None = None

    @property
    def kind(self) -> str:
        """`echo`, `udp`, `http` or `callback`."""
        return self.benchmark.partition("-")[0]

    @property
    def variant(self) -> str:
        """The API, or the figure."""
        return self.benchmark.partition("-")[2]

    @property
    def unit(self) -> str:
        return {"echo": "messages/s", "udp": "messages/s", "http": "requests/s", "callback": "ns"}[self.kind]

    @property
    def more_is_better(self) -> bool:
        return self.kind != "callback"

    @property
    def load(self) -> str:
        """The load in words, empty for callbacks."""
        size = [] if self.size is None else [readable_size(self.size)]
        plural = "" if self.connections == 1 else "s"
        connections = [] if self.connections is None else [f"{self.connections} connection{plural}"]
        return ", ".join(size + connections)

    @property
    def limit(self) -> Cell | None:
        """The cell of the server in C with the same load. It knows one way to serve, so APIs share it."""
        if self.kind == "udp":
            return self
        return Cell("echo", self.size, self.connections) if self.kind == "echo" else None


def readable_size(size: int) -> str:
    for unit, name in ((KIB * KIB, "MiB"), (KIB, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def select(only: Iterable[str]) -> list[str]:
    """The benchmarks of these names, or of these kinds: `echo`, `udp`, `http`, `callback`. All without names.
    Raises ValueError for a name that selects nothing.
    """
    names = list(only)
    for name in names:
        if not any(matches(name, benchmark) for benchmark in BENCHMARKS):
            raise ValueError(f"no benchmark is called {name!r}: there are {', '.join(BENCHMARKS)}")
    return [b for b in BENCHMARKS if not names or any(matches(name, b) for name in names)]


def matches(name: str, benchmark: str) -> bool:
    kind, _, variant = benchmark.partition("-")
    return name in (benchmark, variant, kind, f"{kind}s")


def cells(
    benchmarks: Iterable[str], sizes: Sequence[int] = (), connections: Sequence[int] = (), quick: bool = False
) -> Iterator[Cell]:
    """The cells of these benchmarks: the default ones, or the product of sizes and connections if given."""
    if sizes or connections:
        loads = list(itertools.product(sizes or SIZES, connections or CONNECTIONS))
    else:
        loads = QUICK_CELLS if quick else ECHO_CELLS
    for benchmark in benchmarks:
        cell = Cell(benchmark)
        if cell.kind == "echo":
            yield from (Cell(benchmark, *load) for load in loads)
        elif cell.kind == "udp":
            default_loads = QUICK_CELLS if quick else DATAGRAM_CELLS
            given = itertools.product(sizes or [KIB], connections or [1, 20]) if sizes or connections else default_loads
            # A datagram has less than 64 KiB, and those of so many connections have no room in one socket.
            yield from (Cell(benchmark, *load) for load in given if load[0] <= KIB and load[1] <= 20)
        elif cell.kind == "http":
            default = HELLO_CONNECTIONS[-1:] if quick else HELLO_CONNECTIONS
            yield from (Cell(benchmark, None, number) for number in connections or default)
        else:
            yield cell
