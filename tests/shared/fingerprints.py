"""How the functions of asyncio looked that we have replaced, or lean on, in each release that somebody has read.

A signature does not tell that a body was mended, and ours is a copy of what it was, in sense if not in words. So
fingerprints.toml has a fingerprint of each: of the source without comments, docstrings and annotations. Of the loop, it
has all; those are compared that are of our concern.

The sources are read, not imported, so that those of Windows are looked after on every system.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import tomllib
from pathlib import Path

RECORD = Path(__file__).with_name("fingerprints.toml")
PACKAGE = Path(__file__).parents[2] / "notifyloop"
ABSENT = "absent"

# Of this, we replace some methods.
LOOP = "base_events.BaseEventLoop"
# Of these, ours are derived, or stand in their place, or lean on all of them.
WHOLE = {
    "base_events.Server",
    "base_events._SendfileFallbackProtocol",
    "base_subprocess.BaseSubprocessTransport",
    "base_subprocess.WriteSubprocessPipeProto",
    "base_subprocess.ReadSubprocessPipeProto",
    "events.Handle",
    "events.TimerHandle",
    "events._ThreadSafeHandle",
    "proactor_events.BaseProactorEventLoop",
    "proactor_events._ProactorBasePipeTransport",
    "proactor_events._ProactorReadPipeTransport",
    "proactor_events._ProactorBaseWritePipeTransport",
    "proactor_events._ProactorWritePipeTransport",
    "proactor_events._ProactorDuplexPipeTransport",
    "selector_events.BaseSelectorEventLoop",
    "selector_events._SelectorTransport",
    "selector_events._SelectorSocketTransport",
    "selector_events._SelectorDatagramTransport",
    "sslproto.SSLProtocol",
    "sslproto._SSLProtocolTransport",
    "transports.BaseTransport",
    "transports.ReadTransport",
    "transports.WriteTransport",
    "transports.DatagramTransport",
    "transports._FlowControlMixin",
    "unix_events._UnixReadPipeTransport",
    "unix_events._UnixSelectorEventLoop",
    "unix_events._UnixWritePipeTransport",
    "unix_events._UnixSubprocessTransport",
    "windows_events.PipeServer",
    "windows_events.ProactorEventLoop",
    "windows_events._WindowsSelectorEventLoop",
    "windows_events._WindowsSubprocessTransport",
    "windows_utils.Popen",
    "windows_utils.PipeHandle",
}
FUNCTIONS = {
    "base_events._check_ssl_socket",
    "base_events._set_nodelay",
    "futures._set_result_unless_cancelled",
    "protocols._feed_data_to_buffered_proto",
    "runners.run",
    "sslproto.add_flowcontrol_defaults",
    "windows_utils.pipe",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Fingerprints = dict[str, str]  # of "module.Class.function" or "module.function"


@functools.cache
def find(folder: Path) -> dict[str, list[Function]]:
    """The functions that are recorded, in a folder with asyncio's sources. One may be defined for each system."""
    found: dict[str, list[Function]] = {}
    for module in sorted({name.partition(".")[0] for name in {LOOP} | WHOLE | FUNCTIONS}):
        tree = ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))
        for name, function in functions(tree, module):
            if name in FUNCTIONS or name.rpartition(".")[0] in {LOOP} | WHOLE:
                found.setdefault(name, []).append(function)
    return found


def functions(node: ast.AST, where: str) -> list[tuple[str, Function]]:
    """Those of a module and of its classes, whatever condition they stand under, but not those in functions."""
    found: list[tuple[str, Function]] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append((f"{where}.{child.name}", child))
        else:
            found += functions(child, f"{where}.{child.name}" if isinstance(child, ast.ClassDef) else where)
    return found


def take(folder: Path) -> Fingerprints:
    """The fingerprints of what is in that folder."""
    return {name: fingerprint(found) for name, found in find(folder).items()}


def fingerprint(found: list[Function]) -> str:
    text = "\n".join(ast.unparse(Bare().visit(function)) for function in found)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Bare(ast.NodeTransformer):
    """Leaves out what a function does not do: docstrings and annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._bare(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._bare(node)

    def _bare(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        if ast.get_docstring(node) is not None:
            del node.body[0]
            node.body = node.body or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


# ---- what is of our concern


def ours() -> dict[str, list[str]]:
    """Where our own functions stand, by their names."""
    places: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for name, function in functions(ast.parse(file.read_text(encoding="utf-8")), ""):
            place = f"{file.relative_to(PACKAGE.parent).as_posix()}:{function.lineno}"
            places.setdefault(name.rpartition(".")[2], []).append(place)
    return places


def used() -> set[str]:
    """The names that ours ask others for."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def concern(folder: Path) -> set[str]:
    """Of the loop, what we override or call, and what calls a private method that we define. Of the others, all."""
    mine = set(ours())
    names = mine | {name for name in used() if name.startswith("_")}
    supplied = {name for name in mine if name.startswith("_") and not name.startswith("__")}
    found = find(folder)
    return {
        name
        for name, each in found.items()
        if not name.startswith(f"{LOOP}.")
        or name.rpartition(".")[2] in names
        or supplied & {node.attr for one in each for node in ast.walk(one) if isinstance(node, ast.Attribute)}
    }


# ---- the record


def version(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def minor(release: str) -> tuple[int, ...]:
    return version(release)[:2]


def load() -> dict[str, Fingerprints]:
    """The fingerprints of each release. In the file stands only in which one they have changed."""
    record = tomllib.loads(RECORD.read_text(encoding="utf-8"))
    loaded: dict[str, Fingerprints] = {release: {} for release in record.pop("releases")}
    for owner, methods in record.items():
        for name, changes in methods.items():
            at = dict(change.split() for change in changes)
            current = ABSENT
            for release, fingerprints in loaded.items():
                current = at.get(release, current)
                if current != ABSENT:
                    fingerprints[f"{owner}.{name}"] = current
    return loaded


def save(record: dict[str, Fingerprints]) -> None:
    releases = sorted(record, key=version)
    lines = [
        "# By `python -m tests.shared`: since which of the releases that were read each function has been as it is.",
        "",
        "releases = [" + ", ".join(f'"{release}"' for release in releases) + "]",
    ]
    names = sorted({name for fingerprints in record.values() for name in fingerprints})
    owner = ""
    for name in names:
        if name.rpartition(".")[0] != owner:
            owner = name.rpartition(".")[0]
            lines += ["", f'["{owner}"]']
        changes: list[str] = []
        current = ABSENT
        for release in releases:
            here = record[release].get(name, ABSENT)
            if here != current:
                changes.append(f'"{release} {here}"')
                current = here
        lines.append(f"{name.rpartition('.')[2]} = [{', '.join(changes)}]")
    RECORD.write_text("\n".join(lines) + "\n", encoding="utf-8")


def changed(record: dict[str, Fingerprints], release: str, now: Fingerprints) -> list[str]:
    """The functions that look as in no release of this minor version that was read."""
    read = [fingerprints for known, fingerprints in record.items() if minor(known) == minor(release)]
    names = set(now).union(*read)
    return sorted(name for name in names if now.get(name, ABSENT) not in {known.get(name, ABSENT) for known in read})
