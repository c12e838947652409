from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import notifyloop
from notifyloop.__main__ import main

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = [sys.executable, "-W", "error"]
CLOSING = "Closing, once requests in flight are done. Ctrl-C ends it at once.\n"


@contextmanager
def _serving() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The demo in a process of its own, and its URL."""
    command = [*PYTHON, "-m", "notifyloop", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            announcement = process.stdout.readline()
            assert announcement, process.communicate()[1]
            assert process.stdout.readline() == "Open it in a browser. Ctrl-C ends it.\n"
            yield process, announcement.split()[-1]
        finally:
            process.kill()


@pytest.mark.never("windows", reason="Windows has no signals that one process could send another")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_until_a_signal_ends_it(number: signal.Signals) -> None:
    pytest.importorskip("aiohttp", reason="the demo needs aiohttp, which notifyloop itself does not")
    with _serving() as (process, url):
        with urllib.request.urlopen(f"{url}json") as response:
            assert json.load(response)["message"] == "Hello from notifyloop"
        process.send_signal(number)
        output, complaints = process.communicate()
    assert (process.returncode, complaints) == (0, "")
    assert output == CLOSING


@pytest.mark.never("windows", reason="Windows has no signals that one process could send another")
def test_second_interrupt_does_not_wait_for_requests() -> None:
    pytest.importorskip("aiohttp", reason="the demo needs aiohttp, which notifyloop itself does not")
    with _serving() as (process, url):
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port))) as client:
            # A body that nobody reads on keeps the server from ending by itself.
            client.sendall(b"GET /stream?megabytes=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            assert process.stdout.readline() == CLOSING
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate()
    assert (process.returncode, complaints) == (-signal.SIGINT, "")


def test_serve_without_aiohttp() -> None:
    program = (
        "import sys; sys.modules['aiohttp'] = None; import notifyloop.__main__ as command; "
        "sys.exit(command.main(['serve', '--port', '0']))"
    )
    process = subprocess.run([*PYTHON, "-c", program], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr == (
        'python -m notifyloop serve: the demo needs aiohttp, which is not installed: pip install "notifyloop[demo]"\n'
    )


def test_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("aiohttp", reason="the demo needs aiohttp, which notifyloop itself does not")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (f"python -m notifyloop serve: cannot listen on 127.0.0.1 port {port}: the port is in use\n")


@pytest.mark.parametrize("port", ["65536", "-1", "http", ""])
def test_impossible_port(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", f"--port={port}"])
    assert ended.value.code == 2
    assert f"argument --port: {port!r} is not a port: a number from 0 to 65535 is" in capsys.readouterr().err


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "required: command" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "start the demo server" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"notifyloop {notifyloop.__version__}\n"
