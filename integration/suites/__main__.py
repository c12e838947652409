"""python -m integration.suites cpython | uvloop"""

from __future__ import annotations

import argparse
import sys

from integration.suites import cpython, uvloop

SUITES = {"cpython": cpython, "uvloop": uvloop}

parser = argparse.ArgumentParser(prog="python -m integration.suites", description=__doc__)
parser.add_argument("suite", choices=SUITES)
parser.add_argument(
    "--loop", default="notifyloop:NotifyLoop", help="module:callable; 'stock' for asyncio's own, uninjected"
)
parser.add_argument("--only", default="*", help="a pattern for the names of tests, as a shell has them")
parser.add_argument("--workers", type=int, default=2, help="processes that share the work")
parser.add_argument("--silence", type=float, default=45.0, help="seconds without a sign of life that count as a hang")
arguments = parser.parse_args()
sys.exit(SUITES[arguments.suite].main(arguments))
