"""Signal handlers of a loop whose process forks."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

if sys.platform == "win32":
    pytest.skip("Windows does not fork", allow_module_level=True)

PREAMBLE = """
import asyncio, os, signal, sys, time

def kill_early():
    if early:
        os.kill(os.getpid(), signal.SIGTERM)

early = []
os.register_at_fork(after_in_child=kill_early)

import notifyloop

def fork(work, send=None):
    child = os.fork()
    if not child:
        signal.alarm(60)
        code = 99
        try:
            code = work() or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    if send:
        os.kill(child, send)
    return child

def how_it_ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

heard = []
loop = notifyloop.new_event_loop()
"""


def run(program: str) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PREAMBLE + textwrap.dedent(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_child_of_multiprocessing_can_be_terminated() -> None:
    """asyncio's handler is there, and does nothing; on Python 3.11 its parent's loop hears of the child's signals."""
    run("""
        import multiprocessing

        def work(connection):
            connection.send("ready")
            time.sleep(1000)

        async def main():
            loop.add_signal_handler(signal.SIGTERM, heard.append, "SIGTERM")
            context = multiprocessing.get_context("fork")
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs,))
            process.start()
            ours.recv()
            process.terminate()
            await asyncio.to_thread(process.join)
            assert process.exitcode == -signal.SIGTERM
            await asyncio.sleep(0.01)
            assert heard == []
            os.kill(os.getpid(), signal.SIGTERM)
            while not heard:
                await asyncio.sleep(0.001)

        loop.run_until_complete(main())
    """)


def test_a_signal_that_comes_while_the_child_is_made_is_the_child_s() -> None:
    run("""
        async def main():
            loop.add_signal_handler(signal.SIGTERM, heard.append, "SIGTERM")
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            early.append(True)
            child = fork(lambda: 0)
            early.clear()
            assert how_it_ended(child) == -signal.SIGTERM
            await asyncio.sleep(0.01)
            assert heard == []
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
            child = fork(lambda: int(signal.pthread_sigmask(signal.SIG_BLOCK, ()) != mask))
            assert how_it_ended(child) == 0

        loop.run_until_complete(main())
    """)


def test_in_a_child_signals_do_what_they_do_by_default() -> None:
    run("""
        def look():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert signal.getsignal(signal.SIGUSR1) is own
            assert signal.set_wakeup_fd(-1) == -1

        def own(number, frame):
            heard.append("own")

        loop.add_signal_handler(signal.SIGTERM, heard.append, "SIGTERM")
        loop.add_signal_handler(signal.SIGINT, heard.append, "SIGINT")
        loop.add_signal_handler(signal.SIGUSR1, heard.append, "SIGUSR1")
        signal.signal(signal.SIGUSR1, own)
        assert how_it_ended(fork(look)) == 0
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)
    """)


def test_in_a_child_of_another_thread() -> None:
    """Which is the child's main thread."""
    run("""
        import threading

        loop.add_signal_handler(signal.SIGTERM, heard.append, "SIGTERM")
        ends = []

        def work():
            ends.append(how_it_ended(fork(lambda: time.sleep(1000), signal.SIGTERM)))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert ends == [-signal.SIGTERM]
        loop.run_until_complete(asyncio.sleep(0.01))
        assert heard == []
    """)


def test_another_s_wake_up_descriptor_stays() -> None:
    """Unless asyncio takes it away, which it does in every child since Python 3.12."""
    run("""
        loop.add_signal_handler(signal.SIGTERM, heard.append, "SIGTERM")
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)

        def look():
            assert signal.set_wakeup_fd(-1) == (writing if sys.version_info < (3, 12) else -1)

        assert how_it_ended(fork(look)) == 0
        assert signal.set_wakeup_fd(-1) == writing
    """)


def test_a_loop_that_the_child_runs_hears_again() -> None:
    """A program that becomes a daemon after it has made its loop. asyncio's handlers are deaf there."""
    run("""
        async def main():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
            while not {"SIGTERM", "own"} <= set(heard):
                await asyncio.sleep(0.001)
            loop.add_signal_handler(signal.SIGUSR2, heard.append, "SIGUSR2")
            os.kill(os.getpid(), signal.SIGUSR2)
            while "SIGUSR2" not in heard:
                await asyncio.sleep(0.001)
            assert loop.remove_signal_handler(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

        def daemon():
            signal.signal(signal.SIGUSR1, lambda number, frame: heard.append("own"))
            loop.run_until_complete(main())
            loop.close()

        def daemon_of_a_daemon():
            return how_it_ended(fork(daemon))

        loop.add_signal_handler(signal.SIGTERM, heard.append, "SIGTERM")
        loop.add_signal_handler(signal.SIGUSR1, heard.append, "SIGUSR1")
        child = fork(daemon)
        assert how_it_ended(child) == 0
        assert how_it_ended(fork(daemon_of_a_daemon)) == 0

        async def parent():
            assert heard == []
            os.kill(os.getpid(), signal.SIGTERM)
            while not heard:
                await asyncio.sleep(0.001)
            assert heard == ["SIGTERM"]

        loop.run_until_complete(parent())
    """)


def test_a_handler_that_the_child_adds_before_it_runs_the_loop() -> None:
    run("""
        async def main():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                os.kill(os.getpid(), number)
            while len(heard) < 2:
                await asyncio.sleep(0.001)

        def daemon():
            loop.add_signal_handler(signal.SIGUSR1, heard.append, "SIGUSR1")
            loop.run_until_complete(main())

        loop.add_signal_handler(signal.SIGTERM, heard.append, "SIGTERM")
        assert how_it_ended(fork(daemon)) == 0
        assert heard == []
    """)
