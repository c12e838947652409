"""The event loop policy: how programs chose a loop before loop factories. Deprecated in Python 3.14 and
gone in 3.16.

Imported only when `notifyloop.EventLoopPolicy` or `notifyloop.install` is used, so that the package itself
never needs policies.
"""

from __future__ import annotations

import asyncio
import sys
import warnings

from notifyloop.loop import NotifyLoop

__all__ = ["EventLoopPolicy", "install"]

if sys.version_info >= (3, 16):
    raise ImportError(
        "Python has no event loop policies any more: use notifyloop.run(), or loop_factory=notifyloop.new_event_loop"
    )

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # asyncio warns again where the policy is set

    class EventLoopPolicy(asyncio.DefaultEventLoopPolicy):
        """`asyncio.set_event_loop_policy(notifyloop.EventLoopPolicy())` makes every new loop a
        `NotifyLoop`.
        """

        _loop_factory = NotifyLoop  # type: ignore[assignment, unused-ignore]  # typeshed has the Proactor's for Windows


def install() -> None:
    """Set the policy, as `uvloop.install()` does. New programs use `notifyloop.run()` instead: like uvloop's, this is
    deprecated from Python 3.12 on, which can be given a loop factory.
    """
    if sys.version_info >= (3, 12):
        warnings.warn(
            "notifyloop.install() is deprecated in favor of notifyloop.run() starting with Python 3.12.",
            DeprecationWarning,
            stacklevel=2,
        )
    asyncio.set_event_loop_policy(EventLoopPolicy())
