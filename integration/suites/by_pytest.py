"""Runs pytest's tests for `child`: a module is a file, and a test's name is its node id."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from integration.suites.child import Journal

COMPLETE = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)


def enumerate_tests(journal: Journal, modules: list[str], arguments: list[str]) -> None:
    call_pytest(Listing(journal), "--collect-only", *arguments, *modules)


def run(journal: Journal, modules: list[str], wanted: set[str], arguments: list[str]) -> None:
    call_pytest(Result(journal, wanted), *arguments, *modules)


def call_pytest(plugin: object, *arguments: str) -> None:
    # Its cache would be shared by the workers; and the child has its own way to say where it hangs.
    options = ["--quiet", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    code = pytest.main([*options, *arguments], plugins=[plugin])
    if code not in COMPLETE:
        raise SystemExit(f"pytest ended with {code!r}")


class Plugin:
    def pytest_addoption(self, parser: pytest.Parser) -> None:
        """What a suite says to pytest's plugin that is not there, to which it would be an unknown option."""
        for name in ("faulthandler_timeout", "faulthandler_exit_on_timeout"):
            parser.addini(name, "ignored")


class Listing(Plugin):
    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.journal.write("listed", item.nodeid, item.nodeid.partition("::")[0])


class Result(Plugin):
    def __init__(self, journal: Journal, wanted: set[str]) -> None:
        self.journal = journal
        self.wanted = wanted
        self.outcome = ("passed", "")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self.wanted]

    def pytest_collection_finish(self) -> None:
        """Fixtures that collect garbage after each test need not go through all that was imported."""
        gc.collect()
        gc.freeze()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.outcome = ("passed", "")
        self.journal.write("started", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One each for a test's set-up, the test itself, and what comes after it."""
        if report.failed:
            self.outcome = ("failed", f"{report.when}: {report.longreprtext}")
        elif report.skipped and not hasattr(report, "wasxfail") and self.outcome[0] == "passed":
            self.outcome = ("skipped", report.longreprtext)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        outcome, detail = self.outcome
        self.journal.write(outcome, nodeid, detail)
