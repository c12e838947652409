"""What a run amounts to: medians, and their ratios to the best peer and to the limit."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.processes import LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.cells import Cell
    from benchmarks.run import Interleaved

NOISY = 0.2  # of the median: a wider spread of the rounds is marked


@dataclass(frozen=True)
class Result:
    """The median of the rounds of one loop in one cell. Ratios are of speed: above 1 is faster."""

    figure: float
    rounds: list[float]
    details: dict[str, Any]  # the medians of everything else that was measured
    of_best_peer: float | None = None
    of_limit: float | None = None

    @property
    def spread(self) -> float:
        return (max(self.rounds) - min(self.rounds)) / self.figure

    @property
    def noisy(self) -> bool:
        return self.spread > NOISY

    def as_json(self) -> dict[str, Any]:
        return {
            "figure": self.figure,
            "rounds": self.rounds,
            "spread": self.spread,
            "of_best_peer": self.of_best_peer,
            "of_limit": self.of_limit,
            **self.details,
        }


@dataclass(frozen=True)
class CellResults:
    """One cell: its loops in the order in which they were asked for, and the limit where there is one."""

    cell: Cell
    loops: dict[str, Result]
    limit: Result | None

    def speed(self, name: str) -> float:
        """Comparable within the cell: more is faster, whatever the unit."""
        figure = self.loops[name].figure
        return figure if self.cell.more_is_better else 1 / figure

    def as_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.cell.benchmark,
            "size": self.cell.size,
            "connections": self.cell.connections,
            "unit": self.cell.unit,
            "more_is_better": self.cell.more_is_better,
            "loops": {name: result.as_json() for name, result in self.loops.items()},
            "limit": self.limit and self.limit.as_json(),
        }


def summarise(run: Interleaved, cells: Sequence[Cell], loops: Sequence[str]) -> list[CellResults]:
    return [summarise_cell(run, cell, loops) for cell in cells]


def summarise_cell(run: Interleaved, cell: Cell, loops: Sequence[str]) -> CellResults:
    limit = None
    if cell.limit and (rounds := run.measurements.get((cell.limit, LIMIT))):
        limit = result(rounds)
    measured = {name: result(run.measurements[cell, name]) for name in loops if (cell, name) in run.measurements}
    plain = CellResults(cell, measured, limit)
    results = {}
    for name, each in measured.items():
        peers = [plain.speed(peer) for peer in measured if peer != name]
        results[name] = replace(
            each,
            of_best_peer=plain.speed(name) / max(peers) if peers else None,
            of_limit=each.figure / limit.figure if limit else None,
        )
    return CellResults(cell, results, limit)


def result(rounds: list[dict[str, Any]]) -> Result:
    details = middle(rounds)
    figure = details.pop("figure")
    return Result(figure, [each["figure"] for each in rounds], details)


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number in dictionaries of the same shape, where a number that is missing is 0."""
    examples = {key: value for each in rounds for key, value in each.items()}
    return {
        key: middle([each.get(key, {}) for each in rounds])
        if isinstance(example, dict)
        else median(each.get(key, 0) for each in rounds)
        for key, example in examples.items()
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
