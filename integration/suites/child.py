"""One process of a suite: runs tests, and keeps a journal, so that whoever watches knows what hung or crashed.

    python child.py JOURNAL LOOP TESTS PREPARATION FRAMEWORK [ARGUMENTS...]

TESTS is a file with a JSON list of names; an empty one means: list the tests of the modules named on standard
input. PREPARATION and FRAMEWORK are modules: one puts the loop in place, the other knows how to run.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

PR_SET_PDEATHSIG = 1


class Journal:
    """A line for each event: that the whole is "done", that a test is "listed" (and in which module) or
    "started", or its outcome (and why).
    """

    def __init__(self, path: str) -> None:
        self.file = Path(path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115

    def write(self, event: str, name: str = "", detail: str = "") -> None:
        self.file.write(json.dumps([event, name, detail]) + "\n")


def main() -> None:
    journal_path, loop, tests_path, preparation, framework, *arguments = sys.argv[1:]
    del sys.path[0]  # this folder, whose modules have the names of what they run
    del sys.argv[1:]  # tests of programs read them
    # A shell has the one ignored by what runs in the background, nohup the other; and tests' children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a loop that spins must not outlive who watches
    # Where it hangs in Python; Python 3.14 would tell where in C, too, and at such length that it hides the rest.
    # And to where our output goes, whatever captures a test's.
    faulthandler.enable(os.dup(2), **({"c_stack": False} if sys.version_info >= (3, 14) else {}))
    import_module(preparation).prepare(loop)
    modules = sys.stdin.read().split()
    journal = Journal(journal_path)
    if tests_path:
        import_module(framework).run(journal, modules, set(json.loads(Path(tests_path).read_bytes())), arguments)
    else:
        import_module(framework).enumerate_tests(journal, modules, arguments)
    journal.write("done")
    journal.file.close()
    os._exit(0)  # threads and children that tests left behind must not keep it


if __name__ == "__main__":  # a test's spawned process imports this file again
    main()
