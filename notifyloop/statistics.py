"""What a loop tells about itself, in production too: counting costs next to nothing and is always on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Statistics"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of `NotifyLoop.statistics()`. Counts are since the loop was made; times are in seconds."""

    iterations: int
    """Turns of the loop."""
    callbacks: int
    """Callbacks run."""
    foreign_calls: int
    """Calls of the port: one per wait, and one for each registration that had to be answered at once."""
    waits: int
    """Times the loop asked for notifications: in every iteration, unless nothing is watched."""
    kernel_calls: int
    """System calls that the port made, to wait or to change a registration."""
    registrations: int
    """Descriptors registered."""
    re_arms: int
    """One-shot registrations enabled again after a notification."""
    notifications: int
    """Notifications dequeued."""
    stale_notifications: int
    """Notifications dropped because their registration no longer existed."""
    posted: int
    """Packets posted to the port: wake-ups from other threads."""
    registered: int
    """Descriptors registered now."""
    callback_latency: float
    """Seconds between two waits, averaged over the last sixteen or so: how long what becomes ready has to
    wait for the loop.
    """
    callback_latency_max: float
    """The longest time between two waits, in seconds: the worst that a slow callback did to the others."""
    busy_time: float
    """Seconds spent running callbacks."""
    waiting_time: float
    """Seconds spent waiting for notifications. busy_time / (busy_time + waiting_time) is the loop's load."""
