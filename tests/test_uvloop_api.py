"""What uvloop offers, we offer: asked of the uvloop that is installed."""

from __future__ import annotations

import inspect
import sys

import pytest

import notifyloop

uvloop = pytest.importorskip("uvloop")
SEEN = "0.23.0"  # the newest that we know: what others offer is theirs
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Policy.*:DeprecationWarning"),  # from Python 3.14 on
    pytest.mark.peer("uvloop", when=uvloop.__version__ != SEEN),
]

Parameter = inspect.Parameter

# Of uvloop's package, no program's business.
INTERNAL = {"includes", "loop"}

METHODS = sorted(name for name in dir(uvloop.Loop) if not name.startswith("_") and callable(getattr(uvloop.Loop, name)))

# Keywords that uvloop takes where the asyncio of some Python version does not, and we do as asyncio.
NOT_TAKEN = {
    "create_task": {"eager_start"},  # Python 3.11 has no eager tasks: uvloop takes it there, and does nothing
    "create_datagram_endpoint": {"reuse_address"},  # asyncio took it away, for it let programs steal each other's ports
}


def keywords(function: object) -> set[str]:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return {parameter.name for parameter in parameters if parameter.kind == Parameter.KEYWORD_ONLY}


def takes_any_keyword(function: object) -> bool:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return any(parameter.kind == Parameter.VAR_KEYWORD for parameter in parameters)


def positions(function: object) -> int:
    """How many positional arguments it takes; very many for *args."""
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    if any(parameter.kind == Parameter.VAR_POSITIONAL for parameter in parameters):
        return 1000
    return sum(
        parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )


class TestPackage:
    def test_names(self) -> None:
        public = {name for name in dir(uvloop) if not name.startswith("_")} | set(uvloop.__all__) | {"__version__"}
        assert public - INTERNAL <= set(notifyloop.__all__)

    def test_every_name_is_there(self) -> None:
        for name in notifyloop.__all__:
            assert getattr(notifyloop, name) is not None

    def test_the_loop_has_both_names(self) -> None:
        assert notifyloop.Loop is notifyloop.NotifyLoop
        assert isinstance(notifyloop.__version__, str)

    @pytest.mark.parametrize("name", ["run", "new_event_loop", "install"])
    def test_functions_are_called_alike(self, name: str) -> None:
        def shape(function: object) -> list[tuple[str, object]]:
            return [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]  # type: ignore[arg-type]

        assert shape(getattr(notifyloop, name)) == shape(getattr(uvloop, name))

    def test_defaults_of_run(self) -> None:
        parameters = inspect.signature(notifyloop.run).parameters
        assert parameters["loop_factory"].default is notifyloop.new_event_loop
        assert parameters["debug"].default is None

    @pytest.mark.skipif(sys.version_info >= (3, 16), reason="Python 3.16 has no event loop policies")
    def test_policies_have_the_same_methods(self) -> None:
        public = {name for name in dir(uvloop.EventLoopPolicy) if not name.startswith("_")}
        assert public <= set(dir(notifyloop.EventLoopPolicy))


class TestLoop:
    def test_there_is_something_to_compare(self) -> None:
        assert len(METHODS) > 50

    @pytest.mark.parametrize("name", METHODS)
    def test_method(self, name: str) -> None:
        theirs, ours = getattr(uvloop.Loop, name), getattr(notifyloop.Loop, name)
        assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)
        if not takes_any_keyword(ours):
            assert keywords(theirs) - keywords(ours) <= NOT_TAKEN.get(name, set())
        assert positions(ours) >= positions(theirs)

    def test_attributes(self, notify_loop: notifyloop.NotifyLoop) -> None:
        """Those that are not methods."""
        loop = uvloop.new_event_loop()
        attributes = {name for name in dir(uvloop.Loop) if not name.startswith("_") and hasattr(loop, name)}
        loop.close()
        assert {name for name in attributes if not hasattr(notify_loop, name)} == set()


class TestWhatUvloopDoesNotHave:
    """As the documentation says: when one of these fails, uvloop has caught up, and the page is to be changed."""

    @pytest.mark.parametrize(
        "name", ["sock_recvfrom", "sock_recvfrom_into", "sock_sendto", "sock_sendfile", "sendfile"]
    )
    def test_methods(self, name: str) -> None:
        loop = uvloop.new_event_loop()
        arguments = [None] * (positions(getattr(uvloop.Loop, name)) - 1)
        with pytest.raises(NotImplementedError):
            loop.run_until_complete(getattr(loop, name)(*arguments))
        loop.close()

    def test_keywords(self) -> None:
        more = {
            name: keywords(getattr(notifyloop.Loop, name)) - keywords(getattr(uvloop.Loop, name))
            for name in ("create_connection", "create_server")
        }
        assert more["create_connection"] >= {"happy_eyeballs_delay", "interleave"}
        assert ("all_errors" in more["create_connection"]) == (sys.version_info >= (3, 12))
        assert more["create_server"] == ({"keep_alive"} if sys.version_info >= (3, 13) else set())
