"""Runs a suite in child processes, and judges: what fails must be listed with a reason, and what is listed
must fail. What would only hang is left out, with a reason, too.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from typing import Any

HERE = Path(__file__).parent
SHARES_EACH = 4
SHORT_SILENCE = 15.0  # seconds, for tests that are known to hang


@dataclass
class Suite:
    """What to run and how: `preparation` is the module whose `prepare(loop)` puts a loop in place in the
    child.
    """

    name: str
    modules: list[str]
    preparation: str
    cwd: Path
    path: list[Path] = field(default_factory=list)  # for imports
    stock: str = "stock"  # the loop to compare failures with
    not_ours: str = ""  # a pattern for tests that make a loop of another kind, whatever is put in place


Outcomes = dict[str, tuple[str, str]]  # test -> outcome, detail


def run_child(suite: Suite, loop: str, tests: list[str] | None, silence: float) -> Outcomes:
    """Run tests (None: only list them) in one child after another, until each has an outcome."""
    outcomes: Outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        while True:
            left = None if tests is None else [test for test in tests if test not in outcomes]
            if left == []:
                return outcomes
            journal = Path(folder, "journal")
            journal.write_text("")
            wanted = Path(folder, "wanted")
            if left is not None:
                wanted.write_text("\n".join(left))
            modules = suite.modules
            if left is not None:  # importing takes its time
                modules = [name for name in modules if any(test.startswith(f"{name}.") for test in left)]
            output, why = watch(suite, loop, journal, wanted if left is not None else None, modules, silence)
            lines = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("]")]
            started = None
            for event, name, detail in lines:
                started = name if event == "started" else None
                if event not in ("started", "done"):
                    outcomes[name] = (event, detail)
            if any(event == "done" for event, _, _ in lines):
                for test in left or []:
                    outcomes.setdefault(test, ("failed", "it did not run: the set-up of its class or module failed?"))
                return outcomes
            if started is None:
                raise SystemExit(f"{suite.name}: the child ended ({why}) outside of any test:\n{output[-4000:]}")
            outcomes[started] = (why, output[-4000:])


def watch(
    suite: Suite, loop: str, journal: Path, wanted: Path | None, modules: list[str], silence: float
) -> tuple[str, str]:
    """One child, ended when its journal is silent for too long. Returns its output and how it ended."""
    folders = [*map(str, suite.path), *filter(None, [os.environ.get("PYTHONPATH")]), str(HERE.parent.parent)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(folders))
    command = [
        sys.executable,
        str(HERE / "child.py"),
        str(journal),
        loop,
        str(wanted or ""),
        suite.preparation,
    ]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        child = subprocess.Popen(
            command,
            cwd=suite.cwd,
            env=environment,
            stdin=subprocess.PIPE,
            # Python dies of a file there under wine, so on Windows it is a pipe.
            stdout=subprocess.PIPE if sys.platform == "win32" else output,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert child.stdin is not None
        if child.stdout is not None:
            threading.Thread(target=shutil.copyfileobj, args=(child.stdout, output), daemon=True).start()
        child.stdin.write("\n".join(modules))
        child.stdin.close()
        size, since, why = -1, time.monotonic(), "crashed"
        while child.poll() is None:
            time.sleep(0.1)
            if journal.stat().st_size != size:
                size, since = journal.stat().st_size, time.monotonic()
            elif time.monotonic() - since > silence:
                why = "hung"
                if sys.platform != "win32":
                    child.send_signal(signal.SIGABRT)  # faulthandler prints where
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(5)
                child.kill()
                child.wait()
        if sys.platform != "win32":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # children that tests left behind
        output.seek(0)
        return output.read(), why


def run(suite: Suite, loop: str, tests: list[str], arguments: argparse.Namespace) -> Outcomes:
    """Share the tests among workers, class by class. There are more shares than workers: some last much longer."""
    classes: dict[str, list[str]] = {}
    for test in tests:
        classes.setdefault(test.rpartition(".")[0], []).append(test)
    shares: list[list[str]] = [[] for _ in range(SHARES_EACH * arguments.workers)]
    for group in sorted(classes.values(), key=len, reverse=True):
        min(shares, key=len).extend(group)
    outcomes: Outcomes = {}
    with ThreadPoolExecutor(arguments.workers) as workers:
        for part in workers.map(lambda share: run_child(suite, loop, share, arguments.silence), filter(None, shares)):
            outcomes.update(part)
    return outcomes


def failing(outcomes: Outcomes) -> list[str]:
    return sorted(test for test, (outcome, _) in outcomes.items() if outcome not in ("passed", "skipped"))


def systems() -> set[str]:
    """What an entry's `system` may be, here."""
    if sys.platform != "win32":
        return {sys.platform}
    import ctypes  # noqa: PLC0415

    return {"win32", "wine"} if hasattr(ctypes.WinDLL("ntdll"), "wine_get_version") else {"win32"}


