"""The program that records what Windows' call does. Here it asks the provider of this system, which exports the same
call: that shows that its probes are sound, and says nothing about Windows.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAM = Path(__file__).parent / "windows" / "facts.py"
# Winsock's own ioctls, and the overlapped operations of Windows.
WINDOWS_ONLY = {"base_handle", "refused_datagram", "receive_and_notification", "accepted_by_accept_ex"}

provider = importlib.util.find_spec("notifyloop.port._epoll")
elsewhere = pytest.mark.skipif(provider is None, reason="this system's provider is no library that exports the call")


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env={**os.environ, **(environment or {})},
    )


def library() -> str:
    assert provider is not None
    assert provider.origin is not None
    return provider.origin


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All probes, with waits so short that a slow machine may miss a packet: the tests look at what cannot be."""
    file = tmp_path_factory.mktemp("facts") / "facts.json"
    done = run("--library", library(), "--output", str(file), environment={"SETTLE": "5"})
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text(encoding="utf-8"))


@elsewhere
def test_every_probe_has_a_question(report: Any) -> None:
    assert all(fact["question"].endswith((".", "?")) for fact in report["facts"].values())


@elsewhere
def test_every_probe_answers(report: Any) -> None:
    silent = {name: fact for name, fact in report["facts"].items() if "answer" not in fact}
    assert silent.keys() <= WINDOWS_ONLY, silent
    assert len(report["facts"]) > 60


@elsewhere
def test_codes_have_names(report: Any) -> None:
    facts = report["facts"]
    assert facts["wait_that_times_out"]["answer"]["0 ms"]["code"] == "258 WAIT_TIMEOUT"
    assert facts["call_on_what_is_no_port"]["answer"]["null"]["code"] == "6 ERROR_INVALID_HANDLE"


@elsewhere
def test_packets_are_told(report: Any) -> None:
    facts = report["facts"]
    refused = facts["refused_connection"]["answer"]
    assert all("ERR" in case["report"]["packets"][0]["events"].split("|") for case in refused.values())
    assert facts["remove_then_close"]["answer"]["waits"][0]["packets"] == [{"key": 7, "events": "REMOVE"}]
    [packet] = facts["fin_armed_after"]["answer"]["HANGUP"]["report"]["packets"]
    assert int(packet.pop("internal"), 16)  # what the provider keeps there for itself
    assert packet == {"key": 7, "events": "HANGUP"}


@elsewhere
def test_results_are_told(report: Any) -> None:
    answer = report["facts"]["results_of_failed_registrations"]["answer"]
    assert answer["ENABLE, closed socket"]["results"] == ["9 Bad file descriptor"]
    assert answer["REMOVE"]["results"][:2] == ["0 ERROR_SUCCESS", "0 ERROR_SUCCESS"]
    assert not answer["REMOVE"]["results"][2].startswith("0 ")


@elsewhere
def test_probe_that_dies_is_an_answer_too() -> None:
    done = run("--library", "no-such-library", "wait_that_times_out", "listener")
    assert done.returncode == 0
    facts = json.loads(done.stdout)["facts"]
    assert facts.keys() == {"wait_that_times_out", "listener"}
    assert all("OSError" in fact["error"] for fact in facts.values())
    assert "0 of 2 probes answered" in done.stderr


def test_probes_are_listed() -> None:
    done = run("--list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "remove_timing" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows may have the call")
def test_system_without_the_call_says_so() -> None:
    done = run()
    assert done.returncode == 0
    assert done.stderr == "ws2_32.dll does not have ProcessSocketNotifications here: nothing to ask\n"
    report = json.loads(done.stdout)
    assert report["ProcessSocketNotifications"] == {"ws2_32.dll": False, "mswsock.dll": False}
    assert report["facts"] == {}


def test_unknown_probe() -> None:
    done = run("no_such_probe")
    assert done.returncode == 2
    assert "no such probe: no_such_probe" in done.stderr
