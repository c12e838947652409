"""Builds `notifyloop.port._epoll`, the Linux provider, with cffi in API mode: C that is called without a
foreign-function library between, and that waits without holding the interpreter's lock.
"""

import runpy
from pathlib import Path

from cffi import FFI

here = Path(__file__).parent
# Not an import: a build must not import the package that it builds.
DECLARATIONS = runpy.run_path(str(here / "abi.py"))["DECLARATIONS"]

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source(
    "notifyloop.port._epoll",
    "#define _GNU_SOURCE\n#include <stdint.h>\n" + DECLARATIONS + '#include "epoll_port.c"\n',
    include_dirs=[str(here / "csrc")],
    depends=[str(here / "abi.py"), *map(str, sorted((here / "csrc").iterdir()))],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
    libraries=["pthread"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
