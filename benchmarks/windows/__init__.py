"""Compares event loops on Windows, or under wine. See README.md beside the package above."""
