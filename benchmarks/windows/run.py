"""How a cell is measured on Windows: a server in one process, the load in another, and what the server was asked."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.hello import HELLO
from benchmarks.processes import MeasurementError, running
from benchmarks.run import Interleaved
from benchmarks.windows.loops import SELECTOR

if TYPE_CHECKING:
    from benchmarks.windows.cells import WindowsCell

MOST_SELECTED = 512  # Python's FD_SETSIZE on Windows

# Functions of the system's libraries that do not count: as loops use them, they call no system. All others do.
STAYS = {
    # errors
    *("GetLastError", "SetLastError", "WSAGetLastError", "WSASetLastError", "RtlNtStatusToDosError"),
    # locks that are free
    *("EnterCriticalSection", "LeaveCriticalSection", "TryEnterCriticalSection"),
    *("AcquireSRWLockExclusive", "ReleaseSRWLockExclusive", "AcquireSRWLockShared", "ReleaseSRWLockShared"),
    *("TryAcquireSRWLockExclusive", "WakeConditionVariable", "WakeAllConditionVariable"),
    # the thread's own memory, and the process's
    *("TlsGetValue", "TlsSetValue", "FlsGetValue", "FlsSetValue", "GetCurrentThreadId", "GetCurrentProcessId"),
    *("GetCurrentProcess", "GetCurrentThread", "GetProcessHeap", "HeapAlloc", "HeapReAlloc", "HeapFree"),
    # clocks, which the system keeps up to date in memory that everybody may read
    *("QueryPerformanceCounter", "QueryPerformanceFrequency", "GetSystemTimeAsFileTime"),
    *("GetSystemTimePreciseAsFileTime", "GetTickCount", "GetTickCount64", "QueryUnbiasedInterruptTime"),
    # the result of an operation that has ended, read from its OVERLAPPED
    *("GetOverlappedResult", "WSAGetOverlappedResult"),
    # numbers, sets and text
    *("htonl", "htons", "ntohl", "ntohs", "__WSAFDIsSet", "inet_ntop", "InetNtopW"),
    *("MultiByteToWideChar", "WideCharToMultiByte"),
    # none of a loop's: how the measurement asks for the processor time, once
    "GetProcessTimes",
}


@dataclass
class WindowsRun(Interleaved):
    """The comparison on Windows."""

    python: str = field(kw_only=True)  # that runs the servers; the load runs on ours

    async def measure_cell(self, cell: WindowsCell, loop: str) -> dict[str, Any]:
        if loop == SELECTOR and cell.connections + cell.idle >= MOST_SELECTED:
            # Not tried, for what it leaves behind under wine has kept the following cells from being measured.
            raise MeasurementError(f"its select() takes {MOST_SELECTED} sockets")
        counting = ["count"] if cell.kind == "calls" else []
        what = ["--http", HELLO] if cell.size is None else ["--size", str(cell.size)]
        connections = ["--connections", str(cell.connections), "--idle", str(cell.idle)]
        timing = ["--seconds", str(self.seconds), "--warmup", str(self.seconds / 5)]
        serve = [self.python, "-m", "benchmarks.windows.server", loop, cell.variant, *counting]
        async with running(None, *serve) as server:
            port = await server.read()
            keep_busy = [sys.executable, "-m", "benchmarks.windows.load", "--port", port, *connections, *timing, *what]
            async with running(None, *keep_busy) as load:
                await load.read()  # "measuring", as soon as it is told
                await server.ask()  # so that it is done with the last of the warm-up
                before = await server.ask()
                load.nudge()
                result = await load.read_json()
                after = await server.ask()
                await load.end()
        messages, seconds = result["messages"], result["seconds"]
        user, system = (after[key] - before[key] for key in ("user", "system"))
        measured = {
            "server_us": {"user": user / messages * 1e6, "system": system / messages * 1e6},
            "server_busy": (user + system) / seconds,
            "client_busy": result["client_busy"],
        }
        if counting:
            return {**measured, **calls(before["calls"], after["calls"], messages)}
        return {**measured, "figure": seconds / messages * 1e6 if cell.kind == "idle" else result["per_second"]}


def calls(before: dict[str, int], after: dict[str, int], messages: int) -> dict[str, float | dict[str, float]]:
    """The calls into the system for each message, in all and by function."""
    each = {name: count / messages for name, count in (Counter(after) - Counter(before)).items()}
    system = {name: count for name, count in each.items() if name not in STAYS}
    if not system:
        raise MeasurementError("no calls into the system were counted")
    return {
        "figure": sum(system.values()),
        "calls": system,
        "calls_that_stay": {n: each[n] for n in each.keys() - system},
    }
