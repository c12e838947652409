"""Tornado's own tests, which its wheel holds, with our loop where they expect asyncio's."""

from __future__ import annotations

import os
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from integration.suites.drive import Suite, judge
from integration.suites.index import environment, interpreter

if TYPE_CHECKING:
    import argparse

VERSION = "6.6.1"
PYCARES = "4.11.0"  # the last that Tornado can resolve names with


def prepare(loop: str) -> None:
    """In the child: the loop in place, and what Tornado's own runner sets up before it runs."""
    from integration.suites.inject import inject  # noqa: PLC0415

    inject(loop)
    # Tornado's own words for busy machines: seconds for a test, and a longer timeout where one is waited for.
    os.environ.update(ASYNC_TEST_TIMEOUT="25", EMULATION="1")
    from tornado import options  # noqa: PLC0415
    from tornado.test import runtests  # noqa: PLC0415

    def read_options(**_: object) -> None:
        options.parse_command_line([""])

    with mock.patch("tornado.testing.main", read_options):
        runtests.main()


def main(arguments: argparse.Namespace) -> int:
    folder = environment("tornado", f"tornado=={VERSION}", f"pycares=={PYCARES}", "cffi>=2.0")
    tests = Path(sysconfig.get_path("platlib", "venv", {"base": folder, "platbase": folder}), "tornado", "test")
    modules = [f"tornado.test.{file.stem}" for file in sorted(tests.glob("*_test.py"))]
    with tempfile.TemporaryDirectory() as cwd:
        suite = Suite("tornado", modules, "integration.suites.tornado", Path(cwd), python=interpreter(folder))
        return judge(suite, arguments)
