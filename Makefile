# Everything runs in .venv, which is made on first use and brought up to date when a file it is made from changes.
#
#   make demo              the navigation demo
#   make test              the tests             make test ARGS="-m 'not slow' -x" PROCESSES=1
#   make check             lint, format, types
#   make docs              the site, in build/site
#   make PYTHON=python3.12 test                  another interpreter; `make clean` first if .venv has one already
#
# On Linux the default index has GPU builds of torch; with an index of CPU builds the installation is far smaller:
#
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
ARGS ?=
PROCESSES ?= auto

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test check bench docs notebooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv and install the package in it, editable

test bench: export MPLBACKEND = Agg

demo: $(INSTALLED) ## run the navigation demo
	$(BIN)/python -m stochgraph.algorithms.commands.demo $(ARGS)

test: $(INSTALLED) ## run the tests, in a process a core
	$(BIN)/python -m pytest --numprocesses=$(PROCESSES) --maxprocesses=8 --dist=worksteal $(ARGS)

check: $(INSTALLED) ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(INSTALLED) ## run every benchmark
	set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

docs: $(INSTALLED) ## build the site in build/site; a broken link fails
	$(BIN)/python docs/building/build.py build/site

notebooks: $(INSTALLED) ## run every notebook and keep its results
	$(BIN)/jupyter execute --inplace --kernel_name=python3 notebooks/*.ipynb

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) setuptools wheel
	$(PIP) --no-build-isolation --editable ".[plot,environments,train,tensorboard,notebook,docs,dev]"
	touch $@
