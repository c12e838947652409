"""Whatever the function of asyncio takes, the one that we have put in its place takes, and somebody watches it."""

from __future__ import annotations

import pytest

from .overrides import Override, overrides, refused

OVERRIDES = sorted(overrides(), key=str)


def test_there_are_some() -> None:
    assert len(OVERRIDES) > 50


@pytest.mark.parametrize("override", OVERRIDES, ids=str)
def test_ours_takes_what_theirs_takes(override: Override) -> None:
    assert not list(refused(override))
