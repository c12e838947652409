"""What a process that runs a loop holds. When everything that began has ended, it is as much as before."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import notifyloop

__all__ = ["Census", "living_interests", "take"]

PAGE = os.sysconf("SC_PAGESIZE")
# What has to be as it was, to the last one. Memory may vary by these parts: it is what the C library keeps of the
# most that was needed, and what caches hold.
# What rests for a socket that is gone, until its number is given away again, are as many as there were sockets at once.
VARIES = {"resident_kib": (0.10, 8192), "blocks": (0.02, 2000), "resting": (0, 1000)}
OURS = ("notifyloop", "asyncio", "_asyncio", "socket", "_ssl", "ssl", "concurrent", "subprocess", "multiprocessing")


@dataclass(frozen=True)
class Census:
    """How many there are of what: numbers, and which."""

    numbers: dict[str, int]
    descriptors: dict[int, str]
    objects: Counter[str]

    def grown_since(self, first: Census) -> list[str]:
        """What there is more of than the first time, or less."""
        grown = []
        for name, number in self.numbers.items():
            before = first.numbers[name]
            part, some = VARIES.get(name, (0, 0))
            if number > before + max(before * part, some) or (name not in VARIES and number != before):
                grown.append(f"{name}: {before} -> {number}")
        if self.numbers["descriptors"] != first.numbers["descriptors"]:
            for fd, what in sorted(self.descriptors.items()):
                if fd not in first.descriptors:
                    grown.append(f"    descriptor {fd}: {what}")
        for kind in sorted(self.objects | first.objects):
            if self.objects[kind] != first.objects[kind]:
                grown.append(f"objects of {kind}: {first.objects[kind]} -> {self.objects[kind]}")
        return grown

    def __str__(self) -> str:
        return " ".join(f"{name} {number}" for name, number in self.numbers.items())


def descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that with which the list was read
            found[int(name)] = str(Path("/proc/self/fd", name).readlink())
    return found


def watched_by_the_kernel(found: dict[int, str]) -> int:
    """Files in the sets of all epolls of the process."""
    epolls = [fd for fd, what in found.items() if what == "anon_inode:[eventpoll]"]
    return sum(Path(f"/proc/self/fdinfo/{fd}").read_text().count("tfd:") for fd in epolls)


def living_interests(loop: notifyloop.NotifyLoop) -> int:
    """Those that have an owner still, or need none."""
    interests = loop._turn.interests.by_descriptor.values()
    return sum(interest.owner is None or interest.owner() is not None for interest in interests)


def children() -> int:
    return sum(len(Path(task, "children").read_text().split()) for task in Path("/proc/self/task").iterdir())


def kind_of(thing: object) -> str | None:
    module = getattr(type(thing), "__module__", None)
    if isinstance(module, str) and module.partition(".")[0] in OURS:
        return f"{module}.{type(thing).__qualname__}"
    return None


def take(loop: notifyloop.NotifyLoop) -> Census:
    """To be called when nothing goes on."""
    for _ in range(3):
        gc.collect()
    found = descriptors()
    statistics = loop.statistics()
    interests = loop._turn.interests
    numbers = {
        "resident_kib": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE // 1024,
        "blocks": sys.getallocatedblocks(),
        "descriptors": len(found),
        "interests": living_interests(loop),
        "resting": len(interests.by_descriptor) - living_interests(loop),
        "registered": statistics.registered,
        "watched": watched_by_the_kernel(found),
        "places": len(interests.places)
        - len(interests._vacant)
        - len(interests._vacated)
        - len(interests.by_descriptor),
        "threads": threading.active_count(),
        "children": children(),
        "tasks": len(asyncio.all_tasks(loop)),
        "timers": len(loop._scheduled) - loop._timer_cancelled_count,
        "ready": len(loop._ready),
    }
    objects: Counter[str] = Counter(filter(None, map(kind_of, gc.get_objects())))
    # Handles that have run are kept, to be used again; the other two are what rests.
    for kind in ("handles.Handle", "handles.LockedHandle", "interest.Interest", "waits.Wait"):
        objects.pop(f"notifyloop.turn.{kind}", None)
    return Census(numbers, found, objects)
