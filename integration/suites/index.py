"""What a suite takes from the package index: sources that hold its tests, and an environment of its own for what
they need. Both are at pinned versions, and stay in a folder that git ignores.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

WORK = Path(__file__).parent / "work"
ROOT = Path(__file__).parents[2]


class UnavailableError(Exception):
    """The package index could not be reached, or does not have it."""


def pip(python: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, check=False).returncode:
        raise UnavailableError(f"pip could not {' '.join(arguments)}")


def sources(name: str, version: str) -> Path:
    """Download and unpack a source distribution, once, without building it. Returns its folder."""
    folder = WORK / f"{name}-{version}"
    if not folder.is_dir():
        WORK.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=WORK) as where:
            pip(sys.executable, "download", "--no-deps", "--no-binary", name, "--dest", where, f"{name}=={version}")
            with tarfile.open(next(Path(where).glob("*.tar.gz"))) as archive:
                archive.extractall(where, filter="data")
            Path(where, folder.name).rename(folder)
    return folder


def alone(source: Path, *names: str) -> Path:
    """A copy of these files and folders of a source distribution: beside its tests, a package's sources would hide
    the one that is installed.
    """
    folder = source.with_name(f"{source.name}-tests")
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=WORK) as where:
            made = Path(where, folder.name)
            made.mkdir()
            for name in names:
                copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
                copy(source / name, made / name)
            made.rename(folder)
    return folder


def environment(name: str, *requirements: str) -> Path:
    """Make a virtual environment with this interpreter, once for each version of it. Returns its folder.

    Our package and this one can be imported there, and the processes that tests start get the loop by `inherit`.
    """
    folder = WORK / f"{name}-{sys.implementation.cache_tag}"
    made_from = folder / "made-from"
    if not made_from.is_file() or made_from.read_text() != "\n".join(requirements):
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        pip(interpreter(folder), "install", *requirements)
        packages = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
        Path(packages, "suite.pth").write_text(f"{ROOT}\nimport integration.suites.inherit\n")
        made_from.write_text("\n".join(requirements))
    return folder


def interpreter(folder: Path) -> str:
    scripts = sysconfig.get_path("scripts", "venv", {"base": str(folder), "platbase": str(folder)})
    return str(Path(scripts, "python"))
