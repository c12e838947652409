"""What other loops do is data, and fails nothing.

A test runs on other loops too, its peers, to see that it states asyncio's behaviour and not our faults. Where a peer
does otherwise, the test says so, with the versions for which it was seen:

    @pytest.mark.differs(asyncio="3.13.0", uvloop="0.23.0", reason="drop it")
    @pytest.mark.differs(asyncio="3.12.1", reason="counts them", when=sys.version_info < (3, 13))
    @pytest.mark.differs(uvloop="0.23.0", reason="ends the process", run=False)

It is run all the same, so that a peer that has changed is noticed; not with `run=False`: it hangs, or what it does
reaches beyond the test. What a peer does that is not marked is listed at the end of the run; with `--strict-peers` it
is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import importlib.metadata
import os
import platform
import re
import signal
import sys
import threading
import warnings
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

pytest_plugins = ["pytester"]

VERSIONS = {"asyncio": platform.python_version()}
with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    VERSIONS["uvloop"] = importlib.metadata.version("uvloop")

# What tests call the loop that they run on; the last is pytest-asyncio's.
LOOPS = ("loop", "factory", "kind", "_asyncio_loop_factory")

PATIENCE = 60  # seconds that a test may take on a peer, which is slow or hangs: that fails nothing


class Peer(NamedTuple):
    """Whom a test asks, and in which way it is known to differ there, if it is."""

    name: str
    version: str
    known: pytest.Mark | None


class Findings:
    """What the peers did in this run."""

    def __init__(self) -> None:
        self.known: Counter[str] = Counter()
        self.unknown: dict[str, str] = {}
        self.alike: dict[str, str] = {}
        self.differing: set[str] = set()


PEER = pytest.StashKey[Peer]()
DIFFERED = pytest.StashKey[bool]()
FINDINGS = pytest.StashKey[Findings]()
STDERR = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-peers", action="store_true", help="fail where another loop differs from ours, and no mark says so"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "differs(*, reason, when=True, run=True, **versions): a peer does otherwise")
    config.addinivalue_line("markers", "peer(name, when=True): the test asks this peer of it")
    # uvloop's, which waits for ever for what was left open where the warning is an exception
    config.addinivalue_line("filterwarnings", "ignore:unclosed (resource|transport <uvloop):ResourceWarning")
    config.stash[FINDINGS] = Findings()
    config.stash[STDERR] = os.dup(2)  # not what pytest captures


def pytest_unconfigure(config: pytest.Config) -> None:
    """Python waits for the threads that tests have left. It does so for ever if one of them does."""
    sys.stdout.flush()  # the summary, which an end by force would lose
    faulthandler.dump_traceback_later(4 * PATIENCE, exit=True, file=config.stash[STDERR])


def find_peer(item: pytest.Item) -> Peer | None:
    """The loop that the test runs on, unless it is ours."""
    mark = item.get_closest_marker("peer")
    if mark and mark.kwargs.get("when", True):
        name = mark.args[0]
    else:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        loop = next((parameters[name] for name in LOOPS if name in parameters), None)
        name = re.split("[.:]", loop if isinstance(loop, str) else getattr(loop, "__module__", ""))[0]
    if name not in VERSIONS:
        return None
    marks = [mark for mark in item.iter_markers("differs") if name in mark.kwargs and mark.kwargs.get("when", True)]
    return Peer(name, VERSIONS[name], marks[0] if marks else None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        peer = find_peer(item)
        if peer is None:
            continue
        item.stash[PEER] = peer
        run = peer.known is None or peer.known.kwargs.get("run", True)
        if not run or (peer.known and not hasattr(signal, "SIGALRM")):  # where nothing could break it off
            item.add_marker(pytest.mark.skip(reason=f"{peer.name}: {peer.known.kwargs['reason']}"))  # type: ignore[union-attr]
        elif hasattr(signal, "SIGALRM"):
            item.add_marker(pytest.mark.timeout(0), append=False)  # which would end the run


@contextlib.contextmanager
def patience(item: pytest.Item) -> Iterator[None]:
    """Break a peer off that takes too long, and end the run where even that does not help: not in silence."""
    if PEER not in item.stash or not hasattr(signal, "SIGALRM"):
        yield
        return

    asked: set[asyncio.Task[object]] = set()

    def give_up(*_: object) -> None:
        loop = asyncio._get_running_loop()
        tasks = asyncio.all_tasks(loop) - asked if loop else set()
        for task in tasks:  # gently, for uvloop cannot be closed after an exception out of nowhere
            loop.call_soon_threadsafe(task.cancel, f"Timeout: {PATIENCE} s")
            asked.add(task)
        if not tasks:
            pytest.fail(f"Timeout: {PATIENCE} s")

    def end() -> None:
        os.write(item.config.stash[STDERR], f"\n\n{item.nodeid} hangs: it needs a mark with run=False\n".encode())
        faulthandler.dump_traceback(item.config.stash[STDERR])
        os._exit(1)

    last = threading.Timer(4 * PATIENCE, end)
    last.daemon = True
    last.start()
    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        last.cancel()
        last.join()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    with patience(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with patience(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    with patience(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        if DIFFERED in item.stash:
            bury(item.config)


def bury(config: pytest.Config) -> None:
    """What a test that was broken off has left open is not to be found in the next one."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        with contextlib.suppress(AttributeError):
            delattr(sys, name)
    if logging := config.pluginmanager.get_plugin("logging-plugin"):
        for handler in (logging.caplog_handler, logging.report_handler):
            handler.reset()  # of exceptions
    with patch.object(sys, "unraisablehook", lambda _: None), warnings.catch_warnings(action="ignore"):
        gc.collect()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    peer = item.stash.get(PEER, None)
    if peer is None:
        return report
    findings = item.config.stash[FINDINGS]
    function = f"{item.nodeid.partition('[')[0]} on {peer.name} {peer.version}"
    if report.failed:
        item.stash[DIFFERED] = True
        findings.differing.add(function)
        if peer.known:
            reason = f"{peer.name}: {peer.known.kwargs['reason']}"
            findings.known[reason] += 1
        else:
            reason = call.excinfo.exconly().splitlines()[0] if call.excinfo else ""
            findings.unknown[f"{item.nodeid} on {peer.name} {peer.version}"] = reason
        if peer.known or not item.config.getoption("strict_peers"):
            report.outcome = "skipped"
            report.wasxfail = reason
            report.differs = "as known" if peer.known else "otherwise than known"
    elif peer.known and report.when == "call" and report.passed:
        findings.alike[function] = peer.known.kwargs["reason"]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    if how := getattr(report, "differs", None):
        return f"differ {how}", "d" if how == "as known" else "D", ("DIFFERS", {"yellow": True})
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    findings = config.stash[FINDINGS]
    if findings.known and terminalreporter.hasopt("x"):
        terminalreporter.section("peers that do otherwise")
        for reason, count in sorted(findings.known.items()):
            terminalreporter.line(f"DIFFERS [{count}] {reason}")
    alike = {function: reason for function, reason in findings.alike.items() if function not in findings.differing}
    if alike:
        terminalreporter.section("peers that do as we do now")
        for function, reason in alike.items():
            terminalreporter.line(f"{function}, of which was said: {reason}")
    if findings.unknown:
        terminalreporter.section("peers that do otherwise than expected", yellow=True, bold=True)
        for test, message in findings.unknown.items():
            terminalreporter.line(f"{test}: {message}")
