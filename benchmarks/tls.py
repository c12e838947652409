"""`python -m benchmarks.tls`: what an echo over TLS, a handshake and an idle connection cost a server.

Servers take turns under one load in C. What is compared is the processor time that each uses, which what the machine
does beside it disturbs least, and the time that passes: the least of all rounds, as a share of the limit's, an epoll
server in C with OpenSSL on the descriptor. Needs a C compiler and OpenSSL's headers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.echo_servers import BACKLOG, EchoProtocol, echo_stream
from benchmarks.loops import factory
from benchmarks.server import processor_time

KIB = 1024
SOURCE = Path(__file__).with_name("tls.c")
LIMIT = "limit"
SERVERS = {
    LIMIT: "C",
    "notifyloop": "notifyloop",
    "notifyloop, plain": "notifyloop",  # not compiled
    "asyncio": "asyncio",
    "uvloop": "uvloop",
}
IDLE = 1000  # connections


def make_certificate(folder: Path) -> list[str]:
    names = [str(folder / name) for name in ("certificate.pem", "key.pem")]
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"],
            "-out",
            names[0],
            "-keyout",
            names[1],
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return names


# ---- a server, in a process of its own


def serve(kind: str, api: str, certificate: list[str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        if api == "streams":
            server = await asyncio.start_server(echo_stream, sock=listener, ssl=context, backlog=BACKLOG)
        else:
            server = await loop.create_server(EchoProtocol, sock=listener, ssl=context, backlog=BACKLOG)
        print(listener.getsockname()[1], flush=True)
        ended = loop.create_future()

        def answer() -> None:
            if not sys.stdin.readline():
                loop.remove_reader(0)
                ended.set_result(None)
                return
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE")
            print(json.dumps(processor_time() | {"memory": memory}), flush=True)

        loop.add_reader(0, answer)
        await ended
        server.close()

    asyncio.Runner(loop_factory=factory(SERVERS[kind])).run(main())


class Server:
    def __init__(self, program: str, kind: str, api: str, certificate: list[str]) -> None:
        command = [program, "serve", *certificate]
        if kind != LIMIT:
            command = [sys.executable, "-m", "benchmarks.tls", "--serve", kind, api, *certificate]
        environment = os.environ | ({"NOTIFYLOOP_PLAIN": "1"} if "plain" in kind else {})
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.port = self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer: dict[str, float] = json.loads(self.line())
        return answer

    def processor_time(self) -> float:
        answer = self.ask()
        return answer["user"] + answer["system"]

    def close(self) -> None:
        self.process.communicate()


# ---- the comparison


def measure(server: Server, load: list[str]) -> tuple[float, float]:
    """Microseconds of processor time, and of time, for each message or handshake."""
    before, begin = server.processor_time(), time.perf_counter()
    messages = int(subprocess.run(load, check=True, capture_output=True, text=True).stdout)
    seconds = time.perf_counter() - begin
    return (server.processor_time() - before) / messages * 1e6, seconds / messages * 1e6


def memory_of_idle(server: Server) -> float:
    """KiB for each of many connections that have shaken hands and say nothing more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def connect() -> ssl.SSLSocket:
        connection = context.wrap_socket(socket.create_connection(("127.0.0.1", int(server.port))))
        connection.send(b"x")
        connection.recv(1)
        return connection

    first = [connect() for _ in range(20)]
    before = server.ask()["memory"]
    connections = [connect() for _ in range(IDLE)]
    after = server.ask()["memory"]
    for connection in first + connections:
        connection.close()
    return (after - before) / IDLE / KIB


def table(title: str, figures: dict[str, list[tuple[float, float]]]) -> None:
    print(f"\n{title}\n\n| server | processor | the limit's share | time | the limit's share |")
    print("| --- | ---: | ---: | ---: | ---: |")
    least = {kind: [min(values) for values in zip(*rounds, strict=True)] for kind, rounds in figures.items()}
    for kind, (processor, passed) in least.items():
        shares = [f"{limit / figure:.2f}" for limit, figure in zip(least[LIMIT], (processor, passed), strict=True)]
        print(f"| {kind} | {processor:.1f} | {shares[0]} | {passed:.1f} | {shares[1]} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round")
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="*", default=[KIB, 16 * KIB, 64 * KIB])
    parser.add_argument("--api", choices=("protocol", "streams"), default="protocol")
    parser.add_argument("--only", nargs="*", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        kind, api, *certificate = arguments.serve
        serve(kind, api, certificate)
        return
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/tls"
        subprocess.run(["cc", "-O2", "-o", program, SOURCE, "-lssl", "-lcrypto"], check=True)
        certificate = make_certificate(Path(folder))
        servers = {
            kind: Server(program, kind, arguments.api, certificate)
            for kind in {LIMIT: 0, **dict.fromkeys(arguments.only)}
        }
        seconds = str(arguments.seconds)
        loads = {
            f"Microseconds for an echo of {size} bytes, {arguments.connections} connections": lambda port, size=size: (
                [program, "load", port, str(arguments.connections), str(size), seconds]
            )
            for size in arguments.sizes
        }
        loads["Microseconds for a handshake"] = lambda port: [program, "shake", port, seconds]
        for title, load in loads.items():
            figures: dict[str, list[tuple[float, float]]] = {kind: [] for kind in servers}
            for _ in range(arguments.rounds):
                for kind, server in servers.items():
                    figures[kind].append(measure(server, load(server.port)))
            table(title, figures)
        for server in servers.values():
            server.close()
        print("\nKiB for an idle connection\n\n| server | memory |\n| --- | ---: |")
        for kind in servers:
            if kind != LIMIT:
                server = Server(program, kind, arguments.api, certificate)
                print(f"| {kind} | {memory_of_idle(server):.1f} |", flush=True)
                server.close()


if __name__ == "__main__":
    main()
