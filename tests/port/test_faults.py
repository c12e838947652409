"""Each call of the system that the C core makes fails once, in each way that its manual page names. See faulty.py."""

from __future__ import annotations

import shutil
from errno import (
    EACCES,
    EAGAIN,
    EBADF,
    EBUSY,
    EEXIST,
    EFAULT,
    EINTR,
    EINVAL,
    EIO,
    ELOOP,
    EMFILE,
    ENFILE,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    EPERM,
    errorcode,
)
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Preloaded

pytestmark = [
    pytest.mark.only("epoll", reason="what is made to fail are calls of Linux"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler (cc) is here to build what makes calls fail"),
]

HERE = Path(__file__).parent
QUIETLY = ("-W", "ignore::DeprecationWarning")

# What happens to epoll_ctl when a descriptor is closed behind the port's back is tested with such descriptors.
WAYS = {
    "epoll_create1": [EINVAL, EMFILE, ENFILE, ENOMEM],
    "eventfd": [EINVAL, EMFILE, ENFILE, ENODEV, ENOMEM],
    "epoll_ctl": [ENOMEM, ENOSPC],
    "epoll_wait": [EBADF, EFAULT, EINTR, EINVAL],
    "epoll_pwait2": [EBADF, EFAULT, EINTR, EINVAL, ENOSYS, EPERM],
    "dup3": [EBADF, EBUSY, EINTR, EINVAL, EMFILE],
    "fcntl": [EBADF],
    "write": [EAGAIN, EBADF, EINTR, EINVAL, EIO],
    "fopen": [EACCES, EMFILE, ENOENT, ENOMEM],
    "malloc": [ENOMEM],
    "calloc": [ENOMEM],
    "realloc": [ENOMEM],
}


@pytest.fixture(scope="module")
def library(preload: Callable[[Path], Preloaded]) -> Preloaded:
    return preload(HERE / "faulty.c")


@pytest.mark.parametrize(
    ("call", "number"),
    [
        pytest.param(call, number, id=f"{call}-{errorcode[number]}")
        for call, numbers in WAYS.items()
        for number in numbers
    ],
)
def test_whoever_asked_is_told_and_the_port_goes_on(library: Preloaded, call: str, number: int) -> None:
    failed, *_ = library.run(*QUIETLY, HERE / "faulty.py", library.path, call, number).split()
    assert int(failed) > 0


@pytest.mark.parametrize("number", [EBADF, EEXIST, EINVAL, ELOOP, ENOENT, ENOMEM, ENOSPC, EPERM])
def test_a_change_of_a_registration_tells_what_epoll_ctl_says(library: Preloaded, number: int) -> None:
    program = f"""
import ctypes, socket
from notifyloop.port import CompletionPort, Event, Registration, Operation
faulty = ctypes.CDLL({str(library.path)!r})
ADD, REMOVE, CHANGE = 1, 2, 3
passes = {number} in ({ENOMEM}, {ENOSPC})
with CompletionPort() as port, socket.socket(type=socket.SOCK_DGRAM) as sock:
    def fails(operation, change, registration):
        faulty.fail(b"epoll_ctl %d" % operation, {number}, 0)
        try:
            change(registration)
        except OSError as error:
            # A removal says that there is nothing to remove; and what is there already is nobody's, so it is changed.
            expected = [{number}] if passes or operation != REMOVE else [{ENOENT}]
            assert error.errno in expected + [{ENOENT}] * ({number} == {EEXIST}), error
            assert f"descriptor {{sock.fileno()}}" in str(error)
        else:
            raise AssertionError("nobody was told")
        assert faulty.failed()
    first = Registration(sock, "first", Event.IN)
    fails(ADD, port.enable, first)
    port.enable(first)
    first.events = Event.OUT
    fails(CHANGE, port.enable, first)
    if not passes:
        first = Registration(sock, "second", Event.OUT)
    port.enable(first)
    assert [notification.key for notification in port.process(timeout=10)] == [first.key]
    fails(REMOVE, port.remove, first)
    if passes:
        port.remove(first)
        assert [notification.events for notification in port.process(timeout=10)] == [Event.REMOVE]
    third = Registration(sock, "third", Event.OUT)
    port.enable(third)
    assert [notification.key for notification in port.process(timeout=10)] == ["third"]
"""
    library.run(*QUIETLY, "-c", program)
