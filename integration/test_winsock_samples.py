"""The programs of "Winsock socket state notifications" run as they are, and notice when a total is wrong."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort, Event, Registration, Trigger

if TYPE_CHECKING:
    from types import ModuleType

SAMPLES = Path(__file__).parent / "winsock_samples"


def has_edges() -> bool:
    with CompletionPort() as port, socket.socket() as sock:
        registration = Registration(sock, trigger=Trigger.EDGE | Trigger.ONESHOT)
        port.process([registration], max_notifications=0)
        return registration.result == 0


edges = pytest.mark.skipif(not has_edges(), reason="this provider has no edges")


def run(name: str) -> list[str]:
    """What the program prints; it must succeed, and say nothing on standard error."""
    # -X dev: a socket that is left to the garbage collector is reported on standard error.
    program = subprocess.run(
        [sys.executable, "-X", "dev", SAMPLES / f"{name}.py"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert program.stderr == ""
    assert program.returncode == 0
    return program.stdout.splitlines()


def load(name: str) -> ModuleType:
    """The program as a module, to be tampered with."""
    specification = importlib.util.spec_from_file_location(name, SAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_simple_poll_replacement_receives_until_the_client_hangs_up() -> None:
    lines = run("simple_poll_replacement")
    assert lines[0] == "Waiting for client action..."
    assert lines[-1] == "Client hung up. Exiting."
    counts = Counter(lines)
    assert set(counts) == {lines[0], "Received client data.", lines[-1]}
    assert counts["Received client data."] >= 1
    assert counts["Client hung up. Exiting."] == 1
    # One wait for each reception and one for the hang-up, and more where the client took its time.
    assert counts["Waiting for client action..."] > counts["Received client data."]


def test_simple_poll_replacement_notices_missing_data(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = load("simple_poll_replacement")
    whole = sample.run_client

    def cut_short(address: tuple[str, int]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(sample, "CLIENT_LOOP_COUNT", 9)
            whole(address)

    monkeypatch.setattr(sample, "run_client", cut_short)
    assert sample.main() == "received 36 bytes where 40 were sent"


@edges
def test_edge_triggered_udp_drains_ten_datagrams() -> None:
    lines = run("edge_triggered_udp")
    assert lines[0] == "Waiting for client action..."
    assert lines[-1] == "Received all data. Exiting..."
    counts = Counter(lines)
    assert set(counts) == {lines[0], "Received client data.", lines[-1]}
    assert counts["Received client data."] == 10


@edges
def test_edge_triggered_udp_notices_wrong_data(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = load("edge_triggered_udp")
    sent = sample.PAYLOAD
    client = sample.run_client

    def spoil(address: tuple[str, int]) -> None:
        client(address)
        sample.PAYLOAD = b"something else"

    monkeypatch.setattr(sample, "run_client", spoil)
    assert sample.main() == f"received {[sent] * 10!r} where 10 payloads were sent"


def test_multithreaded_server_serves_a_hundred_clients() -> None:
    lines = run("multithreaded_server")
    assert lines.count("Waiting for 16 server threads to exit...") == 1
    waiting, exited = set(), []
    for line in lines:
        if line.endswith(" waiting for client action..."):
            [thread] = re.findall(r"^Server thread (\d+) waiting", line)
            waiting.add(thread)
        elif line.endswith(" exited"):
            exited += re.findall(r"^Server thread (\d+) exited$", line)
    assert len(exited) == 16
    # A thread's number may be used again after its exit, and a thread that starts late need not wait.
    assert waiting <= set(exited)


def test_multithreaded_server_notices_missing_data(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = load("multithreaded_server")
    monkeypatch.setattr(sample, "PAYLOAD", b"1234")
    client = sample.run_client
    lost = iter([True])

    def lose_one(address: tuple[str, int]) -> None:
        if next(lost, False):
            sample.socket.create_connection(address).close()
        else:
            client(address)

    monkeypatch.setattr(sample, "run_client", lose_one)
    assert sample.main() == "received 3960 bytes where 4000 were sent"


def test_multithreaded_server_cleans_up_where_a_registration_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that could not register a connection still owns it; the others go on."""
    sample = load("multithreaded_server")
    refused = iter([True])
    client = sample.run_client

    def refuse_one(socket: object, key: object, events: Event) -> Registration:
        valid = events == Event.IN or not next(refused, False)  # the listener's is always right
        trigger = Trigger.LEVEL | Trigger.ONESHOT if valid else Trigger.LEVEL
        return Registration(socket, key, events, trigger)

    def tolerate_refusal(address: tuple[str, int]) -> None:
        with suppress(OSError):  # the one that is turned away may notice while it sends
            client(address)

    monkeypatch.setattr(sample, "Registration", refuse_one)
    monkeypatch.setattr(sample, "run_client", tolerate_refusal)
    failures = sample.main()
    assert failures is not None
    first, second = failures.splitlines()
    assert re.match(r"registration failed with \d+: <Registration ", first)
    assert second == "received 3960 bytes where 4000 were sent"
