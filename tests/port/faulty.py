"""The port is driven through all that it does, while one call of the system fails: each of its calls once, in turn.

    LD_PRELOAD=faulty.so faulty.py faulty.so CALL ERRNO

Whatever fails is told to whoever asked for it, and then he tries again; or it is tried again unasked, or does no harm.
Either way everything arrives that must, and no descriptor is lost. The last line says how many calls have failed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from notifyloop.port import CompletionPort, Event, Registration, Trigger

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from notifyloop.port import Notification

PERSISTENT = Trigger.LEVEL | Trigger.PERSISTENT
told: list[BaseException] = []


def attempt(step: Callable[[], Any]) -> Any:
    """What fails once works the second time; no more than one call fails."""
    try:
        return step()
    except (OSError, MemoryError) as error:
        told.append(error)
        return step()


def assert_told_of(number: int) -> None:
    for error in told:
        assert isinstance(error, MemoryError) or error.errno == number, error


def until_dequeued(port: CompletionPort, *expected: object) -> None:
    """These keys are dequeued, however often it takes."""
    missing = set(expected)
    while missing:
        missing -= {notification.key for notification in attempt(lambda: port.process(timeout=10))}


def pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    return stack.enter_context(ours), stack.enter_context(theirs)


def make_orphan(port: CompletionPort, stack: ExitStack) -> None:
    ours, theirs = pair(stack)
    registration = Registration(ours, "orphan", trigger=PERSISTENT)
    attempt(lambda: port.enable(registration))
    stack.enter_context(ours.dup())
    ours.close()
    for _ in range(2):  # the first may fail for another reason
        with suppress(OSError, MemoryError):
            port.remove(registration)
    theirs.send(b"x")


def drive(stack: ExitStack) -> None:
    port: CompletionPort = attempt(CompletionPort)
    stack.callback(port.close)

    # Level-triggered, reported, withheld, and enabled again.
    ours, theirs = pair(stack)
    registration = Registration(ours, "ours")
    attempt(lambda: port.enable(registration))
    theirs.send(b"x")
    until_dequeued(port, "ours")
    for _ in range(3):
        attempt(port.process)
    attempt(lambda: port.enable(registration))
    until_dequeued(port, "ours")

    # A high descriptor, and one that is reported as hung up until it is connected, and then for ever.
    high = stack.enter_context(socket.socket(fileno=os.dup2(ours.fileno(), 300)))
    attempt(lambda: port.enable(Registration(high, "high")))
    until_dequeued(port, "high")
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    fresh = stack.enter_context(socket.socket())
    persistent = Registration(fresh, "fresh", Event.OUT, PERSISTENT)
    attempt(lambda: port.enable(persistent))
    for _ in range(3):
        attempt(port.process)
    fresh.connect(listener.getsockname())
    for _ in range(5):
        until_dequeued(port, "fresh")
    attempt(lambda: port.disable(persistent))

    # Packets, more than there is room for.
    for key in range(40):
        attempt(lambda key=key: port.post(key))
    until_dequeued(port, *range(40))

    # An orphan, found by one thread, and by one that is not alone.
    rebuilds = port.counters().rebuilds
    make_orphan(port, stack)
    while port.counters().rebuilds == rebuilds:
        attempt(port.process)

    def wait() -> None:
        woken: list[Notification] = []
        while not any(packet.key == 99 for packet in woken):
            woken.extend(attempt(lambda: port.process(timeout=10, max_notifications=1)))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    waits = port.counters().waits
    for thread in threads:
        thread.start()
    while port.counters().waits < waits + 2:
        pass
    rebuilds = port.counters().rebuilds
    make_orphan(port, stack)
    while port.counters().rebuilds == rebuilds:
        attempt(port.process)
    attempt(lambda: port.enable(registration))  # for a thread that waits in the set that was made
    for _ in threads:
        attempt(lambda: port.post(99))
    for thread in threads:
        thread.join()

    # The last notification, in a child and here.
    attempt(lambda: port.enable(registration))
    attempt(lambda: port.remove(registration))
    child = os.fork()
    if not child:
        signal.alarm(60)
        told.clear()
        try:
            descriptors = len(os.listdir("/proc/self/fd"))
            until_dequeued(port, "ours")
            assert len(os.listdir("/proc/self/fd")) == descriptors
            assert_told_of(number)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
        os._exit(10 if faulty.failed() else 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 10), status
    child_failed.append(status == 10)
    until_dequeued(port, "ours")

    # Threads that wait while the port is closed.
    def wait_for_the_end() -> None:
        while True:
            try:
                attempt(lambda: port.process(timeout=None))
            except ValueError:
                return

    threads = [threading.Thread(target=wait_for_the_end) for _ in range(3)]
    waits = port.counters().waits
    for thread in threads:
        thread.start()
    while port.counters().waits < waits + 3:
        pass
    port.close()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    library, call, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    signal.alarm(100)
    faulty = ctypes.CDLL(library)
    drive_once = ExitStack()
    child_failed: list[bool] = []
    with drive_once:
        drive(drive_once)
    before = len(os.listdir("/proc/self/fd"))
    after = 0
    while True:
        told.clear()
        child_failed.clear()
        faulty.fail(call.encode(), number, after)
        with ExitStack() as stack:
            drive(stack)
        assert len(os.listdir("/proc/self/fd")) == before
        if not faulty.failed() and not any(child_failed):
            break
        faulty.fail(b"", 0, -1)
        assert_told_of(number)
        after += 1
    print(after, call, errno.errorcode[number])
