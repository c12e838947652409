"""An asyncio event loop on one completion port: Winsock's socket state notifications, on every platform.

notifyloop.run(main())                                        # a program
asyncio.Runner(loop_factory=notifyloop.new_event_loop)        # a runner, a server, a test
uvicorn app:app --loop notifyloop:new_event_loop
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from notifyloop.form import compiled  # before all else
from notifyloop.loop import Loop, NotifyLoop, new_event_loop
from notifyloop.runner import run
from notifyloop.selector import NotificationSelector
from notifyloop.statistics import Statistics

if TYPE_CHECKING:
    from notifyloop.policy import EventLoopPolicy, install

__all__ = [
    "Loop",
    "NotificationSelector",
    "NotifyLoop",
    "Statistics",
    "__version__",
    "compiled",
    "new_event_loop",
    "run",
]
if sys.version_info < (3, 16):
    __all__ += ["EventLoopPolicy", "install"]

__version__ = version("notifyloop")


def __getattr__(name: str) -> object:
    # Policies are deprecated in Python 3.14 and gone in 3.16: only who asks for them meets them.
    if name in ("EventLoopPolicy", "install"):
        if sys.version_info >= (3, 16):
            raise AttributeError(f"notifyloop has no {name}, for Python has no policies any more: use notifyloop.run()")
        from notifyloop import policy  # noqa: PLC0415

        return getattr(policy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
