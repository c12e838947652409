"""What is reported when: which situation of a socket gives which events."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from probes.laboratory import (
    FILTERS,
    HANGUP,
    IN,
    OUT,
    PROBES,
    SETTLE,
    enable,
    outcome,
    probe,
    remove,
    reset,
    until_readable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from probes.laboratory import Answer, Laboratory

REFUSED = 5000  # milliseconds; Windows tries three times before it believes that a connection is refused
SIO_UDP_CONNRESET = 0x9800000C


@probe
def unconnected_tcp(laboratory: Laboratory) -> Answer:
    """What is reported of a TCP socket that is new, bound, connecting, connected, registered before all that?"""
    port, sock = laboratory.port(), laboratory.tcp()
    listener = laboratory.listener()
    answer = {"new": port.process(enable(sock), wait=SETTLE)}
    sock.bind(("127.0.0.1", 0))
    answer["bound"] = port.wait()
    sock.connect_ex(listener.getsockname())
    answer["connected"] = port.wait(1000)
    answer["armed again"] = port.process(enable(sock), wait=SETTLE)
    return answer


@probe
def listener(laboratory: Laboratory) -> Answer:
    """What is reported of a listener: idle, a connection to accept, one that was reset before?"""
    port, sock = laboratory.port(), laboratory.listener()
    answer = {"idle": port.process(enable(sock), wait=SETTLE)}
    client = laboratory.keep(socket.create_connection(sock.getsockname()))
    answer["connection"] = port.wait()
    answer["not accepted, armed again"] = port.process(enable(sock), wait=SETTLE)
    accepted = laboratory.keep(sock.accept()[0])
    answer["accepted, armed again"] = port.process(enable(sock), wait=SETTLE)
    answer["accepted socket"] = port.process(enable(accepted, 8), wait=SETTLE)
    client.close()
    reset(socket.create_connection(sock.getsockname()))
    answer["reset before it is accepted"] = port.wait()
    answer["accept"] = outcome(sock.accept)
    return answer


@probe
def data(laboratory: Laboratory) -> Answer:
    """What is reported of a connection: idle, with data, and of the same call that registers?"""
    answer = {}
    for name, events in FILTERS.items():
        port, (ours, theirs) = laboratory.port(), laboratory.pair()
        idle = port.process(enable(ours, events=events), wait=SETTLE)
        theirs.send(b"x")
        until_readable(ours)
        answer[name] = {"idle": idle, "data": port.process(enable(ours, events=events), wait=SETTLE)}
    return answer


def after(
    laboratory: Laboratory, event: Callable[[socket.socket, socket.socket], object], armed_before: bool
) -> Answer:
    """The reports of an event, for each filter: registered before it, or after it."""
    answer = {}
    for name, events in FILTERS.items():
        port, (ours, theirs) = laboratory.port(), laboratory.pair()
        steps: Answer = {}
        if armed_before:  # not for OUT, which holds already and would be the one report
            steps["register"] = port.process(enable(ours, events=events & ~OUT))
        event(ours, theirs)
        answer[name] = steps | {
            "report": port.wait() if armed_before else port.process(enable(ours, events=events), wait=SETTLE),
            "armed again": port.process(enable(ours, events=events), wait=SETTLE),
            "SO_ERROR": outcome(lambda ours=ours: ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)),
            "recv": outcome(lambda ours=ours: ours.recv(16)),
            "armed after that": port.process(enable(ours, events=events), wait=SETTLE),
        }
    return answer


def finish(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.shutdown(socket.SHUT_WR)
    until_readable(ours)


def send_and_finish(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.send(b"x")
    finish(ours, theirs)


def close_theirs(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.close()
    until_readable(ours)


def reset_theirs(ours: socket.socket, theirs: socket.socket) -> None:
    reset(theirs)
    until_readable(ours)


def reset_with_data(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.send(b"x")
    until_readable(ours)
    reset(theirs)


def event_probe(
    name: str, what: str, event: Callable[[socket.socket, socket.socket], object], both: bool = True
) -> None:
    for armed_before in (True, False) if both else (True,):

        def ask(laboratory: Laboratory, armed_before: bool = armed_before) -> Answer:
            return after(laboratory, event, armed_before)

        ask.__doc__ = (
            f"What is reported of {what}, for each filter, {'armed before' if armed_before else 'armed after'}?"
        )
        PROBES[f"{name}_{'armed_before' if armed_before else 'armed_after'}"] = ask


event_probe("fin", "a peer that has finished sending (FIN)", finish)
event_probe("fin_with_data", "a peer that has sent something and finished", send_and_finish)
event_probe("peer_closed", "a peer that has closed in good order", close_theirs)
event_probe("rst", "a peer that has reset the connection (RST)", reset_theirs)
event_probe("rst_with_data", "a reset while something is unread", reset_with_data)
event_probe("own_shut_rd", "our own shutdown(SHUT_RD)", lambda ours, _: ours.shutdown(socket.SHUT_RD), both=False)
event_probe("own_shut_wr", "our own shutdown(SHUT_WR)", lambda ours, _: ours.shutdown(socket.SHUT_WR), both=False)
event_probe("own_shut_rdwr", "our own shutdown(SHUT_RDWR)", lambda ours, _: ours.shutdown(socket.SHUT_RDWR), both=False)
event_probe("urgent_data", "urgent data", lambda _, theirs: theirs.send(b"!", socket.MSG_OOB), both=False)


@probe
def send_to_closed_peer(laboratory: Laboratory) -> Answer:
    """What is reported once data for a closed peer was answered with a reset?"""
    port, (ours, theirs) = laboratory.port(), laboratory.pair()
    theirs.close()
    until_readable(ours)
    answer: Answer = {"send": outcome(lambda: ours.send(b"x"))}
    answer["all"] = [port.process(enable(ours), wait=SETTLE) for _ in range(3)]
    answer["send again"] = outcome(lambda: ours.send(b"x"))
    answer["then"] = port.process(enable(ours), wait=SETTLE)
    return answer


@probe
def refused_connection(laboratory: Laboratory) -> Answer:
    """What is reported of a connection that is refused, and after how long? Is OUT among it?"""
    answer = {}
    for name in ("OUT", "all", "none"):
        port, sock, nobody = laboratory.port(), laboratory.tcp(), laboratory.tcp()
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        started = sock.connect_ex(nobody.getsockname())
        answer[name] = {
            "connect_ex": started,
            "report": port.process(enable(sock, events=FILTERS[name]), wait=REFUSED),
            "armed again": port.process(enable(sock, events=FILTERS[name]), wait=SETTLE),
            "SO_ERROR": sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
            "armed after that": port.process(enable(sock, events=FILTERS[name]), wait=SETTLE),
        }
    return answer


@probe
def refused_connection_registered_before(laboratory: Laboratory) -> Answer:
    """The same, registered before connect."""
    port, sock, nobody = laboratory.port(), laboratory.tcp(), laboratory.tcp()
    nobody.bind(("127.0.0.1", 0))
    register = port.process(enable(sock, events=OUT), wait=SETTLE)
    return {"register": register, "connect_ex": sock.connect_ex(nobody.getsockname()), "report": port.wait(REFUSED)}


@probe
def datagrams(laboratory: Laboratory) -> Answer:
    """What is reported of a datagram socket: idle, an empty datagram, one with data, shut down by ourselves?"""
    port, ours, theirs = laboratory.port(), laboratory.udp(), laboratory.udp()
    answer = {"idle": port.process(enable(ours), wait=SETTLE)}
    for message in (b"", b"x"):
        port.process(enable(ours, events=IN | HANGUP))
        theirs.sendto(message, ours.getsockname())
        answer[repr(message)] = {"report": port.wait(), "recv": outcome(lambda: ours.recv(16))}
    unbound = laboratory.keep(socket.socket(type=socket.SOCK_DGRAM))
    answer["unbound"] = port.process(enable(unbound, 8), wait=SETTLE)
    return answer


@probe
def refused_datagram(laboratory: Laboratory) -> Answer:
    """How does a port-unreachable reply show: on a connected socket, another, one with SIO_UDP_CONNRESET off?"""
    answer = {}
    for name in ("connected", "unconnected", "unconnected, CONNRESET off"):
        port, ours, nobody = laboratory.port(), laboratory.udp(), laboratory.udp()
        address = nobody.getsockname()
        nobody.close()
        if name == "connected":
            ours.connect(address)
        if name.endswith("off"):
            laboratory.ioctl(ours, SIO_UDP_CONNRESET, struct.pack("i", 0), 0)
        port.process(enable(ours, events=IN | HANGUP))
        ours.send(b"x") if name == "connected" else ours.sendto(b"x", address)
        answer[name] = {
            "report": port.wait(1000),
            "recv": outcome(lambda ours=ours: ours.recvfrom(16)),
            "armed again": port.process(enable(ours, events=IN | HANGUP), wait=SETTLE),
        }
    return answer


@probe
def unix_sockets(laboratory: Laboratory) -> Answer:
    """Can AF_UNIX stream sockets be registered, and what is reported of data, of FIN, of a closed peer?"""
    port, (ours, theirs) = laboratory.port(), laboratory.unix_pair()
    answer = {"idle": port.process(enable(ours), wait=SETTLE)}
    port.process(enable(ours, events=IN | HANGUP))
    theirs.send(b"x")
    answer["data"] = {"report": port.wait(), "recv": outcome(lambda: ours.recv(16))}
    port.process(enable(ours, events=IN | HANGUP))
    theirs.shutdown(socket.SHUT_WR)
    answer["FIN"] = {"report": port.wait(), "recv": outcome(lambda: ours.recv(16))}
    theirs.close()
    answer["closed"] = port.process(enable(ours), wait=SETTLE)
    answer["remove"] = port.process(remove(ours), wait=SETTLE)
    return answer
