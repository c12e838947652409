"""The judge, with jobs that do nothing: what it says of them, and that it says it where somebody looks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]

if sys.platform == "win32" or shutil.which("git") is None:
    pytest.skip("it needs git, and a system with bash", allow_module_level=True)

JOB = r"""#!/usr/bin/env bash
cd "$(dirname "$0")/.."
case ${1-} in
    "") printf '%s\n' left_out good bad worse ;;
    good)
        [ -e tracked ] && [ -e new ] && [ ! -e ignored ] && [ ! -e gone ] || exit 1
        echo 'it is good'
        echo seen >"$RECORD" ;;
    left_out) echo "there is none of these here" >&2; exit 69 ;;
    bad)
        seq 1000
        printf 'FAILED test_of_something\n== FAILED with status 2: a step\n'
        seq 1000
        exit 1 ;;
    worse) echo 'FAILED test_of_another'; exit 3 ;;
    endless) sleep 600 ;;
esac
"""


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., Any]:
    clone = tmp_path / "a clone"
    (clone / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", clone / ".ci")
    (clone / ".ci/job").write_text(JOB)
    (clone / ".ci/job").chmod(0o755)
    (clone / ".gitignore").write_text("/build/\n/ignored\n")
    for name in ("tracked", "gone"):
        (clone / name).touch()
    subprocess.run(["git", "init", "--quiet"], cwd=clone, check=True)
    subprocess.run(["git", "add", "."], cwd=clone, check=True)
    (clone / "gone").unlink()
    (clone / "new").touch()
    (clone / "ignored").touch()
    # Where one of these is missing it would be installed.
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("cc", "make", "debootstrap"):
        (programs / name).symlink_to("/bin/true")

    def run(*jobs: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{programs}:{os.environ['PATH']}"
        return subprocess.run(
            [clone / ".ci/run", *jobs],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run


def test_every_job_is_run_and_what_failed_first_is_at_the_end(judge: Callable[..., Any]) -> None:
    result = judge(JOBS="1")
    assert result.returncode == 1
    assert "it is good" in result.stdout
    end = result.stdout.splitlines()[-40:]
    outcomes = [line.split(maxsplit=3) for line in end[end.index("==== all jobs, in 0 minutes") + 1 :][:4]]
    assert [(job, outcome) for job, _, _, outcome in outcomes] == [
        ("left_out", "left out: there is none of these here"),
        ("good", "passed"),
        ("bad", "FAILED"),
        ("worse", "FAILED"),
    ]
    assert "==== 2 failed; the first was bad, and this is how (build/ci/bad/log):" in end
    assert end[-2:] == ["FAILED test_of_something", "== FAILED with status 2: a step"]


def test_those_that_are_named_pass(judge: Callable[..., Any]) -> None:
    result = judge("good", "left_out")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAILED" not in result.stdout


def test_one_that_does_not_end_is_ended(judge: Callable[..., Any]) -> None:
    result = judge("endless", MINUTES="0.01")
    assert result.returncode == 1
    assert "FAILED: it did not end" in result.stdout


def test_what_was_tested_is_written_down(tmp_path: Path) -> None:
    page = tmp_path / "docs/versions.md"
    page.parent.mkdir()
    row = "| 3.13.4 | Debian trixie | 1 passed | 2 passed |\n| 3.13.0 | built | 3 passed | 4 passed |\n"
    head = "before\n<!-- written by .ci/versions -->\n| a | b | c | d |\n|---|---|---|---|\n"
    page.write_text(f"{head}{row}<!-- end -->\nafter\n")
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/versions", tmp_path / ".ci")
    record = tmp_path / "build/ci/trixie/record"
    record.parent.mkdir(parents=True)
    record.write_text(
        "tests\t3.13.5\tDebian trixie\t===== 1 failed, 33 passed in 77.70s (0:01:17) =====\n"
        "cpython\t3.13.5\tDebian trixie\tcpython on Python 3.13.5, notifyloop:NotifyLoop: 9 tests, 6 passed, "
        "2 skipped, 0 unexpected failures, 1 listed deviations, 3 left out, 0 flaky; 9 s\n"
        "tests\t3.13.5t\tbuilt\t===== 7 passed in 1.00s =====\n"
    )
    subprocess.run([sys.executable, tmp_path / ".ci/versions"], check=True)
    written = page.read_text().splitlines()
    assert written[0] == "before"
    assert written[4:-2] == [
        "| 3.13.0 | built | 3 passed | 4 passed |",
        "| 3.13.5 | Debian trixie | 1 failed, 33 passed | 6 passed, 2 skipped, 1 listed deviations, 3 left out |",
        "| 3.13.5t | built | 7 passed |  |",
    ]
    assert written[-2:] == ["<!-- end -->", "after"]
