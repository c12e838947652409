"""``python -m notifyloop``: the command line."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import notifyloop

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` (by default the process's own) name, and return its exit status.

    0 is success, 1 a command that failed, 2 a command that cannot run as it was given, 130 an interrupt.
    """
    parser = argparse.ArgumentParser(prog="python -m notifyloop", description="An asyncio loop on one completion port.")
    parser.add_argument("--version", action="version", version=f"notifyloop {notifyloop.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    serve = commands.add_parser(
        "serve",
        help="start the demo server",
        description="Start an aiohttp application on notifyloop, with a live page of what the loop does.",
    )
    serve.add_argument("--host", default="127.0.0.1", help="name or address to listen on (default: %(default)s)")
    serve.add_argument(
        "--port",
        type=_port,
        default=8080,
        help="port to listen on, 0 for any free one (default: %(default)s)",
    )
    serve.set_defaults(run=_serve)

    doctor = commands.add_parser(
        "doctor",
        help="tell what a bug report should say, and test the port and the loop",
        description="Print what a bug report should say, and try every operation of the port and of the loop. "
        "The exit status is 1 if one failed.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)

    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 0 to 65535 is")
    return port


def _serve(options: argparse.Namespace) -> int:
    try:
        # Not at the top: aiohttp is optional, and only this command needs it.
        from notifyloop.demo.server import ListenError, serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        return _fail("serve", 'the demo needs aiohttp, which is not installed: pip install "notifyloop[demo]"', 2)
    try:
        notifyloop.run(serve(options.host, options.port))
    except ListenError as error:
        return _fail("serve", str(error), 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _doctor(options: argparse.Namespace) -> int:
    # Not at the top: a server needs nothing of it.
    from notifyloop.doctor import diagnose  # noqa: PLC0415

    try:
        return diagnose(as_json=options.json)
    except KeyboardInterrupt:
        return 130


def _fail(command: str, message: str, status: int) -> int:
    print(f"python -m notifyloop {command}: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
