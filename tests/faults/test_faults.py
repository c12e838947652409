"""Each call of the system that the loop's Python makes fails once, in each way that its manual page names: see play.py.

Whoever asked is told: by an exception, his protocol, or the exception handler. Nothing is left behind, and the loop
works afterwards. asyncio's loop plays the same scenes, without a fault, and with: what it leaves behind is its own.
"""

from __future__ import annotations

import json
import shutil
import sys
from errno import (
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EAFNOSUPPORT,
    EAGAIN,
    EBADF,
    ECHILD,
    ECONNABORTED,
    ECONNREFUSED,
    ECONNRESET,
    EDESTADDRREQ,
    EDOM,
    EDQUOT,
    EFBIG,
    EHOSTDOWN,
    EHOSTUNREACH,
    EINTR,
    EINVAL,
    EIO,
    EISDIR,
    EMFILE,
    EMSGSIZE,
    ENETDOWN,
    ENETUNREACH,
    ENFILE,
    ENOBUFS,
    ENODEV,
    ENOMEM,
    ENOPROTOOPT,
    ENOSPC,
    ENOSYS,
    ENOTCONN,
    ENOTSOCK,
    ENOTTY,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    EPIPE,
    EPROTO,
    EPROTONOSUPPORT,
    EPROTOTYPE,
    ESPIPE,
    ETIMEDOUT,
    errorcode,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Preloaded

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="what is made to fail are calls of Linux"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler (cc) is here to build what makes calls fail"),
]

HERE = Path(__file__).parent
ENONET = 64  # which only Linux has

SOCKETS = {
    "socket": [EACCES, EAFNOSUPPORT, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPROTONOSUPPORT],
    "bind": [EACCES, EADDRINUSE, EADDRNOTAVAIL, EBADF, EINVAL, ENOMEM, ENOTSOCK],
    "listen": [EADDRINUSE, EBADF, ENOTSOCK, EOPNOTSUPP],
    "connect": [
        *(EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, EBADF, ECONNREFUSED, ENETUNREACH, ENOTSOCK),
        *(EPERM, EPROTOTYPE, ETIMEDOUT),
    ],
    "accept4": [
        *(EAGAIN, ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, EINTR, EINVAL, EMFILE, ENETDOWN, ENETUNREACH, ENFILE, ENOBUFS),
        *(ENOMEM, ENONET, ENOPROTOOPT, EOPNOTSUPP, EPERM, EPROTO, ETIMEDOUT),
    ],
    "getsockname": [EBADF, EINVAL, ENOBUFS, ENOTSOCK],
    "getpeername": [EBADF, EINVAL, ENOBUFS, ENOTCONN, ENOTSOCK],
    "getsockopt": [EBADF, EINVAL, ENOPROTOOPT, ENOTSOCK],
    "setsockopt": [EBADF, EDOM, EINVAL, ENOMEM, ENOPROTOOPT, ENOTSOCK],
    "shutdown": [EBADF, EINVAL, ENOTSOCK],
    "send": [
        *(EACCES, EAGAIN, EBADF, ECONNRESET, EINTR, EINVAL, EMSGSIZE, ENOBUFS, ENOMEM, ENOTCONN, ENOTSOCK, EPIPE),
    ],
    "sendmsg": [EAGAIN, EBADF, ECONNRESET, EINTR, EINVAL, EMSGSIZE, ENOBUFS, ENOMEM, ENOTCONN, EPIPE],
    "sendto": [EACCES, EAGAIN, EBADF, EDESTADDRREQ, EINTR, EINVAL, EMSGSIZE, ENETUNREACH, ENOBUFS, ENOMEM, EPERM],
    "recv": [
        *(EAGAIN, EBADF, ECONNREFUSED, ECONNRESET, EHOSTUNREACH, EINTR, EINVAL, ENOMEM, ENOTCONN, ENOTSOCK, ETIMEDOUT),
    ],
    "recvfrom": [EAGAIN, EBADF, ECONNREFUSED, EINTR, EINVAL, ENOMEM, ENOTSOCK],
    "close": [EBADF, EDQUOT, EINTR, EIO, ENOSPC],
}
FILES = {
    "read": [EAGAIN, EBADF, EINTR, EINVAL, EIO, EISDIR],
    "write": [EAGAIN, EBADF, EFBIG, EINTR, EINVAL, EIO, ENOSPC, EPERM, EPIPE],
    "close": SOCKETS["close"],
    "fstat": [EBADF, EIO, ENOMEM, EOVERFLOW],
    "fcntl": [EACCES, EAGAIN, EBADF, EINVAL, EMFILE, EPERM],
    "ioctl": [EBADF, EINVAL, ENOTTY],
}
PROCESSES = {
    "socketpair": [EAFNOSUPPORT, EMFILE, ENFILE, ENOMEM, EOPNOTSUPP, EPROTONOSUPPORT],
    "pipe2": [EINVAL, EMFILE, ENFILE],
    "fork": [EAGAIN, ENOMEM, ENOSYS],
    "pidfd_open": [EINVAL, EMFILE, ENFILE, ENODEV, ENOMEM],
    "pidfd_send_signal": [EBADF, EINVAL, EPERM],
    "waitid": [ECHILD, EINTR, EINVAL],
    "send": SOCKETS["send"],
}
SCENES: dict[str, dict[str, list[int]]] = {
    "tcp": SOCKETS,
    "buffered": {"recv": SOCKETS["recv"]},
    "tls": {"setsockopt": [EINVAL], "send": [EAGAIN, EPIPE], "recv": [EAGAIN, ECONNRESET], "close": [EIO]},
    "unix": {name: SOCKETS[name] for name in SOCKETS if name != "getsockname"},  # asyncio's own, to find what to remove
    "accepted": SOCKETS,
    "udp": SOCKETS,
    "sockets": {name: SOCKETS[name] for name in SOCKETS if name != "getsockname"},  # socket.accept() leaks then
    "datagram_sockets": SOCKETS,
    "files": {**SOCKETS, **FILES, "sendfile": [EAGAIN, EBADF, EINVAL, EIO, ENOMEM, EOVERFLOW, ESPIPE]},
    "pipes": FILES,
    "child": PROCESSES,
    "signals": {name: PROCESSES[name] for name in ("socketpair",)} | {name: SOCKETS[name] for name in ("recv",)},
}

