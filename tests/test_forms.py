"""Both forms of what runs in a turn: which is chosen, how the compiled one is built, and that it does not crash.

A copy of the package in which a sample takes the place of what is compiled there, so that these tests need not wait for
all of it. Each program is run by an interpreter of its own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

import notifyloop
from notifyloop import doctor
from notifyloop.form import form

ROOT = Path(__file__).parent.parent
SAMPLE = Path(__file__).parent / "forms"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
BUILDING = {"NOTIFYLOOP_PLAIN", "NOTIFYLOOP_REQUIRE_COMPILED"}

needs_a_build = [
    pytest.mark.never("kqueue", reason="what is built here has the system's own provider"),
    pytest.mark.only("linux", reason="nothing is compiled elsewhere"),
    pytest.mark.skipif(FREE_THREADED, reason="nothing is compiled there"),
    pytest.mark.skipif(not importlib.util.find_spec("Cython"), reason="Cython is not installed"),
    pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="setuptools is not installed"),
]


class Project:
    """A copy of this repository, as far as a build needs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.turn = folder / "notifyloop/turn"

    def copy(self, folder: Path) -> Project:
        shutil.copytree(self.folder, folder)
        return Project(folder)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name not in BUILDING}
        paths = [environment.pop("PYTHONPATH", ""), str(self.folder), os.environ.get("PYTHONPATH", "")]
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )

    def said(self, program: str, *options: str, **environment: str) -> str:
        """What a program prints that imports notifyloop from here."""
        done = self.run(*options, "-c", f"import notifyloop\n{program}", **environment)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.removesuffix("\n")

    def form(self, **environment: str) -> str:
        return self.said("from notifyloop.form import form; print(form)", **environment)

    def build(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("setup.py", "build_ext", "--inplace", **environment)

    @property
    def compiled(self) -> set[str]:
        """The names of what lies beside the sources."""
        return {path.name.removesuffix(SUFFIX) for path in self.turn.glob(f"*{SUFFIX}")}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The sample, compiled. Not to be changed."""
    project = Project(tmp_path_factory.mktemp("forms") / "project")
    compiled = shutil.ignore_patterns("*.so", "*.pxd", "__pycache__")
    shutil.copytree(ROOT / "notifyloop", project.folder / "notifyloop", ignore=compiled)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project.folder)
    for path in SAMPLE.iterdir():
        shutil.copy(path, project.turn)
    done = project.build(NOTIFYLOOP_REQUIRE_COMPILED="1")
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy of it."""
    return built.copy(tmp_path / "project")


# ---- what is installed here


def test_the_form_is_told() -> None:
    assert notifyloop.compiled == (form == "compiled")
    assert form == "compiled" or form.startswith("plain: ")
    assert doctor.facts()["form"] == form


def test_either_all_modules_are_compiled_or_none() -> None:
    root = Path(notifyloop.__path__[0])
    beside = {
        f"notifyloop.{path.parent.name}.{path.name.removesuffix(SUFFIX)}"
        for path in root.glob(f"*/*{SUFFIX}")
        if path.with_name(path.name.removesuffix(SUFFIX) + ".py").exists()
    }
    loaded = {name for name in beside if str(sys.modules[name].__file__).endswith(SUFFIX)}
    assert loaded == (beside if form == "compiled" else set())
    assert beside or form != "compiled"


@pytest.mark.parametrize(
    "program",
    [
        "notifyloop.NotifyLoop.__new__(notifyloop.NotifyLoop).call_soon(print)",
        "notifyloop.NotifyLoop.__new__(notifyloop.NotifyLoop).call_soon_threadsafe(print)",
        "loop = notifyloop.NotifyLoop(); del loop._turn.timers; loop.run_until_complete(asyncio.sleep(0))",
        "loop = notifyloop.NotifyLoop(); del loop._turn.interests; loop.run_until_complete(asyncio.sleep(0))",
        "readiness.rest(notifyloop.NotifyLoop(), None)",
        "stream.StreamTransport.write(None, b'data')",
        "waits.Wait.__new__(waits.Wait)._run()",
    ],
)
def test_what_is_missing_has_no_attributes(program: str) -> None:
    """Also where it is a field of a structure, and would be read from nowhere."""
    lines = [
        "import asyncio, notifyloop, sys",
        "from notifyloop.turn import readiness, stream, waits",
        "sys.unraisablehook = print  # of a loop that was not closed, or has nothing to be closed",
        f"try: {program}",
        "except AttributeError: sys.exit(3)",
    ]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", "\n".join(lines)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (3, b"")


# ---- which form is chosen


class TestForm:
    pytestmark = needs_a_build

    MODULE = "import sys; from notifyloop.turn import sample; print(sample.__file__)"

    def test_compiled_by_itself(self, built: Project) -> None:
        assert built.said("print(notifyloop.compiled)") == "True"
        assert built.said(self.MODULE) == str(built.turn / f"sample{SUFFIX}")

    def test_plain_if_asked_for(self, built: Project) -> None:
        asked = {"NOTIFYLOOP_PLAIN": "1"}
        assert built.form(**asked) == "plain: NOTIFYLOOP_PLAIN is set"
        assert built.said("print(notifyloop.compiled)", **asked) == "False"
        assert built.said(self.MODULE, **asked) == str(built.turn / "sample.py")
        child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {self.MODULE!r}], check=True)"
        assert built.said(child, **asked) == str(built.turn / "sample.py")

    def test_plain_also_when_finders_forget(self, built: Project) -> None:
        program = f"import importlib; importlib.invalidate_caches(); {self.MODULE}"
        assert built.said(program, NOTIFYLOOP_PLAIN="1") == str(built.turn / "sample.py")

    @pytest.mark.parametrize(("asked", "line"), [("", "compiled"), ("1", "plain: NOTIFYLOOP_PLAIN is set")])
    def test_the_doctor_says_it(self, asked: str, line: str, built: Project) -> None:
        done = built.run("-W", "error", "-m", "notifyloop", "doctor", NOTIFYLOOP_PLAIN=asked)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"form               {line}\n" in done.stdout

    @pytest.mark.parametrize("name", ["sample.py", "sample.pxd", "layouts.pxd"])
    def test_source_that_was_edited_is_run_as_it_is(self, name: str, project: Project) -> None:
        with (project.turn / name).open("a") as file:
            file.write("# edited\n")
        done = project.run("-c", f"import notifyloop; print(notifyloop.form.form); {self.MODULE}")
        assert done.stdout == f"plain: turn/{name} is not what was compiled\n{project.turn / 'sample.py'}\n"
        [warning] = re.findall("RuntimeWarning: (.*)", done.stderr)
        assert warning.startswith("notifyloop runs as it is written, and slower")
        assert f" for turn/{name} is not what was compiled" in warning
        assert project.form(NOTIFYLOOP_PLAIN="1") == "plain: NOTIFYLOOP_PLAIN is set"

    def test_built_again_it_is_compiled_again(self, project: Project) -> None:
        path = project.turn / "sample.py"
        path.write_text(path.read_text().replace("return timer._when", "return -timer._when"))
        assert project.build(NOTIFYLOOP_REQUIRE_COMPILED="1").returncode == 0
        program = """
from notifyloop.turn import sample, sample_classes
print(notifyloop.form.form, sample.due(sample_classes.SampleTimer(3)))
"""
        assert project.said(program) == "compiled -3"

    def test_python_that_lays_out_a_class_otherwise(self, built: Project) -> None:
        program = """
import asyncio, platform

class TimerHandle(asyncio.TimerHandle):
    __slots__ = ("another",)

asyncio.TimerHandle = TimerHandle
import notifyloop
from notifyloop.turn import sample

told = notifyloop.form.form.replace(platform.python_version(), "this")
print(told, sample.__file__.removeprefix(notifyloop.__path__[0]), sep="\\n")
"""
        done = built.run("-c", program)
        assert (done.returncode, done.stderr) == (0, "")
        told = "plain: SampleTimer is laid out otherwise than when it was compiled, for Python this"
        assert done.stdout == f"{told}\n/turn/sample.py\n"

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ('"__dict__", "more"', '"__dict__", "less", "more"'),
            ("class SampleTimer", "class Timer"),
            ('"more"', '"most"'),
        ],
    )
    def test_class_that_was_changed(self, before: str, after: str, project: Project) -> None:
        path = project.turn / "sample_classes.py"
        path.write_text(path.read_text().replace(before, after))
        assert " is laid out otherwise than when it was compiled, for Python " in project.form()

    def test_module_that_cannot_be_loaded(self, project: Project) -> None:
        (project.turn / f"sample{SUFFIX}").write_bytes(b"no library")
        told = project.form()
        assert told.startswith("plain: turn/sample")
        assert str(project.folder) not in told

    def test_module_that_is_missing(self, project: Project) -> None:
        (project.turn / f"sample{SUFFIX}").unlink()
        assert project.form() == "plain: turn/sample.py alone is not compiled"

    def test_nothing_compiled(self, project: Project) -> None:
        for path in project.turn.glob(f"*{SUFFIX}"):
            path.unlink()
        assert project.form() == "plain: not compiled when it was installed"

    @pytest.mark.skipif(
        FREE_THREADED or sys.version_info < (3, 13) or not importlib.util.find_spec("_interpreters"),
        reason="this Python's sub-interpreters cannot be told to share the lock",
    )
    @pytest.mark.parametrize("first", [True, False])
    def test_sub_interpreter(self, first: bool, built: Project) -> None:
        program = f"""
import _interpreters, sys

def both():
    interpreter = _interpreters.create("legacy")
    error = _interpreters.exec(interpreter, "import notifyloop; print(notifyloop.form.form, flush=True)")
    assert error is None, error.errdisplay
    _interpreters.destroy(interpreter)

if {first}: both()
import notifyloop
print(notifyloop.form.form, flush=True)
if not {first}: both()
"""
        done = built.run("-c", program)
        assert (done.returncode, done.stderr) == (0, "")
        lines = ["plain: this is a sub-interpreter", "compiled"]
        assert done.stdout.splitlines() == (lines if first else lines[::-1])


