"""Writes `layouts.h`: the structures that `layouts.pxd` speaks of, and what the compiled modules are made from.

Where the slots lie, the classes themselves are asked. Their modules are run for it, alone: a build must not import the
package that it builds.
"""

from __future__ import annotations

import ctypes
import platform
import re
import runpy
from importlib.util import source_hash
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import Any

__all__ = ["header"]

WORD = ctypes.sizeof(ctypes.c_void_p)

CLASS = re.compile(r" {4}ctypedef class ([\w.]+)\.(\w+)(?:\((\w+)\))? \[object (\w+), check_size error\]:")
SLOTS = re.compile(r" {8}cdef object (\w+(?:, \w+)*)")
NOTHING = re.compile(r'|cdef extern from "layouts.h":| +pass')


class Layout(NamedTuple):
    """What `layouts.pxd` says of a class."""

    module: str
    name: str
    base: str | None  # the structure that its own begins with
    structure: str
    slots: list[str]  # without the base's


def declarations(text: str) -> list[Layout]:
    """What a text in the form of `layouts.pxd` says. Raises ValueError for a line that it would not have."""
    layouts: list[Layout] = []
    for line in text.splitlines():
        code = line.partition("#")[0].rstrip()
        if found := CLASS.fullmatch(code):
            module, name, base, structure = found.groups()
            structures = {layout.name: layout.structure for layout in layouts}
            layouts.append(Layout(module, name, structures[base] if base else None, structure, []))
        elif found := SLOTS.fullmatch(code):
            layouts[-1].slots.extend(found[1].split(", "))
        elif not NOTHING.fullmatch(code):
            raise ValueError(f"layouts.pxd does not say where slots are in this form: {line}")
    return layouts


def offsets(kind: type, slots: list[str]) -> dict[str, int]:
    """Where slots lie in the objects of a class: in which place there is what was put into them."""
    instance: object = object.__new__(kind)
    words = (ctypes.c_void_p * (kind.__basicsize__ // WORD)).from_address(id(instance))
    found = {}
    for name in slots:
        mark = object()
        setattr(instance, name, mark)
        found[name] = WORD * list(words).index(id(mark))
    return found


def header(pxd: Path, sources: Iterable[Path]) -> str:
    """The text of `layouts.h` for a `layouts.pxd`, where compiled modules are made from `sources`."""
    modules: dict[str, dict[str, Any]] = {}
    sizes: dict[str | None, int] = {None: object.__basicsize__}
    classes: dict[tuple[str, str], tuple[int, dict[str, int]]] = {}
    structures = []
    for module, name, base, structure, slots in declarations(pxd.read_text()):
        if module not in modules:
            path = pxd.with_name(f"{module.rpartition('.')[2]}.py")
            modules[module] = runpy.run_path(str(path), run_name=module)
        kind = modules[module][name]
        size = sizes[structure] = kind.__basicsize__
        found = offsets(kind, slots)
        classes[module, name] = size, found
        names = {offset: name for name, offset in found.items()}
        fields = ["PyObject_HEAD" if base is None else f"{base} __pyx_base;"]  # Cython's name for it
        fields += [f"PyObject *{names.get(offset, f'at_{offset}')};" for offset in range(sizes[base], size, WORD)]
        structures.append(f"typedef struct {{ {' '.join(fields)} }} {structure};")
    told = {
        "PYTHON": platform.python_version(),
        "SOURCES": {f"{path.parent.name}/{path.name}": source_hash(path.read_bytes()).hex() for path in sources},
        "CLASSES": classes,
    }
    literals = [f'"{name} = {value!r}\\n"' for name, value in told.items()]
    return "\n".join(["#pragma once", *structures, f"#define TOLD {' '.join(literals)}", ""])
