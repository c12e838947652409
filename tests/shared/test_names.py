"""A private name of asyncio's is used knowingly: it is written down."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path

from . import names

FOLDER = Path(asyncio.__file__).parent
LISTED = tomllib.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))
SHARED = {name for owner in LISTED["shared"].values() for name in owner}
ALIKE = set(LISTED["alike"]["names"])


def test_every_private_name_in_common_is_listed() -> None:
    new = names.in_common(FOLDER) - SHARED - ALIKE
    assert not new, (
        f"asyncio has these private names, too: {', '.join(sorted(new))}. Whoever needs what is asyncio's lists it in "
        "tests/shared/names.toml under its owner, and what only has the same name under 'alike'"
    )


def test_nothing_is_listed_that_is_not_used_any_more() -> None:
    assert (SHARED | ALIKE) - names.ours() == set()


def test_a_name_is_shared_or_only_alike() -> None:
    assert set() == SHARED & ALIKE


def test_every_module_that_is_imported_from_is_listed() -> None:
    assert names.modules(FOLDER) == set(LISTED["modules"]), "see tests/shared/names.toml"
