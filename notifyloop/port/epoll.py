"""The provider for Linux: the article's calls, implemented in C over epoll and an eventfd
(`csrc/epoll_port.c`).
"""

from __future__ import annotations

import os

from notifyloop.port._epoll import ffi, lib

__all__ = ["describe", "ffi", "lib", "name"]

name = "epoll"


def describe(result: int) -> tuple[int, str]:
    """The errno of a registration's result, and what it means. Here the result is the errno."""
    return result, os.strerror(result)
