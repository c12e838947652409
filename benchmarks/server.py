"""`python -m benchmarks.server LOOP API`: one server in a process of its own.

Prints its port. A line on standard input is answered by the processor time used so far, in seconds, as a
line of JSON; the end of standard input ends the process, so that no server outlives who started it. A thread
does that, outside the loop: loops differ in what they can watch, and none of it is part of the measurement.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from benchmarks import loops
from benchmarks.echo_servers import BACKLOG, SERVERS, serve_datagrams
from benchmarks.hello import serve_hello

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.platform == "win32":

    def processor_time() -> dict[str, Any]:
        times = os.times()
        return {"user": times.user, "system": times.system}

else:
    import resource

    def processor_time() -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {"user": usage.ru_utime, "system": usage.ru_stime}


def answer_questions(answer: Callable[[], dict[str, Any]]) -> None:
    for _ in sys.stdin:
        print(json.dumps(answer()), flush=True)
    os._exit(0)


async def serve(api: str) -> None:
    if api == "datagrams":
        listener = socket.socket(type=socket.SOCK_DGRAM)
        listener.bind(("127.0.0.1", 0))
    else:
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.setblocking(False)
    port = listener.getsockname()[1]
    start = {**SERVERS, "aiohttp": serve_hello, "datagrams": serve_datagrams}[api]
    kept = await start(listener)
    print(port, flush=True)
    await asyncio.get_running_loop().create_future()
    del kept  # not before


def main(
    factory: Callable[[], asyncio.AbstractEventLoop],
    api: str,
    answer: Callable[[], dict[str, Any]] = processor_time,
) -> None:
    threading.Thread(target=answer_questions, args=[answer], daemon=True).start()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(api))


if __name__ == "__main__":
    loop, api = sys.argv[1:]
    main(loops.factory(loop), api)
