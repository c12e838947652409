"""What pyproject.toml cannot say: which C provider cffi builds, on which system, and for which interpreters."""

import sys
import sysconfig

from setuptools import setup

# The provider keeps to the limited API, so one wheel serves every CPython from 3.11 on. Free-threaded ones have no
# such API yet.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["notifyloop/port/epoll_build.py:ffibuilder"] if sys.platform == "linux" else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if sys.platform == "linux" and limited else {},
)
