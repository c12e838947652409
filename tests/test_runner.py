from __future__ import annotations

import asyncio

import pytest

import notifyloop


async def loop_type() -> type:
    return type(asyncio.get_running_loop())


def test_run_returns_the_result_of_a_coroutine_on_our_loop() -> None:
    assert notifyloop.run(loop_type()) is notifyloop.NotifyLoop


def test_run_takes_any_awaitable() -> None:
    class Awaitable:
        def __await__(self):
            return loop_type().__await__()

    assert notifyloop.run(Awaitable()) is notifyloop.NotifyLoop


def test_run_takes_a_factory_of_derived_loops_and_debug() -> None:
    class Derived(notifyloop.NotifyLoop):
        pass

    async def main() -> tuple[type, bool]:
        loop = asyncio.get_running_loop()
        return type(loop), loop.get_debug()

    assert notifyloop.run(main(), loop_factory=Derived, debug=True) == (Derived, True)


def test_run_refuses_other_loops() -> None:
    made: list[asyncio.AbstractEventLoop] = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(asyncio.SelectorEventLoop())
        return made[-1]

    with pytest.raises(TypeError, match="uses a non-notifyloop event loop"):
        notifyloop.run(loop_type(), loop_factory=factory)
    assert made[0].is_closed()


def test_run_inside_a_running_loop() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            notifyloop.run(loop_type())

    notifyloop.run(main())


def test_run_refuses_what_cannot_be_awaited() -> None:
    with pytest.raises(TypeError, match="an awaitable is required"):
        notifyloop.run(1)  # type: ignore[arg-type]


def test_exceptions_come_out() -> None:
    async def main() -> None:
        raise LookupError("from main")

    with pytest.raises(LookupError, match="from main"):
        notifyloop.run(main())


def test_runner_and_factory() -> None:
    with asyncio.Runner(loop_factory=notifyloop.new_event_loop) as runner:
        assert runner.run(loop_type()) is notifyloop.NotifyLoop
