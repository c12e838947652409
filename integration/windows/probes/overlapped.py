"""Notifications together with overlapped operations, on one port and on two."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from probes.laboratory import HANGUP, IN, SETTLE, enable, probe, remove

if TYPE_CHECKING:
    from probes.laboratory import Answer, Laboratory


def overlapped_receive(laboratory: Laboratory, sock: socket.socket) -> Answer:
    operation = laboratory.overlapped()
    operation.WSARecv(sock.fileno(), 16, 0)
    return {"address": hex(operation.address), "pending": operation.pending}


@probe
def associated_socket(laboratory: Laboratory) -> Answer:
    """Can a socket be registered that is associated with the same port, or with another? What comes of data?"""
    answer = {}
    for name in ("same port", "another port"):
        port, (ours, theirs) = laboratory.port(), laboratory.pair()
        other = port if name == "same port" else laboratory.port()
        steps: Answer = {
            "associate": other.associate(ours, 99),
            "register": port.process(enable(ours, 7, IN)),
        }
        theirs.send(b"x")
        steps["data"] = port.waits(2)
        steps["port of the association"] = other.wait()
        answer[name] = steps
    return answer


@probe
def association_after_registration(laboratory: Laboratory) -> Answer:
    """Can a registered socket be associated, with the same port or another? And one that was removed?"""
    answer = {}
    for name in ("same port", "another port"):
        port, (ours, _) = laboratory.port(), laboratory.pair()
        other = port if name == "same port" else laboratory.port()
        port.process(enable(ours, 7, IN))
        answer[name] = other.associate(ours, 99)
    port, (ours, _) = laboratory.port(), laboratory.pair()
    port.process(enable(ours, 7, IN), remove(ours, 7), wait=SETTLE)
    answer["another port, after REMOVE"] = laboratory.port().associate(ours, 99)
    return answer


@probe
def receive_and_notification(laboratory: Laboratory) -> Answer:
    """An overlapped receive waits on a registered socket: what comes of data, and to whom?"""
    answer = {}
    for name in ("same port", "another port"):
        port, (ours, theirs) = laboratory.port(), laboratory.pair()
        other = port if name == "same port" else laboratory.port()
        steps: Answer = {
            "associate": other.associate(ours, 99),
            "register": port.process(enable(ours, 7, IN | HANGUP)),
            "receive": overlapped_receive(laboratory, ours),
        }
        theirs.send(b"x")
        steps["first data"] = port.waits(2)
        theirs.send(b"y")
        steps["second data"] = port.waits(2)
        steps["port of the association"] = other.waits(2)
        answer[name] = steps
    return answer


@probe
def accepted_by_accept_ex(laboratory: Laboratory) -> Answer:
    """Can a socket be registered that AcceptEx has accepted, before and after SO_UPDATE_ACCEPT_CONTEXT? And a
    listener with an AcceptEx waiting?
    """
    port, listening, accepted = laboratory.port(), laboratory.listener(), laboratory.tcp()
    answer: Answer = {"associate": port.associate(listening, 99)}
    operation = laboratory.overlapped()
    operation.AcceptEx(listening.fileno(), accepted.fileno())
    answer["register the listener"] = port.process(enable(listening, 6, IN), wait=SETTLE)
    client = laboratory.keep(socket.create_connection(listening.getsockname()))
    answer["connection"] = port.waits(2)
    answer["before the update"] = port.process(enable(accepted, 7), wait=SETTLE)
    update = 0x700B  # SO_UPDATE_ACCEPT_CONTEXT
    accepted.setsockopt(socket.SOL_SOCKET, update, struct.pack("P", listening.fileno()))
    answer["after it"] = port.process(enable(accepted, 7), wait=SETTLE)
    port.process(enable(accepted, 7, IN | HANGUP))
    client.send(b"x")
    answer["data"] = port.wait()
    return answer
