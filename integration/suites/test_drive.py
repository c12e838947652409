"""Suites of a few tests that pass, fail, hang or die: whoever watches tells them apart, and goes on."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from integration.suites import drive, index

SILENCE = 1.0  # seconds; no test takes that long

PREPARATION = """
import os

def prepare(loop):
    os.environ["SUITE_LOOP_FOR_TESTS"] = loop
"""

UNITTEST = """
import os, unittest

class Tests(unittest.TestCase):
    def test_dies(self): os._exit(3)
    def test_expected(self): self.fail("as it should")
    test_expected = unittest.expectedFailure(test_expected)
    def test_fails(self): self.fail("because")
    def test_hangs(self):
        while True: pass
    def test_passes(self): pass
    def test_skips(self): self.skipTest("not here")
    def test_unexpected(self): pass
    test_unexpected = unittest.expectedFailure(test_unexpected)

class Broken(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise OSError("no set-up")
    def test_never(self): pass

class Abstract(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise unittest.SkipTest("abstract")
    def test_never(self): pass

class Untidy(unittest.TestCase):
    @classmethod
    def tearDownClass(cls): raise OSError("left behind")
    def test_passes(self): pass
"""

PYTEST = """
import os
import pytest

class TestAll:
    def test_dies(self): os._exit(3)
    @pytest.mark.xfail
    def test_expected(self): assert False, "as it should"
    def test_fails(self): assert False, "because"
    def test_hangs(self):
        while True: pass
    @pytest.mark.parametrize("with_brackets", ["a.b", "c\\nd"])
    def test_passes(self, with_brackets): pass
    def test_skips(self): pytest.skip("not here")
    @pytest.mark.xfail(strict=True)
    def test_unexpected(self): pass

@pytest.fixture
def broken(): raise OSError("no set-up")
@pytest.fixture
def untidy():
    yield
    raise OSError("left behind")

def test_broken(broken): pass
def test_untidy(untidy): pass
"""


def suite_of(folder: Path, framework: str, source: str) -> drive.Suite:
    (folder / "preparation_of_tests.py").write_text(PREPARATION)
    (folder / "test_of_tests.py").write_text(source)
    (folder / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error::pytest.PytestConfigWarning\nfaulthandler_timeout = 60\n"
    )
    (folder / "example.toml").write_text("")
    return drive.Suite(
        "example",
        ["test_of_tests.py" if framework == "pytest" else "test_of_tests"],
        "preparation_of_tests",
        folder,
        [folder],
        framework=f"integration.suites.by_{framework}",
        lists=folder,
    )


@pytest.mark.parametrize(
    ("framework", "source", "outcomes"),
    [
        (
            "unittest",
            UNITTEST,
            {
                "test_of_tests.Abstract.test_never": ("skipped", "abstract"),
                "test_of_tests.Broken.test_never": ("failed", "no set-up"),
                "test_of_tests.Tests.test_dies": ("crashed", ""),
                "test_of_tests.Tests.test_expected": ("passed", ""),
                "test_of_tests.Tests.test_fails": ("failed", "because"),
                "test_of_tests.Tests.test_hangs": ("hung", "" if sys.platform == "win32" else "in test_hangs"),
                "test_of_tests.Tests.test_passes": ("passed", ""),
                "test_of_tests.Tests.test_skips": ("skipped", "not here"),
                "test_of_tests.Tests.test_unexpected": ("failed", "unexpected success"),
                "test_of_tests.Untidy.test_passes": ("failed", "left behind"),
            },
        ),
        (
            "pytest",
            PYTEST,
            {
                "test_of_tests.py::TestAll::test_dies": ("crashed", ""),
                "test_of_tests.py::TestAll::test_expected": ("passed", ""),
                "test_of_tests.py::TestAll::test_fails": ("failed", "because"),
                "test_of_tests.py::TestAll::test_hangs": ("hung", "" if sys.platform == "win32" else "in test_hangs"),
                "test_of_tests.py::TestAll::test_passes[a.b]": ("passed", ""),
                "test_of_tests.py::TestAll::test_passes[c\\nd]": ("passed", ""),
                "test_of_tests.py::TestAll::test_skips": ("skipped", "not here"),
                "test_of_tests.py::TestAll::test_unexpected": ("failed", "XPASS(strict)"),
                "test_of_tests.py::test_broken": ("failed", "no set-up"),
                "test_of_tests.py::test_untidy": ("failed", "left behind"),
            },
        ),
    ],
)
def test_each_has_its_outcome(
    tmp_path: Path, framework: str, source: str, outcomes: dict[str, tuple[str, str]]
) -> None:
    suite = suite_of(tmp_path, framework, source)
    listed = drive.run_child(suite, "ours", None, SILENCE)
    assert sorted(listed) == sorted(outcomes)
    tests = {test: module for test, (_, module) in listed.items()}
    assert set(tests.values()) == set(suite.modules)
    ran = drive.run_child(suite, "ours", tests, SILENCE)
    assert {test: outcome for test, (outcome, _) in ran.items()} == {test: outcomes[test][0] for test in outcomes}
    for test, (_, detail) in outcomes.items():
        assert detail in ran[test][1]


@pytest.mark.parametrize("framework", ["unittest", "pytest"])
def test_a_module_that_cannot_be_imported_ends_it(tmp_path: Path, framework: str) -> None:
    suite = suite_of(tmp_path, framework, "import no_such_module")
    with pytest.raises(SystemExit, match="no_such_module"):
        drive.run_child(suite, "ours", None, SILENCE)


def judge(suite: drive.Suite, only: str = "*") -> int:
    return drive.judge(suite, argparse.Namespace(loop="ours", only=only, workers=1, silence=SILENCE))


def test_what_is_made_of_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = """
import os, unittest
from pathlib import Path

OURS = os.environ["SUITE_LOOP_FOR_TESTS"] == "ours"

class Tests(unittest.TestCase):
    def test_always(self): self.fail()
    def test_left_out(self): os._exit(3)
    def test_listed(self): self.assertFalse(OURS)
    def test_listed_and_passes(self): pass
    def test_passes_by_chance(self): pass
    def test_ours(self): self.assertFalse(OURS)
    def test_when_busy(self):
        try:
            Path("tried").touch(exist_ok=False)
        except FileExistsError:
            return
        while True: pass
"""
    suite = suite_of(tmp_path, "unittest", source)
    (tmp_path / "example.toml").write_text("""
deviation = [
    { test = "*.test_listed", reason = "none" },
    { test = "*_and_passes", reason = "none" },
    { test = "*_by_chance", reason = "none", sometimes = true },
]
left_out = [{ test = "*_left_out", reason = "none" }]
""")
    assert judge(suite) == 1
    printed = capsys.readouterr().out
    assert "test_of_tests.Tests.test_always: fails with stock here too\n" in printed
    assert "*_and_passes: is listed as a deviation but passes\n" in printed
    assert "*_by_chance: is listed" not in printed
    assert "== test_of_tests.Tests.test_ours: failed\n" in printed
    assert "test_of_tests.Tests.test_when_busy: passed only at the second try\n" in printed
    assert (
        " 6 tests, 2 passed, 0 skipped, 1 unexpected failures, 1 listed deviations, 1 left out, "
        "1 fail on the stock loop too, 1 flaky;" in printed
    )
    (tmp_path / "tried").unlink()
    for good in ("*_always", "*.test_listed", "*_by_chance", "*_when_busy"):
        assert judge(suite, good) == 0
    for bad in ("*_and_passes", "*_ours", "*_no_such"):
        assert judge(suite, bad) == 1


def test_what_fails_only_after_others_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = """
import os, unittest
OURS = os.environ["SUITE_LOOP_FOR_TESTS"] == "ours"
left = []
class Tests(unittest.TestCase):
"""
    for number in range(drive.SHARES_EACH):
        source += f"    def test_{number}(self): left.append(OURS)\n"
        source += f"    def test_{number}_after(self): self.assertFalse(any(left))\n"
    suite = suite_of(tmp_path, "unittest", source)
    assert judge(suite) == 1
    assert f" {drive.SHARES_EACH} unexpected failures" in capsys.readouterr().out


def test_brackets_in_a_pattern_are_those_of_parameters() -> None:
    assert drive.matches("tests/test_a.py::test_b[c-1]", "*::test_b[c-?]")
    assert not drive.matches("tests/test_a.py::test_bc", "*::test_b[c]")


def test_the_loop_is_put_in_place_for_the_processes_of_tests() -> None:
    program = (
        "import integration.suites.inherit, asyncio\n"
        "async def kind(): return type(asyncio.get_running_loop()).__name__\n"
        "print(asyncio.run(kind()), asyncio.SelectorEventLoop.__name__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=dict(os.environ, SUITE_LOOP="notifyloop:NotifyLoop"),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["NotifyLoop", "NotifyLoop"]


def test_an_index_that_cannot_be_reached_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WORK", tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(index.UnavailableError, match="uvloop==0"):
        index.sources("uvloop", "0.23.0")
    assert list(tmp_path.iterdir()) == []
