"""Every method that asyncio documents of a loop is there, called as asyncio's, and works on ours."""

from __future__ import annotations

import asyncio
import inspect
import sys
from typing import Any

import pytest

import notifyloop

Parameter = inspect.Parameter
SEEN = (3, 15, 2)  # the newest Python that we know: what newer ones have besides is theirs
pytestmark = pytest.mark.peer("asyncio", when=sys.version_info[:3] > SEEN)
METHODS = sorted(
    name
    for name, method in vars(asyncio.AbstractEventLoop).items()
    if not name.startswith("_") and inspect.isfunction(method)
)


def shape(function: object) -> list[tuple[str, object, object]]:
    """The parameters of a method, but for the loop itself: name, kind and default."""
    _, *parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


def test_there_is_something_to_compare() -> None:
    assert len(METHODS) > 50


def where_it_can_work(name: str) -> Any:
    marks = [pytest.mark.only("unix sockets", reason="this Python has no Unix sockets")] if "_unix_" in name else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [where_it_can_work(name) for name in METHODS])
def test_none_is_left_abstract(name: str) -> None:
    assert getattr(notifyloop.NotifyLoop, name) is not getattr(asyncio.AbstractEventLoop, name)


@pytest.mark.parametrize("name", METHODS)
def test_it_is_called_as_asyncios(name: str) -> None:
    """What asyncio's loop takes, ours takes: by the same names, in the same places, with the same defaults.

    More may be taken that need not be given: what only newer versions of asyncio have.
    """
    theirs, ours = getattr(asyncio.SelectorEventLoop, name), getattr(notifyloop.NotifyLoop, name)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)
    expected, found = shape(theirs), shape(ours)
    places = [
        parameter for parameter in expected if parameter[1] not in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD)
    ]
    assert found[: len(places)] == places
    assert [parameter for parameter in expected if parameter not in found] == []
    more = [parameter for parameter in found if parameter not in expected]
    assert all(default is not Parameter.empty or kind is Parameter.VAR_KEYWORD for _, kind, default in more)