# ---- slots that would be empty

CRASHES = {
    "new": "look(SampleHandle.__new__(SampleHandle)); due(SampleTimer.__new__(SampleTimer))",
    "written before it is read": "handle = SampleHandle.__new__(SampleHandle); empty(handle); look(handle)",
    "new, of a declared subclass": "look_at_more(LargerHandle.__new__(LargerHandle))",
    "new, of a subclass": """
class Mixin:
    def __init_subclass__(cls, colour):
        cls.colour = colour

class Sub(SampleHandle, Mixin, colour=3):
    __slots__ = ("own",)

class SubSub(Sub, colour=4):
    def __init__(self):
        pass

assert (Sub.colour, SubSub.colour) == (3, 4)
look(Sub.__new__(Sub))
for _ in range(1000):  # until the interpreter has a shorter way
    look(SubSub())
""",
    "new, with another class in front": """
class Other(asyncio.Handle):
    __slots__ = ("lock",)

class Sub(Other, SampleHandle):
    __slots__ = ()

look(Sub.__new__(Sub))
""",
    "deleted": """
handle = SampleHandle()
try:
    del handle._callback
except TypeError as error:
    assert str(error) == "cannot delete '_callback' of 'SampleHandle' object, which compiled code reads"
else:
    raise AssertionError
look(handle)
larger = LargerHandle()
larger.patched = 1
del larger.patched  # this is in its dict
""",
    "cleared by the collector": """
handle = LargerHandle()
handle.more, handle.in_dict = [handle], handle
clear(handle)
assert look_at_more(handle) == (None, None)
assert vars(handle) == {}
""",
    "looked at while the collector clears": """
class Exporter:  # whose method is called when what it has lent is given back, which may be then
    def __buffer__(self, flags):
        return memoryview(b"lent")
    def __release_buffer__(self, view):
        if hasattr(self, "handle"):  # it is not cleared itself
            looks.append(look(self.handle))

looks = []
before, handle, after = Exporter(), SampleHandle(), Exporter()
before.handle = after.handle = handle
handle._callback = [handle]
handle._callback += map(memoryview, (before, after))
del before, handle, after
gc.collect()
assert looks or "free-threading" in sys.version  # where all that is like these is cleared before
""",
    "turned into another class": """
class Handle(asyncio.Handle):
    __slots__ = ()

handle = Handle.__new__(Handle)
try:
    handle.__class__ = SampleHandle
except TypeError:
    pass
else:
    raise AssertionError
""",
}
CRASHING = """
import asyncio, ctypes, gc, sys
from notifyloop.turn.sample import *
from notifyloop.turn.sample_classes import *

def clear(target):
    slot = ctypes.pythonapi.PyType_GetSlot
    slot.argtypes, slot.restype = (ctypes.py_object, ctypes.c_int), ctypes.c_void_p
    ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object)(slot(type(target), 51))(target)  # Py_tp_clear

assert notifyloop.compiled
"""


