"""The private names that we have in common with asyncio, and with Python's sockets."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from .fingerprints import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def in_common(folder: Path) -> set[str]:
    """Those that we read, set, define or import, and that are defined in a folder with asyncio's sources too."""
    theirs = [*folder.glob("*.py"), folder.parent / "socket.py"]
    return ours() & {name for file in theirs for name in defined(ast.parse(file.read_text(encoding="utf-8")))}


def ours() -> set[str]:
    return {
        name
        for file in PACKAGE.rglob("*.py")
        for tree in [ast.parse(file.read_text(encoding="utf-8"))]
        for name in (*defined(tree), *asked(tree))
    }


def modules(folder: Path) -> set[str]:
    """Those of asyncio's that we import from: none of them is documented, but for what `asyncio` itself has of them."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.ImportFrom(module="asyncio", names=imported):
                    found |= {each.name for each in imported if (folder / f"{each.name}.py").exists()}
                case ast.ImportFrom(module=str(module)) if module.startswith("asyncio."):
                    found.add(module.removeprefix("asyncio."))
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def defined(tree: ast.AST) -> Iterator[str]:
    """Functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
                pass
            case ast.Constant(value=str(name)):  # in __slots__
                pass
            case _:
                continue
        if is_private(name) and name.isidentifier():
            yield name


def asked(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.alias(name=name):
                if is_private(name):
                    yield name
