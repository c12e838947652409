"""Triggers, and what happens to a packet between being queued and being dequeued."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from probes.laboratory import (
    EDGE,
    FILTERS,
    HANGUP,
    IN,
    LEVEL,
    ONESHOT,
    OUT,
    PERSISTENT,
    SETTLE,
    disable,
    enable,
    probe,
    reset,
    until_readable,
)

if TYPE_CHECKING:
    from probes.laboratory import Answer, Laboratory


@probe
def one_shot(laboratory: Laboratory) -> Answer:
    """Does one report disarm both directions? Does an error or a hang-up come through while disarmed?"""
    port, (ours, theirs) = laboratory.port(), laboratory.pair()
    answer = {"OUT": port.process(enable(ours), wait=SETTLE)}
    theirs.send(b"x")
    answer["data, disarmed"] = port.wait()
    theirs.shutdown(socket.SHUT_WR)
    answer["FIN, disarmed"] = port.wait()
    reset(theirs)
    answer["RST, disarmed"] = port.wait()
    answer["armed again"] = port.process(enable(ours), wait=SETTLE)
    return answer


@probe
def persistent(laboratory: Laboratory) -> Answer:
    """How often is a persistent level reported, and how fast one report after another?"""
    port, (ours, theirs) = laboratory.port(), laboratory.pair()
    theirs.send(b"x")
    until_readable(ours)
    answer = {
        "unread": port.process(enable(ours, events=IN, trigger=LEVEL | PERSISTENT), wait=SETTLE),
        "three more": [port.wait(0) for _ in range(3)],
    }
    ours.recv(16)
    answer["read"] = [port.wait(0), port.wait()]
    return answer


@probe
def edge(laboratory: Laboratory) -> Answer:
    """Is a state reported that held at ENABLE? New data while older is unread? After it was read?"""
    port, (ours, theirs) = laboratory.port(), laboratory.pair()
    theirs.send(b"x")
    until_readable(ours)
    answer = {"held at ENABLE": port.process(enable(ours, events=IN | OUT, trigger=EDGE | PERSISTENT), wait=SETTLE)}
    theirs.send(b"x")
    answer["more data, nothing read"] = port.wait()
    ours.recv(16)
    answer["read"] = port.wait()
    theirs.send(b"x")
    answer["data after that"] = port.wait()
    answer["again, nothing new"] = port.wait()
    answer["ENABLE again, unread"] = port.process(enable(ours, events=IN, trigger=EDGE | PERSISTENT), wait=SETTLE)
    theirs.shutdown(socket.SHUT_WR)
    answer["FIN behind unread data, filter IN"] = port.wait()
    ours.recv(16)
    answer["read up to the FIN"] = port.wait()
    return answer


@probe
def edge_fin_with_hang_up(laboratory: Laboratory) -> Answer:
    """Edge-triggered IN|HANGUP: what is reported of a FIN, behind unread data and alone? Of a reset after it?"""
    answer = {}
    for name in ("unread data before", "alone"):
        port, (ours, theirs) = laboratory.port(), laboratory.pair()
        port.process(enable(ours, events=IN | HANGUP, trigger=EDGE | PERSISTENT))
        if name != "alone":
            theirs.send(b"x")
            until_readable(ours)
        steps = {"before": port.wait()}
        theirs.shutdown(socket.SHUT_WR)
        steps["FIN"] = port.wait()
        reset(theirs)
        steps["RST"] = port.wait()
        answer[name] = steps
    return answer


@probe
def edge_before_bind(laboratory: Laboratory) -> Answer:
    """A datagram socket registered edge-triggered before bind, as in Microsoft's sample: one report a datagram?"""
    port, theirs = laboratory.port(), laboratory.udp()
    ours = laboratory.keep(socket.socket(type=socket.SOCK_DGRAM))
    answer = {"register": port.process(enable(ours, events=IN, trigger=EDGE | PERSISTENT), wait=SETTLE)}
    ours.bind(("127.0.0.1", 0))
    for count in range(3):
        theirs.sendto(b"x", ours.getsockname())
        answer[f"datagram {count}, nothing read"] = port.wait()
    return answer


@probe
def edge_one_shot(laboratory: Laboratory) -> Answer:
    """Is what happened while an edge-triggered one-shot was disarmed reported when it is armed again?"""
    port, (ours, theirs) = laboratory.port(), laboratory.pair()
    port.process(enable(ours, events=IN, trigger=EDGE | ONESHOT))
    theirs.send(b"x")
    answer = {"first": port.wait()}
    ours.recv(16)
    theirs.send(b"x")
    until_readable(ours)
    answer["armed again"] = port.process(enable(ours, events=IN, trigger=EDGE | ONESHOT), wait=SETTLE)
    return answer


@probe
def coalescing(laboratory: Laboratory) -> Answer:
    """Are several events before the first wait one packet? With which bits?"""
    answer = {}
    for name, trigger in (("one-shot", LEVEL | ONESHOT), ("persistent", LEVEL | PERSISTENT)):
        port, (ours, theirs) = laboratory.port(), laboratory.pair()
        port.process(enable(ours, events=IN | HANGUP, trigger=trigger))
        theirs.send(b"x")
        theirs.shutdown(socket.SHUT_WR)
        time.sleep(SETTLE / 1000)  # nothing else tells that a packet is queued, and dequeuing it is the question
        answer[name] = port.waits(2)
    return answer


@probe
def enable_while_queued(laboratory: Laboratory) -> Answer:
    """A packet is queued, and its registration is enabled again before it is dequeued: how many packets come?"""
    answer = {}
    for name, events in FILTERS.items():
        port, ours, _ = laboratory.queued()
        answer[name] = {"enable": port.process(enable(ours, events=events)), "waits": port.waits(3)}
    return answer


@probe
def read_while_queued(laboratory: Laboratory) -> Answer:
    """Does a packet come whose reason has gone before it was dequeued? Is its registration disarmed by it?"""
    port, ours, theirs = laboratory.queued()
    ours.recv(16)
    answer = {"wait": port.wait()}
    theirs.send(b"x")
    answer["new data"] = port.wait()
    return answer


@probe
def disable_operation(laboratory: Laboratory) -> Answer:
    """Does DISABLE bring a packet? Does one come that was queued before? Does anything while disabled?"""
    port, (ours, theirs) = laboratory.port(), laboratory.pair()
    answer = {"DISABLE": port.process(enable(ours, events=IN), disable(ours), wait=SETTLE)}
    theirs.send(b"x")
    answer["data, disabled"] = port.wait()
    answer["ENABLE"] = port.process(enable(ours, events=IN), wait=SETTLE)
    port, ours, _ = laboratory.queued()
    answer["DISABLE of one with a queued packet"] = {"call": port.process(disable(ours)), "waits": port.waits(2)}
    port, (ours, theirs) = laboratory.port(), laboratory.pair()
    port.process(enable(ours, events=IN), disable(ours))
    reset(theirs)
    answer["RST, disabled"] = port.wait()
    return answer
