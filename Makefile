# make run     set up, then teach a model to add: 6 to 29 digits, live on screen
# make test    set up, then run all tests
# make check   set up, then formatting, lint and types
# make format  set up, then format in place

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Made once; older than what it was made from, it is made again.
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
TYPES := build/types/sector

# Nothing of the user's own may leak into the environment.
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: run test check format types

run: $(INSTALLED)
	@$(BIN)/sector run --out runs/first --until 29

# The script, not `python -m pytest`: that would put this folder, and with it `kernels` and `cli`, on the path.
test: $(INSTALLED)
	@$(BIN)/pytest

check: $(INSTALLED) types
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy

format: $(INSTALLED)
	@$(BIN)/ruff format --quiet
	@$(BIN)/ruff check --quiet --fix-only

# mypy does not know package-dir, so it gets the installed layout as links.
types:
	@mkdir -p $(TYPES)
	@ln -sfn ../../../sector/__init__.py $(TYPES)/__init__.py
	@ln -sfn ../../../engine $(TYPES)/engine
	@ln -sfn ../../../kernels $(TYPES)/kernels
	@ln -sfn ../../../cli $(TYPES)/cli
	@ln -sfn ../../../benchmarks $(TYPES)/benchmarks

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): once, some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt torch
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@
