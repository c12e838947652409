"""Programs that two loops are to run alike, and how Hypothesis makes them.

A program is a list of steps, carried out one after the other by one coroutine. A step is the name of a method of
`actions.Actions`, and its arguments; where an argument is a list of steps, they are carried out later: by a callback, a
protocol's method, a task, or once while the loop does not run. The `repr` of a program is Python that makes it.

What steps are about has names: the ends of the first connection are "a" and "b", those of the second "c" and "d"; of
connections to a server "e", "g" and "i" are the clients, and "f", "h" and "j" what they are to it; "l" is a socket that
listens without a server. A step whose object does not exist (yet) does nothing.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import chain
from textwrap import indent
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy


class Step(NamedTuple):
    name: str
    arguments: tuple[Any, ...]

    def __repr__(self) -> str:
        lines = [repr(argument) if not has_steps(argument) else show(argument) for argument in self.arguments]
        return f"step.{self.name}({', '.join(lines)})"

    def __str__(self) -> str:
        """Without the steps in it."""
        return f"{self.name}({', '.join('[...]' if has_steps(item) else repr(item) for item in self.arguments)})"


class Steps:
    """Makes steps: `step.write("a", 10, bytes)`."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: Step(name, arguments)


step = Steps()


def has_steps(argument: object) -> bool:
    return isinstance(argument, list) and (not argument or isinstance(argument[0], Step))


def show(steps: list[Step]) -> str:
    if len(steps) < 2:
        return repr(steps)
    return "[\n" + indent(",\n".join(map(repr, steps)), "    ") + ",\n]"


class Program(NamedTuple):
    """What is there at first, and the steps.

    `ends` has, for each connection, its kind ("unix", "tcp", "tls", "udp", "unix datagrams") and who has its two ends
    ("protocol", "buffered", "datagrams", "socket"). `server` is the kind of the server's sockets, if there is one;
    "plain unix" and "plain tcp" are those of a socket that listens without a server.
    """

    ends: list[tuple[str, str, str]]
    steps: list[Step]
    server: str = ""
    debug: bool = False
    abandon: bool = False  # whether the loop is closed first, and then the rest

    def __repr__(self) -> str:
        fields = [f"    ends={self.ends!r},", f"    steps={show(self.steps)},".replace("\n", "\n    ")]
        if self.server:
            fields.append(f"    server={self.server!r},")
        fields += [f"    {name}=True," for name in ("debug", "abandon") if getattr(self, name)]
        return "\n".join(["Program(", *fields, ")"])


def make(name: str, *arguments: SearchStrategy[Any]) -> SearchStrategy[Step]:
    return st.tuples(*arguments).map(partial(Step, name))


KINDS = st.sampled_from(["bytes", "bytearray", "memoryview"])
SIZES = st.sampled_from([1, 0, 2, 10, 100, 1000, 5_000, 20_000, 70_000, 300_000])
SMALL = st.sampled_from([1, 2, 10, 100, 1000])
DATAGRAMS = st.sampled_from([1, 0, 100, 1000, 5_000, 70_000])  # larger than any that can be sent
ROOM = st.lists(st.sampled_from([100, 10, 1, 0, 5000]), max_size=3)
DELAYS = st.sampled_from([0, 1, 2, 1 / 64, -1, 100_000])
BRIEF = st.sampled_from([1 / 64, 1, 2])
TIMEOUTS = st.sampled_from([None, None, 1 / 64, 1, 0])
WATER = st.sampled_from([(None, None), (0, 0), (10, 0), (10, 5), (1000, None), (100_000, 1000), (5, 10)])
ERRORS = st.sampled_from(["Exception", "OSError", "BaseException", "KeyboardInterrupt", "SystemExit", "CancelledError"])
BOOLEANS = st.booleans()
SELDOM = st.integers(0, 9).map(lambda number: number == 9)
NUMBERS = st.integers(0, 3)
TIMES = st.integers(1, 3)
PROTOCOLS = st.sampled_from(["protocol", "buffered"])
CALLBACKS = ["connection_lost", "pause_writing", "resume_writing"]
OF_STREAMS = st.sampled_from(["connection_made", "data_received", "eof_received", *CALLBACKS])
OF_DATAGRAMS = st.sampled_from(["datagram_received", "error_received", *CALLBACKS])
WAITS = st.one_of(make("turn"), make("turn"), make("sleep", BRIEF))
QUIET = st.one_of(make("settle"), make("settle"), make("signal"))

