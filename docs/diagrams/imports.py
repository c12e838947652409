"""What imports what, as the sources say: also what they import for their types only, or in functions."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


def modules(package: str = "notifyloop") -> dict[str, Path]:
    """The files of a package, by the names of their modules."""
    found = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def graph(package: str = "notifyloop") -> dict[str, frozenset[str]]:
    """The modules of the package that each of its modules names in an import. To import a module is not to import the
    package that it is in, for what `__init__` says of itself is no part of what is imported.
    """
    files = modules(package)
    return {name: frozenset(imported(file, files) - {name}) for name, file in files.items()}


def imported(file: Path, known: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{each.name}" for each in node.names}
            found |= names & known.keys() or {node.module}
    return found & known.keys()


def together(graph: dict[str, frozenset[str]], groups: dict[str, str]) -> dict[str, set[str]]:
    """The graph of groups: of each module, by the longest name in `groups` that it is or is below of, the group's. What
    has none is left out.
    """

    def group_of(module: str) -> str | None:
        fitting = [name for name in groups if f"{module}.".startswith(f"{name}.")]
        return groups[max(fitting, key=len)] if fitting else None

    found: dict[str, set[str]] = {}
    for module, others in graph.items():
        group = group_of(module)
        if group is not None:
            found.setdefault(group, set()).update(each for each in map(group_of, others) if each not in (None, group))
    return found


def levels(graph: dict[str, set[str]] | dict[str, frozenset[str]]) -> dict[str, int]:
    """How high each one stands: 0 imports none of the others. Raises RecursionError for a circle."""

    @cache
    def level(name: str) -> int:
        return 1 + max(map(level, graph[name]), default=-1)

    return {name: level(name) for name in graph}
