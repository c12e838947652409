"""What others have built on asyncio's loops: servers, and libraries that watch sockets of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

# On Windows neither of asyncio's loops has all that these need: watched sockets, child processes, signals.
complete = pytest.mark.asyncio(loop_factories=["notifyloop"]) if sys.platform == "win32" else pytest.mark.asyncio
COPY = "import sys; sys.stdout.write(sys.stdin.read())"

APPLICATION = """
import asyncio
import sys

async def app(scope, receive, send):
    assert scope["type"] == "http"
    length = 0
    more = True
    while more:
        message = await receive()
        length += len(message["body"])
        more = message["more_body"]
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    status = await child.wait()
    loop = type(asyncio.get_running_loop()).__name__
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{loop} {length} {status} ".encode(), "more_body": True})
    await send({"type": "http.response.body", "body": bytes(3_000_000)})
"""

UVICORN = ["uvicorn", "application:app", "--port", "0", "--lifespan", "off", "--loop", "notifyloop:new_event_loop"]
GUNICORN = ["gunicorn", "application:app", "--bind", "127.0.0.1:0", "--worker-class", "worker.Worker"]
GUNICORN_WORKER = """
from uvicorn_worker import UvicornWorker

class Worker(UvicornWorker):
    CONFIG_KWARGS = {"loop": "notifyloop:new_event_loop", "lifespan": "off"}
"""
HYPERCORN = """
import asyncio, signal
import notifyloop
from application import app
from hypercorn.asyncio import serve
from hypercorn.config import Config

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    await serve(app, config, shutdown_trigger=stop.wait)

