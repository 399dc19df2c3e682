# What a person or a CI job does here; `make` alone lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv lock check test test-full test-avx2 test-lowest demo bench clean

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# uv where it is found, else a copy in .venv.
UV = $(or $(shell command -v uv),$(BIN)/uv)
UV_INSTALL = $(UV) pip install --quiet --python $(BIN)/python
# Local wheels that pip is told of; uv reads no pip configuration.
WHEELS = $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
# Which build of torch (uv's --torch-backend): CPU without a GPU, that of the driver with one, none beside local wheels.
TORCH_BACKEND ?= $(if $(WHEELS),,$(if $(GPU),auto,cpu))

GPU := $(shell nvidia-smi -L 2>/dev/null)
# DeepSpeed guesses its accelerator from what is installed; without a GPU it is told.
ifeq ($(GPU),)
export DS_ACCELERATOR ?= cpu
endif

# No test reaches for the network; long versions install older releases of transformers from the package index.
test test-full test-avx2 test-lowest: export HF_HUB_OFFLINE := 1
test test-full test-avx2 test-lowest: export WANDB_MODE := offline
test test-full test-avx2 test-lowest: export TOKENIZERS_PARALLELISM := false

# Groups and order are those of tests/conftest.py. Three workers on two cores: some tests wait.
PYTEST := $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

help:
	@echo "make demo       install, then run the quickstart: text in, searched and exported model out"
	@echo "make venv       install everything into .venv (once; again when the requirements change)"
	@echo "make lock       resolve requirements/cpu.txt anew"
	@echo "make check      format, lint, types"
	@echo "make test       the tests"
	@echo "make test-full  the tests with their long versions"
	@echo "make test-avx2  the numerical tests, as on a processor without AVX-512"
	@echo "make test-lowest  the rooms that rest on others' packages, with the oldest versions allowed (needs the network)"
	@echo "make bench      measure the supernet's speed side by side"
	@echo "make clean      delete caches and build output (.venv and runs/ stay)"

export define LOCK_HEADER
# The versions that are tested together: `make lock` writes them, `make lock UPGRADE=--upgrade` with newer ones. Pins for
# Linux and macOS, Python 3.11 to 3.13; CUDA's own packages are left out, a CUDA build of torch pins and brings them.
endef

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml requirements/cpu.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("Python 3.11 or later: make venv PYTHON=python3.12")'
	@echo "installing into .venv (about 3 GB)"
	@test -x $(BIN)/python || if command -v uv >/dev/null; then uv venv --quiet --seed --python $(PYTHON) .venv; else $(PYTHON) -m venv .venv; fi
	@test -x "$(UV)" || $(BIN)/pip install --quiet --disable-pip-version-check uv
	@$(UV_INSTALL) $(WHEELS:%=--find-links %) $(TORCH_BACKEND:%=--torch-backend %) --requirements requirements/cpu.txt
	@$(UV_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

lock:
	bash requirements/public.sh pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate $(UPGRADE) \
	  --extra dev --output-file requirements/cpu.txt pyproject.toml
	pins=$$(grep -vE '^(nvidia|cuda)-' requirements/cpu.txt); printf '%s\n' "$$LOCK_HEADER" "$$pins" > requirements/cpu.txt

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: venv
	$(PYTEST) -m "not full"

test-full: venv
	$(PYTEST)

# Once more as a processor without AVX-512 computes (x86-64 only): the rooms that do the arithmetic, whose results torch,
# oneDNN, MKL, OpenBLAS, numpy and numba round each in its own way. Training and what is made of it rests on them.
test-avx2: export ATEN_CPU_CAPABILITY := avx2
test-avx2: export ONEDNN_MAX_CPU_ISA := AVX2
test-avx2: export MKL_ENABLE_INSTRUCTIONS := AVX2
test-avx2: export OPENBLAS_CORETYPE := Haswell
test-avx2: export NPY_DISABLE_CPU_FEATURES := X86_V4 AVX512_ICL AVX512_SPR
test-avx2: export NUMBA_CPU_NAME := haswell
test-avx2: export NUMBA_CPU_FEATURES := +avx2,+fma,+bmi,+bmi2,+lzcnt,+popcnt,+f16c,+movbe
test-avx2: export NUMBA_CACHE_DIR := $(CURDIR)/build/numba-avx2
test-avx2: venv
ifeq ($(shell uname -m),x86_64)
	$(PYTEST) -m "not full" tests/nn tests/triton_kernels/test_interpreter.py tests/supernet tests/evaluate
else
	@echo "test-avx2: only on x86-64"
endif

# In an environment of its own. The tools of the tests themselves are the newest. torch is what the public index has: a
# CUDA build on Linux, 5 GB.
LOWEST := build/lowest
test-lowest:
	bash requirements/public.sh pip compile --quiet --resolution lowest-direct --no-header --no-annotate \
	  --extra all --extra eval --output-file $(LOWEST).txt pyproject.toml
	test -x $(LOWEST)/bin/python || bash requirements/public.sh venv --quiet --python $(PYTHON) $(LOWEST)
	bash requirements/public.sh pip install --quiet --python $(LOWEST)/bin/python --requirements $(LOWEST).txt
	bash requirements/public.sh pip install --quiet --python $(LOWEST)/bin/python \
	  pytest pytest-timeout pytest-xdist hypothesis jsonschema glassllm==0.1.0
	bash requirements/public.sh pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	$(LOWEST)/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not full" tests/space tests/cost tests/nn \
	  tests/supernet tests/search tests/evaluate tests/archive tests/data tests/train tests/triton_kernels tests/export

# --resume: an interrupted demo goes on where it stopped.
demo: venv
	$(BIN)/llmnas run quickstart --resume

bench: venv
	$(BIN)/python benchmarks/supernet_speed.py

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find llmnas tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
