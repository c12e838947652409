"""CPython's own `test.test_asyncio`, in the copy that came with the running interpreter."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from integration.suites.drive import Suite, judge

if TYPE_CHECKING:
    import argparse

# Of tasks and futures, on a loop of the tests' own. They collect garbage hundreds of times: half of the suite's time.
NO_LOOPS = "*_del_collect"

OTHER_PLATFORMS = (
    {"test_unix_events", "test_windows_utils", "test_proactor_events"}
    if sys.platform == "win32"
    else {"test_windows_events", "test_windows_utils", "test_proactor_events"}
)


def prepare(loop: str) -> None:
    """In the child: no network, and the loop in place."""
    from test import support  # noqa: PLC0415

    from integration.suites.inject import inject  # noqa: PLC0415

    support.use_resources = []
    inject(loop)


def main(arguments: argparse.Namespace) -> int:
    package = importlib.util.find_spec("test.test_asyncio")
    if package is None or not package.submodule_search_locations:
        print("this Python came without its own tests (Debian: apt-get install libpython3-testsuite)")
        return 1
    files = Path(package.submodule_search_locations[0]).glob("test_*.py")
    modules = [f"test.test_asyncio.{file.stem}" for file in sorted(files) if file.stem not in OTHER_PLATFORMS]
    with tempfile.TemporaryDirectory() as cwd:
        return judge(Suite("cpython", modules, "integration.suites.cpython", Path(cwd), not_ours=NO_LOOPS), arguments)
