"""Single registrations: their results, what is taken and what is not, one socket registered twice."""

from __future__ import annotations

import struct
import tempfile
from typing import TYPE_CHECKING

from probes.laboratory import (
    EDGE,
    ENABLE,
    IN,
    LEVEL,
    NONE,
    ONESHOT,
    OUT,
    PERSISTENT,
    SETTLE,
    WINDOWS,
    disable,
    enable,
    order,
    probe,
    remove,
    until_readable,
)

if TYPE_CHECKING:
    from probes.laboratory import Answer, Laboratory


@probe
def results_of_failed_registrations(laboratory: Laboratory) -> Answer:
    """Which result has each registration that cannot be?"""
    answer = {
        "REMOVE, never registered": laboratory.port().process(remove(laboratory.pair()[0])),
        "DISABLE, never registered": laboratory.port().process(disable(laboratory.pair()[0])),
        "ENABLE, socket 0": laboratory.port().process(enable(0)),
        "ENABLE, INVALID_SOCKET": laboratory.port().process(enable(2 ** (8 * struct.calcsize("P")) - 1)),
    }
    for name, make in (("ENABLE", enable), ("DISABLE", disable), ("REMOVE", remove)):
        port, closed = laboratory.port(), laboratory.tcp()
        packed = make(closed)
        closed.close()
        answer[f"{name}, closed socket"] = port.process(packed)  # at once: another may soon have its number
    with tempfile.TemporaryFile() as file:
        handle = file.fileno()
        if WINDOWS:
            import msvcrt  # noqa: PLC0415

            handle = msvcrt.get_osfhandle(handle)
        answer["ENABLE, a file"] = laboratory.port().process(enable(handle))
    port, (ours, _) = laboratory.port(), laboratory.pair()
    answer["REMOVE"] = port.process(enable(ours, events=IN), remove(ours), remove(ours))
    port, (ours, _) = laboratory.port(), laboratory.pair()
    answer["DISABLE twice"] = port.process(enable(ours, events=IN), disable(ours), disable(ours), remove(ours))
    return answer


@probe
def flags(laboratory: Laboratory) -> Answer:
    """Which operations, triggers and filters are taken?"""
    cases = {
        "operation 0": (IN, 0, LEVEL | ONESHOT),
        "operation 3": (IN, 3, LEVEL | ONESHOT),
        "operation 5": (IN, 5, LEVEL | ONESHOT),
        "operation 8": (IN, 8, LEVEL | ONESHOT),
        "trigger 0": (IN, ENABLE, 0),
        "LEVEL": (IN, ENABLE, LEVEL),
        "EDGE": (IN, ENABLE, EDGE),
        "ONESHOT": (IN, ENABLE, ONESHOT),
        "LEVEL|EDGE|ONESHOT": (IN, ENABLE, LEVEL | EDGE | ONESHOT),
        "LEVEL|ONESHOT|PERSISTENT": (IN, ENABLE, LEVEL | ONESHOT | PERSISTENT),
        "trigger 0x10": (IN, ENABLE, LEVEL | ONESHOT | 0x10),
        "no filter": (NONE, ENABLE, LEVEL | ONESHOT),
        "filter 0x08": (0x08, ENABLE, LEVEL | ONESHOT),
        "filter ERR": (IN | 0x40, ENABLE, LEVEL | ONESHOT),
        "filter REMOVE": (IN | 0x80, ENABLE, LEVEL | ONESHOT),
    }
    return {
        name: laboratory.port().process(order(laboratory.pair()[0], 7, events, operation, trigger))
        for name, (events, operation, trigger) in cases.items()
    }


@probe
def level_alone(laboratory: Laboratory) -> Answer:
    """Is LEVEL without ONESHOT or PERSISTENT persistent? How many packets do three waits bring?"""
    port, (ours, _) = laboratory.port(), laboratory.pair()
    return {"register": port.process(enable(ours, events=OUT, trigger=LEVEL)), "waits": port.waits(3)}


