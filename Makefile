# Each target installs what it needs first; `make` alone lists them.
#   make setup PYTHON=python3.12   another interpreter (3.11 or newer)
#   make setup UV=uv               install with uv instead of pip
#   make test WORKERS=8            as many tests at once as there are cores

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint docs bench fuzz clean
.DELETE_ON_ERROR:

PYTHON ?= python3
UV ?=
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
BIN := .venv/bin
INSTALLED := .venv/installed
# One thread a process: two processes with all threads each take many times as long as with one.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: $(INSTALLED) ## Install apiece and its test tools, in the tested versions, into .venv

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "apiece needs Python 3.11 or newer, found " + sys.version.split()[0] + "; say PYTHON=python3.11 make setup")'
	@echo 'installing into .venv: a minute or two'
	@test -x $(BIN)/python || $(if $(UV),$(UV) venv --quiet --python $(PYTHON) .venv,$(PYTHON) -m venv .venv)
	@$(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check -qq) -c constraints.txt -e '.[test,test-server]'
	@touch $@
	@echo 'installed; now: make demo, or: . $(BIN)/activate && apiece --help'

demo: $(INSTALLED) ## Draw crowds, train two ways, compare, make a page to look at: into demo/ (about 6 minutes on 2 cores)
	$(BIN)/apiece demo --out demo

test: $(INSTALLED) ## Run the tests that a change needs (under 4 minutes on 2 cores)
	$(PYTEST) -m "not slow and not browser"

test-all: test ## Run all tests: also kills, processes, the browser, real servers, the real tokenizer
	$(PYTEST) -m "slow or browser"

lint: $(INSTALLED) ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=src:benchmarks:tests $(BIN)/mypy benchmarks tools

docs: $(INSTALLED) ## Write what is generated: docs/dev/code.md, docs/reference/config.md and the tables of records.md
	$(BIN)/python tools/code_map.py
	$(BIN)/apiece config --reference --out docs/reference/config.md --overwrite
	APIECE_PIN=1 $(BIN)/python -m pytest tests/dumps/test_entry.py -k page_shows_this_form

bench: $(INSTALLED) ## Run every benchmark with short settings
	@set -e; for script in $(filter-out benchmarks/common.py benchmarks/dictated.py benchmarks/proportions.py,$(sort $(wildcard benchmarks/*.py))); do echo "== $$script"; $(BIN)/python $$script --quick; done

fuzz: $(INSTALLED) ## Spoil input of every kind for ten minutes: only errors with a message may come out
	$(BIN)/python tests/fuzz/run.py --minutes 10

clean: ## Remove caches, builds and the demo; keep .venv, data, models and runs
	rm -rf demo build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis src/*.egg-info
	find $(wildcard src tests benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +
