"""The first command that somebody types: which interpreter it takes, and what it says where something is missing.

The machines are folders, with a PATH of their own and interpreters that lie about themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "sh", "cat", "env", "ls", "make", "mkdir", "rm", "sort", "touch")

if sys.platform == "win32" or shutil.which("make") is None:
    pytest.skip("there is no make here", allow_module_level=True)

# What a module that is imported at every start makes of an interpreter.
HEADERS = "import sysconfig; sysconfig.get_path = lambda _, get=sysconfig.get_path: {} if _ == 'include' else get(_)"
LIES = {"venv": "sys.modules['ensurepip'] = None", "dev": HEADERS.format("'/nowhere'")}


class Machine:
    """A folder with a home, and with a clone of the repository as far as make needs it, in a path with spaces."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.home = folder / "home"
        self.clone = folder / "my projects" / "notify loop"
        for made in (self.bin, self.home, self.clone):
            made.mkdir(parents=True)
        for tool in (*TOOLS, "cc"):
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.fail(f"there is no {tool} here"))
        for file in ("Makefile", "pyproject.toml", "setup.py"):
            shutil.copy(ROOT / file, self.clone)
        shutil.copytree(ROOT / ".ci", self.clone / ".ci")
        self.environment = {"PATH": str(self.bin), "HOME": str(self.home), "CC": "cc", "LC_ALL": "C.UTF-8"}

    def interpreter(self, name: str, *lies: str, where: Path | None = None) -> Path:
        """This one, by another name, and with lies of a version (of the form "3.9.2") or of what is missing."""
        path = (where or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        told = path.parent / f".{name}-told"
        told.mkdir()
        (told / "Python.h").touch()
        statements = ["import sys", f"sys.executable = {str(path)!r}", HEADERS.format(repr(str(told)))]
        for lie in lies:
            statements.append(LIES.get(lie) or f"sys.version_info = ({lie.replace('.', ',')}, 'final', 0)")
        (told / "sitecustomize.py").write_text("\n".join(statements))
        path.write_text(f'#!/bin/sh\nPYTHONPATH="{told}" exec "{sys.executable}" "$@"\n')
        path.chmod(0o755)
        return path

    def shim(self, name: str) -> None:
        """As pyenv has them for versions that are not chosen."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\necho 'pyenv: {name}: command not found' >&2\nexit 127\n")
        path.chmod(0o755)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.clone, env=self.environment, capture_output=True, text=True, timeout=100, check=False
        )

    def chosen(self, *arguments: str) -> str:
        result = self.run(".ci/find-python", *arguments)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.removesuffix("\n")

    def complaint(self, *arguments: str) -> str:
        """The one line, which make shows as well, and with which it ends: nothing is tried then."""
        result = self.run(".ci/find-python", *arguments)
        assert (result.returncode, result.stdout) == (1, "")
        said = result.stderr.splitlines()
        assert len(said) == 1, result.stderr
        made = self.run("make", "serve", *(f"PYTHON={argument}" for argument in arguments))
        lines = (made.stdout + made.stderr).splitlines()
        assert made.returncode == 2
        assert lines[0] == said[0]
        assert [line for line in lines[1:] if not line.startswith("make: ")] == []
        assert not (self.clone / ".venv").exists()
        return said[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_one_that_does_not_run_is_passed_over(machine: Machine) -> None:
    machine.shim("python3.13")
    machine.shim("python3")
    fallback = machine.interpreter("python3.12", "3.12.9")
    assert machine.chosen() == str(fallback)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14", "3.15"])
def test_where_python3_is_too_old_a_newer_one_is_taken(machine: Machine, version: str) -> None:
    machine.interpreter("python3", "3.9.2")
    newer = machine.interpreter(f"python{version}", f"{version}.0")
    assert machine.chosen() == str(newer)


def test_python3_will_do_alone(machine: Machine) -> None:
    only = machine.interpreter("python3", "3.14.1")
    assert machine.chosen() == str(only)


@pytest.mark.parametrize("lie", LIES)
def test_one_that_has_all_that_is_needed_is_preferred(machine: Machine, lie: str) -> None:
    machine.interpreter("python3.13", "3.13.5", lie)
    whole = machine.interpreter("python3.15", "3.15.2")
    assert machine.chosen() == str(whole)


def test_pyenv_has_some_that_are_not_on_the_path(machine: Machine) -> None:
    for version in ("3.10.13", "3.12.9", "3.12.10", "3.12.11t"):
        folder = machine.home / ".pyenv/versions" / version / "bin"
        machine.interpreter("python", version.removesuffix("t"), where=folder)
    machine.shim("python3.12")
    machine.interpreter("python3", "3.10.13")
    assert machine.chosen() == str(machine.home / ".pyenv/versions/3.12.10/bin/python")
    machine.environment["PYENV_ROOT"] = str(machine.home / "elsewhere")
    there = machine.interpreter("python", "3.11.2", where=machine.home / "elsewhere/versions/3.11.2/bin")
    assert machine.chosen() == str(there)


def test_a_second_one_of_a_name_is_found_behind_the_first(machine: Machine, tmp_path: Path) -> None:
    machine.shim("python3.13")
    behind = machine.interpreter("python3.13", "3.13.1", where=tmp_path / "second bin")
    machine.environment["PATH"] += f":{behind.parent}"
    assert machine.chosen() == str(behind)


def test_the_one_that_is_named_is_taken(machine: Machine, tmp_path: Path) -> None:
    machine.interpreter("python3.13", "3.13.5")
    named = machine.interpreter("python", "3.11.0", where=tmp_path / "a folder")
    assert machine.chosen(str(named)) == str(named)
    other = machine.interpreter("snake", "3.12.0")
    assert machine.chosen("snake") == str(other)


@pytest.mark.parametrize(
    ("installer", "lies", "names", "install"),
    [
        ("apt-get", ("venv",), ("venv",), "apt-get install python3.13-venv"),
        ("apt-get", ("dev",), ("Python.h",), "apt-get install python3.13-dev"),
        ("apt-get", ("venv", "dev"), ("venv", "Python.h"), "apt-get install python3.13-venv python3.13-dev"),
        ("dnf", ("dev",), ("Python.h",), "dnf install python3-devel"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    machine: Machine, installer: str, lies: tuple[str, ...], names: tuple[str, ...], install: str
) -> None:
    (machine.bin / installer).symlink_to("/bin/true")
    path = machine.interpreter("python3", "3.13.5", *lies)
    complaint = machine.complaint()
    assert str(path) in complaint
    assert all(name in complaint for name in names)
    assert complaint.endswith(install)


def test_a_missing_compiler_is_said_in_one_line(machine: Machine) -> None:
    (machine.bin / "apt-get").symlink_to("/bin/true")
    (machine.bin / "cc").unlink()
    machine.interpreter("python3", "3.13.5")
    complaint = machine.complaint()
    assert "C compiler (cc)" in complaint
    assert complaint.endswith("apt-get install gcc")


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda machine: None, "none was found"),
        (lambda machine: machine.shim("python3"), "none was found"),
        (lambda machine: machine.interpreter("python3", "3.9.2"), "3.9.2"),
    ],
)
def test_that_there_is_none_is_said_in_one_line(
    machine: Machine, prepare: Callable[[Machine], object], says: str
) -> None:
    prepare(machine)
    complaint = machine.complaint()
    assert "needs CPython 3.11 or newer" in complaint
    assert says in complaint


def test_one_that_is_named_and_will_not_do_is_not_exchanged(machine: Machine) -> None:
    machine.interpreter("python3.13", "3.13.5")
    machine.shim("snake")
    machine.interpreter("python3.8", "3.8.1")
    assert "snake does not run" in machine.complaint("snake")
    assert "3.8.1" in machine.complaint("python3.8")


@pytest.mark.parametrize("broken_off", ["before pip", "when the interpreter was gone"])
def test_a_virtual_environment_that_was_broken_off_is_made_again(machine: Machine, broken_off: str) -> None:
    venv = machine.clone / ".venv"
    if broken_off == "before pip":
        assert machine.run(sys.executable, "-m", "venv", "--without-pip", ".venv").returncode == 0
    else:
        (venv / "bin").mkdir(parents=True)
        (venv / "bin/python").symlink_to("/nowhere/python3.13")
        (venv / "bin/python3.13").symlink_to("/nowhere/python3.13")
        (venv / "bin/pip").touch()
        (venv / "pyvenv.cfg").touch()
    (venv / ".installed-demo").touch()
    result = machine.run("make", f"PYTHON={os.path.realpath(sys.executable)}", ".venv/bin/python", ".venv/bin/pip")
    assert result.returncode == 0, result.stdout + result.stderr
    assert machine.run(".venv/bin/python", "-m", "pip", "--version").returncode == 0
    assert not (venv / ".installed-demo").exists()
    again = machine.run("make", "PYTHON=/nowhere/python", ".venv/bin/python", ".venv/bin/pip")
    assert again.returncode == 0, again.stdout + again.stderr
