# Everything starts here; `make` lists the targets.  Needs python3.11 (or newer), make and git; the rest goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.ready
SHELL := /bin/bash
# Parallelism is over walkers, windows and tests; libraries that start threads of their own only get in their way.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test statistical lint format tutorials bench studies tables docs clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Couloir needs Python 3.11 or newer; try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	PIP_CONSTRAINT="$(CURDIR)/constraints.txt" PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q -e ".[dev,docs,tutorials]"
	@touch $@

demo: $(READY)  ## alanine dipeptide from MD to a free-energy surface and a report
	$(BIN)/couloir run tutorials/alanine_dipeptide.toml

test: $(READY)  ## the test suite (JOBS=2 processes)
	$(BIN)/python -m pytest -n $(JOBS)

statistical: $(READY)  ## the slow, strict exactness tests
	$(BIN)/python -m pytest -m statistical -n $(JOBS)

lint: $(READY)  ## ruff and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff fix and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tutorials: $(READY)  ## execute the notebooks at reduced size (COULOIR_TUTORIAL_SCALE=full for the real one)
	$(BIN)/python tools/run_tutorials.py

bench: $(READY)  ## every benchmark at small scale, then the tables in README and docs
	set -e; for name in $$($(BIN)/python -m benchmarks.tables --list); do $(BIN)/python -m benchmarks.$$name --scale small; done
	$(BIN)/python -m benchmarks.tables

studies: $(READY)  ## what takes hours, at small scale: ablations of DynamicsDiffusion, alanine dipeptide; then the tables
	$(BIN)/python -m benchmarks.alanine_rate --scale small
	$(BIN)/python -m benchmarks.assisted_alanine --scale small
	$(BIN)/python -m benchmarks.assisted_psi --scale small
	set -e; for study in heads encoder data calls targets lengths norms temperature; do $(BIN)/python -m benchmarks.dynamics_studies --scale small --study $$study --threads 2; done
	$(BIN)/python -m benchmarks.dynamics_pictures
	$(BIN)/python -m benchmarks.tables

tables: $(READY)  ## the tables in README and docs from benchmarks/results
	$(BIN)/python -m benchmarks.tables

docs: $(READY)  ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove caches and built files; keeps .venv and runs
	rm -rf site dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
