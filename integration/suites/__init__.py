"""Other people's test suites, run on our loop: CPython's own for asyncio, uvloop's, aiohttp's and Tornado's."""
