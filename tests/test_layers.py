"""The house: what may import what, so that it can be read from below, and from above."""

from __future__ import annotations

import runpy
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LONGEST = 500  # lines
imports: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "diagrams" / "imports.py"))
graph: dict[str, frozenset[str]] = imports["graph"]()

TURN = "notifyloop.turn"


def test_no_circle() -> None:
    """Also not of imports that are for types only, or that stand in a function."""
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names it


def test_a_circle_would_be_found(tmp_path: Path) -> None:
    package = tmp_path / "circular"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from circular.two import Two\n"
    )
    (package / "two.py").write_text("def late():\n    from circular import one\n")
    files = {f"circular.{name}": package / f"{name}.py" for name in ("one", "two")}
    found = {name: imports["imported"](file, files) for name, file in files.items()}
    assert found == {"circular.one": {"circular.two"}, "circular.two": {"circular.one"}}


def test_the_turn_imports_the_port_and_itself() -> None:
    for module, others in graph.items():
        if module.startswith(TURN):
            assert all(other.startswith((TURN, "notifyloop.port")) for other in others), module


def test_the_port_imports_itself() -> None:
    for module, others in graph.items():
        if module.startswith("notifyloop.port"):
            assert all(other.startswith("notifyloop.port") for other in others), module


def test_no_module_is_long() -> None:
    lengths = {file.name: len(file.read_text().splitlines()) for file in imports["modules"]().values()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
