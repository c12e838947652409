"""aiohttp's own tests, from its source distribution, with our loop where they expect asyncio's.

They run on the wheel of the same version, in an environment of their own: what aiohttp tests itself with is pinned
in its sources.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from integration.suites.drive import Suite, judge
from integration.suites.index import alone, environment, interpreter, sources

if TYPE_CHECKING:
    import argparse

VERSION = "3.14.5"

# In place of what aiohttp's pytest.ini adds: reports, coverage, doctests, parallel runs. The tests that are left out
# here are left out there.
ARGUMENTS = ["--override-ini=addopts=", "--strict-markers", "-m", "not dev_mode and not autobahn and not internal"]


def prepare(loop: str) -> None:
    """In the child: the loop in place."""
    from integration.suites.inject import inject  # noqa: PLC0415

    inject(loop)


def main(arguments: argparse.Namespace) -> int:
    source = sources("aiohttp", VERSION)
    python = interpreter(
        environment("aiohttp", f"aiohttp=={VERSION}", "cffi>=2.0", "-r", str(source / "requirements" / "test.txt"))
    )
    cwd = alone(source, "tests", "pytest.ini")
    files = [f"tests/{file.name}" for file in sorted((source / "tests").glob("test_*.py"))]
    modules = [file for file in files if not file.startswith("tests/test_benchmarks_")]
    suite = Suite(
        "aiohttp",
        modules,
        "integration.suites.aiohttp",
        cwd,
        python=python,
        framework="integration.suites.by_pytest",
        arguments=ARGUMENTS,
    )
    return judge(suite, arguments)
