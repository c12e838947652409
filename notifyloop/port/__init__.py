"""The completion port: Winsock's socket state notifications, usable without asyncio. See docs/port.md."""

from notifyloop.port.completion_port import CompletionPort, PortCounters
from notifyloop.port.ownership import OwnedSocket
from notifyloop.port.registration import Event, Notification, Operation, Registration, Trigger

__all__ = [
    "CompletionPort",
    "Event",
    "Notification",
    "Operation",
    "OwnedSocket",
    "PortCounters",
    "Registration",
    "Trigger",
]
