"""`python -m benchmarks.windows.load --port N ...`: what keeps a server busy, in a process of its own.

One message is under way on each connection: all are sent, then all echoes are taken, and the next are sent. They
must be what was sent. Both happens in an order that changes each time. Blocking sockets, because no loop is to be
measured here; one thread, because two would wait for each other.

Prints "measuring" after the warm-up and waits for a line on standard input; then prints one line of JSON, and
waits for the end of the input before it closes the connections.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import socket
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGEST_HEAD = 64 * 1024  # bytes, of an HTTP response
DIFFERENT_ORDERS = 101


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def receive(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size)
    while data and len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            break
        data += more
    if len(data) < size:
        raise ConnectionError(f"a connection ended after {len(data)} of {size} bytes")
    return data


def orders(connections: list[socket.socket]) -> Iterator[list[socket.socket]]:
    """The connections again and again, each time in another order, and in the same ones in every run.

    In the order of the list, a loop that happens to serve in it too would have each echo ready when it is asked for,
    and one that serves in another would have the load wait for the first echo until all are there.
    """
    shuffled = random.Random(1)
    return itertools.cycle([shuffled.sample(connections, len(connections)) for _ in range(DIFFERENT_ORDERS)])


def exchange(
    orders: Iterator[list[socket.socket]], message: bytes, answer_size: int, right: Callable[[bytes], bool]
) -> int:
    """One message on each connection. Returns their number; raises OSError, and ValueError for a wrong answer."""
    for connection in next(orders):
        connection.sendall(message)
    answering = next(orders)
    for connection in answering:
        if not right(receive(connection, answer_size)):
            raise ValueError("wrong bytes came back")
    return len(answering)


def first_response(connection: socket.socket, request: bytes) -> int:
    """The size of a response: the next ones differ in their dates only."""
    connection.sendall(request)
    response = b""
    while b"\r\n\r\n" not in response:
        more = connection.recv(LARGEST_HEAD)
        if not more:
            raise ConnectionError(f"a connection ended after {len(response)} bytes")
        response += more
    head, _, body = response.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    size = int(fields[b"content-length"])
    receive(connection, size - len(body))
    return len(head) + 4 + size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--idle", type=int, default=0, help="further connections, that have sent one message")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--warmup", type=float, default=0.1, help="seconds")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--size", type=int, help="bytes of a message, which is to come back")
    what.add_argument("--http", metavar="BODY", help="GET /, and expect this body")
    options = parser.parse_args()

    # Some of the idle ones before, some after those that are busy: loops may go through lists.
    idle = [connect(options.port) for _ in range(options.idle // 2)]
    connections = [connect(options.port) for _ in range(options.connections)]
    idle += [connect(options.port) for _ in range(options.idle - len(idle))]

    if options.http is None:
        message, size = random.randbytes(options.size), options.size
        right = message.__eq__
    else:
        message, body = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", options.http.encode()
        size = first_response(connections[0], message)

        def right(response: bytes) -> bool:
            return response.startswith(b"HTTP/1.1 200 ") and response.endswith(body)

    for connection in idle:
        exchange(itertools.repeat([connection]), message, size, right)  # then the server has it
    busy_ones = orders(connections)
    started = time.perf_counter()
    while time.perf_counter() < started + options.warmup:
        exchange(busy_ones, message, size, right)

    print("measuring", flush=True)
    sys.stdin.readline()
    messages = 0
    before = time.process_time()
    started = now = time.perf_counter()
    while now < started + options.seconds:
        messages += exchange(busy_ones, message, size, right)
        now = time.perf_counter()
    seconds = now - started
    busy = (time.process_time() - before) / seconds
    print(
        json.dumps({"messages": messages, "seconds": seconds, "per_second": messages / seconds, "client_busy": busy}),
        flush=True,
    )
    sys.stdin.read()


if __name__ == "__main__":
    main()