@probe
def failed_registration_and_wait(laboratory: Laboratory) -> Answer:
    """Does a registration that fails shorten the wait, or keep the others of its batch from being made?"""
    port, (ours, theirs) = laboratory.port(), laboratory.pair()
    bad = remove(laboratory.pair()[0])
    answer = {"alone, 300 ms": port.process(bad, wait=300)}
    theirs.send(b"x")
    until_readable(ours)
    answer["with a good one"] = port.process(bad, enable(ours, events=IN), wait=300)
    return answer


@probe
def one_socket_on_two_ports(laboratory: Laboratory) -> Answer:
    """Is a socket refused that is registered on another port? And after REMOVE, before its packet was dequeued?"""
    first, second, (ours, _) = laboratory.port(), laboratory.port(), laboratory.pair()
    return {
        "first": first.process(enable(ours, events=IN)),
        "second": second.process(enable(ours, events=IN)),
        "remove from the second": second.process(remove(ours)),
        "remove from the first": first.process(remove(ours)),
        "second, notice not dequeued": second.process(enable(ours, events=IN)),
        "notice": first.wait(),
        "second, notice dequeued": second.process(enable(ours, events=IN)),
    }


@probe
def port_closed_with_registrations(laboratory: Laboratory) -> Answer:
    """Can a socket be registered again after its port was closed?"""
    first, second, (ours, _) = laboratory.port(), laboratory.port(), laboratory.pair()
    return {
        "first": first.process(enable(ours, events=IN)),
        "closed": first.close(),
        "second": second.process(enable(ours, events=OUT), wait=SETTLE),
    }


@probe
def registered_twice(laboratory: Laboratory) -> Answer:
    """What does ENABLE do to an enabled registration: new filter, new trigger, new key?"""
    port, (ours, theirs) = laboratory.port(), laboratory.pair()
    answer = {
        "IN": port.process(enable(ours, 7, IN)),
        "the same": port.process(enable(ours, 7, IN)),
        "OUT": port.process(enable(ours, 7, OUT), wait=SETTLE),
        "persistent": port.process(enable(ours, 7, OUT, LEVEL | PERSISTENT), wait=SETTLE),
        "one-shot again": port.process(enable(ours, 7, OUT), wait=SETTLE),
        "then": port.wait(),
        "key 8": port.process(enable(ours, 8, IN)),
    }
    theirs.send(b"x")
    return {**answer, "data": port.wait(), "remove by key 9": port.process(remove(ours, 9), wait=SETTLE)}


@probe
def blocking_socket(laboratory: Laboratory) -> Answer:
    """Can a socket in blocking mode be registered, and does it stay so?"""
    port, (ours, _) = laboratory.port(), laboratory.pair()
    ours.setblocking(True)
    return {"register": port.process(enable(ours, events=OUT), wait=SETTLE), "timeout": ours.gettimeout()}


@probe
def duplicated_socket(laboratory: Laboratory) -> Answer:
    """Does a registration belong to the handle or to what it stands for? Register, remove and close by a duplicate."""
    port, (ours, theirs) = laboratory.port(), laboratory.pair()
    twin = laboratory.keep(ours.dup())
    answer = {
        "original": port.process(enable(ours, 7, IN)),
        "duplicate, same port": port.process(enable(twin, 8, IN)),
        "duplicate, another port": laboratory.port().process(enable(twin, 9, IN)),
    }
    theirs.send(b"x")
    answer["data"] = port.waits(3)
    answer["remove by the duplicate"] = port.process(remove(twin, 8), wait=SETTLE)
    answer["remove by the original"] = port.process(remove(ours, 7), wait=SETTLE)
    return answer


@probe
def one_of_two_closed(laboratory: Laboratory) -> Answer:
    """Registered by the original: does closing the original, or the duplicate, deregister?"""
    answer = {}
    for name in ("original", "duplicate"):
        port, (ours, theirs) = laboratory.port(), laboratory.pair()
        twin = laboratory.keep(ours.dup())
        port.process(enable(ours, 7, IN))
        closed, left = (ours, twin) if name == "original" else (twin, ours)
        closed.close()
        steps: Answer = {"closed": port.wait()}
        theirs.send(b"x")
        steps["data"] = port.wait()
        steps["enable by the one that is left"] = port.process(enable(left, 8, IN), wait=SETTLE)
        steps["remove by it"] = port.process(remove(left, 8), wait=SETTLE)
        answer[f"{name} closed"] = steps
    return answer