class TestSlots:
    pytestmark = needs_a_build

    @pytest.mark.parametrize(
        "crash", [crash for crash in CRASHES if "__buffer__" not in CRASHES[crash] or sys.version_info >= (3, 12)]
    )
    def test_no_slot_is_ever_empty(self, crash: str, built: Project) -> None:
        assert built.said(CRASHING + CRASHES[crash], PYTHONMALLOC="debug") == ""

    def test_values(self, built: Project) -> None:
        program = """
handle, larger = SampleHandle(print, (1,)), LargerHandle(len, (2,))
larger.more = 3
assert (look(handle), look(larger), look_at_more(larger)) == ((print, (1,)), (len, (2,)), (len, 3))
assert due(SampleTimer(4.0)) == 4.0
empty(larger)
assert (larger._callback, larger._args, larger.more) == (None, None, 3)
"""
        assert built.said(CRASHING + program) == ""

    def test_nothing_leaks(self, built: Project) -> None:
        program = """
def make_garbage(count):
    for _ in range(count):
        handle, larger = SampleHandle(), LargerHandle()
        handle._callback, handle._args = larger, [handle]
        larger.more, larger.in_dict = (handle, larger), lambda: larger
        SampleTimer.__new__(SampleTimer)
    gc.collect()

make_garbage(10)
nones, objects = sys.getrefcount(None), len(gc.get_objects())
make_garbage(1000)
print(abs(sys.getrefcount(None) - nones) < 100, abs(len(gc.get_objects()) - objects) < 100)
"""
        assert built.said(CRASHING + program) == "True True"

    def test_class_with_more_in_it_than_slots_is_refused(self, built: Project) -> None:
        program = """
from notifyloop.turn import layouts

class Listed(list):
    __slots__ = ()

for kind in (Listed, int, 3):
    try:
        layouts.guard(kind)
    except TypeError as error:
        print(error)
"""
        assert built.said(program) == (
            "'Listed' objects have more in them than slots\n"
            "<class 'int'> is no class that can be guarded\n"
            "3 is no class that can be guarded"
        )


