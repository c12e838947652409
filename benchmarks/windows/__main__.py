"""`python -m benchmarks.windows`, from the root of the repository: compare event loops on Windows, in one interleaved
run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.arguments import comma_separated, one_of, positive
from benchmarks.console import notice
from benchmarks.processes import BUILD, MeasurementError, running
from benchmarks.results import summarise, write_json
from benchmarks.windows.cells import BENCHMARKS, cells
from benchmarks.windows.environment import lines
from benchmarks.windows.loops import LOOPS, SUBJECTS
from benchmarks.windows.report import report, targets
from benchmarks.windows.run import WindowsRun

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    try:
        place = asyncio.run(ask_environment(options.python, options.loops))
    except (MeasurementError, OSError) as error:
        notice(f"{options.python}: {error}")
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    loops = [name for name in options.loops if place["versions"][name]]
    for name in options.loops:
        if name not in loops:
            notice(f"left out: {name}: not installed")
    chosen = [cell for cell in cells(options.quick) if cell.benchmark in options.only]
    run = WindowsRun(options.seconds, options.rounds, python=options.python)
    asyncio.run(run.measure(chosen, loops))
    results = summarise(run, chosen, loops)
    words = report(results, loops)
    write_json(
        options.output / "windows.json",
        {
            "environment": place,
            "settings": {"seconds": options.seconds, "rounds": options.rounds},
            "cells": [{**each.as_json(), "idle": each.cell.idle} for each in results],
            "targets": [target.as_json() for target in targets(results)],
            "left_out": [
                {"cell": f"{cell.benchmark} {cell.load}", "loop": loop, "reason": reason}
                for (cell, loop), reason in run.left_out.items()
            ],
        },
    )
    (options.output / "windows.md").write_text(f"{lines(place)}\n\n{words}", encoding="utf-8")
    print(words)
    print(f"written to {options.output}: windows.json, windows.md")
    return int(any(loop in SUBJECTS for _, loop in run.left_out))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.windows",
        description="Compare event loops on Windows, or under wine, in one interleaved run.",
    )
    parser.add_argument("--loops", type=comma_separated(one_of(LOOPS)), default=list(LOOPS), help="default: all")
    parser.add_argument("--only", type=comma_separated(one_of(BENCHMARKS)), default=list(BENCHMARKS))
    parser.add_argument("--rounds", type=positive(int), help="measurements of each cell (default 5)")
    parser.add_argument("--seconds", type=positive(float), help="of each measurement (default 0.5)")
    parser.add_argument("--output", type=Path, default=BUILD / "results", metavar="DIR")
    parser.add_argument("--python", default=sys.executable, help="for Windows, that runs the servers (default: this)")
    parser.add_argument("--quick", action="store_true", help="a smoke test: little of everything, one short round")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.1 if options.quick else 0.5)
    return options


async def ask_environment(python: str, loops: Sequence[str]) -> dict[str, Any]:
    """Where the servers run. Raises MeasurementError if they cannot."""
    async with running(None, python, "-m", "benchmarks.windows.environment", *loops) as process:
        return await process.read_json()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
