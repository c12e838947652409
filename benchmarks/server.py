"""`python -m benchmarks.server LOOP API`: one server in a process of its own.

Prints its port. A line on standard input is answered by the processor time used so far, in seconds, as a
line of JSON; the end of standard input ends the process, so that no server outlives who started it. A thread
does that, outside the loop: loops differ in what they can watch, and none of it is part of the measurement.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
import threading

from benchmarks import loops
from benchmarks.echo_servers import BACKLOG, SERVERS

HELLO = "Hello, world!\n"


async def serve_hello(listener: socket.socket) -> object:
    """The smallest aiohttp application."""
    from aiohttp import web  # noqa: PLC0415 - no other server needs it

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=HELLO)

    application = web.Application()
    application.router.add_get("/", hello)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
    return runner


def answer_questions() -> None:
    for _ in sys.stdin:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({"user": usage.ru_utime, "system": usage.ru_stime}), flush=True)
    os._exit(0)


async def serve(api: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.setblocking(False)
    port = listener.getsockname()[1]
    start = serve_hello if api == "aiohttp" else SERVERS[api]
    kept = await start(listener)
    print(port, flush=True)
    await asyncio.get_running_loop().create_future()
    del kept  # not before


def main(loop: str, api: str) -> None:
    threading.Thread(target=answer_questions, daemon=True).start()
    with asyncio.Runner(loop_factory=loops.factory(loop)) as runner:
        runner.run(serve(api))


if __name__ == "__main__":
    main(*sys.argv[1:])