# ---- how it is built


@pytest.fixture
def without_cython(tmp_path: Path) -> dict[str, str]:
    """An environment in which it cannot be imported."""
    folder = tmp_path / "without"
    folder.mkdir()
    (folder / "Cython.py").write_text("raise ModuleNotFoundError('there is no Cython')")
    return {"PYTHONPATH": str(folder)}


class TestBuild:
    pytestmark = needs_a_build

    def test_what_is_compiled_lies_beside_its_source(self, built: Project) -> None:
        assert built.compiled == {"layouts", "sample"}
        assert not list((built.folder / "notifyloop").rglob("sample*.c"))

    def test_what_has_not_changed_is_not_compiled_again(self, project: Project) -> None:
        def times() -> list[int]:
            return [path.stat().st_mtime_ns for path in sorted((project.folder / "build").glob("turn-*/**/sample*"))]

        before = times()
        assert before
        assert project.build().returncode == 0
        assert times() == before

    def test_without_cython_it_is_plain_and_one_line_says_so(
        self, project: Project, without_cython: dict[str, str]
    ) -> None:
        done = project.build(**without_cython)
        assert done.returncode == 0
        assert project.compiled == set()
        [line] = [line for line in (done.stdout + done.stderr).splitlines() if "notifyloop is" in line]
        reason = "ModuleNotFoundError: there is no Cython"
        assert line == f"notifyloop is installed without its compiled form, and will be slower ({reason})"
        assert project.form() == "plain: not compiled when it was installed"

    def test_without_cython_it_fails_if_it_is_required(self, project: Project, without_cython: dict[str, str]) -> None:
        done = project.build(NOTIFYLOOP_REQUIRE_COMPILED="1", **without_cython)
        assert done.returncode != 0
        assert done.stderr.splitlines()[-1] == (
            "error: NOTIFYLOOP_REQUIRE_COMPILED is set, but it cannot be compiled"
            " (ModuleNotFoundError: there is no Cython)"
        )

    @pytest.mark.parametrize(
        ("name", "line", "complaint"),
        [
            (
                "layouts.pxd",
                "        cdef int number\n",
                "ValueError: layouts.pxd does not say where slots are in this form",
            ),
            (
                "layouts.pxd",
                "        cdef object missing\n",
                "AttributeError: 'SampleTimer' object has no attribute 'missing'",
            ),
            ("sample.pxd", "cimport nowhere\n", "CompileError: notifyloop/turn/sample.py"),
            (
                "sample.py",
                "    print(handle._callback, handle)\n",
                "CompileError: notifyloop.turn.sample passes the field _callback to a call: ",
            ),
        ],
    )
    def test_what_cannot_be_compiled(self, name: str, line: str, complaint: str, project: Project) -> None:
        with (project.turn / name).open("a") as file:
            file.write(line)
        done = project.build(NOTIFYLOOP_REQUIRE_COMPILED="1")
        assert done.returncode != 0
        assert f"it cannot be compiled ({complaint}" in done.stderr.splitlines()[-1]

    def test_plain_if_asked_for(self, project: Project) -> None:
        assert project.build(NOTIFYLOOP_PLAIN="1").returncode == 0
        assert project.form() == "plain: not compiled when it was installed"
        done = project.build(NOTIFYLOOP_PLAIN="1", NOTIFYLOOP_REQUIRE_COMPILED="1")
        assert done.returncode != 0
        assert done.stderr == "NOTIFYLOOP_REQUIRE_COMPILED is set, but there is nothing to be compiled here\n"

    def test_compiled_and_plain_wheels(self, project: Project) -> None:
        for environment in ({"NOTIFYLOOP_REQUIRE_COMPILED": "1"}, {"NOTIFYLOOP_PLAIN": "1"}):
            done = project.run("setup.py", "bdist_wheel", **environment)
            assert done.returncode == 0, done.stderr
        tag = f"cp3{sys.version_info[1]}"
        tags = {"-".join(path.stem.split("-")[2:4]): path for path in (project.folder / "dist").iterdir()}
        abi = f"{tag}t" if FREE_THREADED else tag
        if FREE_THREADED:  # there is no tag for both
            assert tags.keys() == {f"{tag}-{abi}"}
            return
        assert tags.keys() == {f"{tag}-{abi}", "cp311-abi3"}
        assert in_turn(tags[f"{tag}-{abi}"]) >= {f"sample{SUFFIX}", f"layouts{SUFFIX}", "sample.py", "sample.pxd"}
        assert not [name for name in in_turn(tags["cp311-abi3"]) if name.endswith(SUFFIX)]

    def test_source_distribution(self, project: Project) -> None:
        done = project.run("setup.py", "sdist")
        assert done.returncode == 0, done.stderr
        [path] = (project.folder / "dist").iterdir()
        with tarfile.open(path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        assert names >= {
            f"notifyloop/turn/{name}" for name in ("sample.py", "sample.pxd", "layouts.pxd", "csrc/layouts.c")
        }
        assert {name for name in names if name.endswith((".c", ".so"))} == {
            "notifyloop/turn/csrc/layouts.c",
            "notifyloop/port/csrc/epoll_port.c",
            "notifyloop/port/csrc/kqueue_port.c",
        }


def in_turn(wheel: Path) -> set[str]:
    import zipfile  # noqa: PLC0415

    return {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("notifyloop/turn/")}
