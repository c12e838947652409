"""The benchmarks for Windows in their smoke form: every cell has a figure. The counts are more than that: they do not
depend on the machine.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
NATIVE, POLLING, PROACTOR, SELECTOR = LOOPS = ["notifyloop-winsock", "notifyloop-afd", "proactor", "selector"]
STOCK = [PROACTOR, SELECTOR]

on_windows = pytest.mark.skipif(
    sys.platform != "win32" or platform.machine() != "AMD64", reason="the servers need Windows on x86-64"
)


def run(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.windows", *arguments, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def measured(output: Path, loops: list[str], *arguments: str) -> tuple[Mapping[str, Any], str]:
    """The loops of each cell, by benchmark and idle connections, and what was printed."""
    result = run(output, "--quick", "--loops", ",".join(loops), *arguments)
    assert result.returncode == 0, result.stderr
    written = json.loads((output / "windows.json").read_text())
    assert all(left["loop"] == PROACTOR and "-reader" in left["cell"] for left in written["left_out"])
    return {f"{cell['benchmark']} {cell['idle']}": cell["loops"] for cell in written["cells"]}, result.stdout


@on_windows
def test_every_cell_of_a_quick_run_has_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="one of the servers is aiohttp's")

    cells, printed = measured(tmp_path, [POLLING, PROACTOR], "--only", "echo-reader,http-aiohttp,idle-protocol")

    assert cells.keys() == {"echo-reader 0", "http-aiohttp 0", "idle-protocol 10"}
    for name, loops in cells.items():
        assert loops.keys() == ({POLLING} if name.startswith("echo-reader") else {POLLING, PROACTOR})
        assert all(result["figure"] > 0 for result in loops.values())
    assert "HTTP, aiohttp hello" in printed


@on_windows
def test_calls_are_counted_alike_for_every_loop(tmp_path: Path) -> None:
    cells, _ = measured(tmp_path, [POLLING, *STOCK], "--only", "calls-protocol")

    for name in ("calls-protocol 0", "calls-protocol 10"):
        calls = {loop: result["calls"] for loop, result in cells[name].items()}
        once = pytest.approx(1, abs=0.05)
        assert (calls[SELECTOR]["recv"], calls[SELECTOR]["send"]) == (once, once)
        assert (calls[PROACTOR]["WSARecv"], calls[PROACTOR]["WSASend"]) == (once, once)
        assert (calls[POLLING]["recv"], calls[POLLING]["send"]) == (once, once)
        assert calls[POLLING]["NtDeviceIoControlFile"] == once
        assert cells[name][POLLING]["figure"] <= 4.05
        assert not any("GetProcessTimes" in made for made in calls.values())  # it is the measurement that asks


@on_windows
@pytest.mark.only("double", reason="without a stand-in, this Windows may not have the call")
def test_one_call_waits_for_all_sockets_and_arms_them(tmp_path: Path) -> None:
    cells, printed = measured(tmp_path, [NATIVE], "--only", "calls-protocol")

    assert cells["calls-protocol 0"][NATIVE]["figure"] <= 2.1
    assert cells["calls-protocol 10"][NATIVE]["figure"] <= 3.05
    assert "at most 2.1 calls a message" in printed


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can be measured")
def test_servers_that_need_windows_say_so(tmp_path: Path) -> None:
    result = run(tmp_path, "--quick")

    assert result.returncode == 2
    assert "these servers need Windows on x86-64, or wine" in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--only", "echo-carrier-pigeon"], "'echo-carrier-pigeon' is none of"), (["--loops", "uvloop"], "is none of")],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = run(tmp_path, *arguments)

    assert result.returncode == 2
    assert words in result.stderr
