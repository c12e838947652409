"""A part of CPython's own tests, quick enough for the ordinary run; all of them: `make test-cpython`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["test_sock_lowlevel", "test_sendfile", "test_server", "test_buffered_proto"])
def test_they_pass_on_our_loop(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "integration.suites", "cpython", "--only", f"test.test_asyncio.{module}.*"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if "came without its own tests" in result.stdout:
        pytest.skip("this Python came without its own tests")
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 unexpected failures" in result.stdout
