"""Runs a suite in child processes, and judges: what fails must be listed with a reason, and what is listed
must fail. What would only hang is left out, with a reason, too.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
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
MOST_OUTPUT = 20_000  # characters: where it hangs stands before from where it was called, at the end of long paths
OUTSIDE = 120.0  # seconds, outside of any test: importing shows no sign of life


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
    python: str = sys.executable
    framework: str = "integration.suites.by_unittest"  # the module that knows how to run them
    arguments: list[str] = field(default_factory=list)  # for that
    stock: str = "stock"  # the loop to compare failures with
    not_ours: str = ""  # a pattern for tests that make a loop of another kind, whatever is put in place
    lists: Path = HERE  # the folder of NAME.toml, where the tests stand that may fail


Tests = dict[str, str]  # test -> its module
Outcomes = dict[str, tuple[str, str]]  # test -> outcome, detail


def run_child(suite: Suite, loop: str, tests: Tests | None, silence: float) -> Outcomes:
    """Run tests (None: only list them) in one child after another, until each has an outcome."""
    outcomes: Outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        while True:
            left = [test for test in tests or {} if test not in outcomes]
            if tests is not None and not left:
                return outcomes
            journal = Path(folder, "journal")
            journal.write_text("")
            wanted = Path(folder, "wanted")
            wanted.write_text(json.dumps(left))
            # Of the modules only what is needed, for importing takes its time.
            modules = suite.modules if tests is None else list(dict.fromkeys(tests[test] for test in left))
            output, why = watch(suite, loop, journal, None if tests is None else wanted, modules, silence)
            lines = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("]")]
            started = None
            for event, name, detail in lines:
                started = name if event == "started" else None
                if event not in ("started", "done"):
                    outcomes[name] = (event, detail)
            if any(event == "done" for event, _, _ in lines):
                for test in left:
                    outcomes.setdefault(test, ("failed", "it did not run: the set-up of its class or module failed?"))
                return outcomes
            if started is None:
                raise SystemExit(f"{suite.name}: the child ended ({why}) outside of any test:\n{output[-MOST_OUTPUT:]}")
            outcomes[started] = (why, output[-MOST_OUTPUT:])


def watch(
    suite: Suite, loop: str, journal: Path, wanted: Path | None, modules: list[str], silence: float
) -> tuple[str, str]:
    """One child, ended when its journal is silent for too long. Returns its output and how it ended."""
    folders = [*map(str, suite.path), *filter(None, [os.environ.get("PYTHONPATH")]), str(HERE.parent.parent)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(folders))
    command = [suite.python, str(HERE / "child.py"), str(journal), loop, str(wanted or "")]
    command += [suite.preparation, suite.framework, *suite.arguments]
    with tempfile.TemporaryFile("w+", errors="replace") as output, journal.open(encoding="utf-8") as lines:
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
        last, since, why = "", time.monotonic(), "crashed"
        while child.poll() is None:
            time.sleep(0.1)
            if news := lines.readlines():
                last, since = news[-1], time.monotonic()
            elif time.monotonic() - since > (silence if last.startswith('["started"') else max(silence, OUTSIDE)):
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


def run(suite: Suite, loop: str, tests: Tests, arguments: argparse.Namespace) -> Outcomes:
    """Share the tests among workers. There are more shares than workers, for some last much longer, and each is of
    neighbours, for those need the same modules.
    """
    size = math.ceil(len(tests) / (SHARES_EACH * arguments.workers)) or 1
    names = list(tests)
    shares = [{test: tests[test] for test in names[start : start + size]} for start in range(0, len(names), size)]
    outcomes: Outcomes = {}
    with ThreadPoolExecutor(arguments.workers) as workers:
        for part in workers.map(lambda share: run_child(suite, loop, share, arguments.silence), shares):
            outcomes.update(part)
    return outcomes


def failing(outcomes: Outcomes) -> list[str]:
    return sorted(test for test, (outcome, _) in outcomes.items() if outcome not in ("passed", "skipped"))


def matches(test: str, pattern: str) -> bool:
    """As a shell has it, but for brackets: those are what pytest puts a test's parameters in."""
    return fnmatch.fnmatchcase(test, pattern.replace("[", "[[]"))


def entry_for(test: str, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((entry for entry in entries if matches(test, entry["test"])), None)


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
    lists = tomllib.loads((suite.lists / f"{suite.name}.toml").read_text())
    listed = list(filter(holds_here, lists.get("deviation", [])))
    left_out = list(filter(holds_here, lists.get("left_out", [])))
    every = run_child(suite, suite.stock, None, arguments.silence)
    chosen = {
        test: module
        for test, (_, module) in every.items()
        if matches(test, arguments.only) and not matches(test, suite.not_ours)
    }
    tests = {test: module for test, module in chosen.items() if not entry_for(test, left_out)}
    hang = {test: tests[test] for test in tests if "hangs" in (entry_for(test, listed) or {})}
    others = {test: tests[test] for test in tests if test not in hang}
    outcomes = run(suite, arguments.loop, others, arguments)
    outcomes.update(run_child(suite, arguments.loop, hang, SHORT_SILENCE))

    def fail_again(suspects: list[str], loop: str) -> list[str]:
        """Which of these fail with nothing running beside them, too. What stands in their modules goes before them
        again, for that may be why.
        """
        modules = {tests[test] for test in suspects}
        company = {test: module for test, module in others.items() if module in modules}
        again = failing(run_child(suite, loop, company, arguments.silence))
        return [test for test in suspects if test in again]

    failed = failing(outcomes)
    excused = {entry["test"] for test in failed if (entry := entry_for(test, listed))}
    suspects = [test for test in failed if not entry_for(test, listed)]
    confirmed = fail_again(suspects, arguments.loop)
    flaky = [test for test in suspects if test not in confirmed]
    environment = fail_again(confirmed, suite.stock) if arguments.loop != suite.stock else []
    unexpected = [test for test in confirmed if test not in environment]
    passing_again = [
        entry["test"]
        for entry in listed
        if entry["test"] not in excused
        and "sometimes" not in entry
        and any(matches(test, entry["test"]) for test in tests)
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
        f"{len(excused)} listed deviations, {len(chosen) - len(tests)} left out, "
        f"{len(environment)} fail on the stock loop too, {len(flaky)} flaky; "
        f"{time.monotonic() - started:.0f} s"
    )
    return 1 if unexpected or passing_again or not outcomes else 0
