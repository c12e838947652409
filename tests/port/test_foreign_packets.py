"""Packets of other origins on the same port: completions of overlapped operations, and what Windows posts itself."""

from __future__ import annotations

import errno
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import CompletionPort, Event, Notification, Registration
from notifyloop.port.registration import REGISTERED

if sys.platform == "win32":
    import _overlapped
    import _winapi
    from asyncio import windows_utils

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Pair

PIPE = 7  # a completion key
ERROR_OPERATION_ABORTED = 995

windows = pytest.mark.only("windows", reason="there are no overlapped operations")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The reading end, made for overlapped operations, and the writing end."""
    reading, writing = windows_utils.pipe(overlapped=(True, False))
    yield reading, writing
    for end in (reading, writing):
        _winapi.CloseHandle(end)


@windows
class TestPipes:
    def test_a_read_comes_with_its_key_and_its_address(self, port: CompletionPort, pipe: tuple[int, int]) -> None:
        port.associate(pipe[0], PIPE)
        for message in (b"hello", b"again"):
            reading = _overlapped.Overlapped(0)
            reading.ReadFile(pipe[0], 100)
            assert port.process() == []
            _winapi.WriteFile(pipe[1], message)
            assert port.process(timeout=10) == [Notification(PIPE, Event.NONE, None, 5, reading.address)]
            assert reading.getresult() == message

    def test_a_cancelled_read_comes_too(self, port: CompletionPort, pipe: tuple[int, int]) -> None:
        port.associate(pipe[0], PIPE)
        reading = _overlapped.Overlapped(0)
        reading.ReadFile(pipe[0], 100)
        reading.cancel()
        [notification] = port.process(timeout=10)
        assert (notification.key, notification.overlapped) == (PIPE, reading.address)
        with pytest.raises(OSError, match=f"WinError {ERROR_OPERATION_ABORTED}"):
            reading.getresult()

    def test_among_sockets_and_posted_packets(self, port: CompletionPort, pipe: tuple[int, int], pair: Pair) -> None:
        port.associate(pipe[0], PIPE)
        registration = Registration(pair[0], "socket", Event.OUT)
        reading = _overlapped.Overlapped(0)
        reading.ReadFile(pipe[0], 100)
        _winapi.WriteFile(pipe[1], b"hello")
        port.post(PIPE, 1)
        found: list[Notification] = port.process([registration])
        while len(found) < 3:
            found += port.process(timeout=10)
        assert {(n.key, n.registration, n.value, n.overlapped) for n in found} == {
            (PIPE, None, 5, reading.address),
            (PIPE, None, 1, 0),
            ("socket", registration, Event.OUT, 0),
        }
        assert reading.getresult() == b"hello"

    @pytest.mark.parametrize("key", [0, REGISTERED - 1])
    def test_every_key_that_can_be_posted(self, port: CompletionPort, pipe: tuple[int, int], key: int) -> None:
        port.associate(pipe[0], key)
        reading = _overlapped.Overlapped(0)
        reading.ReadFile(pipe[0], 100)
        _winapi.WriteFile(pipe[1], b"hello")
        assert [notification.key for notification in port.process(timeout=10)] == [key]
        reading.getresult()


@windows
def test_the_end_of_a_process(port: CompletionPort) -> None:
    """The handle of the port is for calls of Windows that post themselves; this one with the key 0."""
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], stdin=subprocess.DEVNULL)
    ended = _overlapped.Overlapped(0)
    wait = _overlapped.RegisterWaitWithQueue(int(process._handle), port.handle, ended.address, 0xFFFFFFFF)
    [notification] = port.process(timeout=30)
    assert (notification.key, notification.overlapped) == (0, ended.address)
    assert process.wait() == 3
    try:
        _overlapped.UnregisterWait(wait)
    except OSError as error:
        assert error.winerror == 997  # pending: Windows is about to do it  # noqa: PT017


class TestAssociate:
    @pytest.mark.parametrize("key", [-1, REGISTERED])
    def test_keys_out_of_range(self, port: CompletionPort, key: int) -> None:
        with pytest.raises(ValueError, match="key must be from 0 to"):
            port.associate(5, key)

    def test_what_is_no_file(self, port: CompletionPort) -> None:
        with pytest.raises(OSError, match="cannot associate file 1000004 with the completion port") as caught:
            port.associate(1_000_004, PIPE)
        assert caught.value.errno == (errno.EBADF if sys.platform == "win32" else errno.EINVAL)

    def test_a_closed_port(self, port: CompletionPort) -> None:
        port.close()
        with pytest.raises(ValueError, match="the completion port is closed"):
            port.associate(5, PIPE)
        with pytest.raises(ValueError, match="the completion port is closed"):
            _ = port.handle


@pytest.mark.only("linux", reason="on Windows it has one")
def test_on_linux_a_port_has_no_handle(port: CompletionPort) -> None:
    with pytest.raises(OSError, match="on Windows only"):
        _ = port.handle
