"""Python 3.16 has no event loop policies. Nothing of ours may need one, where nobody asks for ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# What asyncio does with policies until then, it does without: a loop is made by its class, the thread's is a variable.
WITHOUT = """
import asyncio, collections, sys, threading
from asyncio import events

system = sys.modules["asyncio.windows_events" if sys.platform == "win32" else "asyncio.unix_events"]
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] in ("asyncio", "_asyncio"):
        for attribute in [attribute for attribute in vars(module) if "olicy" in attribute]:
            delattr(module, attribute)
for module in (asyncio, system):
    if not hasattr(module, "EventLoop"):  # before Python 3.13
        module.EventLoop = module.ProactorEventLoop if sys.platform == "win32" else module.SelectorEventLoop
current = threading.local()

def new_event_loop():
    return system.EventLoop()

def set_event_loop(loop):
    current.loop = loop

def get_event_loop():
    loop = events._get_running_loop() or getattr(current, "loop", None)
    if loop is None:
        raise RuntimeError("There is no current event loop")
    return loop

for function in (new_event_loop, set_event_loop, get_event_loop):
    for module in (asyncio, events):
        setattr(module, function.__name__, function)
if not hasattr(events, "_ThreadSafeHandle"):  # since Python 3.14
    events._ThreadSafeHandle = type("_ThreadSafeHandle", (events.Handle,), {})
Version = collections.namedtuple("Version", "major minor micro releaselevel serial")
sys.version_info = Version(3, 16, 0, "final", 0)
"""

PROGRAM = """
async def main():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(6 * 7)", stdout=-1)
    output, _ = await process.communicate()
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    server.close()
    assert await asyncio.to_thread(lambda: 1) == 1
    return type(asyncio.get_running_loop()).__mro__, output.strip()
"""


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT + PROGRAM + code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


def test_what_is_taken_away_is_not_there() -> None:
    names = "[name for name in dir(asyncio) + dir(asyncio.events) if 'olicy' in name]"
    assert run(f"print({names}); assert not hasattr(asyncio, 'get_event_loop_policy')") == "[]"


def test_a_program_runs() -> None:
    code = "import notifyloop; loop, output = notifyloop.run(main()); print(notifyloop.NotifyLoop in loop, output)"
    assert run(code) == "True b'42'"


def test_asyncios_runner_runs_it() -> None:
    code = """
import notifyloop
with asyncio.Runner(loop_factory=notifyloop.new_event_loop) as runner:
    loop, output = runner.run(main())
print(notifyloop.NotifyLoop in loop, output)
"""
    assert run(code) == "True b'42'"


@pytest.mark.parametrize("name", ["EventLoopPolicy", "install"])
def test_ours_is_gone_too(name: str) -> None:
    code = f"""
import notifyloop
try:
    notifyloop.{name}
except AttributeError as error:
    print(error, {name!r} in notifyloop.__all__)
exec("from notifyloop import *")
"""
    assert run(code) == f"notifyloop has no {name}, for Python has no policies any more: use notifyloop.run() False"


def test_the_doctor_has_none_to_report() -> None:
    code = "from notifyloop.doctor import diagnose; assert diagnose(as_json=True) == 0"
    assert '"event_loop_policy": "none' in run(code)


@pytest.mark.parametrize("suite", ["cpython", "aiohttp", "tornado", "uvloop"])
def test_a_suite_is_prepared(suite: str) -> None:
    """Then asyncio's own way to run a program runs it on our loop; uvloop's tests have it in uvloop's place."""
    if suite == "tornado":
        pytest.importorskip("tornado")
    if suite == "cpython":
        pytest.importorskip("test.support")
    made = "sys.modules['uvloop'].run(main())" if suite == "uvloop" else "asyncio.run(main())"
    code = f"""
import importlib
importlib.import_module("integration.suites.{suite}").prepare("notifyloop:NotifyLoop")
import notifyloop
loop, output = {made}
print(notifyloop.NotifyLoop in loop, output)
"""
    assert run(code) == "True b'42'"
