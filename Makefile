# Everything runs in .venv, which `make` creates: nothing but Python >= 3.11, git and make is needed beforehand.
PYTHON ?= python3
JOBS   ?= 2
UV     := .venv/bin/uv
BIN    := .venv/bin
ENV    := .venv/.synced

# One BLAS thread per process: the tests already use every core by processes, and results must not depend on it.
export OPENBLAS_NUM_THREADS ?= 1
export OMP_NUM_THREADS      ?= 1
# Developers' own uv settings must not leak into the environment that the lock file describes.
export UV_PROJECT_ENVIRONMENT := .venv

.DEFAULT_GOAL := help
.PHONY: help env lock demo test lint types bench soak mutants table format samples studies wheel clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 18

env: $(ENV)  ## create or update the environment .venv

$(ENV): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lipaudit needs Python 3.11 or newer; set PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

lock:  ## renew requirements.lock: exact versions and hashes for every platform, without naming an index
	$(UV) pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --group dev pyproject.toml --output-file requirements.lock

demo: $(ENV)  ## build the sample models, audit them, write HTML reports to demo/
	@$(BIN)/python samples/demo.py

test: $(ENV)  ## run all tests
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(ENV)  ## ruff and the layering contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(ENV)  ## pyright, strict
	$(BIN)/pyright

format: $(ENV)  ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(ENV)  ## timings, as ratios to a reference measured in the same run; rewrites docs/benchmarks.md
	@rm -rf .benchmarks/tables; mkdir -p .benchmarks/tables
	$(BIN)/python -m pytest tests/benchmarks --benchmark-enable --benchmark-only --benchmark-json=.benchmarks/bench.json; failed=$$?; \
	 $(BIN)/python tools/tightness.py .benchmarks/tables/tightness.json || failed=1; \
	 $(BIN)/python tools/families.py .benchmarks/tables/families.json || failed=1; \
	 $(BIN)/python tools/benchmark_table.py .benchmarks/bench.json .benchmarks/tables/*.json && exit $$failed

soak: $(ENV)  ## the property tests with many more, fresh examples (an hour or so)
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -n $(JOBS) -m "hypothesis or soak"

mutants: $(ENV)  ## constants made 1 % too small: prints those that no test catches
	$(BIN)/python tools/mutants.py

table: $(ENV)  ## rewrite docs/operators.md from the catalogue
	$(BIN)/python tools/operator_table.py

samples: $(ENV)  ## rebuild samples/models
	$(BIN)/python samples/build_all.py

studies: $(ENV)  ## random networks with known gains: writes docs/studies.md and its pictures
	cd samples && ../$(BIN)/python -m studies

wheel: $(ENV)  ## build the wheel and the source distribution into dist/
	$(UV) build --quiet --out-dir dist

clean:  ## remove everything that was generated, the environment too
	rm -rf .venv demo dist build .pytest_cache .ruff_cache .hypothesis .benchmarks
