# Everything runs in a virtual environment that these targets make. PYTHON chooses the interpreter, else .ci/find-python does; VENV the folder,
# which can have no spaces in its name, while the path of this one can.

PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard notifyloop/port/*.py notifyloop/port/csrc/* notifyloop/turn/*.p* notifyloop/turn/csrc/*)
PYTEST_ARGS ?=
SECONDS_EACH ?= 10
EXAMPLES ?= 20000

.PHONY: help serve test test-kqueue test-windows lint format bench bench-windows sanitize soak fingerprints test-differential test-cpython test-uvloop test-aiohttp test-tornado docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Pip comes last into it: where it is missing, a making was broken off. Nothing is installed in a new one, whatever an old one has left there.
$(BIN)/python $(BIN)/pip &:
	@[ ! -e $(VENV)/pyvenv.cfg ] || rm -f $(VENV)/.installed-* $(BIN)/python*
	@python="$$(.ci/find-python "$(PYTHON)")" && "$$python" -m venv $(VENV)

# The extras that a target needs, installed once and again when what is built has changed. NOTIFYLOOP_PLAIN is meant for what is run then.
$(VENV)/.installed-%: $(BIN)/python $(BIN)/pip $(SOURCES)
	@echo "installing notifyloop[$*] into $(VENV)"
	@env -u NOTIFYLOOP_PLAIN $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

serve: $(VENV)/.installed-demo ## start the demo server and print its address
	@$(BIN)/python -m notifyloop serve $(SERVE_ARGS)

test: $(VENV)/.installed-test,integration,bench ## run the tests and the integration tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-kqueue: $(VENV)/.installed-test,integration,bench ## run the tests with the provider of macOS and the BSDs, over a stand-in for kqueue
	@NOTIFYLOOP_KQUEUE_STANDIN=tests/port/kqueue_standin $(BIN)/python setup.py --quiet build_ext --inplace
	@NOTIFYLOOP_PROVIDER=kqueue $(BIN)/python -m pytest $(PYTEST_ARGS)

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

bench-windows: $(BIN)/python $(BIN)/pip ## the same on Windows' own CPython, under wine
	@PYTHON="$$(cd $(BIN) && pwd)/python" integration/windows/bench build/windows $(BENCH_ARGS)

sanitize: $(VENV)/.installed-test ## hammer the C core under ThreadSanitizer and AddressSanitizer
	@PYTHON="$$(cd $(BIN) && pwd)/python" tests/port/stress/run $(SECONDS_EACH)

soak: $(VENV)/.installed-test ## half an hour of all that a loop does, counted every minute (SOAK_ARGS)
	@$(BIN)/python -m integration.soak $(SOAK_ARGS)

fingerprints: $(BIN)/python ## record this Python's asyncio, once its changes are read
	@$(BIN)/python -m tests.shared

test-differential: $(VENV)/.installed-test ## compare with asyncio, on as many programs as EXAMPLES says
	@NOTIFYLOOP_DIFFERENTIAL_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/differential $(PYTEST_ARGS)

test-cpython: $(VENV)/.installed-integration ## CPython's own test_asyncio on our loop
	@$(BIN)/python -m integration.suites cpython $(SUITE_ARGS)

test-uvloop: $(VENV)/.installed-integration ## uvloop's own tests on our loop
	@$(BIN)/python -m integration.suites uvloop $(SUITE_ARGS)

test-aiohttp: $(VENV)/.installed-integration ## aiohttp's own tests on our loop
	@$(BIN)/python -m integration.suites aiohttp $(SUITE_ARGS)

test-tornado: $(VENV)/.installed-integration ## Tornado's own tests on our loop
	@$(BIN)/python -m integration.suites tornado $(SUITE_ARGS)

docs: $(VENV)/.installed-docs ## build the documentation into docs/_build
	@$(BIN)/sphinx-build -q -W -b html docs docs/_build/html
	@echo docs/_build/html/index.html

clean: ## remove what the targets made
	rm -rf .venv* build dist *.egg-info docs/_build benchmarks/build integration/suites/work
