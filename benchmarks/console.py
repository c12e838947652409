"""What is said while a run is under way, on standard error: standard output is for the result."""

import sys

CLEAR = "\r\033[K"  # the line


def progress(words: str) -> None:
    """On a terminal, a line that the next one replaces; elsewhere nothing."""
    if sys.stderr.isatty():
        print(f"{CLEAR}{words}", end="", file=sys.stderr, flush=True)


def notice(words: str) -> None:
    """A line that stays."""
    print(f"{CLEAR if sys.stderr.isatty() else ''}{words}", file=sys.stderr, flush=True)
