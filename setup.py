"""What pyproject.toml cannot say: which C provider cffi builds, what Cython compiles, on which system, and for which
interpreters the result is.

NOTIFYLOOP_PLAIN, in the environment, compiles no Python. NOTIFYLOOP_REQUIRE_COMPILED fails where notifyloop would be
installed without that. NOTIFYLOOP_KQUEUE_STANDIN builds the provider over kqueue where the kernel has none, for tests.
"""

import os
import re
import runpy
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, SetupError

# What is compiled: each module here that has a .pxd beside it, unless that says what the module's names mean in
# compiled code. And layouts.c, which looks whether the result fits.
TURN = Path("notifyloop/turn")
DECLARED = sorted([*Path("notifyloop/port").glob("*.pxd"), *TURN.glob("*.pxd")])
MEANINGS = [path for path in DECLARED if path.stem in ("foreign", "layouts", "primitives")]
MODULES = [path.with_suffix(".py") for path in DECLARED if path not in MEANINGS]
# Without the interpreter's lock, what another thread does with a handle would have to be looked after.
LOCKED = not sysconfig.get_config_var("Py_GIL_DISABLED")
COMPILES = bool(MODULES) and LOCKED and sys.platform == "linux" and not os.environ.get("NOTIFYLOOP_PLAIN")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
HAS_KQUEUE = sys.platform == "darwin" or "bsd" in sys.platform or os.environ.get("NOTIFYLOOP_KQUEUE_STANDIN")
PROVIDERS = [*(["epoll"] if sys.platform == "linux" else []), *(["kqueue"] if HAS_KQUEUE else [])]  # those in C
REQUIRED = bool(os.environ.get("NOTIFYLOOP_REQUIRE_COMPILED"))
if REQUIRED and not COMPILES:
    sys.exit("NOTIFYLOOP_REQUIRE_COMPILED is set, but there is nothing to be compiled here")

DIRECTIVES = {
    "language_level": 3,
    "annotation_typing": False,  # types are the .pxd's affair; annotations are for people and for mypy
    "binding": True,
    "embedsignature": False,
    "nonecheck": True,  # what is not there is None, whose fields are nowhere
}

# Cython passes the field of a structure to a call without holding what is in it. If it is replaced meanwhile, as by a
# callback that cancels its own handle, it is freed while it is in use. A variable holds.
LENT = re.compile(
    r"(?:__pyx_callargs\[\d+\] = \{|__Pyx_PyObject_Call\w*\().*?__pyx_[tv]_\w+\)?->(?:__pyx_base\.)*(\w+)"
)


def module_of(path):
    return ".".join(path.with_suffix("").parts)


def compiled(extension):
    return extension.name not in ("notifyloop.port._epoll", "notifyloop.port._kqueue")


class Build(build_ext):
    """Builds the provider, and the compiled modules if all of them can be had."""

    def run(self):
        # What an earlier build has left: it was perhaps of another form.
        for root in [Path(self.build_lib), *([Path()] if self.inplace else [])]:
            for old in Path(root, "notifyloop").glob(f"*/*{SUFFIX}"):
                old.unlink()
        super().run()

    def build_extensions(self):
        modules = [extension for extension in self.extensions if compiled(extension)]
        self.extensions = [extension for extension in self.extensions if not compiled(extension)]
        super().build_extensions()
        if not modules:
            return
        try:
            self.compile(modules)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            if REQUIRED:
                raise SetupError(f"NOTIFYLOOP_REQUIRE_COMPILED is set, but it cannot be compiled ({reason})") from error
            print(f"notifyloop is installed without its compiled form, and will be slower ({reason})", file=sys.stderr)
        else:
            self.extensions += modules

    def compile(self, modules):
        folder = folder_of_this_build()
        lib, temp = self.build_lib, self.build_temp
        self.build_lib = self.build_temp = str(folder)
        try:
            for module in modules:
                module.include_dirs += [str(folder), str(TURN / "csrc")]
                if self.compiler.compiler_type == "unix":
                    module.extra_compile_args += ["-O3", "-g0"]
                module.sources = [translate(module, folder)]
                self.build_extension(module)
        finally:
            self.build_lib, self.build_temp = lib, temp
        for module in modules:
            path = Path(self.get_ext_fullpath(module.name))
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / self.get_ext_filename(module.name), path)


def folder_of_this_build():
    """Where the modules are compiled. An editable install is made anew for each extra, and what is there already is not
    compiled again, if all is as it was.
    """
    from Cython import __version__  # noqa: PLC0415 - there may be none

    layouts = TURN / "layouts.pxd"
    sources = [*DECLARED, *MODULES]
    header = runpy.run_path(str(TURN / "layouts_build.py"))["header"](layouts, sources)
    others = [Path(name).read_text() for name in ("setup.py", *sorted(TURN.glob("csrc/*")))]
    made_from = "\n".join([__version__, header, *others])

    folder = Path("build", f"turn-{sysconfig.get_config_var('SOABI')}")
    record = folder / "made_from"
    if not record.exists() or record.read_text() != made_from:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "layouts.h").write_text(header)
        record.write_text(made_from)
    return folder


def translate(module, folder):
    """A module's source in C."""
    from Cython.Build import cythonize  # noqa: PLC0415

    [translated] = cythonize([module], build_dir=str(folder), compiler_directives=DIRECTIVES, quiet=True)
    [source] = translated.sources
    if lent := LENT.search(Path(source).read_text()):
        raise CompileError(f"{module.name} passes the field {lent[1]} to a call: put it into a variable first")
    return source


class Wheel(bdist_wheel):
    """The provider keeps to the limited API. So without compiled modules one wheel serves every CPython from 3.11 on,
    except free-threaded ones, which have no such API yet.
    """

    def get_tag(self):
        limited = sys.platform == "linux" and not sysconfig.get_config_var("Py_GIL_DISABLED")
        if limited and not any(map(compiled, self.get_finalized_command("build_ext").extensions)):
            self.py_limited_api = "cp311"
        return super().get_tag()


setup(
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
    cffi_modules=[f"notifyloop/port/{provider}_build.py:ffibuilder" for provider in PROVIDERS],
    ext_modules=[
        Extension(name, [source.as_posix()])
        for name, source in [
            ("notifyloop.turn.layouts", TURN / "csrc/layouts.c"),
            *((module_of(path), path) for path in MODULES),
        ]
        if COMPILES
    ],
)
