"""The one thing that pyproject.toml cannot say: which C provider cffi builds, and on which system."""

import sys

from setuptools import setup

setup(cffi_modules=["notifyloop/port/epoll_build.py:ffibuilder"] if sys.platform == "linux" else [])
