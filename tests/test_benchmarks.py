"""The benchmarks in their smoke form: every cell has a figure. What the figures are is not a matter of tests."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.timeout(330),  # seconds; a run takes a tenth of that, unless much else is at work
    pytest.mark.skipif(sys.platform != "linux", reason="the load generator is written for epoll"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator needs a C compiler"),
]

ROOT = Path(__file__).parents[1]
OURS = "notifyloop"
LOOPS = ["asyncio", OURS]


def run(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments, "--output", str(output)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_every_cell_of_a_quick_run_has_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="one of the servers is aiohttp's")

    result = run(tmp_path, "--quick", "--seconds", "0.1", "--loops", ",".join(LOOPS))

    assert result.returncode == 0, result.stderr
    written: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())
    assert written["left_out"] == []
    assert written["environment"]["versions"].keys() == set(LOOPS)
    kinds = [cell["benchmark"].partition("-")[0] for cell in written["cells"]]
    assert [kinds.count(kind) for kind in ("echo", "udp", "http", "callback")] == [5, 1, 1, 9]
    for cell in written["cells"]:
        assert cell["loops"].keys() == set(LOOPS), cell["benchmark"]
        results = list(cell["loops"].values())
        if cell["benchmark"].startswith("echo-"):
            results.append(cell["limit"])
        assert all(result["figure"] > 0 and len(result["rounds"]) == 1 for result in results), cell["benchmark"]
    for drawing in ("echo-protocol.svg", "http-aiohttp.svg", "callback.svg"):
        words = "".join(ElementTree.parse(tmp_path / drawing).getroot().itertext())
        assert all(loop in words for loop in LOOPS)
    assert "Echo, Protocol" in result.stdout


def test_chosen_sizes_and_connections(tmp_path: Path) -> None:
    result = run(
        tmp_path,
        *("--quick", "--seconds", "0.05", "--loops", OURS),
        *("--only", "protocol,reader", "--sizes", "1K,1M", "--connections", "1,3"),
    )

    assert result.returncode == 0, result.stderr
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert [(cell["benchmark"], cell["size"], cell["connections"]) for cell in cells] == [
        (benchmark, size, connections)
        for benchmark in ("echo-protocol", "echo-reader")
        for size in (1024, 1024 * 1024)
        for connections in (1, 3)
    ]
    assert all(cell["loops"][OURS]["figure"] > 0 for cell in cells)


def test_connections_come_and_go_and_leave_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, "connections", "--quick", "--loops", ",".join(LOOPS))

    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "connections.json").read_text())
    assert written["left_out"] == []
    assert all(written["rates"][name]["figure"] > 0 for name in ["C", *LOOPS])
    assert written["idle_bytes"].keys() == set(LOOPS)
    for loop in LOOPS:
        samples = written["soaks"][loop]
        assert [sample["closed"] for sample in samples] == [*range(0, 1001, 100), 1000]
        assert samples[-1]["descriptors"] == samples[0]["descriptors"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "echo-carrier-pigeon"], "no benchmark is called 'echo-carrier-pigeon'"),
        (["--loops", "asyncio,fruitloop"], "no loop is called 'fruitloop'"),
        (["--sizes", "0"], "0 is not positive"),
        (["--sizes", "large"], "invalid"),
        (["--rounds", "-1"], "-1 is not positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = run(tmp_path, *arguments)

    assert result.returncode == 2
    assert words in result.stderr
    assert not any(tmp_path.iterdir())


def echo(data: bytes) -> bytes:
    return data


def echo_with_a_flipped_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def echo_twice(data: bytes) -> bytes:
    return data * 2


def echo_the_beginning_again(data: bytes) -> bytes:
    return data[:100] * (len(data) // 100) + data[: len(data) % 100]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (echo, ""),
        (echo_with_a_flipped_bit, "wrong bytes came back"),
        (echo_twice, "wrong bytes came back"),
        (echo_the_beginning_again, "wrong bytes came back"),
        (lambda data: b"", "a connection ended after 0 messages: end of file"),
    ],
)
def test_the_load_checks_what_comes_back(answer: Callable[[bytes], bytes], complaint: str) -> None:
    compile_load = "from benchmarks.processes import compile_programs; compile_programs('load')"
    subprocess.run([sys.executable, "-c", compile_load], cwd=ROOT, check=True, timeout=60)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while answered := answer(await reader.read(65536)):
                writer.write(answered)
        except ConnectionResetError:
            pass  # the load has seen enough
        finally:
            writer.close()

    async def main() -> str:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        timing = ["--seconds", "0.1", "--warmup", "0.02"]
        command = [ROOT / "benchmarks/build/load", "--port", str(port), "--size", "1000", *timing]
        load = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        _, complaints = await load.communicate()
        assert bool(load.returncode) == bool(complaint)
        server.close()
        return complaints.decode()

    assert complaint in asyncio.run(main())
