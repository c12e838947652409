"""Builds `notifyloop.port._kqueue`, the provider of macOS and the BSDs, with cffi in API mode, as `epoll_build.py` does
that of Linux.

NOTIFYLOOP_KQUEUE_STANDIN, in the environment, names a folder with a kqueue that is none of the kernel's: with
`tests/port/kqueue_standin` the provider is built on Linux, too, for tests.
"""

import os
import runpy
from pathlib import Path

from cffi import FFI

here = Path(__file__).parent
standin = os.environ.get("NOTIFYLOOP_KQUEUE_STANDIN")
# Not an import: a build must not import the package that it builds.
DECLARATIONS = runpy.run_path(str(here / "abi.py"))["DECLARATIONS"]

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source(
    "notifyloop.port._kqueue",
    "#define _GNU_SOURCE\n#include <stdint.h>\n" + DECLARATIONS + '#include "kqueue_port.c"\n',
    sources=[f"{standin}/kqueue.c"] if standin else [],
    include_dirs=[*([standin] if standin else []), str(here / "csrc")],
    depends=[str(here / "abi.py"), *map(str, sorted((here / "csrc").iterdir()))],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
    libraries=["pthread"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
