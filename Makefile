# Everything starts from Python 3.11 or later, make and git; nothing needs root.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
    "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
    && echo "$$python" && break; done)
BIN := .venv/bin
# The stamp's name holds what is installed and where, so a change of either sets up again.
STAMP := .venv/.set-up-$(shell (cat pyproject.toml requirements.lock; pwd) | cksum | tr ' ' -)

.PHONY: help setup demo test matrix bench check format lock clean

help:  ## Show what can be made
	@sed -nE 's/^([a-z]+):.*  ## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP)  ## Set up .venv with everything locked, and the lab's programs
	@$(BIN)/python -I deployments/lab/binaries.py --quiet

$(STAMP):
	@if [ -z "$(PYTHON)" ]; then
	    echo "Python 3.11 or later with venv is needed: install it, or set PYTHON to its path." >&2
	    exit 1
	fi
	mkdir -p .lab
	exec 9> .lab/set-up.lock
	flock 9
	[ ! -e $@ ] || exit 0
	echo "Setting up .venv and the lab's programs ..."
	# A venv knows its own path: one that came along with a moved or copied checkout is no good.
	grep -qsF "$(CURDIR)/.venv/bin/python" $(BIN)/pip && $(BIN)/python -c "" 2> /dev/null \
	    || $(PYTHON) -m venv --clear .venv
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_REQUIRE_VIRTUALENV=1
	# uv comes by its hash like all else. It does not read pip's configuration, so where it finds
	# no index, pip has another try with the same lock.
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .lab/uv.lock
	if ! { $(BIN)/python -m pip install --quiet --require-hashes -r .lab/uv.lock &&
	    $(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock; }; then
	    echo "uv could not install the lock; pip tries." >&2
	    $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	fi
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	$(BIN)/python -m deployments.lab.binaries
	rm -f .venv/.set-up-*
	touch $@

demo: setup  ## Cold-boot a mesh on this machine from nothing, twice (KEEP=1 leaves it running)
	@$(BIN)/python -m deployments.demo

test: check  ## Run all checks and tests, integration included
	@$(BIN)/pytest -m "not matrix" --numprocesses 2 --dist loadfile

# Two at once: labs mostly wait. A file stays together, its tests share a lab.
matrix: setup  ## Kill a boot at every call, fault every call, and the boot lock: half an hour
	@$(BIN)/pytest -m matrix --numprocesses 2 --dist loadfile

bench: setup  ## Run the benchmarks and write benchmarks/results
	@$(BIN)/python -m benchmarks

check: setup  ## Check format, lint, types and the direction of imports
	@$(BIN)/ruff format --check --quiet || { echo "Run 'make format'." >&2; exit 1; }
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup  ## Format, and fix what the linter can fix
	@$(BIN)/ruff format
	$(BIN)/ruff check --fix

lock: setup  ## Lock the newest versions that pyproject.toml allows
	@compile="$(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11"
	compile+=" --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header"
	$$compile --all-extras --output-file requirements.lock
	$$compile --constraint requirements.lock --output-file requirements-production.lock

clean:  ## Remove the environment, the caches and the lab's state
	@rm -rf .venv .lab dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
