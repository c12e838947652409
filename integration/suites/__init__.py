"""Other people's test suites, run on our loop: CPython's own for asyncio, and uvloop's."""
