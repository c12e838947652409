"""What we have replaced of asyncio, or lean on, is in this release as somebody has read it."""

from __future__ import annotations

import ast
import asyncio
import sys
from pathlib import Path

import pytest

from . import fingerprints
from .overrides import overrides

FOLDER = Path(asyncio.__file__).parent
RELEASE = ".".join(map(str, sys.version_info[:3]))
RECORD = fingerprints.load()
RECORDED = any(fingerprints.minor(known) == fingerprints.minor(RELEASE) for known in RECORD)


def test_this_minor_version_is_recorded() -> None:
    assert RECORDED, (
        f"Python {RELEASE}: not recorded, nor is any release of this minor version. Read what asyncio has changed "
        f"since {list(RECORD)[-1]} in what we replace (git diff of CPython's Lib/asyncio), have the loop follow that, "
        "run CPython's tests (make test-cpython), and then record it: python -m tests.shared"
    )


@pytest.mark.skipif(not RECORDED, reason="there is nothing to compare with: see the test before")
def test_nothing_that_we_have_replaced_has_changed() -> None:
    concern, places = fingerprints.concern(FOLDER), fingerprints.ours()
    gone = {name for known in RECORD.values() for name in known} - set(fingerprints.find(FOLDER))
    told = [
        f"  asyncio.{name}; ours: {', '.join(places.get(name.rpartition('.')[2], ['none']))}"
        for name in fingerprints.changed(RECORD, RELEASE, fingerprints.take(FOLDER))
        if name in concern | gone
    ]
    assert not told, (
        f"Python {RELEASE}: asyncio has changed what we have replaced, or lean on:\n" + "\n".join(told) + "\n"
        "For each, read what has changed since the release before (git log -L in CPython's Lib/asyncio). If ours has "
        "the fault that was mended, mend it, with a test. Then record the release: python -m tests.shared"
    )


def test_whatever_we_override_is_recorded() -> None:
    recorded = fingerprints.take(FOLDER)
    names = {f"{each.owner.__module__}.{each.owner.__name__}.{each.theirs.__name__}" for each in overrides()}
    names = {name.removeprefix("asyncio.") for name in names if name.startswith("asyncio.")}
    names = {name for name in names if not name.startswith("events.AbstractEventLoop.")}  # which does nothing
    assert names - set(recorded) == set(), "add their classes to tests/shared/fingerprints.py, and record them"


# ---- the record itself


def test_a_function_that_differs_from_all_that_were_read_is_named() -> None:
    record = {"3.98.1": {"a": "1", "b": "1"}, "3.98.2": {"a": "2", "b": "1", "c": "1"}, "3.99.0": {"a": "3", "b": "3"}}
    assert fingerprints.changed(record, "3.98.3", {"a": "2", "b": "1"}) == []  # as in one of 3.98
    assert fingerprints.changed(record, "3.98.3", {"a": "3", "b": "1", "d": "1"}) == ["a", "d"]
    assert fingerprints.changed(record, "3.98.3", {"a": "1", "c": "1"}) == ["b"]


def test_what_a_function_does_is_what_counts() -> None:
    def taken(source: str) -> str:
        return fingerprints.fingerprint([node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)])

    bare = taken("def f(a, b=1):\n    return a + b")
    assert bare == taken('def f(a: int, b: int = 1) -> int:\n    """Add."""\n    # both\n    return (a\n        + b)')
    assert bare != taken("def f(a, b=2):\n    return a + b")
    assert bare != taken("def f(a, b=1):\n    return b + a")


def test_what_is_written_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "RECORD", tmp_path / "copy.toml")
    fingerprints.save(RECORD)
    assert fingerprints.load() == RECORD
