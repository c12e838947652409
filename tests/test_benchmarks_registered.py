from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.only("epoll", reason="it compares with epoll")
def test_the_cost_of_a_call_is_measured_with_a_crowd_and_the_kernel_is_told_nothing_twice() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.registered", "--rounds", "1", "--messages", "10"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    port, poll = [line for line in result.stdout.splitlines() if line.startswith(("| port", "| poll"))]
    assert all(float(cell) > 0 for row in (port, poll) for cell in row.split("|")[2:-1])
    assert result.stdout.rstrip().endswith("{10: 0, 1000: 0, 9000: 0}")
