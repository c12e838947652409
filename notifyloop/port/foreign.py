"""The one foreign call of a turn, what it is given, and what it leaves in memory. Compiled code does all this itself,
and makes the call without asking cffi, where the provider is a library in C: `foreign.pxd` says how.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from notifyloop.port.abi import REGISTRATION

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["addresses", "pack", "process", "unpack"]

unpackers: dict[int, Callable[[Any], tuple[int, ...]]] = {}  # what takes so many numbers out of a buffer at once


def addresses(ffi: Any, *things: Any) -> tuple[int, ...]:
    """Where functions and memory of C are; 0 for what is Python's."""
    return tuple(int(ffi.cast("uintptr_t", thing)) if isinstance(thing, ffi.CData) else 0 for thing in things)


def pack(descriptor: int, key: int, events: int, operation: int, trigger: int) -> bytes:
    """A packed registration."""
    return REGISTRATION.pack(descriptor, key, events, operation, trigger, 0)


def process(function: Any, call: Any, address: int, address_of_call: int) -> int:
    """`ProcessPackedCall`."""
    return function(call)  # type: ignore[no-any-return]


def unpack(words: memoryview, address: int, count: int) -> tuple[int, ...]:
    """The first words of those that a call leaves."""
    try:
        return unpackers[count](words)
    except KeyError:
        unpackers[count] = Struct(f"{count}q").unpack_from
        return unpackers[count](words)
