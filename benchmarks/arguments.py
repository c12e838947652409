"""What arguments of the command line may be: types for `argparse`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from benchmarks.cells import KIB

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


def comma_separated(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse_list(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",") if part]

    return parse_list


def positive(kind: type) -> Callable[[str], Any]:
    def parse_number(text: str) -> Any:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    return parse_number


def size(text: str) -> int:
    """Bytes: 1024, 1K or 1M."""
    units = {"K": KIB, "M": KIB * KIB}
    unit = units.get(text[-1:].upper())
    return positive(int)(text if unit is None else text[:-1]) * (unit or 1)


def one_of(names: Collection[str]) -> Callable[[str], str]:
    def known(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(names)}")
        return name

    return known
