"""Which provider answers the calls. Nothing above this module asks."""

from __future__ import annotations

from notifyloop.port import epoll as provider

__all__ = ["provider"]
