"""One process of a suite: runs unittest's tests, and keeps a journal, so that whoever watches knows what
hung or crashed.

    python child.py JOURNAL LOOP TESTS PREPARATION

TESTS is a file with one test id per line; an empty one means: list the tests of the modules named on
standard input.
"""

from __future__ import annotations

import faulthandler
import importlib
import io
import json
import os
import signal
import sys
import traceback
import unittest
from pathlib import Path


def flatten(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    tests: list[unittest.TestCase] = []
    for item in suite:
        tests += flatten(item) if isinstance(item, unittest.TestSuite) else [item]
    return tests


class Journal(unittest.TestResult):
    def __init__(self, path: str) -> None:
        super().__init__(io.StringIO())
        self.file = Path(path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self.outcome: tuple[str, str] = ("passed", "")

    def write(self, event: str, name: str, detail: str = "") -> None:
        self.file.write(json.dumps([event, name, detail]) + "\n")

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self.outcome = ("passed", "")
        self.write("started", test.id())

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        self.write(self.outcome[0], test.id(), self.outcome[1])

    def note(self, outcome: str, error) -> None:
        self.outcome = (outcome, "".join(traceback.format_exception(*error)))

    def addError(self, test, error) -> None:  # noqa: N802
        self.note("failed", error)
        if not isinstance(test, unittest.TestCase):  # the set-up of a class or module
            self.write("failed", str(test), self.outcome[1])

    def addFailure(self, test, error) -> None:  # noqa: N802
        self.note("failed", error)

    def addSubTest(self, test, subtest, error) -> None:  # noqa: N802
        if error is not None:
            self.note("failed", error)

    def addSkip(self, test, reason: str) -> None:  # noqa: N802
        self.outcome = ("skipped", reason)

    def addUnexpectedSuccess(self, test) -> None:  # noqa: N802
        self.outcome = ("failed", "unexpected success")


def main() -> None:
    journal_path, loop, tests_path, preparation = sys.argv[1:]
    del sys.path[0]  # this folder, whose modules have the names of what they run
    # A shell has the one ignored by what runs in the background, nohup the other; and tests' children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    faulthandler.enable()
    importlib.import_module(preparation).prepare(loop)
    modules = sys.stdin.read().split()
    journal = Journal(journal_path)
    tests = flatten(unittest.defaultTestLoader.loadTestsFromNames(modules))
    wanted = Path(tests_path).read_text(encoding="utf-8").split("\n") if tests_path else []
    if not wanted:
        for test in tests:
            journal.write("listed", test.id())
    else:
        chosen = set(wanted)
        unittest.TestSuite([test for test in tests if test.id() in chosen])(journal)
    journal.write("done", "")
    journal.file.close()
    os._exit(0)  # threads and children that tests left behind must not keep it


if __name__ == "__main__":  # a test's spawned process imports this file again
    main()
