"""The provider for macOS and the BSDs: the article's calls, implemented in C over kqueue (`csrc/kqueue_port.c`)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from notifyloop.port._kqueue import ffi, lib

if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["describe", "entry_point", "ffi", "lib", "name", "packed_call", "system_handle"]

name = "kqueue"


def describe(result: int) -> tuple[int, str]:
    """The errno of a registration's result, and what it means. Here the result is the errno."""
    return result, os.strerror(result)


def packed_call(**arguments: Any) -> Any:
    return ffi.new("PACKED_CALL *", arguments)


def entry_point(name: str) -> Any:
    return ffi.addressof(lib, name)


def system_handle(port: Any) -> NoReturn:
    """There is none: a port is an object of the provider's own."""
    raise OSError(errno.ENOTSUP, "a completion port has a handle of the operating system on Windows only")
