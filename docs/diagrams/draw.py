"""Draws the pictures of the documentation.

`python docs/diagrams/draw.py` writes an SVG file for each, beside this one. Every picture brings its own
background and follows the reader's light or dark setting.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # where this is run by `runpy`, too

import imports  # noqa: E402

# Light, and the same in the dark.
STYLE = """
  text { font: 14px system-ui, "Segoe UI", "Liberation Sans", sans-serif; fill: #1f2328; text-anchor: middle }
  .small { font-size: 12.5px; fill: #57606a }
  .code { font: 12.5px ui-monospace, "SF Mono", "Liberation Mono", monospace; fill: #0550ae }
  .left { text-anchor: start }
  .strong { font-weight: 600 }
  .page { fill: #ffffff; stroke: #d0d7de }
  .box { fill: #f6f8fa; stroke: #8c959f; stroke-width: 1.5 }
  .mine { fill: #ddf4ff; stroke: #218bff; stroke-width: 1.5 }
  .end { fill: #fff8c5; stroke: #bf8700; stroke-width: 1.5 }
  .line { fill: none; stroke: #57606a; stroke-width: 1.5 }
  .faint { stroke: #8c959f; stroke-dasharray: 5 4 }
  .tip { fill: #57606a }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .small { fill: #9198a1 }
    .code { fill: #79c0ff }
    .page { fill: #0d1117; stroke: #30363d }
    .box { fill: #161b22; stroke: #6e7681 }
    .mine { fill: #0c2d6b; stroke: #388bfd }
    .end { fill: #3b2300; stroke: #9e6a03 }
    .line { stroke: #9198a1 }
    .faint { stroke: #6e7681 }
    .tip { fill: #9198a1 }
  }
"""

SVG = "http://www.w3.org/2000/svg"
TIP = """<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"
 orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>"""

Point = tuple[float, float]


class Picture:
    """Boxes, arrows and words, at places given in pixels."""

    def __init__(self, name: str, width: int, height: int, description: str) -> None:
        self.path = HERE / f"{name}.svg"
        self.parts = [
            f'<svg xmlns="{SVG}" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
            f"<title>{escape(description)}</title>",
            f"<style>{STYLE}</style>",
            TIP,
            f'<rect class="page" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, *lines: str, kind: str = "box") -> None:
        """A box with its upper left corner at (x, y). The first line is its name, the others explain."""
        self.parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>')
        top = y + height / 2 + 5 - 9 * (len(lines) - 1)
        for number, line in enumerate(lines):
            self.words(x + width / 2, top + 18 * number, line, kind="small" if number else "strong")

    def words(self, x: float, y: float, text: str, kind: str = "") -> None:
        self.parts.append(f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>')

    def arrow(self, *points: Point, faint: bool = False) -> None:
        """Straight through the points. With four points, the two in the middle bend it to a curve."""
        start, *rest = points
        curve = "C" if len(points) == 4 else "L"
        path = f"M{start[0]} {start[1]} {curve}" + " ".join(f"{x} {y}" for x, y in rest)
        kind = "line faint" if faint else "line"
        self.parts.append(f'<path class="{kind}" d="{path}" marker-end="url(#tip)"/>')

    def lane(self, x: float, top: float, bottom: float) -> None:
        self.parts.append(f'<path class="line faint" d="M{x} {top} L{x} {bottom}"/>')

    def text(self) -> str:
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def registration() -> Picture:
    picture = Picture(
        "registration",
        780,
        400,
        "The states of a registration (absent, enabled, disabled, removing) and the operations between them",
    )
    picture.box(30, 120, 130, 60, "absent")
    picture.box(270, 120, 150, 60, "enabled", "notifications come", kind="mine")
    picture.box(620, 120, 130, 60, "disabled", "nothing comes")
    picture.box(270, 300, 150, 60, "removing", "one last notification", kind="end")

    picture.arrow((160, 150), (268, 150))
    picture.words(214, 142, "ENABLE", "code")
    picture.arrow((325, 120), (290, 62), (400, 62), (367, 118))
    picture.words(345, 38, "a PERSISTENT notification")
    picture.words(345, 58, "ENABLE: other filter or trigger", "code")
    picture.arrow((420, 138), (618, 138))
    picture.words(520, 112, "a ONESHOT notification")
    picture.words(520, 130, "DISABLE", "code")
    picture.arrow((620, 164), (422, 164))
    picture.words(520, 183, "ENABLE: re-arm", "code")
    picture.arrow((345, 180), (345, 298))
    picture.words(378, 244, "REMOVE", "code")
    picture.arrow((685, 180), (685, 330), (560, 330), (422, 330))
    picture.words(702, 262, "REMOVE", "code")
    picture.arrow((270, 330), (150, 330), (95, 290), (95, 182))
    picture.words(150, 366, "Event.REMOVE is dequeued")
    picture.arrow((272, 180), (220, 228), (160, 228), (122, 182), faint=True)
    picture.words(222, 236, "socket closed, in any state:", "small")
    picture.words(222, 254, "no notification", "small")
    return picture


def one_shot() -> Picture:
    picture = Picture(
        "one-shot",
        780,
        470,
        "One socket, two threads: a one-shot notification makes a thread the owner until it enables again",
    )
    for x, name, kind in ((130, "thread A", "box"), (390, "port", "mine"), (650, "thread B", "box")):
        picture.lane(x, 62, 450)
        picture.box(x - 70, 20, 140, 40, name, kind=kind)

    picture.arrow((130, 95), (388, 95))
    picture.words(259, 87, "process([ENABLE x], wait)", "code")
    picture.arrow((650, 125), (392, 125))
    picture.words(521, 117, "process([], wait)", "code")
    picture.words(470, 160, "x is readable", "small left")
    picture.arrow((390, 180), (132, 180))
    picture.words(259, 172, "x: IN", "code")
    picture.box(40, 195, 180, 88, "A owns x", "receives, answers;", "nobody else hears of x", kind="mine")
    picture.words(470, 230, "more data for x:", "small left")
    picture.words(470, 248, "withheld, x is disabled", "small left")
    picture.arrow((130, 315), (388, 315))
    picture.words(259, 307, "process([ENABLE x], wait)", "code")
    picture.words(400, 336, "still readable: a level", "small left")
    picture.arrow((390, 372), (648, 372))
    picture.words(521, 364, "x: IN", "code")
    picture.box(560, 386, 180, 56, "B owns x", "until it enables it", kind="mine")
    return picture


def owned_socket() -> Picture:
    picture = Picture(
        "owned-socket",
        780,
        330,
        "The states of an OwnedSocket (new, armed, owned, removing, released) and the ways between them",
    )
    picture.box(30, 50, 110, 56, "new")
    picture.box(250, 50, 130, 56, "armed", "anybody's next", kind="mine")
    picture.box(540, 50, 140, 56, "owned", "one thread's", kind="mine")
    picture.box(250, 200, 130, 56, "removing", "nobody's")
    picture.box(540, 200, 140, 56, "released", "once", kind="end")

    picture.arrow((140, 78), (248, 78))
    picture.words(194, 70, "register()", "code")
    picture.arrow((380, 66), (538, 66))
    picture.words(459, 58, "deliver(...)", "code")
    picture.arrow((540, 92), (382, 92))
    picture.words(459, 110, "on_ready returns")
    picture.arrow((315, 106), (315, 198))
    picture.words(282, 156, "close()", "code")
    picture.arrow((570, 106), (382, 205))
    picture.words(508, 166, "close(), and", "code left")
    picture.words(508, 184, "on_ready returns", "small left")
    picture.arrow((380, 236), (538, 236))
    picture.words(459, 228, "REMOVE")
    picture.arrow((650, 106), (650, 198), faint=True)
    picture.words(660, 142, "it cannot be", "small left")
    picture.words(660, 158, "re-armed, and no", "small left")
    picture.words(660, 174, "notice will come", "small left")
    picture.arrow((85, 106), (85, 300), (480, 330), (596, 258), faint=True)
    picture.words(142, 156, "close()", "code")
    return picture


def layers() -> Picture:
    """Drawn from the imports: what stands in a row imports nothing of its own row, and nothing above."""
    turn = {name: name.rpartition(".")[2] for name in imports.modules() if name.startswith("notifyloop.turn.")}
    beside = {f"notifyloop.{name}": name for name in ("loop", "connections", "tls", "sendfile", "selector")}
    systems = {f"notifyloop.{name}": "unix/ or windows/" for name in ("unix", "windows")}
    levels = imports.levels(imports.together(imports.graph(), turn | beside | systems | {"notifyloop.port": "port/"}))
    rows = [sorted(name for name in levels if levels[name] == level) for level in range(max(levels.values()) + 1)]
    picture = Picture(
        "layers",
        780,
        64 * len(rows) + 150,
        "From the program down: the face of the loop, what stands beside its turn, the turn, the port, the kernel",
    )
    picture.box(150, 18, 480, 46, "your program, aiohttp, uvicorn, Tornado ...")
    for number, names in enumerate(reversed(rows)):
        y = 82 + 64 * number
        picture.arrow((390, y - 18), (390, y - 2))
        width = min(150, (740 - 10 * len(names)) / len(names))
        left = 390 - ((width + 10) * len(names) - 10) / 2
        for place, name in enumerate(names):
            kind = "mine" if name in turn.values() else "end" if name == "port/" else "box"
            picture.box(left + (width + 10) * place, y, width, 46, name, kind=kind)
    y = 82 + 64 * len(rows)
    picture.arrow((390, y - 18), (390, y - 2))
    picture.box(150, y, 480, 46, "the kernel: epoll, or Windows' socket state notifications")
    picture.words(16, y - 80, "blue: turn/", "small left")
    return picture


PICTURES = (registration, one_shot, owned_socket, layers)

if __name__ == "__main__":
    for make in PICTURES:
        picture = make()
        picture.path.write_text(picture.text(), encoding="utf-8")
        print(picture.path)
