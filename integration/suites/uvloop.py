"""uvloop's own tests, from its source distribution, with our loop where uvloop's is expected."""

from __future__ import annotations

import asyncio
import sys
import types
import unittest
from importlib import import_module
from typing import TYPE_CHECKING

from integration.suites.drive import Suite, judge
from integration.suites.index import WORK, alone, sources

if TYPE_CHECKING:
    import argparse

VERSION = "0.23.0"

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
    shim.__path__ = [str(WORK / f"uvloop-{VERSION}" / "uvloop")]  # type: ignore[attr-defined]
    shim.__version__ = VERSION  # type: ignore[attr-defined]
    shim.new_event_loop = factory  # type: ignore[attr-defined]
    shim.Loop = getattr(package, "Loop", factory)  # type: ignore[attr-defined]
    shim.run = getattr(package, "run", asyncio.run)  # type: ignore[attr-defined]
    shim.install = getattr(package, "install", None)  # type: ignore[attr-defined]
    if sys.version_info < (3, 16):
        shim.EventLoopPolicy = getattr(package, "EventLoopPolicy", asyncio.DefaultEventLoopPolicy)  # type: ignore[attr-defined]
    sys.modules["uvloop"] = shim
    internals = types.ModuleType("uvloop.loop")

    def missing(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise unittest.SkipTest(f"uvloop.loop.{name} is uvloop's own")

    internals.__getattr__ = missing  # type: ignore[method-assign]
    sys.modules["uvloop.loop"] = internals


def main(arguments: argparse.Namespace) -> int:
    source = sources("uvloop", VERSION)
    files = sorted((source / "tests").glob("test_*.py"))
    modules = [f"tests.{file.stem}" for file in files if file.stem not in NOT_LOOPS]
    cwd = alone(source, "tests")
    suite = Suite("uvloop", modules, "integration.suites.uvloop", cwd, [cwd], stock="uvloop", not_ours=ASYNCIOS)
    return judge(suite, arguments)
