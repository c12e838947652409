"""Results as Markdown tables, that a terminal shows as well as a page does."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from benchmarks.loops import SUBJECT
from benchmarks.results import NOISY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.cells import Cell
    from benchmarks.results import CellResults, Result

TITLES = {
    "echo-protocol": "Echo, Protocol",
    "echo-buffered": "Echo, BufferedProtocol",
    "echo-streams": "Echo, streams",
    "echo-sock": "Echo, sock_recv and sock_sendall",
    "echo-reader": "Echo, add_reader",
    "udp-datagrams": "Echo, datagrams",
    "http-aiohttp": "HTTP, aiohttp hello",
    "callback": "Callbacks",
}

CALLBACKS = {
    "call_soon-chain": "call_soon, one per turn",
    "call_soon-burst": "call_soon, 1000 per turn",
    "sleep": "sleep(0)",
    "sleep-watching": "sleep(0), a socket watched",
    "future": "future wake-up",
    "timer": "call_later and cancel",
    "tasks": "task spawn and gather",
    "threadsafe": "call_soon_threadsafe, 1000 per turn",
    "thread": "call_soon_threadsafe, round trip of a thread",
}


def tables(cells: Sequence[CellResults], loops: Sequence[str]) -> str:
    """A table of the figures for each benchmark, all callbacks in one."""
    blocks = []
    for name, group in by_benchmark(cells):
        block = [each for each in group if each.loops]
        if block:
            cell = block[0].cell
            less = "each, less is better; ratios are of speed"
            better = f"{cell.unit}, more is better" if cell.more_is_better else f"{cell.unit} {less}"
            blocks += [f"### {TITLES[name]} ({better})", figures(block, loops)]
    if any_noisy(cells):
        blocks.append(f"`~`: the rounds lie more than {NOISY:.0%} of the median apart.")
    return "\n\n".join(blocks) + "\n"


def by_benchmark(cells: Iterable[CellResults]) -> Iterator[tuple[str, Iterable[CellResults]]]:
    return groupby(cells, lambda each: "callback" if each.cell.kind == "callback" else each.cell.benchmark)


def figures(cells: Sequence[CellResults], loops: Sequence[str]) -> str:
    names = [name for name in loops if any(name in each.loops for each in cells)]
    limited = any(each.limit for each in cells)
    subject = SUBJECT if SUBJECT in names else None
    header = ["", *names]
    if limited:
        header.append("C")
    if subject and len(names) > 1:
        header.append(f"{subject} / best peer")
    if subject and limited:
        header.append(f"{subject} / C")
    rows = []
    for each in cells:
        row = [row_label(each.cell), *(figure(each.loops.get(name)) for name in names)]
        if limited:
            row.append(figure(each.limit))
        ours = each.loops.get(SUBJECT)
        if subject and len(names) > 1:
            row.append(ratio(ours and ours.of_best_peer))
        if subject and limited:
            row.append(ratio(ours and ours.of_limit))
        rows.append(row)
    return table(header, rows)


def details(cells: Sequence[CellResults], loops: Sequence[str]) -> str:
    """Latency, processor time and how busy both sides were, for what has a server; else nothing."""
    header = ["", "p50 us", "p99 us", "user us", "kernel us", "server busy", "client busy"]
    rows = []
    for each in cells:
        if each.cell.kind == "callback":
            continue
        results = [(name, each.loops[name]) for name in loops if name in each.loops]
        if each.limit:
            results.append(("C", each.limit))
        what = f"{each.cell.variant}, {each.cell.load}"
        rows += [[f"{what}, {name}", *costs(result.details)] for name, result in results]
    return f"### Latency, and processor time per message\n\n{table(header, rows)}\n" if rows else ""


def costs(measured: dict[str, Any]) -> list[str]:
    latency, server = measured["latency_us"], measured["server_us"]
    return [
        f"{latency['p50']:.0f}",
        f"{latency['p99']:.0f}",
        f"{server['user']:.2f}",
        f"{server['system']:.2f}",
        f"{measured['server_busy']:.0%}",
        f"{measured['client_busy']:.0%}",
    ]


def row_label(cell: Cell) -> str:
    return CALLBACKS[cell.variant] if cell.kind == "callback" else cell.load


def figure(result: Result | None) -> str:
    if result is None:
        return "-"
    return f"{'~' if result.noisy else ''}{significant(result.figure)}"


def significant(value: float) -> str:
    """Three significant digits: a benchmark has no more."""
    magnitude = len(str(int(value)))
    return f"{round(value, 3 - magnitude):,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column aligned to the left and the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [text.rjust(width) for text, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    return "\n".join([line(header), line(rule), *map(line, rows)])


def any_noisy(cells: Iterable[CellResults]) -> bool:
    return any(result.noisy for each in cells for result in [*each.loops.values(), *filter(None, [each.limit])])


def lines(environment: dict[str, Any]) -> str:
    """The environment as a list, for the head of a page."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return (
        f"- {environment['date']}, {environment['system']}, {environment['processor']}, "
        f"{environment['cores']} cores (server on core {environment['server_core']}, "
        f"load on core {environment['client_core']})\n"
        f"- {environment['python']}; {environment['c_compiler']}\n"
        f"- {versions}"
    )
