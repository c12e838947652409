"""Where our loop differs from stock asyncio: on purpose, or because a bug of asyncio is none of ours.

Most are steps that are left out on both loops where they would show a difference. Each rule below says what and why,
and is asked when the step would be carried out; both loops must be in a state to give the same answer. The rest is what
a transport calls and the program does not hear (`unheard`), what only says how much may come (`hint`, `spare`), and
order across connections (`connection_by_connection`).
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ends import End
    from .language import Step
    from .machine import Machine

    Rule = Callable[[Machine, End, Step], bool]

TCP_CLOSE = 7  # the state of a connection that was reset

RULES: dict[str, list[Rule]] = {}  # by the names of the steps that they may leave out


def leaves_out(*steps: str, since: tuple[int, ...] = (), before: tuple[int, ...] = (99,)) -> Callable[[Rule], Rule]:
    """Decorates a rule about these steps, in these versions of Python. It says whether one is to be left out. The end
    is the one that the step is about, if it is about one.
    """

    def add(rule: Rule) -> Rule:
        if since <= sys.version_info < before:
            for step in steps:
                RULES.setdefault(step, []).append(rule)
        return rule

    return add


def leave_out(machine: Machine, step: Step) -> bool:
    end: Any = None
    if step.arguments and step.arguments[0] in machine.names:
        end = machine.ends.get(step.arguments[0])
        if end is None:
            return False
    return any(rule(machine, end, step) for rule in RULES.get(step.name, ()))


# ---- on purpose


@leaves_out("recv", "sock_recv", "sock_recv_into", "sock_accept", "add_reader", "remove_reader")
def receiving_in_the_coroutine(machine: Machine, end: End, step: Step) -> bool:
    """Our coroutines receive when they run. In asyncio the reader's callback receives, a turn before, and what it has
    received is lost if the coroutine is cancelled meanwhile.
    """
    return end.may_have_received


@leaves_out("cancel_task")
def cancelling_who_receives(machine: Machine, end: End, step: Step) -> bool:
    """As above."""
    [number] = step.arguments
    task = machine.tasks[number] if number < len(machine.tasks) else None
    return any(task in end.receiving and end.may_have_received for end in machine.ends.values())


@leaves_out("write_eof")
def eof_after_a_reset(machine: Machine, end: End, step: Step) -> bool:
    """asyncio's write_eof() raises OSError(ENOTCONN) on a connection that the peer has reset. Ours leaves it to
    connection_lost() to say so, as write() does.
    """
    if end.kind != "tcp" or end.plain or end.transport is None or end.lost:
        return False
    sock = end.transport.get_extra_info("socket")
    return bool(sock.fileno() != -1 and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE)


@leaves_out("remove_reader", "remove_writer")
def removing_from_a_closed_socket(machine: Machine, end: End, step: Step) -> bool:
    """asyncio raises ValueError for a socket that was closed. Ours returns False: libraries take back their callbacks
    late.
    """
    return end.sock is not None and end.sock.fileno() == -1


@leaves_out("add_reader", "add_writer")
def watching_before_connecting(machine: Machine, end: End, step: Step) -> bool:
    """Before a socket is connected, epoll has it hung up, and asyncio calls back. Ours waits, as on Windows."""
    return not end.connected


@leaves_out("resume_reading")
def resuming_on_a_closed_loop(machine: Machine, end: End, step: Step) -> bool:
    """asyncio's resume_reading() raises RuntimeError when the loop is closed; ours does not, nor pause_reading()."""
    return bool(machine.loop.is_closed())


@leaves_out("close", "write", "writelines", "set_buffers")
def closing_tls_while_receiving(machine: Machine, end: End, step: Step) -> bool:
    """Where data of the peer is on its way, closing TLS ends with an SSLError in asyncio: application data after close
    notify. Ours reads and drops it. And where get_buffer() has no room, TLS takes that for the end.
    """
    if end.kind != "tls" or end.peer is None:
        return False
    if step.name == "set_buffers":
        return 0 in step.arguments[1]
    return end.peer.doing if step.name == "close" else end.peer.closed


@leaves_out("close")
def closing_tls_while_paused(machine: Machine, end: End, step: Step) -> bool:
    """TLS that is closed while reading is paused, and that the peer has ended, asyncio ends when reading is resumed."""
    return end.kind == "tls" and end.transport is not None and not end.closing and not end.transport.is_reading()


