"""Calls into the system, counted: for Windows on x86-64, and for every loop in the same way.

A program calls the system through tables of addresses. Each of its modules has one for the functions that it
imports, and what it looks up while it runs, as cffi and libuv do, comes from `GetProcAddress`. `count` puts, in
the place of each address of a function of the system, the address of two instructions of our own: one adds to a
number, the other jumps to the function. Neither the program nor the system sees a difference, and what the
system's own modules call among themselves is not counted: one call into the system is one call, whatever becomes
of it there.

Sources: "PE Format" and "GetProcAddress function (libloaderapi.h)" of Microsoft's reference.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections import Counter
from ctypes import wintypes
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING

assert sys.platform == "win32"

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEM = {"kernel32.dll", "kernelbase.dll", "ntdll.dll", "ws2_32.dll", "mswsock.dll"}

# One page or more of instructions, and at a fixed distance behind them what they refer to.
INSTRUCTIONS = struct.Struct("<4si2si2x")  # lock inc qword [rip + ...]; jmp qword [rip + ...]
DATA = struct.Struct("<QQ")  # the number, and where to jump
MOST = 4096  # functions
DISTANCE = MOST * INSTRUCTIONS.size

MEM_COMMIT_RESERVE = 0x3000
PAGE_READWRITE = 0x04
PAGE_EXECUTE_READWRITE = 0x40
DIRECTORY_EXPORTS, DIRECTORY_IMPORTS = 0, 1
ORDINAL = 1 << 63
LARGEST_ORDINAL = 0xFFFF

kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
kernel32.VirtualAlloc.restype = ctypes.c_void_p
kernel32.VirtualAlloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t, wintypes.DWORD, wintypes.DWORD]
kernel32.VirtualProtect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, wintypes.DWORD, ctypes.POINTER(wintypes.DWORD)]
kernel32.GetModuleHandleW.restype = ctypes.c_void_p
kernel32.GetModuleHandleW.argtypes = [wintypes.LPCWSTR]
kernel32.GetModuleFileNameW.argtypes = [ctypes.c_void_p, wintypes.LPWSTR, wintypes.DWORD]
kernel32.GetCurrentProcess.restype = ctypes.c_void_p
kernel32.K32EnumProcessModules.argtypes = [
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    wintypes.DWORD,
    ctypes.POINTER(wintypes.DWORD),
]
LookUp = ctypes.WINFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
look_up = LookUp(("GetProcAddress", kernel32))


def path_of(module: int) -> PureWindowsPath:
    path = ctypes.create_unicode_buffer(1024)
    kernel32.GetModuleFileNameW(module, path, len(path))
    return PureWindowsPath(path.value.lower())


def loaded_modules() -> list[int]:
    modules, size = (ctypes.c_void_p * 1024)(), wintypes.DWORD()
    kernel32.K32EnumProcessModules(kernel32.GetCurrentProcess(), modules, ctypes.sizeof(modules), ctypes.byref(size))
    return [module for module in modules[: size.value // ctypes.sizeof(ctypes.c_void_p)] if module]


def number(address: int, layout: str = "<I") -> int:
    return struct.unpack(layout, ctypes.string_at(address, struct.calcsize(layout)))[0]


def directory(module: int, index: int) -> int:
    """The address of one of the tables that the head of a module lists, 0 if it has none."""
    offset = number(module + number(module + 0x3C) + 24 + 112 + 8 * index)
    return module + offset if offset else 0


def exported_names(module: int) -> dict[int, str]:
    """The names of a module's functions by their ordinals, as which Winsock's are imported."""
    table = directory(module, DIRECTORY_EXPORTS)
    base, count = number(table + 16), number(table + 24)
    names, ordinals = module + number(table + 32), module + number(table + 36)
    return {
        base + number(ordinals + 2 * index, "<H"): ctypes.string_at(module + number(names + 4 * index)).decode()
        for index in range(count)
    }


def imports(module: int) -> Iterator[tuple[str, str, int]]:
    """Library, function, and the place of its address, of all that a module imports from the system."""
    descriptor = directory(module, DIRECTORY_IMPORTS)
    while descriptor and (library_at := number(descriptor + 12)):
        library = ctypes.string_at(module + library_at).decode().lower()
        if library in SYSTEM or library.startswith("api-ms-win-core-"):
            names = module + (number(descriptor) or number(descriptor + 16))
            places = module + number(descriptor + 16)
            ordinals: dict[int, str] = {}
            while name_at := number(names, "<Q"):
                if not name_at & ORDINAL:
                    name = ctypes.string_at(module + name_at + 2).decode()
                else:
                    ordinals = ordinals or exported_names(kernel32.GetModuleHandleW(library))
                    name = ordinals[name_at & LARGEST_ORDINAL]
                yield library, name, places
                names, places = names + 8, places + 8
        descriptor += 20


class Counters:
    """The instructions that count, and their numbers."""

    def __init__(self) -> None:
        self.memory = kernel32.VirtualAlloc(
            None, DISTANCE + MOST * DATA.size, MEM_COMMIT_RESERVE, PAGE_EXECUTE_READWRITE
        )
        if not self.memory:
            raise ctypes.WinError(ctypes.get_last_error())
        self.indexes: dict[int, int] = {}  # by the function's address
        self.names: list[str] = []

    def counting(self, name: str, function: int) -> int:
        """The address of what counts a call, and then calls this function."""
        if self.memory <= function < self.memory + DISTANCE:
            return function
        index = self.indexes.get(function)
        if index is None:
            index = self.indexes[function] = len(self.names)
            if index == MOST:
                raise RuntimeError(f"more than {MOST} functions of the system")
            self.names.append(name)
            # Distances count from the end of each instruction, 8 and 14 bytes from the beginning.
            code = INSTRUCTIONS.pack(b"\xf0\x48\xff\x05", DISTANCE - 8, b"\xff\x25", DISTANCE + 8 - 14)
            ctypes.memmove(self.memory + index * INSTRUCTIONS.size, code, len(code))
            ctypes.memmove(self.memory + DISTANCE + index * DATA.size, DATA.pack(0, function), DATA.size)
        return self.memory + index * INSTRUCTIONS.size

    def count(self) -> None:
        """Count the calls of all modules that are loaded, but the system's own."""
        windows = PureWindowsPath(os.environ["SYSTEMROOT"].lower())
        for module in loaded_modules():
            path = path_of(module)
            if path.is_relative_to(windows) or path == STAND_IN:
                continue
            for library, name, place in imports(module):
                function = number(place, "<Q")
                if library in SYSTEM and name == "GetProcAddress":
                    replace(place, LOOK_UP_ADDRESS)
                else:
                    replace(place, self.counting(name, function))

    def calls(self) -> Counter[str]:
        """What was called since, and how often."""
        size = len(self.names) * DATA.size
        numbers = [calls for calls, _ in DATA.iter_unpack(ctypes.string_at(self.memory + DISTANCE, size))]
        calls: Counter[str] = Counter()
        for name, each in zip(self.names, numbers, strict=True):
            calls[name] += each
        return +calls


def replace(place: int, address: int) -> None:
    before = wintypes.DWORD()
    if not kernel32.VirtualProtect(place, 8, PAGE_READWRITE, ctypes.byref(before)):
        raise ctypes.WinError(ctypes.get_last_error())
    ctypes.memmove(place, struct.pack("<Q", address), 8)
    kernel32.VirtualProtect(place, 8, before.value, ctypes.byref(before))


# The stand-in for a function of the system counts as the system.
STAND_IN = PureWindowsPath(os.environ.get("NOTIFYLOOP_WINSOCK_DLL", "").lower())
counters = Counters()


@LookUp
def counting_look_up(module: int, name_at: int) -> int | None:
    function = look_up(module, name_at)
    if not function or name_at <= LARGEST_ORDINAL:
        return function
    path = path_of(module)
    if path.name in SYSTEM or path == STAND_IN:
        return counters.counting(ctypes.string_at(name_at).decode(), function)
    return function


LOOK_UP_ADDRESS = ctypes.cast(counting_look_up, ctypes.c_void_p).value
