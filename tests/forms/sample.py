"""What is compiled: it reads and writes slots."""

__all__ = ["due", "empty", "look", "look_at_more"]


def look(handle):
    return handle._callback, handle._args


def look_at_more(handle):
    return handle._callback, handle.more


def due(timer):
    return timer._when


def empty(handle):
    handle._callback = handle._args = None
