"""Which provider is chosen, and what is said where none can be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from notifyloop.port.provider import PROVIDERS, provider

CHOSEN = "from notifyloop.port.provider import PROVIDERS, provider; print(provider.name)"


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_one_in_use_can_be_forced() -> None:
    assert run(CHOSEN, NOTIFYLOOP_PROVIDER=provider.name).stdout.strip() == provider.name


def test_an_empty_name_forces_none() -> None:
    assert run(CHOSEN, NOTIFYLOOP_PROVIDER="").returncode == 0


@pytest.mark.parametrize("name", ["Kqueue", "afd winsock", "Epoll"])
def test_an_unknown_one_is_an_error_that_names_the_known(name: str) -> None:
    forced = run(CHOSEN, NOTIFYLOOP_PROVIDER=name)
    assert forced.returncode != 0
    assert (
        f"ImportError: NOTIFYLOOP_PROVIDER={name}: notifyloop has no such provider on {sys.platform}" in forced.stderr
    )
    assert f"{sys.platform}, but {' or '.join(PROVIDERS)}\n" in forced.stderr


@pytest.mark.only("linux", reason="these are providers of Windows")
@pytest.mark.parametrize("name", ["afd", "winsock"])
def test_those_of_windows_on_linux(name: str) -> None:
    assert "but epoll" in run(CHOSEN, NOTIFYLOOP_PROVIDER=name).stderr


@pytest.mark.only("windows", reason="only there is a choice")
class TestOnWindows:
    def test_without_the_native_call_afd_is_chosen(self) -> None:
        assert run(CHOSEN, NOTIFYLOOP_PROVIDER="", NOTIFYLOOP_WINSOCK_DLL="kernel32.dll").stdout.strip() == "afd"

    def test_forcing_the_native_call_where_it_is_missing_says_so(self) -> None:
        forced = run(CHOSEN, NOTIFYLOOP_PROVIDER="winsock", NOTIFYLOOP_WINSOCK_DLL="kernel32.dll")
        assert forced.returncode != 0
        assert "winsock: kernel32.dll has no ProcessSocketNotifications" in forced.stderr

    def test_a_dll_that_is_not_there(self) -> None:
        forced = run(CHOSEN, NOTIFYLOOP_PROVIDER="winsock", NOTIFYLOOP_WINSOCK_DLL="missing.dll")
        assert "winsock: missing.dll has no ProcessSocketNotifications" in forced.stderr

    def test_afd_can_always_be_had(self) -> None:
        assert run(CHOSEN, NOTIFYLOOP_PROVIDER="afd").stdout.strip() == "afd"
