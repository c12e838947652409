"""The doctor as its users run it, and with broken ports and loops: a check that cannot fail is none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING

import pytest

import notifyloop
from notifyloop import doctor, selftest
from notifyloop.__main__ import main
from notifyloop.port import Event, Operation, Trigger, batch, completion_port
from notifyloop.port.abi import REGISTRATION
from notifyloop.port.provider import provider
from notifyloop.port.registration import REGISTERED
from notifyloop.turn.primitives import FREE_THREADED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

PYTHON = [sys.executable, "-W", "error"]
CHECKS = {**selftest.PORT, **selftest.LOOP}


def run_as_a_user(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*PYTHON, "-m", "notifyloop", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_report_for_people() -> None:
    done = run_as_a_user()
    assert (done.returncode, done.stderr) == (0, "")
    facts, checks, conclusion = done.stdout.split("\n\n")
    assert facts.startswith("notifyloop         ")
    assert {line[:19].strip() for line in facts.splitlines()} >= {"provider", "chosen because", "system", "python"}
    assert [line[6:33].rstrip() for line in checks.splitlines()] == list(CHECKS)
    assert {line[33:41] for line in checks.splitlines()} == {"ok      "}
    assert conclusion.startswith(f"{len(CHECKS)} of {len(CHECKS)} checks passed in ")


def test_report_for_machines() -> None:
    done = run_as_a_user("--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["passed"] is True
    assert report["facts"]["notifyloop"] == notifyloop.__version__
    assert report["facts"]["provider"] == provider.name
    assert report["facts"]["max_batch"] == completion_port.MAX_BATCH
    assert [check["name"] for check in report["checks"]] == list(CHECKS)
    assert {check["area"] for check in report["checks"]} == {"port", "loop"}
    assert all(check["passed"] and check["traceback"] is None for check in report["checks"])
    assert all(0 < check["seconds"] <= report["seconds"] for check in report["checks"])


def test_what_is_forced_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFYLOOP_PROVIDER", provider.name)
    facts = doctor.facts()
    assert facts["chosen_because"] == f"NOTIFYLOOP_PROVIDER is {provider.name!r}"
    assert f"NOTIFYLOOP_PROVIDER={provider.name}" in str(facts["environment"])


def test_reason_of_the_choice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFYLOOP_PROVIDER", raising=False)
    monkeypatch.setattr(doctor.provider, "PROVIDERS", ["winsock", "afd"], raising=False)
    assert doctor.facts()["chosen_because"] == "it is the first of winsock, afd that works here"
    monkeypatch.setattr(doctor.provider, "reason", "the call was found", raising=False)
    assert doctor.facts()["chosen_because"] == "the call was found"


# CPython's words
SWITCHED_ON = (
    "The global interpreter lock (GIL) has been enabled to load module 'culprit', which has not declared that it can"
    " run safely without the GIL. To override this behavior and keep the GIL disabled (at your own risk), run with"
    " PYTHON_GIL=0 or -Xgil=0."
)


class NotForced:
    """The interpreter's flags, of which none is about the lock."""

    gil = None

    def __init__(self, flags: object) -> None:
        self._flags = flags

    def __getattr__(self, name: str) -> object:
        return getattr(self._flags, name)


class TestFreeThreadedBuild:
    @pytest.fixture(autouse=True)
    def _build(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor.sysconfig, "get_config_var", lambda name: int(name == "Py_GIL_DISABLED"))

    def test_without_lock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
        assert str(doctor.facts()["python_build"]).startswith("free-threaded, ")

    @pytest.mark.parametrize(
        ("sitecustomize", "who"),
        [
            ("", "a module that notifyloop does not import"),
            (f"import warnings; warnings.warn({SWITCHED_ON!r}, RuntimeWarning)", "module culprit"),
        ],
    )
    def test_who_has_switched_the_lock_on(
        self, sitecustomize: str, who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
        (tmp_path / "sitecustomize.py").write_text(sitecustomize)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "flags", NotForced(sys.flags))
            build = doctor.facts()["python_build"]
        assert str(build).startswith(f"free-threaded, but {who} has switched on the GIL, ")


@pytest.mark.skipif(not FREE_THREADED, reason="this build always has the lock")
def test_the_lock_is_switched_on_by_whoever_starts_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_GIL", "1")
    done = run_as_a_user()
    assert (done.returncode, done.stderr) == (0, "")
    assert "free-threaded, but PYTHON_GIL or -X gil has switched on the GIL, " in done.stdout


