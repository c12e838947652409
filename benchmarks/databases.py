"""`python -m benchmarks.databases --postgresql URL --redis URL`: what a query costs from each loop, of servers that run
already. psycopg's `execute`, asyncpg's `fetchval` and redis-py's SET, one after another on one connection.

Loops take turns, in a process of its own each. The figure is the median of the rounds, in microseconds that pass.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import loops
from benchmarks.console import notice
from benchmarks.processes import Cores, pinned

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Query = Callable[[], Awaitable[Any]]


async def psycopg_execute(url: str) -> Query:
    import psycopg  # noqa: PLC0415

    connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
    return lambda: connection.execute("select 1")


async def asyncpg_fetchval(url: str) -> Query:
    import asyncpg  # noqa: PLC0415

    connection = await asyncpg.connect(url)
    return lambda: connection.fetchval("select 1")


async def redis_set(url: str) -> Query:
    import redis.asyncio  # noqa: PLC0415

    client = await redis.asyncio.from_url(url, single_connection_client=True)
    return lambda: client.set("key", "value")


CLIENTS = {
    "psycopg": ("postgresql", psycopg_execute),
    "asyncpg": ("postgresql", asyncpg_fetchval),
    "redis": ("redis", redis_set),
}


async def measure(client: str, url: str, seconds: float) -> float:
    """Microseconds for a query, over `seconds` after a fifth of that for warming up."""
    query = await CLIENTS[client][1](url)
    await repeat(query, seconds / 5)
    return await repeat(query, seconds)


async def repeat(query: Query, seconds: float) -> float:
    done = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(50):
            await query()
        done += 50
    return elapsed / done * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgresql", metavar="URL", help="postgresql://user:password@host/database")
    parser.add_argument("--redis", metavar="URL", help="redis://host:6379")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        loop, client, url = arguments.measure
        with asyncio.Runner(loop_factory=loops.factory(loop)) as runner:
            print(json.dumps(runner.run(measure(client, url, arguments.seconds))))
        return
    names = [name for name in loops.LOOPS if loops.version(name) is not None]
    urls = vars(arguments)
    core = Cores.choose().server
    print("| microseconds a query | " + " | ".join(names) + f" | {loops.SUBJECT} / best peer |")
    print("| --- |" + " ---: |" * (len(names) + 1))
    for client, (kind, _) in CLIENTS.items():
        if urls[kind] is None or importlib.util.find_spec(client) is None:
            notice(f"left out: {client}: {'no server is given' if urls[kind] is None else 'not installed'}")
            continue
        rounds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(arguments.rounds):
            for name in names:
                command = ["--measure", name, client, urls[kind], "--seconds", str(arguments.seconds)]
                with pinned(core):
                    result = subprocess.run(
                        [sys.executable, "-m", "benchmarks.databases", *command],
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                if result.returncode:
                    notice(f"left out: {client} {name}: {result.stderr.strip().splitlines()[-1]}")
                else:
                    rounds[name].append(json.loads(result.stdout))
        figures = {name: median(values) for name, values in rounds.items() if values}
        peers = [figure for name, figure in figures.items() if name != loops.SUBJECT]
        of_peer = f"{min(peers) / figures[loops.SUBJECT]:.2f}" if peers and loops.SUBJECT in figures else "-"
        cells = [f"{figures[name]:.1f}" if name in figures else "-" for name in names]
        print(f"| {client} | " + " | ".join(cells) + f" | {of_peer} |", flush=True)


if __name__ == "__main__":
    main()