notifyloop.run(main())
"""


@contextlib.contextmanager
def running(folder: Path, command: list[str]) -> Iterator[str]:
    """Start a server that says its URL, and afterwards see it end when it is asked to."""
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as server:
        assert server.stdout is not None
        said = ""
        try:
            for line in server.stdout:
                said += line
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    yield found[0]
                    break
        finally:
            server.terminate()
            said += server.communicate(timeout=60)[0]
    assert server.returncode in ((1,) if sys.platform == "win32" else (0, -signal.SIGTERM)), said
    assert "Traceback" not in said, said


class TestServers:
    @pytest.mark.parametrize(
        ("command", "needs"),
        [
            pytest.param(["-m", *UVICORN, "--http", "h11"], ["uvicorn", "h11"], id="uvicorn-h11"),
            pytest.param(["-m", *UVICORN, "--http", "httptools"], ["uvicorn", "httptools"], id="uvicorn-httptools"),
            pytest.param(["-m", *GUNICORN], ["gunicorn", "uvicorn_worker"], id="gunicorn"),
            pytest.param(["hypercorn_main.py"], ["hypercorn"], id="hypercorn"),
        ],
    )
    def test_it_serves(self, tmp_path: Path, command: list[str], needs: list[str]) -> None:
        for name in needs:
            pytest.importorskip(name)
        for name, text in (
            ("application", APPLICATION),
            ("worker", GUNICORN_WORKER),
            ("hypercorn_main", HYPERCORN),
        ):
            (tmp_path / f"{name}.py").write_text(text)
        with running(tmp_path, command) as url:
            answer = urllib.request.urlopen(url, data=bytes(2_000_000), timeout=30).read()
        head, _, rest = answer.partition(b" 0 ")
        assert head == b"NotifyLoop 2000000"
        assert rest == bytes(3_000_000)


@pytest.mark.asyncio
async def test_tornado() -> None:
    """Its servers and clients have streams of their own, over add_handler()."""
    pytest.importorskip("tornado")
    from tornado import httpclient, httpserver, ioloop, netutil, web, websocket  # noqa: PLC0415

    class Length(web.RequestHandler):
        def post(self) -> None:
            self.write(str(len(self.request.body)))

    class Echo(websocket.WebSocketHandler):
        async def on_message(self, message: str | bytes) -> None:
            await self.write_message(message, binary=True)

    sockets = netutil.bind_sockets(0, "127.0.0.1")
    server = httpserver.HTTPServer(web.Application([("/", Length), ("/echo", Echo)]))
    server.add_sockets(sockets)
    address = f"127.0.0.1:{sockets[0].getsockname()[1]}"
    response = await httpclient.AsyncHTTPClient().fetch(f"http://{address}/", method="POST", body=bytes(2_000_000))
    assert response.body == b"2000000"
    connection = await websocket.websocket_connect(f"ws://{address}/echo")
    await connection.write_message(bytes(300_000), binary=True)
    assert await connection.read_message() == bytes(300_000)
    connection.close()
    assert await connection.read_message() is None
    server.stop()
    await server.close_all_connections()

    loop = ioloop.IOLoop.current()
    ours, theirs = socket.socketpair()
    seen: list[int] = []
    done = asyncio.Event()

    def handler(descriptor: int, events: int) -> None:
        seen.append(events)
        if events == loop.READ:
            ours.recv(10)
            loop.update_handler(ours.fileno(), loop.WRITE)
        else:
            loop.remove_handler(ours.fileno())
            done.set()

    with ours, theirs:
        loop.add_handler(ours.fileno(), handler, loop.READ)
        theirs.send(b"readable")
        await done.wait()
    assert seen == [loop.READ, loop.WRITE]


@pytest.mark.skipif(sys.platform == "win32", reason="Tornado itself does not start processes there")
@pytest.mark.asyncio
@pytest.mark.differs(uvloop="0.23.0", reason="keeps SIGCHLD for itself, which Tornado handles", run=False)
async def test_a_child_of_tornado() -> None:
    pytest.importorskip("tornado")
    from tornado import process  # noqa: PLC0415

    child = process.Subprocess(["cat"], stdin=process.Subprocess.STREAM, stdout=process.Subprocess.STREAM)
    await child.stdin.write(b"through a child")
    child.stdin.close()
    assert await child.stdout.read_until_close() == b"through a child"
    assert await child.wait_for_exit() == 0
    process.Subprocess.uninitialize()  # it has one handler of SIGCHLD, on the first loop that it met


@complete
async def test_pyzmq() -> None:
    """It watches a descriptor that is edge-triggered: one that stays readable says nothing new."""
    pytest.importorskip("zmq")
    import zmq.asyncio  # noqa: PLC0415

    with zmq.asyncio.Context() as context:
        with context.socket(zmq.REP) as server, context.socket(zmq.REQ) as client:
            client.connect(f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}")

            async def answer() -> None:
                for _ in range(100):
                    await server.send(await server.recv())

            answering = asyncio.create_task(answer())
            for number in range(100):
                await client.send(str(number).encode())
                assert await client.recv() == str(number).encode()
            await answering
        with context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
            push.bind("inproc://here")
            pull.connect("inproc://here")
            await asyncio.gather(*(push.send(b"message") for _ in range(500)))
            assert [await pull.recv() for _ in range(500)] == [b"message"] * 500


@complete
async def test_psycopg_waits() -> None:
    """No database: what psycopg does while it waits for one, with the descriptor that libpq has."""
    waiting: Any = pytest.importorskip("psycopg").waiting
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def ask() -> Any:
        ready = yield waiting.WAIT_W
        assert ready == waiting.READY_W
        ours.send(b"question")
        ready = yield waiting.WAIT_R
        assert ready == waiting.READY_R
        answer = ours.recv(100)
        ready = yield waiting.WAIT_RW
        assert ready == waiting.READY_W
        return answer

    def never() -> Any:
        while True:
            ready = yield waiting.WAIT_R
            if ready == waiting.READY_NONE:
                return "waited in vain"

    def answer() -> None:
        assert theirs.recv(100) == b"question"
        theirs.sendall(b"answer")

    with ours, theirs:
        answering = asyncio.get_running_loop().run_in_executor(None, answer)
        assert await waiting.wait_async(ask(), ours.fileno(), interval=60) == b"answer"
        await answering
        assert await waiting.wait_async(never(), ours.fileno(), interval=0.001) == "waited in vain"


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Python for Windows has no Unix sockets")
@pytest.mark.asyncio
async def test_anyio_with_unix_sockets(tmp_path: Path) -> None:
    anyio: Any = pytest.importorskip("anyio")

    async def echo(stream: Any) -> None:
        async with stream:
            async for data in stream:
                await stream.send(data)

    async with await anyio.create_unix_listener(tmp_path / "socket") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, echo)
        async with await anyio.connect_unix(tmp_path / "socket") as stream:
            await stream.send(b"through a socket")
            assert await stream.receive() == b"through a socket"
        group.cancel_scope.cancel()


@complete
async def test_anyio() -> None:
    anyio: Any = pytest.importorskip("anyio")

    async with await anyio.create_udp_socket(local_host="127.0.0.1") as server:
        port = server.extra(anyio.abc.SocketAttribute.local_port)
        async with await anyio.create_connected_udp_socket("127.0.0.1", port) as client:
            await client.send(b"a datagram")
            data, (host, port) = await server.receive()
            await server.sendto(data, host, port)
            assert await client.receive() == b"a datagram"

    done = await anyio.run_process([sys.executable, "-c", COPY], input=b"through a child")
    assert done.stdout == b"through a child"
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        signal.raise_signal(signal.SIGTERM)
        assert await anext(signals) == signal.SIGTERM

    ours, theirs = socket.socketpair()
    with ours, theirs:
        await anyio.wait_writable(ours)
        theirs.send(b"readable")
        await anyio.wait_readable(ours)

    def from_a_thread() -> str:
        return anyio.from_thread.run(asyncio.sleep, 0, "back in the loop")

    assert await anyio.to_thread.run_sync(from_a_thread) == "back in the loop"
