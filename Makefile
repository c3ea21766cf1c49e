# Everything runs in .venv, which `make` makes from pinned versions where it is absent or out of date.
#   make demo PYTHON=python3.12     chooses the interpreter (3.11 or newer) the first time

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := metainit hypernets pipelines serving
# Two workers with a thread each: with more threads than cores, idle ones spin beside those that work.
TWO_WORKERS := -n 2 --dist loadgroup --no-loadscope-reorder
ONE_THREAD := OMP_NUM_THREADS=1
export PYTHON VENV

.PHONY: help venv demo test test-slow lint format wheel bench-setup clean

help:  ## Show this list
	@awk 'BEGIN {FS = ":.*## "; print "make ..."} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

venv:  ## Make .venv, or bring it up to date
	@scripts/setup.sh

demo: venv  ## Train, register, serve and use a prior on this machine (some minutes)
	@$(BIN)/metainit demo

test: lint  ## Lint, then the fast test suite with a shortened demo (11 minutes on two cores)
	$(ONE_THREAD) $(BIN)/python -m pytest $(TWO_WORKERS) --doctest-modules $(PACKAGES) tests

test-slow: venv  ## The tests that are too slow for every change
	$(BIN)/python -m pytest -m slow tests

lint: venv  ## Style, types and the one-way imports between the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv  ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: venv  ## Build dist/metainit-*.whl
	$(BIN)/python -m build --wheel --no-isolation

bench-setup: venv  ## Add the peers that the benchmarks compare with to .venv
	$(BIN)/python -m pip -qq install --disable-pip-version-check \
	  -c constraints.txt -c constraints-bench.txt jax jaxlib higher TorchOpt

clean:  ## Remove builds and caches (.venv stays)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
