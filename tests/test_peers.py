"""What a peer does otherwise fails nothing, and is told."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., pytest.RunResult]

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGALRM"), reason="where nothing could break a peer off, it is not run where it differs"
)
CONFTEST = Path(__file__).parents[1] / "conftest.py"


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Runs tests, with a `loop` that is the name of each loop."""
    pytester.makeini(
        "[pytest]\nfilterwarnings = error\naddopts = -ra --strict-markers -p no:asyncio -p no:hypothesispytest"
    )
    pytester.makeconftest(
        CONFTEST.read_text()
        + "\n\n@pytest.fixture(params=['asyncio', 'notifyloop'])\ndef loop(request):\n    return request.param\n"
        + "\n\ndef pytest_unconfigure(config):\n    os.close(config.stash[STDERR])\n"  # this process does not end
    )

    def run(tests: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile("import gc, sys, time, warnings, pytest\n" + tests)
        return pytester.runpytest_inprocess(*options)

    return run


def test_a_difference_that_is_known(run: Run) -> None:
    result = run("@pytest.mark.differs(asyncio='1', reason='is odd')\ndef test_it(loop): assert loop == 'notifyloop'")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*DIFFERS [[]1] asyncio: is odd", "*1 passed, 1 differ as known*"])


def test_one_that_is_not(run: Run) -> None:
    tests = "def test_it(loop): assert loop == 'notifyloop'"
    result = run(tests)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*= peers that do otherwise than expected =*",
            "*::test_it[[]asyncio] on asyncio 3.*",
            "*1 passed, 1 differ oth*",
        ]
    )
    result = run(tests, "--strict-peers")
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)


def test_one_that_is_no_more(run: Run) -> None:
    """Also with `--strict-peers`, and only if no parameter makes a difference any more."""
    tests = "@pytest.mark.differs(asyncio='1', reason='is odd')\n"
    result = run(tests + "def test_it(loop): pass", "--strict-peers")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*= peers that do as we do now =*", "*::test_it on asyncio 3.* said: is odd"])
    tests += "@pytest.mark.parametrize('n', [1, 2])\ndef test_it(loop, n): assert loop == 'notifyloop' or n == 1"
    result = run(tests)
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*peers that do as we do now*")


def test_ours_is_judged(run: Run) -> None:
    result = run("@pytest.mark.differs(asyncio='1', reason='is odd')\ndef test_it(loop): assert 0")
    assert result.ret == 1
    result.assert_outcomes(failed=1)


@pytest.mark.parametrize(("condition", "outcome"), [("sys.version_info > (3,)", "as known"), ("False", "otherwise")])
def test_where_it_is_known_for_some_versions(run: Run, condition: str, outcome: str) -> None:
    mark = f"@pytest.mark.differs(asyncio='1', reason='is odd', when={condition})"
    result = run(f"{mark}\ndef test_it(loop): assert loop == 'notifyloop'")
    result.stdout.fnmatch_lines([f"*1 passed, 1 differ {outcome}*"])


def test_what_is_not_run(run: Run) -> None:
    mark = "@pytest.mark.differs(asyncio='1', reason='hangs', run=False)"
    result = run(f"{mark}\ndef test_it(loop):\n    while loop == 'asyncio': pass")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["SKIPPED*asyncio: hangs", "*1 passed, 1 skipped*"])


def test_a_fixture_that_fails(run: Run) -> None:
    fixture = "@pytest.fixture\ndef sick(loop):\n    yield\n    assert loop == 'notifyloop'\n"
    result = run(f"{fixture}def test_it(sick): pass")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*::test_it[[]asyncio] on asyncio 3.*", "*2 passed, 1 differ*"])


def test_a_test_about_a_peer(run: Run) -> None:
    result = run("@pytest.mark.peer('asyncio')\ndef test_it(): assert 0")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*::test_it on asyncio 3.*"])


def test_a_peer_that_hangs(run: Run) -> None:
    fixture = "import conftest\nconftest.PATIENCE = 0.1\n@pytest.fixture\ndef sick(loop):\n    yield\n    again(loop)\n"
    result = run(f"{fixture}def again(loop):\n    while loop == 'asyncio': pass\ndef test_it(sick, loop): again(loop)")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*::test_it[[]asyncio] on asyncio 3.*Timeout*", "*1 passed, 2 differ*"])


def test_what_a_peer_leaves_open_is_no_fault_of_the_next_test(run: Run) -> None:
    result = run(
        "class Open:\n    def __del__(self): warnings.warn('still open', ResourceWarning)\n"
        "def test_it(loop):\n    it = Open()\n    it.self = it\n    assert loop == 'notifyloop'\n"
        "def test_next(): gc.collect()"
    )
    result.stdout.fnmatch_lines(["*1 differ*"])


def test_a_thread_that_does_not_end_does_not_keep_the_run(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:asyncio -p no:hypothesispytest")
    pytester.makeconftest(CONFTEST.read_text() + "\n\nPATIENCE = 0.1\n")
    pytester.makepyfile("import threading\ndef test_it(): threading.Thread(target=threading.Event().wait).start()")
    result = pytester.runpytest_subprocess()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*1 passed*"])
    result.stderr.fnmatch_lines(["*in wait*"])
