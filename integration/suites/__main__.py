"""python -m integration.suites SUITE

Exit status: 0 when what is listed fails and nothing else, 1 when not, 69 when the package index does not give what the
suite needs.
"""

from __future__ import annotations

import argparse
import signal
import sys

from integration.suites import aiohttp, cpython, index, tornado, uvloop

SUITES = {"cpython": cpython, "uvloop": uvloop, "aiohttp": aiohttp, "tornado": tornado}
UNAVAILABLE = 69  # as sysexits.h has it

parser = argparse.ArgumentParser(prog="python -m integration.suites", description=__doc__)
parser.add_argument("suite", choices=SUITES)
parser.add_argument(
    "--loop", default="notifyloop:NotifyLoop", help="module:callable; 'stock' for asyncio's own, uninjected"
)
parser.add_argument("--only", default="*", help="a pattern for the names of tests, as a shell has them")
parser.add_argument("--workers", type=int, default=2, help="processes that share the work")
parser.add_argument("--silence", type=float, default=45.0, help="seconds without a sign of life that count as a hang")
arguments = parser.parse_args()
signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends all at once, not when the workers have ended
try:
    sys.exit(SUITES[arguments.suite].main(arguments))
except index.UnavailableError as error:
    print(error)
    sys.exit(UNAVAILABLE)
