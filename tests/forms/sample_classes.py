"""Classes that are written in Python, and that compiled code knows as structures."""

import asyncio


class SampleHandle(asyncio.Handle):
    __slots__ = ()

    def __init__(self, callback=None, args=()):
        self._callback = callback
        self._args = args


class LargerHandle(SampleHandle):
    __slots__ = ("__dict__", "more")


class SampleTimer(asyncio.TimerHandle):
    __slots__ = ()

    def __init__(self, when):
        self._when = when