Later = SearchStrategy[list[Step]] | None  # for callbacks; None in those that are innermost


def about_transports(ends: str, later: Later) -> list[SearchStrategy[Step]]:
    end = st.sampled_from(ends)
    steps = [
        make("write", end, SIZES, KINDS),
        make("write", end, SMALL, KINDS),
        make("writelines", end, st.lists(SIZES, max_size=3)),
        make("write_eof", end),
        make("close", end),
        make("abort", end),
        make("pause_reading", end),
        make("resume_reading", end),
        make("set_write_buffer_limits", end, WATER),
        make("look", end),
        make("keep_open", end, BOOLEANS),
        make("set_protocol", end, PROTOCOLS),
        make("set_buffers", end, ROOM),
    ]
    return steps if later is None else steps + 3 * [make("on", end, OF_STREAMS, later)]


def about_sockets(ends: str) -> list[SearchStrategy[Step]]:
    end = st.sampled_from(ends)
    return [
        make("write", end, SIZES, KINDS),
        make("recv", end, SIZES),
        make("write_eof", end),
        make("close", end),
        make("abort", end),
    ]


def about_operations(ends: str) -> list[SearchStrategy[Step]]:
    end = st.sampled_from(ends)
    return [
        make("sock_recv", end, SMALL, TIMEOUTS),
        make("sock_recv", end, SMALL, TIMEOUTS),
        make("sock_recv_into", end, SMALL, TIMEOUTS),
        make("sock_sendall", end, SIZES, TIMEOUTS),
        make("cancel_task", NUMBERS),
    ]


def about_readiness(ends: str, later: Later) -> list[SearchStrategy[Step]]:
    end = st.sampled_from(ends)
    steps = [make("remove_reader", end), make("remove_writer", end)]
    if later is None:
        return steps
    return steps + 2 * [make("add_reader", end, later, TIMES), make("add_writer", end, later, TIMES)]


def about_callbacks(inner: SearchStrategy[Step] | None, later: Later) -> list[SearchStrategy[Step]]:
    steps = [
        make("cancel_handle", NUMBERS),
        make("look_at_handle", NUMBERS),
        make("cancel_task", NUMBERS),
        make("fail", ERRORS),
        make("advance", BRIEF),
        make("set_debug", BOOLEANS),
        make("signal_when_asleep"),
    ]
    if inner is None or later is None:
        return steps
    return [
        *steps,
        make("call_soon", later, BOOLEANS),
        make("call_soon", later, BOOLEANS),
        make("call_soon_threadsafe", later, BOOLEANS),
        make("call_later", DELAYS, later, BOOLEANS),
        make("call_later", DELAYS, later, BOOLEANS),
        make("call_at", DELAYS, later, BOOLEANS),
        make("call_in_thread", later, BOOLEANS),
        make("call_when_asleep", later, BOOLEANS),
        make("handle_signal", later),
        make("on_report", later),
        make("stop", later),
        make("task", st.lists(st.one_of(inner, WAITS), max_size=4)),
    ]


def about_servers() -> list[SearchStrategy[Step]]:
    return [make("dial"), make("open_connection"), make("close_server")]


def about_listeners() -> list[SearchStrategy[Step]]:
    return [make("dial"), make("sock_connect", TIMEOUTS), make("sock_accept", st.just("l"), TIMEOUTS)]


def about_datagrams(transports: str, sockets: str, later: Later) -> list[SearchStrategy[Step]]:
    end, any_end = st.sampled_from(transports), st.sampled_from(transports + sockets)
    steps = [
        make("write", any_end, DATAGRAMS, KINDS),
        make("write", any_end, DATAGRAMS, KINDS),
        make("write_many", any_end, st.sampled_from([3, 20, 100])),
        make("recv", any_end, DATAGRAMS),
        make("close", any_end),
        make("abort", any_end),
        make("look", end),
        make("set_write_buffer_limits", end, WATER),
        make("advance", BRIEF),
        make("fail", ERRORS),
    ]
    return steps if later is None else steps + 3 * [make("on", end, OF_DATAGRAMS, later)]


