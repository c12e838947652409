"""Programs that Hypothesis makes do on our loop what they do on stock asyncio.

What there is in them, and what they tell: `language.py`, `machine.py`. Where the loops may differ: `differences.py`.
They are the same programs each time, unless NOTIFYLOOP_DIFFERENTIAL_EXAMPLES says how many others to try; so does
`make test-differential EXAMPLES=20000`.
"""

from __future__ import annotations

import difflib
import gc
import os
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings

from .differences import connection_by_connection
from .language import Program, datagram_programs, programs, step, tls_programs
from .machine import Machine
from .waiting import ours, stock

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

LONG = "NOTIFYLOOP_DIFFERENTIAL_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("NOTIFYLOOP_DIFFERENTIAL_EXAMPLES", "2000"))

SEEN = (3, 15, 2)  # the newest Python whose asyncio ours does as: newer ones may do otherwise
pytestmark = [
    pytest.mark.peer("asyncio", when=sys.version_info[:3] > SEEN),
    pytest.mark.only("linux", reason="it counts descriptors in /proc, and needs Unix sockets of the kernel's choice"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # programs leave transports open
    pytest.mark.timeout(max(900, EXAMPLES)),
]


def tries(share: int) -> settings:
    return settings(
        max_examples=max(EXAMPLES // share, 1),
        derandomize=not LONG,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def garbage() -> Iterator[None]:
    """What others have left would close its descriptors while they are counted; and so would what is left here."""
    gc.collect()
    yield
    gc.collect()


def compare(expected: list[str], found: list[str]) -> None:
    if found != expected:
        lines = difflib.unified_diff(expected, found, "asyncio", "notifyloop", n=len(expected), lineterm="")
        raise AssertionError("\n".join(["the loops differ", *lines]))


@given(programs())
@example(
    # a piece with each turn, not with every other
    Program(
        ends=[("unix", "protocol", "socket"), ("unix", "protocol", "socket")],
        steps=[step.dial(), step.write_eof("e"), step.sock_sendall("b", 20000, None)],
        server="unix",
    )
)
@example(
    # what is unsent goes first, and with it
    Program(
        ends=[("unix", "protocol", "socket")],
        steps=[
            step.write("a", 20000, "bytes"),
            step.call_soon([step.writelines("a", [1])], False),
            step.close("b"),
        ],
    )
)
@example(
    # the reader that was queued in this turn is not called, the next one is called in the next
    Program(
        ends=[("unix", "protocol", "protocol")],
        steps=[
            step.write_eof("a"),
            step.task([step.pause_reading("b"), step.resume_reading("b"), step.call_soon([], False)]),
        ],
    )
)
@example(
    # the order of asyncio's heap
    Program(
        ends=[],
        steps=[
            step.call_later(1, [], True),
            step.cancel_handle(0),
            step.sleep(1 / 64),
            step.call_later(1, [], False),
            step.call_later(1, [], False),
            step.sleep(1),
        ],
    )
)
@example(
    # its descriptor is registered already
    Program(
        ends=[("unix", "protocol", "protocol")],
        steps=[step.close("a"), step.remove_reader("a"), step.remove_writer("a")],
    )
)
@example(
    # what is unsent, nobody sends any more
    Program(
        ends=[("unix", "protocol", "socket")],
        steps=[step.write("a", 20000, "bytes")],
        abandon=True,
    )
)
@tries(1)
def test_programs(program: Program) -> None:
    compare(Machine(program, stock).execute(), Machine(program, ours).execute())


@given(tls_programs())
@tries(10)
def test_programs_with_tls(tls: tuple[ssl.SSLContext, ssl.SSLContext], program: Program) -> None:
    compare(Machine(program, stock, tls).execute(), Machine(program, ours, tls).execute())


@given(datagram_programs())
@tries(10)
def test_programs_with_datagrams(program: Program) -> None:
    records = [Machine(program, loop).execute() for loop in (stock, ours)]
    compare(*map(connection_by_connection, records))


@pytest.mark.parametrize("strategy", [programs, tls_programs, datagram_programs])
def test_what_asyncio_does_depends_on_the_program_alone(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], strategy: Callable[[], object]
) -> None:
    @given(strategy())
    @tries(20)
    def test(program: Program) -> None:
        compare(Machine(program, stock, tls).execute(), Machine(program, stock, tls).execute())

    test()
