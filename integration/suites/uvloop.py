"""uvloop's own tests, from its source distribution, with our loop where uvloop's is expected.

Nothing of it is kept here: it is fetched from the package index when it is wanted, at a pinned version,
into a folder that git ignores.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tarfile
import types
import unittest
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from integration.suites.drive import Suite, judge

if TYPE_CHECKING:
    import argparse

VERSION = "0.23.0"
WORK = Path(__file__).parent / "work"
SOURCE = WORK / f"uvloop-{VERSION}"
TESTS = WORK / "importable"  # holds the tests alone: beside them, uvloop's sources would hide the installed uvloop

# uvloop's tests run twice, the second time on asyncio's loop, in these classes.
ASYNCIOS = "*AIO*"

# Not about a loop: these check uvloop's sources, and its bindings of libuv.
NOT_LOOPS = {"test_sourcecode", "test_libuv_api", "test_cython", "test_fs_event"}


def prepare(loop: str) -> None:
    """In the child: a package named uvloop whose loop is the chosen one; `_testbase` is uvloop's own."""
    if loop == "uvloop":
        return
    module, _, name = loop.partition(":")
    factory = getattr(import_module(module), name)
    package = import_module(module)
    shim = types.ModuleType("uvloop")
    shim.__path__ = [str(SOURCE / "uvloop")]  # type: ignore[attr-defined]
    shim.__version__ = VERSION  # type: ignore[attr-defined]
    shim.new_event_loop = factory  # type: ignore[attr-defined]
    shim.Loop = getattr(package, "Loop", factory)  # type: ignore[attr-defined]
    shim.run = getattr(package, "run", asyncio.run)  # type: ignore[attr-defined]
    shim.install = getattr(package, "install", None)  # type: ignore[attr-defined]
    shim.EventLoopPolicy = getattr(package, "EventLoopPolicy", asyncio.DefaultEventLoopPolicy)  # type: ignore[attr-defined]
    sys.modules["uvloop"] = shim
    internals = types.ModuleType("uvloop.loop")

    def missing(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise unittest.SkipTest(f"uvloop.loop.{name} is uvloop's own")

    internals.__getattr__ = missing  # type: ignore[method-assign]
    sys.modules["uvloop.loop"] = internals


def fetch() -> None:
    """Download and unpack the source distribution, once, without building it."""
    if SOURCE.is_dir():
        return
    WORK.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "uvloop"]
    subprocess.run([*command, "--dest", str(WORK), f"uvloop=={VERSION}"], check=True)
    with tarfile.open(next(WORK.glob(f"uvloop-{VERSION}*.tar.gz"))) as archive:
        archive.extractall(WORK, filter="data")
    TESTS.mkdir(exist_ok=True)
    (TESTS / "tests").symlink_to(SOURCE / "tests")


def main(arguments: argparse.Namespace) -> int:
    fetch()
    files = (SOURCE / "tests").glob("test_*.py")
    modules = [f"tests.{file.stem}" for file in sorted(files) if file.stem not in NOT_LOOPS]
    suite = Suite("uvloop", modules, "integration.suites.uvloop", TESTS, [TESTS], stock="uvloop", not_ours=ASYNCIOS)
    return judge(suite, arguments)
