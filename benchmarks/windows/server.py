"""`python -m benchmarks.windows.server LOOP API [count]`: one server in a process of its own.

As `benchmarks.server`. With `count` the answers also have the calls into the system since the start, by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from benchmarks import server
from benchmarks.windows.loops import factory


def main(loop: str, api: str) -> None:
    server.main(factory(loop), api)


def main_counting(loop: str, api: str) -> None:
    from benchmarks.windows.calls import counters  # noqa: PLC0415 - not for those whose time is measured

    # What libraries look up while they start is counted if that, which looks it up, was there before.
    if importlib.util.find_spec("_cffi_backend"):
        importlib.import_module("_cffi_backend")
    counters.count()
    make = factory(loop)
    counters.count()

    def answer() -> dict[str, Any]:
        counters.count()  # of what was loaded since
        return {**server.processor_time(), "calls": counters.calls()}

    server.main(make, api, answer)


if __name__ == "__main__":
    loop, api, *counting = sys.argv[1:]
    (main_counting if counting else main)(loop, api)
