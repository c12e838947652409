"""Which provider answers the calls. Nothing above this module asks.

NOTIFYLOOP_PROVIDER, in the environment, forces one: for tests, and to find out whose fault it is.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Provider", "provider"]

# In the order of preference. A module whose system calls are missing raises ImportError.
PROVIDERS = {"linux": ["epoll"], "darwin": ["kqueue"], "win32": ["winsock", "afd"]}.get(
    sys.platform, ["kqueue"] if "bsd" in sys.platform else []
)
# Only if it is forced: it is built for tests, over a stand-in (`kqueue_build.py`).
FOR_TESTS = ["kqueue"] if sys.platform == "linux" else []


ISOLATED = (
    "notifyloop cannot be imported in a sub-interpreter that has a global interpreter lock of its own: cffi, by which"
    " it calls the system, supports none. It works in sub-interpreters that share the main interpreter's lock"
)


# There each is isolated, as far as modules are concerned, whatever it shares.
FREE_THREADED = (
    "notifyloop cannot be imported in a sub-interpreter of a free-threaded Python: cffi, by which it calls the system,"
    " supports none"
)


class Provider(Protocol):
    """What the module of a provider offers."""

    name: str
    ffi: Any
    lib: Any

    @staticmethod
    def describe(result: int) -> tuple[int, str]:
        """The errno of a registration's result, and what it means."""

    @staticmethod
    def packed_call(**arguments: Any) -> Any:
        """The structure PACKED_CALL, to write to and to pass to `lib.ProcessPackedCall`."""

    @staticmethod
    def entry_point(name: str) -> Any:
        """The address of a function of `lib`, as a pointer of C; None if it is Python's."""

    @staticmethod
    def system_handle(port: Any) -> int:
        """The operating system's handle of a port. Raises OSError where it has none."""


def choose() -> Provider:
    forced = os.environ.get("NOTIFYLOOP_PROVIDER")
    if forced and forced not in [*PROVIDERS, *FOR_TESTS]:
        known = " or ".join(PROVIDERS) or "none"
        raise ImportError(
            f"NOTIFYLOOP_PROVIDER={forced}: notifyloop has no such provider on {sys.platform}, but {known}"
        )
    missing = []
    for name in [forced] if forced else PROVIDERS:
        try:
            return cast("Provider", import_module(f"notifyloop.port.{name}"))
        except ImportError as error:
            if "subinterpreter" in str(error):  # CPython's word for it
                free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
                raise ImportError(FREE_THREADED if free_threaded else ISOLATED) from error
            missing.append(f"{name}: {error}")
    raise ImportError(
        f"notifyloop cannot run on this system ({sys.platform}): " + ("; ".join(missing) or "no provider")
    )


provider = choose()
