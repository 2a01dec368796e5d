# Every target sets up what it needs by itself; `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
RUN    ?= heart
TESTS  ?=
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup data run test test-slow coverage check format economy values lossless fidelity \
  attribution distributed figures notebooks benchmarks docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create the virtual environment and install the project with its tools

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

data: $(READY) ## fetch the real data sets that are not checked in
	$(BIN)/python -m vcca_jax.datasets.fetch

run: $(READY) ## train, screen, credit and settle the cooperative of four hospitals
	$(BIN)/vcca-jax run experiments/heart/config.toml --name $(RUN)

test: $(READY) ## run the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow' $(TESTS)

test-slow: $(READY) ## run the tests that take longer
	VCCA_TEST_OPTIMIZED=1 $(BIN)/python -m pytest -n auto --dist loadfile -m slow $(TESTS)

coverage: $(READY) ## run the test suite and say which lines it leaves out
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow' \
	  --cov=vcca_jax --cov-report=term:skip-covered --cov-report=html:build/coverage $(TESTS)

check: $(READY) ## lint, check formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

economy: $(READY) ## find out which cheats pay, and what stops them
	$(BIN)/python -m experiments.economy.train --out runs/economy

values: $(READY) ## find out what values cost, who pays, and whether the promise is kept
	$(BIN)/python -m experiments.values.train --out runs/values

lossless: data ## find out what traversal loses against pooled training, and what its rivals lose
	$(BIN)/python -m experiments.lossless.train --out runs/lossless

fidelity: data ## find out how near credit comes to retraining, and at what cost
	$(BIN)/python -m experiments.fidelity.train --out runs/fidelity

attribution: $(READY) ## find out whether traversal tells agents apart better than federated rounds
	$(BIN)/python -m experiments.attribution.train --out runs/attribution

distributed: $(READY) ## run a cooperative of two processes on loopback
	$(BIN)/python -m experiments.distributed.train --out runs/distributed --processes 2 --devices 1

figures: $(READY) ## draw every figure and write every table again from the stored results
	$(BIN)/python -m experiments.figures

notebooks: data ## execute the notebooks from top to bottom
	$(BIN)/python -m experiments.notebooks

docs: $(READY) ## build the documentation into build/docs, warnings as errors
	$(BIN)/sphinx-build -E -W -n -q docs build/docs

benchmarks: data ## measure the speed claims side by side
	for name in traversal one_pass forms cuts federated projection conic screening samplers trajectory \
	  credit limits latency scale precision ledger refresh roofline in_run authors; do \
	  $(BIN)/python -m experiments.benchmarks.$$name \
	    --out experiments/benchmarks/results/$$name.json || exit 1; done
	$(BIN)/python -m experiments.benchmarks.page

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
