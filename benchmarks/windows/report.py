"""Results as Markdown tables, and the targets that they are held against."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from benchmarks.report import figure, ratio, significant, table
from benchmarks.results import NOISY
from benchmarks.windows.cells import IDLE, IDLE_CALLS, IDLE_TIME, beside_idle, throughput
from benchmarks.windows.loops import NATIVE, SELECTOR, SUBJECTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.results import CellResults, Result
    from benchmarks.windows.cells import WindowsCell

TITLES = {
    "echo-protocol": "Echo, Protocol (messages/s, more is better)",
    "echo-reader": "Echo, add_reader (messages/s, more is better)",
    "http-aiohttp": "HTTP, aiohttp hello (requests/s, more is better)",
    "calls-protocol": "Echo, Protocol: calls into the system for each message",
    "calls-reader": "Echo, add_reader: calls into the system for each message",
    "calls-aiohttp": "HTTP, aiohttp hello: calls into the system for each request",
    "idle-protocol": "Echo, Protocol, beside idle connections (microseconds a message, less is better)",
}
LEAST_OF_SELECTOR = 2.0
MOST_CALLS = {1: 3.0, 20: 2.1}  # for each message, by connections
COUNTED_WRONG = 0.005  # calls, for each message
IDLE_NOISE = 0.1  # so far apart may the figures of two equal things be


@dataclass(frozen=True)
class Target:
    """What must hold in every run, whatever the machine."""

    words: str
    figure: float | None  # None: not measured in this run
    met: bool

    def as_json(self) -> dict[str, Any]:
        return {"target": self.words, "figure": self.figure, "met": self.met if self.figure is not None else None}


def figure_of(result: Result) -> float:
    return result.figure


def processor_time(result: Result) -> float:
    """Microseconds of the server's process. Wine's own server is another, and goes through all polls for each event."""
    return sum(result.details["server_us"].values())


def targets(results: Sequence[CellResults]) -> Iterator[Target]:
    by_cell = {each.cell: each.loops for each in results}

    def measured(cell: WindowsCell, loop: str, what: Callable[[Result], float]) -> float | None:
        result = by_cell.get(cell, {}).get(loop)
        return result and what(result)

    def quotient(above: float | None, below: float | None) -> float | None:
        return above / below if above and below else None

    for connections, most in MOST_CALLS.items():
        words = f"{NATIVE}, 1 KiB, {connections} connections: at most {most} calls a message"
        number = measured(throughput("calls-protocol", connections), NATIVE, figure_of)
        yield Target(words, number, number is not None and number <= most + COUNTED_WRONG)
    for loop in SUBJECTS:
        for what, benchmark, cost, tolerance in (
            ("calls", IDLE_CALLS, figure_of, COUNTED_WRONG),
            ("processor time", IDLE_TIME, processor_time, IDLE_NOISE),
        ):
            words = f"{loop}, {what} of a message beside {IDLE[-1]} idle connections: that beside {IDLE[0]}, times"
            few, many = (measured(beside_idle(benchmark, number), loop, cost) for number in (IDLE[0], IDLE[-1]))
            times = quotient(many, few)
            yield Target(words, times, times is not None and times <= 1 + tolerance)
    for loop in SUBJECTS:
        for connections in MOST_CALLS:
            cell = throughput("echo-protocol", connections)
            words = (
                f"{loop}, 1 KiB, {connections} connections: at least {LEAST_OF_SELECTOR} times the stock selector loop"
            )
            times = quotient(measured(cell, loop, figure_of), measured(cell, SELECTOR, figure_of))
            yield Target(words, times, times is not None and times >= LEAST_OF_SELECTOR)


def report(results: Sequence[CellResults], loops: Sequence[str]) -> str:
    blocks = []
    for name, group in groupby(sorted(results, key=order), lambda each: each.cell.benchmark):
        cells = [each for each in group if each.loops]
        if cells:
            blocks += [f"### {TITLES[name]}", figures(cells, loops)]
            if cells[0].cell.kind == "calls":
                blocks.append(which_calls(cells, loops))
            else:
                blocks += ["Microseconds of the server's processor time for each:", times(cells, loops)]
    if any(result.noisy for each in results for result in each.loops.values()):
        blocks.append(f"`~`: the rounds lie more than {NOISY:.0%} of the median apart.")
    held = [target for target in targets(results) if target.figure is not None]
    if held:
        rows = [[target.words, f"{target.figure:.3f}", "met" if target.met else "missed"] for target in held]
        blocks += ["### Targets", table(["", "figure", ""], rows)]
    return "\n\n".join(blocks) + "\n"


def order(each: CellResults) -> int:
    return list(TITLES).index(each.cell.benchmark)


def figures(cells: Sequence[CellResults], loops: Sequence[str]) -> str:
    names = [name for name in loops if any(name in each.loops for each in cells)]
    compared = [name for name in SUBJECTS if name in names and SELECTOR in names and cells[0].cell.more_is_better]
    write = counted if cells[0].cell.kind == "calls" else figure
    rows = [
        [
            each.cell.load,
            *(write(each.loops.get(name)) for name in names),
            *(ratio(of_selector(each, name)) for name in compared),
        ]
        for each in cells
    ]
    return table(["", *names, *(f"{name} / {SELECTOR}" for name in compared)], rows)


def counted(result: Result | None) -> str:
    return "-" if result is None else f"{result.figure:.2f}"


def times(cells: Sequence[CellResults], loops: Sequence[str]) -> str:
    names = [name for name in loops if any(name in each.loops for each in cells)]
    rows = [
        [
            each.cell.load,
            *(significant(processor_time(each.loops[name])) if name in each.loops else "-" for name in names),
        ]
        for each in cells
    ]
    return table(["", *names], rows)


def of_selector(each: CellResults, name: str) -> float | None:
    if name in each.loops and SELECTOR in each.loops:
        return each.loops[name].figure / each.loops[SELECTOR].figure
    return None


def which_calls(cells: Sequence[CellResults], loops: Sequence[str]) -> str:
    """Of the first cell, for others differ in how often alone."""
    lines = []
    for name in loops:
        if result := cells[0].loops.get(name):
            made = sorted(result.details["calls"].items(), key=lambda call: -call[1])
            often = [f"{call} {number:.2f}" for call, number in made if number >= COUNTED_WRONG]
            lines.append(f"- {name}, {cells[0].cell.load}: {', '.join(often)}")
    return "\n".join(lines)
