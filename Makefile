# Everything runs in a virtual environment that these targets make. PYTHON chooses the interpreter, VENV the folder.

PYTHON ?= $(shell for v in 3.13 3.14 3.12 3.11; do command -v python$$v && exit; done; command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard notifyloop/port/*.py notifyloop/port/csrc/*.c)
PYTEST_ARGS ?=
SECONDS_EACH ?= 10

.PHONY: help serve test test-windows lint format bench bench-windows sanitize test-cpython test-uvloop docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; assert sys.version_info >= (3, 11)' \
		|| { echo "notifyloop needs Python 3.11 or newer: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) \
		|| { echo "the venv module is missing: on Debian and Ubuntu, apt-get install python3-venv python3-dev gcc"; exit 1; }

# The extras that a target needs, installed once and again when what is built has changed.
$(VENV)/.installed-%: $(BIN)/python $(SOURCES)
	@echo "installing notifyloop[$*] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

serve: $(VENV)/.installed-demo ## start the demo server and print its address
	@$(BIN)/python -m notifyloop serve $(SERVE_ARGS)

test: $(VENV)/.installed-test,integration,bench ## run the tests and the integration tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-windows: ## run the tests on Windows' own CPython, under wine (PARTS: some of them)
	@integration/windows/test build/windows $(PYTEST_ARGS)

lint: $(VENV)/.installed-lint ## ruff, and mypy --strict for Linux and for Windows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --platform linux
	@$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32

format: $(VENV)/.installed-lint ## let ruff lay out the code
	@$(BIN)/ruff format .

bench: $(VENV)/.installed-bench ## compare the loops, in one interleaved run
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-windows: $(BIN)/python ## the same on Windows' own CPython, under wine
	@PYTHON=$(abspath $(BIN)/python) integration/windows/bench build/windows $(BENCH_ARGS)

sanitize: $(VENV)/.installed-test ## hammer the C core under ThreadSanitizer and AddressSanitizer
	@PYTHON=$(abspath $(BIN)/python) tests/port/stress/run $(SECONDS_EACH)

test-cpython: $(VENV)/.installed-integration ## CPython's own test_asyncio on our loop
	@$(BIN)/python -m integration.suites cpython $(SUITE_ARGS)

test-uvloop: $(VENV)/.installed-integration ## uvloop's own tests on our loop
	@$(BIN)/python -m integration.suites uvloop $(SUITE_ARGS)

docs: $(VENV)/.installed-docs ## build the documentation into docs/_build
	@$(BIN)/sphinx-build -q -W -b html docs docs/_build/html
	@echo docs/_build/html/index.html

clean: ## remove what the targets made
	rm -rf .venv* build dist *.egg-info docs/_build benchmarks/build
