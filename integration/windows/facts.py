"""What ProcessSocketNotifications does where its reference is silent: asked of the system itself.

    python integration/windows/facts.py [--output facts.json] [PROBE ...]

Each probe asks one question and writes down the answer; nothing is expected of it. It runs in a process of its own,
so one that fails, crashes or hangs costs no other its answer. The result is JSON: for each probe its question and
its answer, or what went wrong. Where the system does not have the call, that is the one fact, and the exit status
is 0 as well.

What is called is the system's DLL, by the declarations of notifyloop/port/abi.py. Nothing else of notifyloop is
used: these are facts about Windows, not about us.

How to read an answer: `code` is what the call returned, `results` the registrationResult of each registration,
`packets` what was dequeued. A packet's `events` are its dwNumberOfBytesTransferred, which for the completion of an
overlapped operation is a number of bytes. Keys are arbitrary.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import cffi
from probes import PROBES
from probes.laboratory import ABI, Laboratory

PROBE_TIME = 90.0  # seconds, then a probe is ended


def where_the_call_is() -> dict[str, bool]:
    ffi = cffi.FFI()
    ffi.cdef(ABI["TYPES"] + ABI["FUNCTIONS"])
    found = {}
    for name in ("ws2_32.dll", "mswsock.dll"):
        try:
            found[name] = bool(ffi.dlopen(name).ProcessSocketNotifications)
        except (AttributeError, OSError):
            found[name] = False
    return found


def system() -> dict[str, Any]:
    return {
        "platform": sys.platform,
        "version": list(sys.getwindowsversion().platform_version) if sys.platform == "win32" else platform.release(),
        "kind": {1: "workstation", 2: "domain controller", 3: "server"}[sys.getwindowsversion().product_type]
        if sys.platform == "win32"
        else platform.system(),
        "processor": os.environ.get("PROCESSOR_IDENTIFIER") or platform.machine(),
        "processors": os.cpu_count(),
        "python": sys.version,
        "cffi": cffi.__version__,
        "image": os.environ.get("IMAGEOS", "") + os.environ.get("IMAGEVERSION", ""),  # GitHub's; case does not matter
    }


def ask(name: str, library: str | None) -> dict[str, Any]:
    """One probe, in a process of its own: its question, and its answer or what went wrong."""
    command = [sys.executable, __file__, "--answer", name, *(["--library", library] if library else [])]
    entry: dict[str, Any] = {"question": " ".join((PROBES[name].__doc__ or "").split())}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROBE_TIME)
    except subprocess.TimeoutExpired:
        return {**entry, "error": f"no answer in {PROBE_TIME:.0f} s"}
    with suppress(ValueError):
        return {**entry, **json.loads(done.stdout)}
    return {**entry, "error": f"ended with status {done.returncode:#x}", "output": done.stdout + done.stderr}


def answer_and_exit(name: str, library: str | None) -> None:
    try:
        result = {"answer": PROBES[name](Laboratory(library))}
    except Exception:
        result = {"error": traceback.format_exc()}
    print(json.dumps(result), flush=True)
    os._exit(0)  # finalizers would wait for operations that are still under way


def main() -> int:
    parser = argparse.ArgumentParser(description="Facts about ProcessSocketNotifications, as JSON.")
    parser.add_argument("probes", nargs="*", metavar="PROBE", help="ask these only (default: all)")
    parser.add_argument("--list", action="store_true", help="list the probes")
    parser.add_argument("--output", type=Path, help="file to write to (default: print)")
    parser.add_argument("--library", help="a library that exports the call, in the place of ws2_32.dll")
    parser.add_argument("--answer", metavar="PROBE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        for name, function in PROBES.items():
            print(f"{name:40}{(function.__doc__ or '').splitlines()[0]}")
        return 0
    if struct.calcsize("P") != 8:
        parser.error("the declarations are for 64-bit systems")
    if options.answer:
        answer_and_exit(options.answer, options.library)
    unknown = [name for name in options.probes if name not in PROBES]
    if unknown:
        parser.error(f"no such probe: {', '.join(unknown)}")

    call = where_the_call_is()
    report: dict[str, Any] = {"system": system(), "ProcessSocketNotifications": call, "facts": {}}
    if options.library:
        report["library"] = options.library
    if call["ws2_32.dll"] or options.library:
        for name in options.probes or PROBES:
            report["facts"][name] = ask(name, options.library)
        silent = [name for name, fact in report["facts"].items() if "answer" not in fact]
        print(f"{len(report['facts']) - len(silent)} of {len(report['facts'])} probes answered", file=sys.stderr)
        if silent:
            print(f"no answer: {', '.join(silent)}", file=sys.stderr)
    else:
        print("ws2_32.dll does not have ProcessSocketNotifications here: nothing to ask", file=sys.stderr)
    text = json.dumps(report, indent=1) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
