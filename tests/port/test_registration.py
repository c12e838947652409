"""Registrations as values: what they accept, what they pack, what their errors say. No port is needed here."""

from __future__ import annotations

import errno
import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from notifyloop.port import Event, Notification, Operation, Registration, Trigger
from notifyloop.port.abi import REGISTRATION
from notifyloop.port.provider import provider
from notifyloop.port.registration import REGISTERED, descriptor_of, next_generation, registration_error

if TYPE_CHECKING:
    from conftest import Pair


def test_defaults_are_the_recommended_pattern(pair: Pair) -> None:
    registration = Registration(pair[0])
    assert registration.socket == pair[0].fileno()
    assert registration.key is None
    assert registration.events is Event.IN
    assert registration.trigger is Trigger.LEVEL | Trigger.ONESHOT
    assert registration.operation is Operation.ENABLE
    assert registration.result == 0
    registration.check()


def test_a_socket_or_its_descriptor(pair: Pair) -> None:
    assert descriptor_of(pair[0]) == descriptor_of(pair[0].fileno()) == pair[0].fileno()


@pytest.mark.parametrize("invalid", [-1, 2**64, "7", None, object(), 1.0])
def test_what_has_no_descriptor_is_a_value_error(invalid: object) -> None:
    with pytest.raises(ValueError, match="Invalid file"):
        Registration(invalid)


def test_a_closed_socket_is_a_value_error(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
        Registration(pair[0])


def test_packs_the_structure_of_the_operating_system() -> None:
    registration = Registration(7, "key", Event.IN | Event.OUT, Trigger.EDGE | Trigger.PERSISTENT, Operation.DISABLE)
    assert REGISTRATION.unpack(registration.pack()) == (7, registration.generation, 3, 2, 10, 0)


def test_every_registration_has_a_generation_of_its_own() -> None:
    with ThreadPoolExecutor(8) as threads:
        generations = [
            generation
            for some in threads.map(lambda _: [next_generation() for _ in range(2000)], range(8))
            for generation in some
        ]
    assert len(set(generations)) == len(generations)
    assert all(generation & REGISTERED and generation < 2 * REGISTERED for generation in generations)


def test_a_finalizer_may_make_a_registration_while_one_is_made() -> None:
    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            made.append(Registration(1).generation)

    made: list[int] = []
    threshold = gc.get_threshold()
    trace = sys.gettrace()

    def collect(frame: object, event: str, argument: object) -> object:
        if len(made) < 50:
            Garbage()
            gc.collect(0)
        return collect

    gc.set_threshold(0)
    sys.settrace(collect)
    try:
        generations = [next_generation() for _ in range(5)]
    finally:
        sys.settrace(trace)
        gc.set_threshold(*threshold)
    assert made
    assert len({*generations, *made}) == len(generations) + len(made)


def test_an_error_names_the_operation_and_the_descriptor() -> None:
    registration = Registration(7, operation=Operation.REMOVE)
    registration.result = 1168 if sys.platform == "win32" else errno.ENOENT
    with pytest.raises(FileNotFoundError, match="cannot REMOVE the registration of descriptor 7") as caught:
        registration.check()
    assert caught.value.errno == errno.ENOENT


def test_an_error_of_the_raw_call_reads_the_same() -> None:
    error = registration_error(1, 9, 1)
    number, meaning = provider.describe(1)
    assert error.errno == number
    assert str(error) == f"[Errno {number}] {meaning}: cannot ENABLE the registration of descriptor 9"


@pytest.mark.only("linux", reason="only there a result is an errno")
def test_the_meaning_of_a_result_on_linux() -> None:
    assert provider.describe(errno.EPERM) == (errno.EPERM, "Operation not permitted")
    assert type(registration_error(errno.EPERM, 9, 1)) is PermissionError


@pytest.mark.only("windows", reason="only there a result is an error code of Windows")
@pytest.mark.parametrize(
    ("result", "number"),
    [
        (8, errno.ENOMEM),
        (50, errno.ENOTSUP),
        (87, errno.EINVAL),
        (183, errno.EEXIST),
        (1168, errno.ENOENT),
        (10038, errno.ENOTSOCK),
    ],
)
def test_the_meaning_of_a_result_on_windows(result: int, number: int) -> None:
    found, meaning = provider.describe(result)
    assert found == number
    assert meaning.endswith(f"(Windows error {result})")


def test_repr_tells_what_was_ordered() -> None:
    registration = Registration(7, "key")
    assert "socket=7" in repr(registration)
    assert "key='key'" in repr(registration)
    assert "ENABLE" in repr(registration)
    assert "result" not in repr(registration)
    registration.result = 5
    assert "result=5" in repr(registration)


def test_a_notification_is_a_tuple(pair: Pair) -> None:
    registration = Registration(pair[0], "key")
    key, events, owner, value, overlapped = Notification("key", Event.IN, registration, 1, 0)
    assert (key, events, owner, value, overlapped) == ("key", Event.IN, registration, 1, 0)
