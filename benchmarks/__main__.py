"""`python -m benchmarks`, from the root of the repository: compare event loops, in one interleaved run."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import loops
from benchmarks.arguments import comma_separated, positive, size
from benchmarks.cells import BENCHMARKS, cells, select
from benchmarks.chart import charts
from benchmarks.connections import SPARE, ConnectionsRun, raise_descriptor_limit
from benchmarks.console import notice
from benchmarks.environment import environment
from benchmarks.processes import BUILD, Cores, MeasurementError, compile_programs
from benchmarks.report import details, lines, tables
from benchmarks.results import summarise, write_json
from benchmarks.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

BUSY = 0.5  # load average before the run


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if sys.platform != "linux":
        notice("the benchmarks need Linux: the load and the limit are written for epoll")
        return 2
    try:
        compile_programs("load", "limit", "visitors")
    except MeasurementError as error:
        notice(str(error))
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    cores = Cores.choose()
    warn(cores)
    os.sched_setaffinity(0, {cores.client})  # waiting for answers is not to disturb who is measured
    names = [name for name in options.loops if available(name)]
    place = environment(names, cores)
    return options.command(options, cores, names, place)


def compare(options: argparse.Namespace, cores: Cores, names: list[str], place: dict[str, Any]) -> int:
    chosen = list(cells(options.only, options.sizes, options.connections, options.quick))
    run = Run(options.seconds, options.rounds, cores=cores)
    asyncio.run(run.measure(chosen, names))
    results = summarise(run, chosen, names)
    report = tables(results, names)
    write_json(
        options.output / "results.json",
        {
            "environment": place,
            "settings": {"seconds": options.seconds, "rounds": options.rounds},
            "cells": [each.as_json() for each in results],
            "left_out": [
                {"cell": f"{cell.benchmark} {cell.load}".strip(), "loop": loop, "reason": reason}
                for (cell, loop), reason in run.left_out.items()
            ],
        },
    )
    (options.output / "results.md").write_text(f"{lines(place)}\n\n{report}\n{details(results, names)}")
    for name, drawing in charts(results):
        (options.output / f"{name}.svg").write_text(drawing)
    print(report)
    print(f"written to {options.output}: results.json, results.md, and a chart for each benchmark")
    return int(any(loop == loops.SUBJECT for _, loop in run.left_out))


def connections(options: argparse.Namespace, cores: Cores, names: list[str], place: dict[str, Any]) -> int:
    allowed = raise_descriptor_limit() - SPARE
    if options.idle > allowed:
        notice(f"warning: the limit of descriptors allows {allowed} idle connections")
    idle = min(options.idle, allowed)
    run = ConnectionsRun(cores, options.seconds, options.rounds, options.total, idle)
    asyncio.run(run.measure(names))
    write_json(options.output / "connections.json", {"environment": place, **run.as_json()})
    (options.output / "connections.md").write_text(f"{lines(place)}\n\n{run.tables()}")
    print(run.tables())
    print(f"written to {options.output}: connections.json, connections.md")
    return int(any(name.endswith(loops.SUBJECT) for name in run.left_out))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--loops", type=loop_names, default=list(loops.LOOPS), help="default: all that are installed")
    shared.add_argument("--rounds", type=positive(int), help="measurements of each cell (default 5)")
    shared.add_argument("--seconds", type=positive(float), help="of each measurement (default 0.5)")
    shared.add_argument("--output", type=Path, default=BUILD / "results", metavar="DIR")
    shared.add_argument("--quick", action="store_true", help="a smoke test: little of everything, one short round")

    if arguments[:1] == ["connections"]:
        parser = argparse.ArgumentParser(
            prog="python -m benchmarks connections",
            description="Measure connections that come, go, and stay.",
            parents=[shared],
        )
        parser.add_argument("--total", type=positive(int), help="connections of the soak (default 100 000)")
        parser.add_argument("--idle", type=positive(int), help="connections that stay (default 10 000)")
        options = parser.parse_args(arguments[1:])
        options.command = connections
        options.total = options.total or (1000 if options.quick else 100_000)
        options.idle = options.idle or (100 if options.quick else 10_000)
    else:
        parser = argparse.ArgumentParser(
            prog="python -m benchmarks",
            description="Compare event loops in one interleaved run, with an echo server in C as the limit.",
            epilog="`python -m benchmarks connections --help`: connections that come, go, and stay.",
            parents=[shared],
        )
        parser.add_argument(
            "--only",
            type=benchmark_names,
            default=list(BENCHMARKS),
            help=f"some of {', '.join(BENCHMARKS)}, or echo, ...",
        )
        parser.add_argument("--sizes", type=comma_separated(size), default=[], help="of echo messages: 1K,64K,1M")
        parser.add_argument("--connections", type=comma_separated(positive(int)), default=[], help="numbers: 1,20,500")
        options = parser.parse_args(arguments)
        options.command = compare
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.2 if options.quick else 0.5)
    return options


def loop_names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in loops.LOOPS:
            raise argparse.ArgumentTypeError(f"no loop is called {name!r}: there are {', '.join(loops.LOOPS)}")
    return names


def benchmark_names(text: str) -> list[str]:
    try:
        return select(text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def available(name: str) -> bool:
    if loops.version(name) is not None:
        return True
    notice(f"left out: {name}: not installed")
    return False


def warn(cores: Cores) -> None:
    if cores.shared:
        notice("warning: one core only, so the load takes time from the servers: no ratio means much")
    if cores.siblings:
        notice("warning: server and load run on two threads of one physical core")
    if (load := os.getloadavg()[0]) > BUSY:
        notice(f"warning: something else is at work here (load average {load:.1f})")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