def unheard(end: End, callback: str) -> bool:
    """TLS delivers nothing after close(), as the documentation of close() has it. asyncio's still delivers what was
    received with it, and asks for a buffer when the end has come.
    """
    return end.kind == "tls" and callback in ("data_received", "get_buffer") and (end.closed or end.told_eof)


def hint(end: End, size: int) -> str:
    """Of TLS, what get_buffer() is told is the size of the records that came. asyncio makes one of each small piece
    that writelines() is given, ours one of several.
    """
    return "" if end.kind == "tls" else str(size)


def spare(end: End, size: int) -> bool:
    """asyncio's TLS asks for a buffer that it has no use for, if one was full and more came in the same turn: it looks
    twice then.
    """
    return end.kind == "tls" and size == 0


def connection_by_connection(lines: list[str]) -> list[str]:
    """The record of each end for itself: of several datagrams, ours receives up to 64 in a turn, asyncio one."""
    return sorted(lines, key=lambda line: line[:3] if line[1:3] == ": " else "")


# ---- bugs of asyncio


@leaves_out("add_reader", "add_writer")
def watching_a_closing_transport(machine: Machine, end: End, step: Step) -> bool:
    """When a transport closes its socket, asyncio does not forget who else watches it: those callbacks fail later. In
    ours they are gone.
    """
    return end.closing


@leaves_out("close_server")
def closing_while_accepting(machine: Machine, end: End, step: Step) -> bool:
    """asyncio's server that is closed after it has accepted a connection and before it has made the transport fails in
    an assertion, and leaves the socket to the garbage collector.
    """
    return machine.on_the_way > 0


@leaves_out("fail")
def interrupting_accept(machine: Machine, end: End, step: Step) -> bool:
    """asyncio's sock_accept() accepts twice, fails, and leaves the second socket to the garbage collector, if an
    interrupt ends the turn in which it is to accept.
    """
    listener = machine.ends.get("l")
    return step.arguments[0] in ("KeyboardInterrupt", "SystemExit") and listener is not None and listener.waiting > 0


@leaves_out("write", "write_many", "writelines", "abort")
def use_after_the_end(machine: Machine, end: End, step: Step) -> bool:
    """asyncio's transport that had something unsent when it was closed, and each of datagrams, raises AttributeError if
    it is used after connection_lost(). Others, and all of ours, ignore it.
    """
    return end.lost


@leaves_out("close")
def closing_tls_twice(machine: Machine, end: End, step: Step) -> bool:
    """Then nearly every method of asyncio's TLS transport raises AttributeError."""
    return end.kind == "tls" and end.closing


@leaves_out("set_write_buffer_limits")
def no_room_for_tls(machine: Machine, end: End, step: Step) -> bool:
    """asyncio's TLS with a high-water mark of 0 calls pause_writing() at once, and resume_writing() when it has sent
    its part of the closing. Nobody can have written in between.
    """
    return end.kind == "tls" and step.arguments[1][0] == 0


@leaves_out("writelines", since=(3, 12))
def lines_after_closing(machine: Machine, end: End, step: Step) -> bool:
    """asyncio's writelines() on a transport that is closing raises TypeError, or waits for its descriptor for ever."""
    return end.closing


@leaves_out("writelines", since=(3, 12))
def last_line_is_empty(machine: Machine, end: End, step: Step) -> bool:
    """asyncio never gets rid of an empty last line, and waits for writability for ever."""
    sizes = step.arguments[1]
    return bool(sizes) and not sizes[-1]


@leaves_out("writelines", since=(3, 12), before=(3, 12, 9))
@leaves_out("writelines", since=(3, 13), before=(3, 13, 2))
def lines_over_the_high_water(machine: Machine, end: End, step: Step) -> bool:
    """asyncio's writelines() does not call pause_writing() (CVE-2024-12254)."""
    if end.transport is None:
        return False
    _, high = end.transport.get_write_buffer_limits()
    return bool(end.transport.get_write_buffer_size() + sum(step.arguments[1]) > high)


@leaves_out("writelines", before=(3, 12))
def lines_after_others(machine: Machine, end: End, step: Step) -> bool:
    """Before Python 3.12, asyncio's writelines() did not try to send if something was unsent. Ours always does."""
    return end.unsent


@leaves_out("write", before=(3, 13))
def empty_datagram(machine: Machine, end: End, step: Step) -> bool:
    """Before Python 3.13, asyncio sent none."""
    return end.role == "datagrams" and not step.arguments[1]