@pytest.mark.skipif(not FREE_THREADED, reason="this build always has the lock")
@pytest.mark.only("linux", reason="there is a C compiler")
def test_the_lock_is_switched_on_by_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "culprit.c"
    source.write_text(
        "#include <Python.h>\n"
        'static struct PyModuleDef culprit = {PyModuleDef_HEAD_INIT, "culprit", NULL, 0};\n'
        "PyMODINIT_FUNC PyInit_culprit(void) { return PyModuleDef_Init(&culprit); }\n"
    )
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run(["cc", "-shared", "-fPIC", include, source, "-o", tmp_path / "culprit.so"], check=True, timeout=60)
    (tmp_path / "sitecustomize.py").write_text("import culprit")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("PYTHON_GIL", raising=False)
    done = subprocess.run(
        [sys.executable, "-m", "notifyloop", "doctor"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert "free-threaded, but module culprit has switched on the GIL, " in done.stdout


@pytest.mark.skipif(not FREE_THREADED, reason="this build always has the lock")
def test_nothing_of_ours_switches_the_lock_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests' own packages do: by itself, Python runs notifyloop without it."""
    monkeypatch.delenv("PYTHON_GIL", raising=False)
    done = run_as_a_user()
    assert (done.returncode, done.stderr) == (0, "")
    assert "python build       free-threaded, release" in done.stdout or "free-threaded, debug" in done.stdout


@pytest.mark.parametrize("newer", [False, True])
def test_version_of_python_that_nobody_has_tried_is_told(newer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEWEST_PYTHON", (3, sys.version_info[1] - newer))
    assert str(doctor.facts()["python"]).endswith(", not tried on this version") is newer


def test_answer_that_the_system_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise PermissionError(13, "not for you")

    monkeypatch.setattr(doctor, "_system", refuse)
    assert doctor.facts()["system"] == "unknown: [Errno 13] not for you"


# ---- broken providers


class Faulty:
    """A provider's functions, some of them replaced."""

    def __init__(self, **replaced: Callable[..., Any]) -> None:
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(provider.lib, name)


def with_fault(**replaced: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    def install(monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (batch, completion_port):
            monkeypatch.setattr(module, "lib", Faulty(**replaced))
        monkeypatch.setattr(provider, "entry_point", lambda name: None)  # compiled code would call C's own

    return install


def changing_orders(change: Callable[[list[int]], object]) -> Callable[[pytest.MonkeyPatch], None]:
    """A port that does otherwise than it is told: `change` alters the fields of each registration."""

    def process(handle: Any, packed: bytes, *rest: Any) -> int:
        orders = [list(fields) for fields in REGISTRATION.iter_unpack(packed)]
        for fields in orders:
            change(fields)
        changed = b"".join([REGISTRATION.pack(*fields) for fields in orders])
        result: int = provider.lib.ProcessPackedNotifications(handle, changed, *rest)
        return result

    return with_fault(ProcessPackedNotifications=process)


def ignoring(operation: Operation) -> Callable[[pytest.MonkeyPatch], None]:
    def change(fields: list[int]) -> None:
        if fields[3] == operation:
            fields[3] = Operation.NONE

    return changing_orders(change)


def arming_once(monkeypatch: pytest.MonkeyPatch) -> None:
    armed: set[int] = set()

    def change(fields: list[int]) -> None:
        if fields[1] in armed:
            fields[3] = Operation.NONE
        armed.add(fields[1])

    changing_orders(change)(monkeypatch)


def always_persistent(fields: list[int]) -> None:
    fields[4] = Trigger.LEVEL | Trigger.PERSISTENT


def asking_for_more(fields: list[int]) -> None:
    fields[2] |= Event.OUT


def hiding(event: Event) -> Callable[[pytest.MonkeyPatch], None]:
    """A port that never reports an event."""

    def hide(count: int, entries: Any, words: Any) -> int:
        for index in range(max(count, 0) & batch.ONLY_COUNT):
            entry = entries[index]
            if entry.lpCompletionKey & REGISTERED:
                entry.dwNumberOfBytesTransferred &= ~int(event)
                if words is not None:
                    key = entry.lpCompletionKey & (REGISTERED - 1) & 0xFFFFFFFF
                    words[index] = 2**32 | key | entry.dwNumberOfBytesTransferred
        return count

    def process(*arguments: Any) -> int:
        return hide(provider.lib.ProcessPackedNotifications(*arguments), arguments[6], None)

    def process_call(call: Any) -> int:
        return hide(provider.lib.ProcessPackedCall(call), call.entries, call.words)

    return with_fault(ProcessPackedNotifications=process, ProcessPackedCall=process_call)


def hiding_failures(*arguments: Any) -> int:
    count: int = provider.lib.ProcessPackedNotifications(*arguments)
    return count & batch.ONLY_COUNT


def never_waiting(handle: Any, packed: bytes, size: int, results: Any, timeout: int, *rest: Any) -> int:
    count: int = provider.lib.ProcessPackedNotifications(handle, packed, size, results, 0, *rest)
    return count


def losing_what_is_posted(*arguments: Any) -> int:
    return 1


def not_closing(handle: Any) -> int:
    return 1


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        ("register", changing_orders(asking_for_more)),
        ("IN", hiding(Event.IN)),
        ("OUT", hiding(Event.OUT)),
        ("HANGUP", hiding(Event.HANGUP)),
        ("ERR", hiding(Event.ERR)),
        ("one-shot", changing_orders(always_persistent)),
        ("re-arm", arming_once),
        ("disable", ignoring(Operation.DISABLE)),
        ("remove, and its notice", ignoring(Operation.REMOVE)),
        ("post from a thread", with_fault(PostQueuedCompletionStatus=losing_what_is_posted)),
        ("timeout", with_fault(ProcessPackedNotifications=never_waiting)),
        ("failed registration alone", with_fault(ProcessPackedNotifications=hiding_failures)),
        ("close", with_fault(CloseHandle=not_closing)),
        ("call_soon_threadsafe", with_fault(PostQueuedCompletionStatus=losing_what_is_posted)),
        ("add_reader, add_writer", hiding(Event.IN)),
        ("TCP echo", hiding(Event.IN)),
        ("TCP echo", hiding(Event.IN | Event.HANGUP)),
        ("UDP echo", hiding(Event.IN)),
    ],
)
def test_broken_port_is_found(
    check: str, fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert selftest.examine(check, CHECKS[check]).traceback is None
    monkeypatch.setattr(selftest, "PATIENCE", 0.3)
    fault(monkeypatch)
    outcome = selftest.examine(check, CHECKS[check])
    assert outcome.traceback is not None
    assert "notifyloop.selftest.CheckError: " in outcome.traceback or "TimeoutError" in outcome.traceback


# ---- broken loops


def test_timer_that_fires_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def call_at(self: notifyloop.NotifyLoop, when: float, callback: Callable[..., object], *args: Any) -> Any:
        return self.call_soon(callback, *args)

    monkeypatch.setattr(notifyloop.NotifyLoop, "call_at", call_at)
    with pytest.raises(selftest.CheckError, match=r"a timer fired 0.0\d+ s too early"):
        selftest.run(selftest.timer())


def test_child_process_that_cannot_be_started_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "no such program")
    outcome = selftest.examine("subprocess", CHECKS["subprocess"])
    assert outcome.traceback is not None
    assert "FileNotFoundError" in outcome.traceback


def test_signal_handler_that_is_not_called_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifyloop.NotifyLoop, "add_signal_handler", lambda self, *args: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background has it ignored
    try:
        outcome = selftest.examine("signal handler", CHECKS["signal handler"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.traceback is not None
    assert "the signal interrupted the loop instead of calling its handler" in outcome.traceback


def test_what_the_loop_only_logs_is_found() -> None:
    async def careless() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(0)

    with pytest.raises(selftest.CheckError, match="Exception in callback") as caught:
        selftest.on_the_loop(careless)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# ---- what is said of it


def test_failure_is_reported_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hiding(Event.ERR)(monkeypatch)
    assert main(["doctor"]) == 1
    _, checks, conclusion, traceback = capsys.readouterr().out.split("\n\n")
    assert [line[6:33].rstrip() for line in checks.splitlines() if "FAILED" in line] == ["ERR"]
    assert conclusion.startswith(f"{len(CHECKS) - 1} of {len(CHECKS)} checks passed in ")
    assert traceback.startswith("ERR:\nTraceback (most recent call last):\n")
    assert "in reset\n" in traceback


def test_failure_is_reported_to_machines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hiding(Event.ERR)(monkeypatch)
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    [failed] = [check for check in report["checks"] if not check["passed"]]
    assert failed["name"] == "ERR"
    assert "in reset\n" in failed["traceback"]


def test_check_that_hangs_ends_the_process_and_is_named() -> None:
    program = (
        "import sys, threading; from notifyloop import selftest; from notifyloop.__main__ import main; "
        "selftest.HANGING = 0.1; selftest.PORT = {'hangs': threading.Event().wait}; sys.exit(main(['doctor']))"
    )
    done = subprocess.run([*PYTHON, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].rstrip() == "port  hangs"
    assert done.stderr.startswith("Timeout (0:00:00.100000)!\n")
    assert "in wait\n" in done.stderr


def test_interrupt_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(selftest, "PORT", {"register": interrupted})
    assert main(["doctor"]) == 130
