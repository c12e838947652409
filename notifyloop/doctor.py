"""``python -m notifyloop doctor``: what a report of a problem should say, and whether the port and the loop do their
work on this machine.

The facts are fit to be published: no paths, no names of users or hosts. The traceback of a check that failed has
paths in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import cffi

import notifyloop
from notifyloop import selftest
from notifyloop.form import form
from notifyloop.port import batch, provider

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Facts = Mapping[str, str | int]

__all__ = ["diagnose", "facts"]

CALL = "ProcessSocketNotifications"
WATCHES = Path("/proc/sys/fs/epoll/max_user_watches")
NEWEST_PYTHON = (3, 15)  # that we have been tried on
ENVIRONMENT = ("NOTIFYLOOP_", "PYTHONASYNCIODEBUG", "PYTHONDEVMODE", "PYTHON_GIL", "PYTHONMALLOC")  # how they begin


def diagnose(as_json: bool = False) -> int:
    """Print the facts and carry out the self-test, and return the exit status: 1 if a check failed.

    Text is printed as it comes about, JSON as one object at the end.
    """
    known = facts()
    if not as_json:
        _print_facts(known)
    started = time.perf_counter()
    outcomes = {
        area: [_carry_out(area, name, check, quiet=as_json) for name, check in checks.items()]
        for area, checks in (("port", selftest.PORT), ("loop", selftest.LOOP))
    }
    seconds = time.perf_counter() - started
    every = [outcome for area in outcomes.values() for outcome in area]
    failed = [outcome for outcome in every if outcome.traceback is not None]
    if as_json:
        report = {
            "facts": known,
            "checks": [
                {
                    "area": area,
                    "name": outcome.name,
                    "passed": outcome.traceback is None,
                    "seconds": round(outcome.seconds, 6),
                    "traceback": outcome.traceback,
                }
                for area, checked in outcomes.items()
                for outcome in checked
            ],
            "passed": not failed,
            "seconds": round(seconds, 6),
        }
        print(json.dumps(report, indent=2))
    else:
        print(f"\n{len(every) - len(failed)} of {len(every)} checks passed in {seconds:.2f} s")
        for outcome in failed:
            print(f"\n{outcome.name}:\n{outcome.traceback}", end="")
    return 1 if failed else 0


def _print_facts(known: Facts) -> None:
    width = max(map(len, known)) + 2
    for name, value in known.items():
        print(f"{name.replace('_', ' '):{width}}{value}")
    print()


def _carry_out(area: str, name: str, check: selftest.Check, quiet: bool) -> selftest.Outcome:
    if quiet:
        return selftest.examine(name, check)
    # The name comes first: should the check never end, it says which one it was.
    print(f"{area}  {name:27}", end="", flush=True)
    outcome = selftest.examine(name, check)
    print(f"{'ok' if outcome.traceback is None else 'FAILED':8}{outcome.seconds * 1000:8.2f} ms", flush=True)
    return outcome


def facts() -> Facts:
    """What a report of a problem should say: by name, in the order in which it is read."""
    return {
        "notifyloop": notifyloop.__version__,
        "form": form,
        "provider": provider.provider.name,
        "chosen_because": _reason(),
        "system": _told(_system),
        "native_call": _told(_native_call),
        "python": _python(),
        "python_build": _build(),
        "cffi": cffi.__version__,
        **_limits(),
        "event_loop_policy": _policy(),
        "environment": _environment(),
    }


def _told(ask: Callable[[], str]) -> str:
    """The system's answer, or why there is none: a report without it is better than no report."""
    try:
        return ask()
    except OSError as error:
        return f"unknown: {error}"


def _reason() -> str:
    forced = os.environ.get("NOTIFYLOOP_PROVIDER")
    if forced:
        return f"NOTIFYLOOP_PROVIDER is {forced!r}"
    reason = getattr(provider, "reason", None)
    if reason:
        return str(reason)
    known = getattr(provider, "PROVIDERS", [provider.provider.name])
    return f"it is the first of {', '.join(known)} that works here" if len(known) > 1 else "there is no other here"


def _system() -> str:
    if sys.platform == "win32":
        import winreg  # noqa: PLC0415

        # Not platform.version() and its like: they ask a service, which takes its time and may not answer.
        version = sys.getwindowsversion()
        number = [*version.platform_version]
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Windows NT\CurrentVersion") as key:
            for name in ("UBR", "DisplayVersion"):
                with suppress(FileNotFoundError):  # old ones have neither
                    number.append(winreg.QueryValueEx(key, name)[0])
        kind = "workstation" if version.product_type == 1 else "server"
        return f"Windows {'.'.join(map(str, number))}, {kind}, {os.environ.get('PROCESSOR_IDENTIFIER', '')}{_wine()}"
    library = " ".join(platform.libc_ver())
    try:
        distribution = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:  # macOS
        distribution = platform.platform()
    return f"{platform.system()} {platform.release()}, {platform.machine()}, {library}, {distribution}"


def _wine() -> str:
    if sys.platform == "win32":
        import ctypes  # noqa: PLC0415

        ask = getattr(ctypes.WinDLL("ntdll"), "wine_get_version", None)
        if ask is not None:
            ask.restype = ctypes.c_char_p
            return f", under wine {ask().decode()}"
    return ""


def _native_call() -> str:
    if sys.platform == "win32":
        import ctypes  # noqa: PLC0415

        found = hasattr(ctypes.WinDLL("ws2_32"), CALL)
        return f"{CALL} {'found' if found else 'not found'} in ws2_32.dll"
    return f"{CALL} is Windows' own"


def _python() -> str:
    tried = "" if sys.version_info[:2] <= NEWEST_PYTHON else ", not tried on this version"
    return f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}{tried}"


def _build() -> str:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        threads = "with GIL"
    elif sys._is_gil_enabled():  # type: ignore[attr-defined, unused-ignore]
        threads = f"free-threaded, but {_told(_switch)} has switched on the GIL"
    else:
        threads = "free-threaded"
    build = "debug" if hasattr(sys, "gettotalrefcount") else "release"
    return f"{threads}, {build}, {sysconfig.get_platform()}"


def _switch() -> str:
    """Who has switched on the lock. Python warns when a module does, once and where it is imported first: that was too
    early for us, so import all again in another process.
    """
    if sys.flags.gil:  # type: ignore[attr-defined, unused-ignore]
        return "PYTHON_GIL or -X gil"
    again = [sys.executable, "-W", "always", "-c", "import notifyloop.doctor"]
    warned = subprocess.run(again, capture_output=True, text=True, check=False, timeout=60).stderr
    module = re.search(r"\(GIL\) has been enabled to load module '([^']+)'", warned)
    return f"module {module[1]}" if module else "a module that notifyloop does not import"


def _limits() -> Facts:
    limits: dict[str, str | int] = {}
    if sys.platform != "win32":
        import resource  # noqa: PLC0415

        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        limits["descriptors"] = f"{now}, can be raised to {'any number' if most == resource.RLIM_INFINITY else most}"
    if sys.platform == "linux" and WATCHES.exists():
        limits["max_user_watches"] = int(WATCHES.read_text())
    limits["max_batch"] = batch.MAX_BATCH
    return limits


def _policy() -> str:
    if sys.version_info >= (3, 16):
        return "none: this Python has no policies"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        policy = type(asyncio.get_event_loop_policy())
    return f"{policy.__module__}.{policy.__qualname__}"


def _environment() -> str:
    matters = {name: value for name, value in sorted(os.environ.items()) if name.startswith(ENVIRONMENT)}
    return " ".join(f"{name}={value}" for name, value in matters.items()) or "nothing that matters is set"
