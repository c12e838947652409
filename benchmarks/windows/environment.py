"""`python -m benchmarks.windows.environment LOOP...`: where the servers run, as a line of JSON.

Exit status 2, with the reason on standard error, where there is nothing to measure.
"""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import platform
import sys
from typing import Any

from benchmarks.windows.loops import version


def environment(loops: list[str]) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.platform()}{wine()}",
        "python": f"{sys.implementation.name} {platform.python_version()}, {platform.python_compiler()}",
        "call": os.environ.get("NOTIFYLOOP_WINSOCK_DLL", "ws2_32.dll"),
        "versions": {name: version(name) for name in loops},
    }


def wine() -> str:
    """What pretends to be Windows here, if anything does."""
    try:
        get_version = ctypes.WinDLL("ntdll").wine_get_version
    except AttributeError:
        return ""
    get_version.restype = ctypes.c_char_p
    return f" (wine {get_version().decode()})"


def lines(place: dict[str, Any]) -> str:
    """As a list, for the head of a page."""
    versions = ", ".join(f"{name} {each}" for name, each in place["versions"].items() if each)
    return (
        f"- {place['date']}, {place['system']}, {place['processor']}, {place['cores']} cores\n"
        f"- {place['python']}\n"
        f"- {versions}\n"
        f"- ProcessSocketNotifications of {place['call']}"
    )


if __name__ == "__main__":
    if sys.platform != "win32" or platform.machine() != "AMD64":
        sys.exit(f"these servers need Windows on x86-64, or wine; this Python is for {sys.platform}")
    print(json.dumps(environment(sys.argv[1:])))
