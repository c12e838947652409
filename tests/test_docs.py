"""The documentation tells the truth: its examples run and print what it says, its links lead somewhere.

In README.md, CONTRIBUTING.md and docs/*.md,

* a ```python block is a program, run as it stands. A ```text block right after it is what it prints.
* python blocks under one heading whose first line is a comment with a file name ("# app.py") are files that
  lie side by side: those named test_*.py are run by pytest, the others can be imported by the rest.
* a program that begins with "# on Linux" is for there, and for its provider.
* a program before which <!-- interrupt at: TEXT --> stands serves for ever: it is interrupted as soon as it
  has printed TEXT. So is the one command of a ```console block with such a comment; others are not run.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from notifyloop.port.provider import provider

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

BLOCK = re.compile(
    r"^(?:<!-- interrupt at: (?P<until>.+?) -->\n)?"
    r"^```(?P<language>python|console)\n(?P<code>.*?)^```\n"
    r"(?:\n*```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
FILE_NAME = re.compile(r"# (\w+\.py)\n")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)")

# Servers of the examples take any free port, whatever is in use here.
ENVIRONMENT = {
    **os.environ,
    "UVICORN_PORT": "0",
    "GUNICORN_CMD_ARGS": "--bind 127.0.0.1:0",
    "PYTHONUNBUFFERED": "1",
}


@dataclass
class Example:
    where: str
    language: str
    code: str
    output: str | None = None
    until: str | None = None
    files: dict[str, str] = field(default_factory=dict)  # the named blocks under the same heading

    @property
    def name(self) -> str | None:
        match = FILE_NAME.match(self.code)
        return match[1] if match else None

    @property
    def to_run(self) -> bool:
        if self.language == "console":
            return self.until is not None
        return self.name is None or self.name.startswith("test_")


def examples() -> list[Example]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        files: dict[str, str] = {}
        end = 0
        for match in BLOCK.finditer(text):
            if re.search(r"^#+ ", text[end : match.start()], re.MULTILINE):
                files = {}
            end = match.end()
            line = text.count("\n", 0, match.start("code"))
            where = f"{page.relative_to(ROOT)}:{line}"
            example = Example(where, match["language"], match["code"], match["output"], match["until"], files)
            if example.name is not None:
                files[example.name] = example.code
            found.append(example)
    return found


EXAMPLES = [example for example in examples() if example.to_run]


def require_modules(code: str, files: dict[str, str]) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            modules = [node.module]
        else:
            continue
        for module in modules:
            top = module.partition(".")[0]
            if f"{top}.py" not in files and importlib.util.find_spec(top) is None:
                pytest.skip(f"{top} is not installed")


def command_of(example: Example, folder: Path) -> list[str | Path]:
    since = re.search(r"^# Python (\d+)\.(\d+) and later$", example.code, re.MULTILINE)
    if since and sys.version_info < tuple(map(int, since.groups())):
        pytest.skip(f"the example is for Python {since[1]}.{since[2]} and later")
    if example.code.startswith("# on Linux\n") and provider.name != "epoll":
        pytest.skip("the example is for Linux")
    for name, code in example.files.items():
        (folder / name).write_text(code, encoding="utf-8")
        require_modules(code, example.files)
    if example.language == "console":
        [line] = example.code.splitlines()
        program, *arguments = shlex.split(line.removeprefix("$ "))
        beside = Path(sys.executable).parent / program
        if not beside.exists() and shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        return [beside if beside.exists() else program, *arguments]
    require_modules(example.code, example.files)
    if example.name is not None:
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", example.name]
    (folder / "example.py").write_text(example.code, encoding="utf-8")
    return [sys.executable, "example.py"]


@pytest.mark.parametrize("example", [pytest.param(example, id=example.where) for example in EXAMPLES])
def test_example(example: Example, tmp_path: Path) -> None:
    command = command_of(example, tmp_path)
    if example.until is None:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if example.output is not None:
            assert done.stdout == example.output
        return
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as server:
        assert server.stdout is not None
        printed = ""
        for line in server.stdout:
            printed += line
            if example.until in line:
                break
        if sys.platform == "win32":
            server.kill()  # where no program can press another one's Ctrl-C
        else:
            os.killpg(server.pid, signal.SIGINT)  # as Ctrl-C does: to all its processes
        printed += server.communicate(timeout=30)[0]
    assert example.until in printed
    if sys.platform != "win32":
        assert server.returncode in (0, 130, -signal.SIGINT), printed


def test_the_pages_have_examples() -> None:
    """The extraction has not fallen silent."""
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [target for target in LINK.findall(text) if target and not (page.parent / target).exists()]
    assert missing == []


def test_pictures_are_those_that_the_script_draws() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "diagrams" / "draw.py"))
    for make in script["PICTURES"]:
        picture = make()
        assert picture.path.read_text(encoding="utf-8") == picture.text(), (
            f"{picture.path.name} is not up to date: run python docs/diagrams/draw.py"
        )


def test_every_target_that_is_spoken_of_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        spoken_of = set(re.findall(r"(?:^|`|\$ )make ([a-z0-9-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert spoken_of <= targets, page.name
