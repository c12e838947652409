"""What we have put in the place of Python's own: found by going through our classes and what they derive from."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
import textwrap
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

OF_THE_LOOP = ("notifyloop", "notifyloop.turn", f"notifyloop.{'windows' if sys.platform == 'win32' else 'unix'}")
GONE = {"notifyloop.policy"} if sys.version_info >= (3, 16) else set()
PYTHONS = ("asyncio.", "ssl.", "selectors.", "socket.")
CATCH_ALL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# What is caught there is for asyncio.Task, as in asyncio since Python 3.13.3.
EXCUSED = {"SelectorEventLoop.create_task"}


@dataclass(frozen=True)
class Override:
    """A function of ours, and the one that it stands for."""

    ours: FunctionType
    theirs: FunctionType
    owner: type  # of theirs

    def __str__(self) -> str:
        return f"{self.ours.__module__}.{self.ours.__qualname__} for {self.owner.__module__}.{self.theirs.__qualname__}"


def classes() -> set[type]:
    """Ours, of this system."""
    names = {
        module.name
        for package in OF_THE_LOOP
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
        if not module.ispkg and not module.name.endswith("__main__")
    }
    values = [value for name in names - GONE for value in vars(importlib.import_module(name)).values()]
    return {value for value in values if isinstance(value, type) and is_ours(value)}


def is_ours(owner: type) -> bool:
    return f"{owner.__module__}.".startswith("notifyloop.")


def overrides() -> set[Override]:
    """Not of constructors: who makes an object knows of which class."""
    found = set()
    for derived in classes():
        for name in dir(derived):
            owners = [owner for owner in derived.__mro__ if name in vars(owner)]
            theirs = next((owner for owner in owners if f"{owner.__module__}.".startswith(PYTHONS)), None)
            if name == "__init__" or theirs is None or not is_ours(owners[0]):
                continue
            ours, replaced = vars(owners[0])[name], vars(theirs)[name]
            if isinstance(ours, FunctionType) and isinstance(replaced, FunctionType):
                found.add(Override(ours, replaced, theirs))
    return found


def refused(override: Override) -> Iterator[str]:
    """What the one that is replaced takes, and ours does not."""
    ours = inspect.signature(override.ours)
    theirs = inspect.signature(override.theirs).parameters.values()
    positional = [each for each in theirs if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    named = [each.name for each in theirs if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    kinds = {each.kind for each in theirs}
    needed = [each for each in theirs if each.default is each.empty and each.kind not in CATCH_ALL]
    keywords = {each.name: ... for each in theirs if each.kind is each.KEYWORD_ONLY}
    ways = {
        "by position": (positional, keywords),
        "by name": ([each for each in positional if each.name not in named[1:]], dict.fromkeys(named[1:])),
        "only what is needed": (
            [each for each in needed if each in positional],
            {each.name: ... for each in needed if each not in positional},
        ),
    }
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        ways["any number"] = ([*positional, ..., ...], keywords)
    if inspect.Parameter.VAR_KEYWORD in kinds:
        ways["any name"] = (positional, keywords | {"any_name": ...})
    for way, (arguments, options) in ways.items():
        try:
            ours.bind(*arguments, **options)
        except TypeError as error:
            yield f"{way}: {error}"
    for parameter in ours.parameters.values():
        catches = parameter.kind in CATCH_ALL and parameter.kind not in kinds
        if catches and override.ours.__qualname__ not in EXCUSED and not passes_on(override, parameter.name):
            yield f"{parameter} takes anything, and may raise one call deeper"


def passes_on(override: Override, catch_all: str) -> bool:
    """Whether the method that is replaced is given what was caught, in each call."""
    replaced = {f"{holder}.{override.theirs.__name__}" for holder in ("super()", "Asyncio")}
    calls = [
        node
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(override.ours))))
        if isinstance(node, ast.Call)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords if keyword.arg is None))
        if isinstance(argument.value if isinstance(argument, ast.Starred) else argument, ast.Name)
        and (argument.value if isinstance(argument, ast.Starred) else argument).id == catch_all  # type: ignore[attr-defined]
    ]
    return bool(calls) and all(ast.unparse(call.func) in replaced for call in calls)
