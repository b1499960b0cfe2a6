# `make demo` and `make test` do all their own set-up in .venv and cost nothing when run again.
# Another Python: `make test PYTHON=python3.12 VENV=.venv312`.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# uv does not read pip's settings: pass on where pip looks for local wheels, if it is told to.
UV      = UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install --quiet
PYTEST  = $(BIN)/python -m pytest -q -n 2

.PHONY: help setup demo test test-all test-tree-mode lint format resolve bench clean

help:
	@echo "make demo        segment a small clip by a sentence: masks and an overlay video in out/demo"
	@echo "make test        the tests (minutes on two cores)"
	@echo "make test-all    the tests marked slow too"
	@echo "make lint        format check, lint and types"
	@echo "make bench       the benchmarks, side by side with PyTorch"

# Python packages to run the library ...
$(VENV)/.runtime: requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "rvseg_jax needs Python 3.11 or later: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' \
	  || { echo "this Python cannot make a virtual environment: apt-get install python3-venv" >&2; exit 2; }
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet 'uv>=0.9,<1'; }
	$(UV) -e .
	@touch $@

# ... and to test it.
$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt
	$(UV) -r requirements-dev.txt
	@touch $@

setup: $(VENV)/.dev

demo: $(VENV)/.runtime
	$(BIN)/rvseg demo -o out/demo

test: $(VENV)/.dev
	$(PYTEST) -m "not slow" tests

test-all: $(VENV)/.dev
	$(PYTEST) tests

# flax is about to drop graph mode; models must not depend on it.
test-tree-mode: $(VENV)/.dev
	NNX_GRAPH_MODE=false NNX_GRAPH_UPDATES=false $(PYTEST) -m "not slow" tests/parity tests/systems

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy rvseg_jax convert input_pipeline train.py eval.py

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pins of the other lane must have a solution, whatever Python runs here.
resolve: $(VENV)/.dev
	@for version in 3.11 3.12 3.13; do \
	  UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile --quiet --python-version $$version requirements.txt >/dev/null \
	    && echo "requirements resolve for Python $$version" || exit 1; \
	done

bench: $(VENV)/.dev
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) .cache build *.egg-info out
