"""The declarations against winsock2.h and ioapiset.h on 64-bit systems, and Python's packing against the compiler's."""

from __future__ import annotations

import runpy
import subprocess
import sys
from struct import calcsize

import pytest

from notifyloop.port import Event, Operation, Trigger, abi
from notifyloop.port.provider import provider

ffi = provider.ffi
lib = provider.lib

sixty_four_bits = pytest.mark.skipif(calcsize("P") != 8, reason="the layout of 64-bit systems")

REGISTRATION_OFFSETS = {
    "socket": 0,
    "completionKey": 8,
    "eventFilter": 16,
    "operation": 18,
    "triggerFlags": 19,
    "registrationResult": 20,
}
ENTRY_OFFSETS = {"lpCompletionKey": 0, "lpOverlapped": 8, "Internal": 16, "dwNumberOfBytesTransferred": 24}


@sixty_four_bits
@pytest.mark.parametrize(
    ("structure", "size", "offsets"),
    [("SOCK_NOTIFY_REGISTRATION", 24, REGISTRATION_OFFSETS), ("OVERLAPPED_ENTRY", 32, ENTRY_OFFSETS)],
)
def test_layout_is_that_of_the_windows_headers(structure: str, size: int, offsets: dict[str, int]) -> None:
    assert ffi.sizeof(structure) == size
    assert {name: ffi.offsetof(structure, name) for name, _ in ffi.typeof(structure).fields} == offsets


def test_python_packs_as_the_compiler_does() -> None:
    packed = abi.REGISTRATION.pack(11, 22, 0x0102, 3, 4, 55)
    [registration] = ffi.from_buffer("SOCK_NOTIFY_REGISTRATION[]", packed)
    assert len(packed) == ffi.sizeof("SOCK_NOTIFY_REGISTRATION")
    assert registration.socket == 11
    assert int(ffi.cast("uintptr_t", registration.completionKey)) == 22
    assert registration.eventFilter == 0x0102
    assert (registration.operation, registration.triggerFlags, registration.registrationResult) == (3, 4, 55)


def test_python_unpacks_what_the_compiler_packed() -> None:
    entries = ffi.new("OVERLAPPED_ENTRY[2]", [(1, ffi.cast("PVOID", 2), 3, 4), (5, ffi.cast("PVOID", 6), 7, 8)])
    assert list(abi.FULL_ENTRY.iter_unpack(ffi.buffer(entries))) == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert list(abi.ENTRY.iter_unpack(ffi.buffer(entries))) == [(1, 4), (5, 8)]


@pytest.mark.parametrize(
    ("enumeration", "values"),
    [
        (Event, {"NONE": 0, "IN": 1, "OUT": 2, "HANGUP": 4, "ERR": 0x40, "REMOVE": 0x80}),
        (Operation, {"NONE": 0, "ENABLE": 1, "DISABLE": 2, "REMOVE": 4}),
        (Trigger, {"ONESHOT": 1, "PERSISTENT": 2, "LEVEL": 4, "EDGE": 8}),
    ],
)
def test_values_are_those_of_the_windows_headers(enumeration: type, values: dict[str, int]) -> None:
    assert {name: int(member) for name, member in enumeration.__members__.items()} == values


def test_masks_of_all_flags() -> None:
    assert lib.SOCK_NOTIFY_REGISTER_EVENTS_ALL == Event.IN | Event.OUT | Event.HANGUP == 0x07
    assert lib.SOCK_NOTIFY_EVENTS_ALL == 0xC7
    assert lib.SOCK_NOTIFY_TRIGGER_ALL == 0x0F


def test_run_as_a_program_it_prints_a_c_header() -> None:
    printed = subprocess.run([sys.executable, abi.__file__], capture_output=True, text=True, check=True).stdout
    assert printed == f"#include <stdint.h>\n{abi.DECLARATIONS}\n"


def test_reading_the_declarations_does_not_import_the_package() -> None:
    assert runpy.run_path(abi.__file__)["DECLARATIONS"] == abi.DECLARATIONS
