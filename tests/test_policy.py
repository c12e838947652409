from __future__ import annotations

import asyncio
import subprocess
import sys
import warnings

import pytest

import notifyloop

policies = pytest.mark.skipif(sys.version_info >= (3, 16), reason="Python 3.16 has no event loop policies")


@pytest.fixture
def restore_policy():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(None)


@policies
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestPolicy:
    def test_it_makes_our_loops(self, restore_policy) -> None:
        asyncio.set_event_loop_policy(notifyloop.EventLoopPolicy())
        loop = asyncio.new_event_loop()
        assert type(loop) is notifyloop.NotifyLoop
        loop.close()

    def test_install(self, restore_policy) -> None:
        notifyloop.install()

        async def loop_type() -> type:
            return type(asyncio.get_running_loop())

        assert asyncio.run(loop_type()) is notifyloop.NotifyLoop

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="before, asyncio.run() could not be given a loop factory")
    def test_install_says_what_to_do_instead(self, restore_policy) -> None:
        with pytest.warns(DeprecationWarning, match=r"in favor of notifyloop\.run") as warned:
            notifyloop.install()
        assert warned[0].filename == __file__

    def test_subprocesses_work_under_the_policy(self, restore_policy) -> None:
        notifyloop.install()

        async def main() -> bytes:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "print('child')", stdout=subprocess.PIPE
            )
            output, _ = await process.communicate()
            return output

        assert asyncio.run(main()).strip() == b"child"


def test_importing_meets_no_policy_and_no_warning() -> None:
    code = (
        "import sys, asyncio, notifyloop; notifyloop.new_event_loop().close(); "
        "assert 'notifyloop.policy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        notifyloop.no_such_name  # noqa: B018
