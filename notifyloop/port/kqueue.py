"""The provider for macOS and the BSDs: the article's calls, implemented in C over kqueue (`csrc/kqueue_port.c`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notifyloop.port._kqueue import ffi, lib
from notifyloop.port.library import describe, system_handle

if TYPE_CHECKING:
    from typing import Any

__all__ = ["describe", "entry_point", "ffi", "lib", "name", "packed_call", "system_handle"]

name = "kqueue"


def packed_call(**arguments: Any) -> Any:
    return ffi.new("PACKED_CALL *", arguments)


def entry_point(name: str) -> Any:
    return ffi.addressof(lib, name)