def holds_here(entry: dict[str, Any]) -> bool:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return entry.get("system", sys.platform) in systems() and version in entry.get("python", [version])


def judge(suite: Suite, arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    lists = tomllib.loads((HERE / f"{suite.name}.toml").read_text())
    listed = list(filter(holds_here, lists.get("deviation", [])))
    left_out = list(filter(holds_here, lists.get("left_out", [])))
    every = run_child(suite, suite.stock, None, arguments.silence)
    broken = [test for test in every if test.startswith("unittest.loader._FailedTest.")]
    if broken:
        raise SystemExit(f"{suite.name}: these modules cannot be imported: {broken}")
    # What else unittest makes up are modules that skip themselves.
    tests = [
        test
        for test in every
        if fnmatch.fnmatchcase(test, arguments.only)
        and not fnmatch.fnmatchcase(test, suite.not_ours)
        and not test.startswith("unittest.")
    ]
    hopeless = [test for test in tests if any(fnmatch.fnmatchcase(test, entry["test"]) for entry in left_out)]
    tests = [test for test in tests if test not in hopeless]
    hang = [
        test for test in tests if any(fnmatch.fnmatchcase(test, entry["test"]) for entry in listed if "hangs" in entry)
    ]
    outcomes = run(suite, arguments.loop, [test for test in tests if test not in hang], arguments)
    outcomes.update(run_child(suite, arguments.loop, hang, SHORT_SILENCE))

    flaky: list[str] = []
    environment: list[str] = []
    unexpected: list[str] = []
    excused: set[str] = set()
    for test in failing(outcomes):
        entry = next((entry for entry in listed if fnmatch.fnmatchcase(test, entry["test"])), None)
        if entry is not None:
            excused.add(entry["test"])
        elif failing(run_child(suite, arguments.loop, [test], arguments.silence)) == []:
            flaky.append(test)
        elif arguments.loop != suite.stock and failing(run_child(suite, suite.stock, [test], arguments.silence)):
            environment.append(test)
        else:
            unexpected.append(test)
    passing_again = [
        entry["test"]
        for entry in listed
        if entry["test"] not in excused and any(fnmatch.fnmatchcase(test, entry["test"]) for test in tests)
    ]

    for test in unexpected + flaky:
        print(f"\n== {test}: {outcomes[test][0]}\n{outcomes[test][1]}")
    for title, names in (
        ("passed only at the second try", flaky),
        (f"fails with {suite.stock} here too", environment),
        ("is listed as a deviation but passes", passing_again),
    ):
        for name in names:
            print(f"{name}: {title}")
    count = Counter(outcome for outcome, _ in outcomes.values())
    version = ".".join(map(str, sys.version_info[:3]))
    print(
        f"{suite.name} on Python {version}, {arguments.loop}: {len(outcomes)} tests, "
        f"{count['passed']} passed, {count['skipped']} skipped, {len(unexpected)} unexpected failures, "
        f"{len(excused)} listed deviations, {len(hopeless)} left out, "
        f"{len(environment)} fail on the stock loop too, {len(flaky)} flaky; "
        f"{time.monotonic() - started:.0f} s"
    )
    return 1 if unexpected or passing_again or not outcomes else 0
