"""One turn of a loop: ask the port, then call what is ready.

A turn is asyncio's: it asks the port for notifications, in the same foreign call that re-arms what it handled last;
queues, behind what is ready already, the readers and writers that they are for, and the timers that are due; and calls
all these. What they make ready is the next turn's. So `await asyncio.sleep(0)` lets I/O in, as programs expect. Only
where nothing at all is watched is there nobody to ask.

Where somebody has replaced `asyncio.Handle._run`, the selector's `select` or the loop's `_process_events`, and in debug
mode, a turn is asyncio's own, which uses them.
"""

from __future__ import annotations

import asyncio
from asyncio.base_events import BaseEventLoop
from asyncio.events import Handle as AnyHandle
from math import ulp
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

from notifyloop.turn import primitives
from notifyloop.turn.handles import MOST_SPARE, NO_ARGUMENTS, Handle, LockedHandle, report
from notifyloop.turn.interests import ASLEEP, AWAKE
from notifyloop.turn.stream import StreamTransport, receive

if TYPE_CHECKING:
    from collections.abc import Iterable
    from selectors import SelectorKey
    from typing import Any

    from notifyloop.turn.interest import Interest
    from notifyloop.turn.state import Turn
    from notifyloop.turn.surface import Loop

__all__ = ["process_events", "run_once"]


def run_of_handles() -> Any:
    """asyncio's own `Handle._run`, or None if a monitor has put another in its place before this was imported."""
    run, others = AnyHandle._run, AnyHandle.cancel
    file = getattr(run, "__code__", None) and run.__code__.co_filename
    return run if file == others.__code__.co_filename else None


RUN_OF_HANDLES = run_of_handles()


def run_once(loop: Loop) -> None:
    """One turn."""
    turn = loop._turn
    turn.iterations += 1
    if (
        turn.checked
        or not primitives.has_method(AnyHandle, "_run", RUN_OF_HANDLES)
        or "select" in turn.selectors
        or "_process_events" in turn.own
    ):
        run_once_as_asyncio(loop)
        return
    interests, timers, ready = turn.interests, turn.timers, turn.ready
    if not ready or interests.by_descriptor or interests.foreign:
        # First say that we sleep, then look whether there is work: another thread appends its work first,
        # then looks whether we sleep. Without an interpreter lock both might see what was before, for neither the
        # attribute nor the deque's length orders the other. Its lock does, which append() takes: to add nothing
        # takes it, too. Either the work was appended before, and is seen, or after, and so is that we sleep.
        interests.sleeping = ASLEEP
        if primitives.FREE_THREADED:
            ready.extend(())
        if ready or loop._stopping:
            timeout = 0
        elif timers.scheduled:
            timeout = timers.until_next(loop.time())
        else:
            timeout = -1
        words = interests.dequeue(timeout)
        interests.sleeping = AWAKE
        places, append = interests.places, ready.append
        for word in words:
            try:
                interest = places[word]
            except IndexError:  # there is more to tell than that something can be received
                queue(turn, interests.ready((word,)))
                continue
            reader = interest.reader
            if reader is not None:
                append(reader)
            else:
                interests.unwanted(interest, EVENT_READ)
    if timers.scheduled:
        timers.move_due(loop.time(), ready)
    run_ready(turn)


def run_once_as_asyncio(loop: Any) -> None:
    turn = loop._turn
    turn.timers.resolution = max(turn.timers.resolution, ulp(loop.time()))  # as `Timers` has it
    if primitives.FREE_THREADED:
        turn.ready.extend(())  # as above: the selector has said that it sleeps, if it ever did
    BaseEventLoop._run_once(loop)  # type: ignore[attr-defined]


def queue(turn: Turn, reported: Iterable[tuple[Interest, int]]) -> None:
    for interest, mask in reported:
        for event in (EVENT_READ, EVENT_WRITE):
            if mask & event:
                handle = interest.handle_for(event)
                if handle is not None:
                    turn.ready.append(handle)
                else:
                    turn.interests.unwanted(interest, event)


def run_ready(turn: Turn) -> None:
    """Call what is ready now; what becomes ready meanwhile is for the next turn."""
    ready = turn.ready
    if turn.pops_from is not ready:  # the first time, or somebody has put another in its place
        turn.pops_from, turn.pop = ready, ready.popleft
    pop = turn.pop
    # If a callback begins debug mode, those of before.
    spare, spare_for_threads = turn.spare, turn.spare_for_threads
    # Counting first, instead of swapping the queue, keeps this safe against threads that append.
    count = len(ready)
    turn.callbacks += count
    handle: Any
    known: Any
    transport: Any
    callback: Any
    args: Any
    taken: Any = None  # from the queue, and not called yet: an interrupt may come at any point
    try:
        for _ in range(count):
            if not ready:  # a callback has run a turn of its own
                break
            handle = taken = ready[0]
            pop()
            kind: Any = type(handle)
            if kind is StreamTransport:  # what most messages are for: so it is asked without looking for a method
                taken = None
                transport = handle
                handle = None
                if not transport._cancelled:
                    receive(transport)
                continue
            if kind is not Handle:
                taken = None
                if not handle._cancelled:
                    handle._run()
                    if kind is LockedHandle and primitives.getrefcount(handle) == primitives.UNSHARED:
                        let_rest(handle, spare_for_threads)
                continue
            known = handle
            handle = None
            callback, args = known._callback, known._args  # first, see Handle.cancel()
            taken = None
            if known._cancelled:
                continue
            # As Handle._run(), without the price of a call, and of passing on a tuple.
            try:
                if args is NO_ARGUMENTS:
                    primitives.call_in_alone(known._context, callback)
                elif len(args) == 1:
                    primitives.call_in(known._context, callback, args[0])
                else:
                    primitives.call_in_all(known._context, callback, args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                report(known, error)
            if (
                primitives.getrefcount(known) == primitives.UNSHARED
                and known.__weakref__ is None
                and not known._cancelled
            ):
                known._callback = known._args = known._context = None
                spare.append(known)
    except BaseException:
        if taken is not None and not (ready and ready[0] is taken):
            ready.appendleft(taken)
        raise
    finally:
        taken = handle = known = transport = callback = args = None  # an exception may keep this frame
        if count > MOST_SPARE:
            del spare[MOST_SPARE:], spare_for_threads[MOST_SPARE:]


def let_rest(handle: Any, spare: list[Any]) -> None:
    """One that has run, for threads, if nobody has a weak reference to it. That nobody else has it, who calls this has
    found: what an argument counts for is another thing in each form.
    """
    if handle.__weakref__ is None and not handle._cancelled:
        handle._callback = handle._args = handle._context = None
        spare.append(handle)


def run_standing(target: Any) -> None:
    """For what stands in an interest and is no handle, where a handle is needed."""
    if not target._cancelled:
        target._run()


def process_events(loop: Any, event_list: Iterable[tuple[SelectorKey, int]]) -> None:
    """asyncio's turn asks for this, with what `select` has returned. Whoever watches a turn expects handles."""
    for key, mask in event_list:
        for event, target in zip((EVENT_READ, EVENT_WRITE), key.data, strict=True):
            if mask & event and target is not None and not target._cancelled:
                handle = target
                if not isinstance(target, asyncio.Handle):
                    handle = asyncio.Handle(run_standing, (target,), loop)
                loop._turn.ready.append(handle)
