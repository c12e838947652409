"""Transports of our own: from the notification to the protocol without a detour."""

from notifyloop.transports.stream import StreamTransport

__all__ = ["StreamTransport"]
