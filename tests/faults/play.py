"""A scene is played while one call of the system fails: each of its calls once, in turn, with each errno.

    LD_PRELOAD=failing.so play.py failing.so FACTORY SCENE CALLS

FACTORY is MODULE:NAME; CALLS is JSON: names, with numbers. What was found is printed, as JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from asyncio import constants
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenes import SCENES, Stage, tcp

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = 3.0  # seconds


def watched(loop: Any) -> int:
    gc.collect()
    return len(loop._selector.get_map())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those behind it."""
    while error is not None:
        yield error
        for other in getattr(error, "exceptions", ()):
            yield from chain(other)
        error = error.__cause__ or error.__context__


def errnos(error: BaseException) -> set[int]:
    return {one.errno for one in chain(error) if isinstance(one, OSError) and one.errno is not None}


class Theatre:
    def __init__(self, library: str, loop: Any, folder: Path) -> None:
        self.folder = folder
        self.failing = ctypes.CDLL(library)
        self.loop = loop
        self.complaints: list[str] = []
        sys.unraisablehook = lambda what: self.complaints.append(f"unraisable: {what.exc_value!r} in {what.object!r}")
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: self.complaints.append(f"{type(message).__name__}: {message}")  # type: ignore[assignment]

    def play(self, scene: Any, call: str = "", number: int = 0, after: int = -1) -> Stage:
        stage = Stage(self.loop, self.folder)

        async def bounded() -> None:
            try:
                async with asyncio.timeout(LONGEST):
                    await scene(stage)
            except TimeoutError as error:
                if error.errno is None:
                    self.complaints.append("it hung")
                else:
                    stage.tell(error)
            except Exception as error:
                stage.tell(error)

        self.failing.fail(call.encode(), number, after)
        try:
            self.loop.run_until_complete(bounded())
            self.settle()
        except BaseException as error:
            stage.tell(error)
        stage.failed = self.failing.failed()
        self.failing.fail(b"", 0, -1)
        for error in stage.told:
            for one in chain(error):
                one.__traceback__ = None  # it has frames, and they have what they should not keep
        stage.actors.clear()
        stage.close()
        self.settle()
        return stage

    def settle(self) -> None:
        """Let what was begun end."""

        async def turns() -> None:
            for _ in range(10):
                await asyncio.sleep(0)
            others = asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]
            if others:
                _, left = await asyncio.wait(others, timeout=2)
                self.complaints.extend(f"a task is left: {task.get_coro()}" for task in left)
                for task in left:
                    task.cancel()
            for _ in range(10):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        gc.collect()


def main(folder: Path) -> None:
    library, factory, name, calls = sys.argv[1:]
    module, _, maker = factory.partition(":")
    loop = getattr(importlib.import_module(module), maker)()
    asyncio.set_event_loop(loop)
    constants.ACCEPT_RETRY_DELAY = 0.01  # type: ignore[misc]
    subprocess._USE_VFORK = False  # type: ignore[attr-defined]  # which cannot be made to fail from outside
    theatre = Theatre(library, loop, folder)
    scene = SCENES[name]
    for one in (scene, scene, tcp):
        stage = theatre.play(one)
        assert (stage.told, theatre.complaints) == ([], [])
    gc.freeze()  # what is there already need not be looked through each time
    found = []
    for call, numbers in json.loads(calls).items():
        for number in numbers:
            after = 0
            while True:
                before = descriptors(), watched(loop)
                stage = theatre.play(scene, call, number, after)
                failed = stage.failed
                told = {n for error in stage.told for n in errnos(error)}
                if (descriptors(), watched(loop)) != before:
                    theatre.complaints.append(f"descriptors, watched: {before} -> {(descriptors(), watched(loop))}")
                if failed:
                    again = theatre.play(tcp)
                    if again.told:
                        theatre.complaints.append(f"does not work any more: {again.told}")
                found.append(
                    (
                        call,
                        errno.errorcode[number],
                        after,
                        number in told,
                        [*map(repr, stage.told)],
                        theatre.complaints[:],
                    )
                )
                theatre.complaints.clear()
                if not failed:
                    if stage.told:
                        raise AssertionError(f"told of nothing: {stage.told}")
                    found.pop()
                    break
                after += 1
    print(json.dumps(found))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
