"""`python -m benchmarks.registered`: does a call of the port cost more when more sockets are registered?

One pair of sockets sends a byte to and fro through one port: each message is one `process` call that
re-arms the socket, waits and returns its notification. Beside it 10, 1 000 or 9 000 sockets are registered
that stay silent. The sizes take turns, and the figure of each is the least of its rounds: what the machine
does beside it only adds. `select.poll` with the same sockets is the control.
"""

from __future__ import annotations

import argparse
import resource
import select
import socket
import time
from typing import TYPE_CHECKING

from notifyloop.port import CompletionPort, Event, Registration

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (10, 1000, 9000)


class Crowd:
    """A pair of sockets that talk, and a crowd that is silent."""

    def __init__(self, size: int) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.silent = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(size - 1)]
        self.port = CompletionPort()
        self.registration = Registration(self.ours)
        self.registrations = [Registration(sock) for sock in self.silent]  # an unbound socket is never readable
        for start in range(0, len(self.registrations), 500):
            self.port.process(self.registrations[start : start + 500], max_notifications=0)
        self.port.enable(self.registration)
        self.poll = select.poll()
        for sock in [self.ours, *self.silent]:
            self.poll.register(sock, select.POLLIN)

    def through_the_port(self) -> None:
        self.theirs.send(b"x")
        [notification] = self.port.process([self.registration], timeout=10)
        assert notification.events == Event.IN
        self.ours.recv(1)

    def through_poll(self) -> None:
        self.theirs.send(b"x")
        assert len(self.poll.poll(10_000)) == 1
        self.ours.recv(1)

    def close(self) -> None:
        self.port.close()
        for sock in [self.ours, self.theirs, *self.silent]:
            sock.close()


def microseconds(message: Callable[[], None], messages: int) -> float:
    started = time.perf_counter()
    for _ in range(messages):
        message()
    return (time.perf_counter() - started) / messages * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--messages", type=int, default=300, help="of each round")
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowds = {size: Crowd(size) for size in SIZES}
    least: dict[tuple[str, int], float] = {}
    for _ in range(arguments.rounds):
        for size, crowd in crowds.items():
            for name, message in (("port", crowd.through_the_port), ("poll", crowd.through_poll)):
                figure = microseconds(message, arguments.messages if name == "port" else arguments.messages // 10 or 1)
                least[name, size] = min(figure, least.get((name, size), figure))
    print("| microseconds a message | " + " | ".join(f"{size} registered" for size in SIZES) + " | last / first |")
    print("| --- |" + " ---: |" * (len(SIZES) + 1))
    for name in ("port", "poll"):
        figures = [least[name, size] for size in SIZES]
        cells = [f"{figure:.1f}" for figure in figures]
        print(f"| {name} | " + " | ".join(cells) + f" | {figures[-1] / figures[0]:.2f} |")
    changes = {size: crowd.port.counters().kernel_changes - size for size, crowd in crowds.items()}
    print(f"system calls to change a registration, beyond the first of each socket: {changes}")
    for crowd in crowds.values():
        crowd.close()


if __name__ == "__main__":
    main()
