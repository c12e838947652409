"""Bars as SVG, drawn by hand: a chart for each benchmark, readable on light and on dark pages."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from benchmarks.report import TITLES, by_benchmark, row_label, significant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.results import CellResults

WIDTH = 720
NAMES = 96  # the column of loop names
BARS = WIDTH - NAMES - 104  # the longest bar; the rest is for its figure
BAR, GAP, GROUP = 14, 4, 18

TRACK = "#7f8a95"
COLOURS = {
    "asyncio": "#8c96a3",
    "uvloop": "#d9a441",
    "rloop": "#c0694a",
    "zuvloop": "#8a6fb3",
    "notifyloop": "#2f8f83",
}

INK, NOTE = "#3b4249", "#6b747d"
# Attributes draw for a light page, and for viewers without style sheets; the style sheet is for a dark page.
STYLE = """
@media (prefers-color-scheme: dark) {
  .ink { fill: #d5dae0 }
  .note { fill: #98a2ac }
  .limit { stroke: #d5dae0 }
}
"""


def charts(cells: Sequence[CellResults]) -> Iterator[tuple[str, str]]:
    """The name and the SVG text of each chart."""
    for name, group in by_benchmark(cells):
        block = [each for each in group if each.loops]
        if block:
            yield name, chart(TITLES[name], block)


def chart(title: str, cells: Sequence[CellResults]) -> str:
    """One chart: a group of bars for each cell.

    Each group has its own scale, because messages of a kibibyte and of a mebibyte have none in common; it
    ends at the limit in C, or at the longest bar.
    """
    unit = cells[0].cell.unit
    more = "longer is better" if cells[0].cell.more_is_better else "shorter is better"
    shapes = [
        text(0, 16, title, size=15, bold=True),
        text(0, 36, f"{unit}, {more}; each group has its own scale", note=True),
    ]
    y = 62
    for each in cells:
        shapes.append(text(0, y, heading(each), bold=True))
        y += 8
        top = y
        longest = max(result.figure for result in [*each.loops.values(), *filter(None, [each.limit])])
        for name, result in each.loops.items():
            length = BARS * result.figure / longest
            middle = y + BAR - 3
            shapes += [
                text(0, middle, name),
                rectangle(NAMES, y, BARS, TRACK, opacity=0.15),
                rectangle(NAMES, y, length, COLOURS[name]),
                text(NAMES + BARS + 6, middle, significant(result.figure)),
            ]
            y += BAR + GAP
        if each.limit:
            shapes.append(limit(NAMES + BARS * each.limit.figure / longest, top - 3, y - GAP + 3))
        y += GROUP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>" + "\n".join(shapes) + "</svg>\n"
    )


def heading(each: CellResults) -> str:
    words = row_label(each.cell)
    return f"{words} (C, dashed: {significant(each.limit.figure)})" if each.limit else words


def text(x: float, y: float, words: str, size: int = 12, bold: bool = False, note: bool = False) -> str:
    style, colour = ("note", NOTE) if note else ("ink", INK)
    return (
        f'<text class="{style}" x="{x}" y="{y}" fill="{colour}" font-size="{size}" '
        f'font-weight="{600 if bold else 400}" font-family="system-ui, sans-serif">{escape(words)}</text>'
    )


def rectangle(x: float, y: float, width: float, colour: str, opacity: float = 1) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{max(width, 1):.1f}" height="{BAR}" rx="2" '
        f'fill="{colour}" fill-opacity="{opacity}"/>'
    )


def limit(x: float, top: float, bottom: float) -> str:
    return (
        f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" '
        f'stroke="{INK}" stroke-width="1.5" stroke-dasharray="3 2"/>'
    )
