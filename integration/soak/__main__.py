"""Runs the soak: prints a line a minute, and ends with 1 if there is a fault, or more of something than at first."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import signal
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import notifyloop

from .census import living_interests, take
from .lives import LIVES
from .world import Interrupts, World, run_through_interrupts

if TYPE_CHECKING:
    from .census import Census

AT_ONCE = 40  # lives
LONGEST = 30  # seconds that one may take, and all may take to end
THREADS = 8


async def live(world: World) -> None:
    """One after the other, until it is time to rest."""
    while not world.resting:
        life = world.random.choice(LIVES)
        name = life.__name__
        world.begun[name] += 1
        try:
            async with asyncio.timeout(LONGEST):
                await life(world)
        except Exception:
            world.fault(f"{name}: {traceback.format_exc()}")
        world.ended[name] += 1


async def come_to_rest(world: World) -> None:
    """Wait until what has ended is gone: connections are closed in turns to come, servers' ends later still."""
    deadline = world.loop.time() + LONGEST
    watched = len(world.servers) + (world.loop._ssock is not None)
    while len(asyncio.all_tasks()) > 1 or living_interests(world.loop) != watched:
        if world.loop.time() > deadline:
            left: list[object] = list(asyncio.all_tasks() - {asyncio.current_task()})
            for interest in world.loop._turn.interests.by_descriptor.values():
                left.append((interest.fd, interest.events, interest.owner, interest.reader, interest.writer))
            world.fault(f"have not ended: {left}")
            return
        await asyncio.sleep(0.05)
    for _ in range(5):
        await asyncio.sleep(0.02)


def work_of(loop: notifyloop.NotifyLoop) -> str:
    statistics = loop.statistics()
    names = ("iterations", "notifications", "stale_notifications", "registrations", "re_arms", "posted")
    return " ".join(f"{name} {getattr(statistics, name)}" for name in names)


async def soak(world: World, seconds: float, every: float) -> tuple[Census, Census]:
    executor = ThreadPoolExecutor(THREADS)
    world.loop.set_default_executor(executor)
    await world.open()
    # All threads are there from the beginning.
    await asyncio.gather(*[asyncio.to_thread(time.sleep, 0.2) for _ in range(THREADS)])
    first: Census | None = None
    begin = world.loop.time()
    while True:
        world.resting = False
        lives = [asyncio.ensure_future(live(world)) for _ in range(AT_ONCE)]
        left = seconds - (world.loop.time() - begin) if first else every
        await asyncio.sleep(min(left, every))
        world.resting = True
        await asyncio.gather(*lives)
        del lives
        await come_to_rest(world)
        census = take(world.loop)
        passed = world.loop.time() - begin
        print(f"{passed:6.0f} s  {world.ended.total()} lives  {census}  {work_of(world.loop)}", flush=True)
        if first is None:
            first, begin = census, world.loop.time()  # what was before was to warm up
            continue
        for grown in census.grown_since(first):
            print("    " + grown, flush=True)
        if passed >= seconds:
            break
    await world.close()
    await world.loop.shutdown_default_executor()
    return first, census


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m integration.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800, help="how long, after a warm-up")
    parser.add_argument("--every", type=float, default=60, help="seconds between two counts, and of the warm-up")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2)
    warnings.simplefilter("ignore", ResourceWarning)  # of loops that are closed with all they have
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
    logging.disable(logging.ERROR)
    loop = notifyloop.NotifyLoop()
    asyncio.set_event_loop(None)
    counted: list[Census] = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(loop, arguments.seed, Path(folder))

        async def go() -> None:
            counted.extend(await soak(world, arguments.seconds, arguments.every))

        with Interrupts(arguments.seed) as interrupts:
            run_through_interrupts(loop, go())
        loop.close()
    print(f"interrupts: {interrupts.sent} sent, {interrupts.raised} raised in the turn")
    print("lives:", *[f"{name} {count}" for name, count in sorted(world.ended.items())])
    for message, count in sorted(world.told.items()):
        print(f"told {count} times: {message}")
    first, last = counted
    grown = last.grown_since(first)
    print("at first:", first)
    print("at last: ", last)
    for line in grown:
        print("grown:", line)
    for fault in world.faults:
        print("fault:", fault)
    deaf = interrupts.sent > 0 and not interrupts.raised and not notifyloop.compiled
    if deaf:
        print("fault: no interrupt has come into the turn")
    return 1 if grown or world.faults or deaf else 0


if __name__ == "__main__":
    sys.exit(main())