def steps_about(topics: str, transports: str, sockets: str, inner: SearchStrategy[Step] | None) -> list[Any]:
    """The steps that do not wait. The `inner` ones are for callbacks."""
    later = None if inner is None else st.lists(inner, max_size=3)
    if "datagrams" in topics:
        return about_datagrams(transports, sockets, later)
    steps: list[SearchStrategy[Step]] = []
    if transports and "streams" in topics:
        steps += about_transports(transports, later)
    if sockets:
        steps += about_sockets(sockets)
    if sockets and "sockets" in topics:
        steps += about_operations(sockets)
    if transports + sockets and "sockets" in topics:
        steps += about_readiness(3 * sockets + transports, later)
    if "callbacks" in topics:
        steps += about_callbacks(inner, later)
    if "servers" in topics:
        steps += about_servers()
    if "listeners" in topics:
        steps += about_listeners()
    if "streams" not in topics:  # the contexts of transports are others
        steps.append(make("set_variable", NUMBERS))
    return steps


@cache
def steps_for(topics: str, transports: str, sockets: str) -> SearchStrategy[list[Step]]:
    innermost = st.one_of(steps_about(topics, transports, sockets, None))
    inner = st.one_of(steps_about(topics, transports, sockets, innermost))
    step = st.one_of(*steps_about(topics, transports, sockets, inner), QUIET, WAITS)
    # Lists of lists, for one long list is hardly ever long.
    return st.lists(st.lists(step, max_size=8), max_size=4).map(lambda parts: list(chain.from_iterable(parts)))


TOPICS = ["streams", "callbacks", "sockets", "streams callbacks", "sockets callbacks", "streams sockets callbacks"]
ROLES = st.sampled_from(["socket", "protocol", "socket", "buffered"])
CONNECTIONS = st.tuples(st.sampled_from(["unix", "unix", "tcp"]), PROTOCOLS, ROLES)
SERVERS = st.sampled_from(["", "", "", "unix", "tcp", "plain unix", "plain tcp"])
TLS_CONNECTIONS = st.tuples(st.just("tls"), PROTOCOLS, PROTOCOLS)
ENDPOINTS = st.tuples(
    st.sampled_from(["udp", "unix datagrams"]), st.just("datagrams"), st.sampled_from(["socket", "datagrams"])
)


def names_of(ends: list[tuple[str, str, str]]) -> tuple[str, str]:
    """Those of transports, and those of sockets."""
    roles = [role for _, *roles in ends for role in roles]
    names = list(zip("abcd", roles, strict=False))
    return (
        "".join(name for name, role in names if role != "socket"),
        "".join(name for name, role in names if role == "socket"),
    )


@st.composite
def programs(draw: Any) -> Program:
    """Of streams, sockets, servers, timers and other callbacks."""
    topics = draw(st.sampled_from(TOPICS))
    ends = draw(st.lists(CONNECTIONS, min_size=topics != "callbacks", max_size=2))
    server = draw(SERVERS)
    transports, sockets = names_of(ends)
    if server.startswith("plain "):
        topics, sockets = topics + " listeners", sockets + "ef"
    elif server:
        topics, transports, sockets = topics + " servers", transports + "ef", sockets + "e"
    return Program(ends, draw(steps_for(topics, transports, sockets)), server, draw(BOOLEANS), draw(SELDOM))


@st.composite
def tls_programs(draw: Any) -> Program:
    topics = draw(st.sampled_from(["streams", "streams callbacks"]))
    ends = draw(st.lists(TLS_CONNECTIONS, min_size=1, max_size=2))
    return Program(ends, draw(steps_for(topics, *names_of(ends))), "", draw(BOOLEANS))


@st.composite
def datagram_programs(draw: Any) -> Program:
    """In these, all settles after each step."""
    ends = draw(st.lists(ENDPOINTS, min_size=1, max_size=2))
    steps = draw(steps_for("datagrams", *names_of(ends)))
    return Program(ends, [each for step in steps for each in (step, Step("settle", ()))], "", draw(BOOLEANS))
