"""REMOVE and its notice, closing without it, and numbers that are used again."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from probes.laboratory import IN, OUT, disable, enable, probe, remove, until_readable

if TYPE_CHECKING:
    from probes.laboratory import Answer, Laboratory


@probe
def remove_timing(laboratory: Laboratory) -> Answer:
    """When does the notice of REMOVE come: with the same call, at once, later? From each state, of 20 each."""
    answer = {}
    for name in ("enabled", "disabled", "disarmed", "packet queued"):
        same_call, at_once, later, masks = 0, 0, 0, set()
        for _ in range(20):
            port, (ours, theirs) = laboratory.port(), laboratory.pair()
            port.process(enable(ours, events=OUT if name == "disarmed" else IN))
            if name == "disabled":
                port.process(disable(ours))
            elif name == "disarmed":
                port.wait()
            elif name == "packet queued":
                theirs.send(b"x")
                until_readable(ours)
            packets = port.process(remove(ours), wait=0)["packets"]
            same_call += any("REMOVE" in packet["events"] for packet in packets)
            second = port.wait(0)["packets"]
            at_once += any("REMOVE" in packet["events"] for packet in second)
            third = port.wait()["packets"]
            later += any("REMOVE" in packet["events"] for packet in third)
            masks.add(" then ".join(packet["events"] for packet in packets + second + third))
            ours.close()
            theirs.close()
        answer[name] = {"same call": same_call, "next call, no wait": at_once, "later": later, "packets": sorted(masks)}
    return answer


@probe
def remove_then_close(laboratory: Laboratory) -> Answer:
    """REMOVE, then closesocket before the notice was dequeued: does it still come?"""
    port, (ours, _) = laboratory.port(), laboratory.pair()
    answer = {"remove": port.process(enable(ours, events=IN), remove(ours))}
    ours.close()
    answer["waits"] = port.waits(2)
    return answer


@probe
def close_without_remove(laboratory: Laboratory) -> Answer:
    """closesocket of a registered socket: does any packet come? Does one that was queued before?"""
    port, (ours, _) = laboratory.port(), laboratory.pair()
    port.process(enable(ours, events=IN))
    ours.close()
    answer: Answer = {"enabled": port.waits(2)}
    port, ours, _ = laboratory.queued()
    ours.close()
    answer["packet queued"] = port.waits(2)
    return answer


@probe
def enable_after_remove(laboratory: Laboratory) -> Answer:
    """ENABLE after REMOVE, before the notice was dequeued: taken? With which key do packets come?"""
    port, (ours, theirs) = laboratory.port(), laboratory.pair()
    answer = {
        "remove": port.process(enable(ours, 7, IN), remove(ours, 7)),
        "same key": port.process(enable(ours, 7, IN)),
        "another key": port.process(enable(ours, 8, IN)),
    }
    theirs.send(b"x")
    return {**answer, "waits": port.waits(3)}


@probe
def reuse_of_numbers(laboratory: Laboratory) -> Answer:
    """How often does a new socket get the number of the one that was closed just before?"""
    reused = 0
    for _ in range(200):
        with socket.socket() as first:
            number = first.fileno()
        with socket.socket() as second:
            reused += second.fileno() == number
    return {"of 200": reused}


@probe
def stale_packet_of_reused_number(laboratory: Laboratory) -> Answer:
    """A packet is queued, its socket closed, a new one with the same number registered: what comes?"""
    port, ours, _ = laboratory.queued()
    number = ours.fileno()
    ours.close()
    for _ in range(200):
        new, theirs = laboratory.pair()
        if number in (new.fileno(), theirs.fileno()):
            new = new if new.fileno() == number else theirs
            return {"register": port.process(enable(new, 8, OUT)), "waits": port.waits(3)}
    return {"the number was not used again": True}
