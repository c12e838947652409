"""Where a run took place: without it no figure means anything."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import loops

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.processes import Cores


def environment(names: Iterable[str], cores: Cores) -> dict[str, Any]:
    compiler = subprocess.run([os.environ.get("CC", "cc"), "--version"], capture_output=True, text=True, check=True)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "server_core": cores.server,
        "client_core": cores.client,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{sys.implementation.name} {platform.python_version()}, {platform.python_compiler()}",
        "c_compiler": compiler.stdout.partition("\n")[0],
        "load_average_before": os.getloadavg()[0],
        "versions": {name: loops.version(name) for name in names},
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
