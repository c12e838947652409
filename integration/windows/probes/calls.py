"""The call as a whole: impossible arguments, timeouts, a port that is closed, threads, costs."""

from __future__ import annotations

import socket
import statistics
import struct
import threading
import time
from typing import TYPE_CHECKING

from probes.laboratory import (
    IN,
    LEVEL,
    ONESHOT,
    OUT,
    PATIENCE,
    PERSISTENT,
    PROBES,
    enable,
    named,
    probe,
    until_readable,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from probes.laboratory import Answer, Laboratory

SIO_BASE_HANDLE = 0x48000022


def call_probe(name: str, question: str, arguments: Callable[[Any, Any], tuple[Any, ...]]) -> None:
    def call(laboratory: Laboratory) -> Answer:
        ffi = laboratory.ffi
        entries, received = ffi.new("OVERLAPPED_ENTRY[4]"), ffi.new("UINT32 *", 99)
        before = time.perf_counter()
        code = laboratory.provider.ProcessSocketNotifications(
            laboratory.port().handle, *arguments(ffi, (entries, received))
        )
        return {
            "code": named(code),
            "received": received[0],
            "ms": round((time.perf_counter() - before) * 1000, 3),
        }

    call.__doc__ = question
    PROBES[f"call_{name}"] = call


call_probe("for_nothing", "Neither registrations nor room.", lambda ffi, out: (0, ffi.NULL, 0, 0, ffi.NULL, ffi.NULL))
call_probe(
    "with_array_of_none",
    "No registrations, but an array for them.",
    lambda ffi, out: (0, ffi.new("SOCK_NOTIFY_REGISTRATION[1]"), 50, 4, *out),
)
call_probe("without_array", "A registration, but no array.", lambda ffi, out: (1, ffi.NULL, 50, 4, *out))
call_probe(
    "timeout_without_room",
    "A timeout, but no room for packets.",
    lambda ffi, out: (1, ffi.new("SOCK_NOTIFY_REGISTRATION[1]"), 50, 0, ffi.NULL, ffi.NULL),
)
call_probe(
    "entries_without_room",
    "An array for packets, but a count of 0.",
    lambda ffi, out: (1, ffi.new("SOCK_NOTIFY_REGISTRATION[1]"), 0, 0, *out),
)
call_probe("room_without_entries", "Room, but no array.", lambda ffi, out: (0, ffi.NULL, 50, 4, ffi.NULL, out[1]))
call_probe("without_counter", "Room, but no counter.", lambda ffi, out: (0, ffi.NULL, 50, 4, out[0], ffi.NULL))


@probe
def call_on_what_is_no_port(laboratory: Laboratory) -> Answer:
    """Which code has a call on a handle that is no port: null, a closed port's, a socket's?"""
    port, answer = laboratory.port(), {}
    port.close()
    answer["closed port"] = port.wait()
    port.handle = laboratory.ffi.NULL
    answer["null"] = port.wait()
    port.handle = laboratory.ffi.cast("HANDLE", laboratory.tcp().fileno())
    answer["a socket"] = port.wait()
    return answer


@probe
def close_port_during_wait(laboratory: Laboratory) -> Answer:
    """Which code has a wait whose port is closed meanwhile, and when does it end?"""
    port, answers = laboratory.port(), []
    thread = threading.Thread(target=lambda: answers.append(port.wait(5000)), daemon=True)
    thread.start()
    thread.join(0.3)  # by then it waits
    closed = port.close()
    thread.join(PATIENCE)
    return {"closed": closed, "wait": answers}


@probe
def wait_that_times_out(laboratory: Laboratory) -> Answer:
    """With which code does a wait end in which nothing came?"""
    port = laboratory.port()
    return {f"{milliseconds} ms": port.wait(milliseconds) for milliseconds in (0, 1, 50)}


@probe
def precision_of_timeouts(laboratory: Laboratory) -> Answer:
    """How much earlier or later than asked does a wait end, in milliseconds, of 20 waits each?"""
    port, answer = laboratory.port(), {}
    for milliseconds in (1, 2, 5, 10, 16, 50):
        late = [port.wait(milliseconds)["ms"] - milliseconds for _ in range(20)]
        answer[f"{milliseconds} ms"] = {
            name: round(function(late), 3)
            for name, function in (("least", min), ("median", statistics.median), ("most", max))
        }
    return answer


@probe
def order_of_packets(laboratory: Laboratory) -> Answer:
    """Do posted packets and notifications come in the order in which they were queued?"""
    port, sockets = laboratory.port(), [laboratory.pair() for _ in range(3)]
    for key, (ours, _) in enumerate(sockets):
        port.process(enable(ours, key, IN))
    for key, (ours, theirs) in enumerate(sockets):
        theirs.send(b"x")
        until_readable(ours)
        time.sleep(0.05)  # nothing else tells that the packet is queued
        port.post(100 + key)
    return {"wait": port.wait()}


@probe
def several_threads(laboratory: Laboratory) -> Answer:
    """Eight threads wait: how many get the report of a one-shot, and of a persistent level?"""
    answer = {}
    for name, trigger in (("one-shot", LEVEL | ONESHOT), ("persistent", LEVEL | PERSISTENT)):
        port, (ours, theirs) = laboratory.port(), laboratory.pair()
        port.process(enable(ours, events=IN, trigger=trigger))
        reports: list[Answer] = []
        threads = [
            threading.Thread(target=lambda port=port, reports=reports: reports.append(port.wait(1000)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        theirs.send(b"x")
        for thread in threads:
            thread.join(PATIENCE)
        answer[name] = sum(bool(report["packets"]) for report in reports)
    return answer


@probe
def change_from_another_thread(laboratory: Laboratory) -> Answer:
    """Does a registration reach a thread that waits already?"""
    port, (ours, _) = laboratory.port(), laboratory.pair()
    reports: list[Answer] = []
    thread = threading.Thread(target=lambda: reports.append(port.wait(2000)))
    thread.start()
    thread.join(0.2)  # by then it waits
    registered = port.process(enable(ours, events=OUT))
    thread.join(PATIENCE)
    return {"register": registered, "waiting thread": reports}


@probe
def many_sockets(laboratory: Laboratory) -> Answer:
    """What do a call that arms and waits cost, in microseconds, with 10 and with 2 000 sockets registered?"""
    answer = {}
    for count in (10, 2000):
        port, (ours, theirs) = laboratory.port(), laboratory.pair()
        listening = laboratory.listener()
        idle = [laboratory.keep(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(count)]
        for sock in idle:
            sock.bind(("127.0.0.1", 0))
        failed = [port.process(enable(sock, key, IN))["results"] for key, sock in enumerate(idle, 1000)]
        took = []
        for _ in range(200):
            theirs.send(b"x")
            until_readable(ours)
            took.append(port.process(enable(ours, events=IN), wait=1000)["ms"] * 1000)
            ours.recv(16)
        answer[f"{count} sockets"] = {
            "failed": sum(not result[0].startswith("0 ") for result in failed),
            "median": round(statistics.median(took), 1),
        }
        listening.close()
        for sock in idle:
            sock.close()
    return answer


@probe
def base_handle(laboratory: Laboratory) -> Answer:
    """Is the socket that Python has the base provider's, or has somebody put himself between?"""
    answer = {}
    for name, sock in (("TCP", laboratory.tcp()), ("UDP", laboratory.udp())):
        [base] = struct.unpack("N", laboratory.ioctl(sock, SIO_BASE_HANDLE, b"", struct.calcsize("N")))
        answer[name] = "the base provider's" if base == sock.fileno() else "another"
    return answer
