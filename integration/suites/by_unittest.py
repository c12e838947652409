"""Runs unittest's tests for `child`."""

from __future__ import annotations

import io
import traceback
import unittest
from typing import TYPE_CHECKING
from unittest.util import strclass

if TYPE_CHECKING:
    from integration.suites.child import Journal


def load(modules: list[str]) -> dict[str, list[unittest.TestCase]]:
    """The tests of each module. One that cannot be imported ends all; one that skips itself has none."""
    loader = unittest.TestLoader()
    tests = {module: flatten(loader.loadTestsFromName(module)) for module in modules}
    if loader.errors:
        raise SystemExit("\n".join(loader.errors))
    return tests


def flatten(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    tests: list[unittest.TestCase] = []
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            tests += flatten(item)
        elif not item.id().startswith("unittest.loader."):  # what stands for a module that skips itself
            tests.append(item)
    return tests


def enumerate_tests(journal: Journal, modules: list[str], arguments: list[str]) -> None:
    for module, tests in load(modules).items():
        for test in tests:
            journal.write("listed", test.id(), module)


def run(journal: Journal, modules: list[str], wanted: set[str], arguments: list[str]) -> None:
    tests = [test for tests in load(modules).values() for test in tests if test.id() in wanted]
    result = Result(journal)
    unittest.TestSuite(tests)(result)
    for test in tests:  # that were not started, for the set-up failed, or said to skip them
        for place in (f"setUpModule ({type(test).__module__})", f"setUpClass ({strclass(type(test))})"):
            if place in result.set_ups:
                journal.write(result.set_ups[place][0], test.id(), result.set_ups[place][1])


class Result(unittest.TestResult):
    def __init__(self, journal: Journal) -> None:
        super().__init__(io.StringIO())
        self.journal = journal
        self.outcome = ("passed", "")
        self.last = ""
        self.set_ups: dict[str, tuple[str, str]] = {}  # of classes and modules, that failed or skip their tests

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self.outcome = ("passed", "")
        self.last = test.id()
        self.journal.write("started", test.id())

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        outcome, detail = self.outcome
        self.journal.write(outcome, test.id(), detail)

    def note(self, test, outcome: str, detail: str) -> None:
        if isinstance(test, unittest.TestCase):
            self.outcome = (outcome, detail)
        elif str(test).startswith("tearDown"):
            self.journal.write(outcome, self.last, detail)
        else:
            self.set_ups[str(test)] = (outcome, detail)

    def addError(self, test, error) -> None:  # noqa: N802
        self.note(test, "failed", "".join(traceback.format_exception(*error)))

    def addFailure(self, test, error) -> None:  # noqa: N802
        self.addError(test, error)

    def addSubTest(self, test, subtest, error) -> None:  # noqa: N802
        if error is not None:
            self.addError(test, error)

    def addSkip(self, test, reason: str) -> None:  # noqa: N802
        self.note(test, "skipped", reason)

    def addUnexpectedSuccess(self, test) -> None:  # noqa: N802
        self.note(test, "failed", "unexpected success")
