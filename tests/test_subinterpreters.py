"""Sub-interpreters: those that share the main interpreter's lock, and those that have their own."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from notifyloop.turn.primitives import FREE_THREADED

if sys.version_info < (3, 13) or not importlib.util.find_spec("_interpreters"):
    pytest.skip("this Python's sub-interpreters cannot be told to be isolated", allow_module_level=True)

import _interpreters


def run(kind: str, program: str) -> Any:
    """What the program raised, or None."""
    interpreter = _interpreters.create(kind)
    try:
        return _interpreters.exec(interpreter, program)
    finally:
        _interpreters.destroy(interpreter)


def test_the_import_says_that_isolated_ones_are_not_supported() -> None:
    """cffi cannot be loaded there, like uvloop 0.23.0. asyncio works."""
    error = run("isolated", "import notifyloop")
    assert error.type.__name__ == "ImportError"
    assert "sub-interpreter" in error.msg
    assert "cffi" in error.msg
    assert ("free-threaded" in error.msg) == FREE_THREADED


@pytest.mark.skipif(FREE_THREADED, reason="there each is isolated, as far as cffi is concerned")
def test_those_that_share_the_lock_work() -> None:
    program = """
import asyncio, notifyloop

async def main():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    server.close()
    try:
        asyncio.get_running_loop().add_signal_handler(15, print)
    except RuntimeError as error:
        assert "main interpreter" in str(error)
    else:
        raise AssertionError

notifyloop.run(main())
"""
    error = run("legacy", program)
    assert error is None, error.errdisplay
