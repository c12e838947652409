"""`python -m benchmarks.callbacks LOOP FIGURE SECONDS`: what a loop takes to run a callback, without any I/O.

Prints one line of JSON: the nanoseconds that each callback, wake-up, timer or task took. `FIGURES` maps the
names to coroutine functions that do so many of a thing; each is repeated until the time is over.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time

from benchmarks import loops

BURST = 1000  # callbacks scheduled at once
TASKS = 100  # tasks gathered at once


async def call_soon_chain(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Callbacks that each schedule the next: one per turn of the loop."""
    done = loop.create_future()
    left = count

    def callback() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(callback)
        else:
            done.set_result(None)

    loop.call_soon(callback)
    await done


def nothing() -> None:
    pass


async def call_soon_burst(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Callbacks scheduled a thousand at a time, then run in one turn."""
    for _ in range(count // BURST):
        for _ in range(BURST):
            loop.call_soon(nothing)
        await asyncio.sleep(0)


async def sleep_zero(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """A task that gives way again and again."""
    for _ in range(count):
        await asyncio.sleep(0)


async def sleep_zero_watching(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """The same, where a socket is watched, so that the kernel is asked in every turn."""
    ours, theirs = socket.socketpair()
    loop.add_reader(ours.fileno(), nothing)
    for _ in range(count):
        await asyncio.sleep(0)
    loop.remove_reader(ours.fileno())
    ours.close()
    theirs.close()


async def future_wakeup(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """A task that awaits a future which a callback completes."""
    for _ in range(count):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future


async def timer_cancelled(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Timers set and cancelled, as timeouts are that do not fire."""
    for _ in range(count // BURST):
        for _ in range(BURST):
            loop.call_later(10, nothing).cancel()
        await asyncio.sleep(0)


async def tasks_gathered(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Tasks spawned a hundred at a time and gathered."""

    async def task() -> None:
        pass

    for _ in range(count // TASKS):
        await asyncio.gather(*[loop.create_task(task()) for _ in range(TASKS)])


async def threadsafe_burst(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """`call_soon_threadsafe` a thousand at a time, from the loop's own thread: the price of the call."""
    for _ in range(count // BURST):
        for _ in range(BURST):
            loop.call_soon_threadsafe(nothing)
        await asyncio.sleep(0)


async def threadsafe_round_trip(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Another thread wakes the sleeping loop, and waits until the callback ran."""
    ran = threading.Event()

    def post() -> None:
        for _ in range(count):
            ran.clear()
            loop.call_soon_threadsafe(ran.set)
            ran.wait()

    await loop.run_in_executor(None, post)


FIGURES = {
    "call_soon-chain": call_soon_chain,
    "call_soon-burst": call_soon_burst,
    "sleep": sleep_zero,
    "sleep-watching": sleep_zero_watching,
    "future": future_wakeup,
    "timer": timer_cancelled,
    "tasks": tasks_gathered,
    "threadsafe": threadsafe_burst,
    "thread": threadsafe_round_trip,
}


async def measure(figure: str, seconds: float) -> float:
    """Nanoseconds each, over `seconds` of repetition after a fifth of that for warming up."""
    loop = asyncio.get_running_loop()
    await repeat(figure, loop, seconds / 5)
    return await repeat(figure, loop, seconds)


async def repeat(figure: str, loop: asyncio.AbstractEventLoop, seconds: float) -> float:
    done = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        await FIGURES[figure](loop, BURST)
        done += BURST
    return elapsed / done * 1e9


def main(loop: str, figure: str, seconds: str) -> None:
    with asyncio.Runner(loop_factory=loops.factory(loop)) as runner:
        print(json.dumps({"nanoseconds": runner.run(measure(figure, float(seconds)))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
