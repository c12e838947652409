"""What providers have in common that are a library of C, built for one kernel."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["describe", "system_handle"]


def describe(result: int) -> tuple[int, str]:
    """The errno of a registration's result, and what it means. Here the result is the errno."""
    return result, os.strerror(result)


def system_handle(port: Any) -> NoReturn:
    """There is none: a port is an object of the provider's own."""
    raise OSError(errno.ENOTSUP, "a completion port has a handle of the operating system on Windows only")
