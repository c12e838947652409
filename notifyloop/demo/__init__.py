"""What ``python -m notifyloop serve`` starts: an aiohttp application that shows the loop it runs on.

Nothing is imported here, because aiohttp, which `notifyloop.demo.server` needs, is an optional dependency.
"""
