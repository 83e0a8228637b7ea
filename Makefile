# Everything sets itself up: a virtual environment in .venv, the locked dependencies, Debian packages through the host's
# own apt configuration. What the recipes say goes to stderr; stdout belongs to the guest.
#
#   make run                         boot Debian's kernel, a shell on this terminal (Ctrl-A x leaves)
#   echo 'uname -a' | make run       the guest's shell reads that, then powers off
#   make run ARGS='-- uname -a'      run a command in the guest (make names its status)
#   make test                        the tests; TESTS='tests/cli -k doctor' chooses some
#   make test-long                   the tests that take minutes as well
#   make bench                       the tables behind the README's claims
#   make lint                        ruff, mypy --strict, the import rule
#   make lock                        compute requirements.lock anew

MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready $(VENV)/.compiled
ARGS  :=
TESTS :=
JOBS  := auto

.PHONY: run test test-long bench lint setup lock clean engine

run: $(READY)
	@exec $(BIN)/xuni vm run debian $(ARGS)

test: $(READY) engine
	@exec $(BIN)/python -m pytest -q -n $(JOBS) $(TESTS)

test-long: $(READY) engine
	@exec $(BIN)/python -m pytest -q -n $(JOBS) -m 'long or not long' $(TESTS)

bench: $(READY)
	@exec $(BIN)/python bench/run.py $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log >&2; exit 1; }

setup: $(READY)

# Before the tests, so that no test's time limit has the compilation in it.
engine: $(READY)
	@$(BIN)/python -m xuni.engine.soft

$(VENV)/.ready: requirements.lock pyproject.toml tools/setup
	@tools/setup $(VENV) </dev/null >&2
	@touch $@

# A start would otherwise compile the sources anew where PYTHONDONTWRITEBYTECODE is set.
$(VENV)/.compiled: $(VENV)/.ready $(shell find src -name '*.py')
	@$(BIN)/python -m compileall -q src/xuni
	@touch $@

# uv serves here only; nobody else needs it. Hashes and no index lines: the lock holds on every machine and mirror.
lock:
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    --upgrade --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