# What nobody needs to be told of, for it is tried again, or is of no consequence.
AGAIN = {EAGAIN, EINTR}
GONE = {
    *(ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, EPROTO, ETIMEDOUT),
}
HARMLESS: dict[str, set[int]] = {
    **dict.fromkeys(("send", "sendmsg", "sendto", "recv", "recvfrom", "read", "write"), AGAIN),
    "waitid": {ECHILD, EINTR, EINVAL},  # its exit status cannot be had, which is logged
    "accept4": AGAIN | GONE,  # a connection that came to nothing: the next is accepted
    "getpeername": set(SOCKETS["getpeername"]),  # then the peer's name is None
    "getsockname": set(SOCKETS["getsockname"]),  # likewise
    "sendfile": {EAGAIN, EBADF, EINVAL, EIO, ENOMEM, EOVERFLOW, ESPIPE},  # then the file is read and sent
    "fstat": {EBADF, EIO, ENOMEM, EOVERFLOW},  # likewise
}


@pytest.fixture(scope="module")
def library(preload: Callable[[Path], Preloaded]) -> Preloaded:
    return preload(HERE / "failing.c")


def play(library: Preloaded, factory: str, scene: str, calls: dict[str, list[int]]) -> list[Any]:
    output = library.run(HERE / "play.py", library.path, factory, scene, json.dumps(calls))
    found: list[Any] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.parametrize("scene", SCENES)
def test_whoever_asked_is_told_and_nothing_is_left(library: Preloaded, scene: str) -> None:
    found = play(library, "notifyloop:NotifyLoop", scene, SCENES[scene])
    faults = []
    for call, name, after, errnos_match, told, complaints in found:
        harmless = any(errorcode.get(number) == name for number in HARMLESS.get(call, ()))
        if complaints or not (errnos_match or told or harmless):
            faults.append((call, name, after, told, complaints))
    print(f"{len(found)} calls have failed")
    assert faults == []
    assert len(found) > 10


@pytest.mark.parametrize("scene", ["tcp", "udp", "sockets"])
def test_asyncio_plays_the_same(library: Preloaded, scene: str) -> None:
    """And where it is told of an error, so is ours."""
    calls = {name: SCENES[scene][name] for name in ("bind", "listen", "recv", "recvfrom") if name in SCENES[scene]}
    theirs = play(library, "asyncio:SelectorEventLoop", scene, calls)
    ours = play(library, "notifyloop:NotifyLoop", scene, calls)

    def told(found: list[Any]) -> set[tuple[str, str]]:
        return {(call, name) for call, name, _, _, told, _ in found if told}

    assert told(theirs) <= told(ours)
    assert told(theirs)
