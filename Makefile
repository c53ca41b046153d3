# Everything runs in .venv, which these targets make. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test check lint types imports pytest clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.export ## export a checkpoint to a bundle, check it, and transcribe recordings
	@rm -rf build/demo && mkdir -p build/demo
	@echo
	@echo "There is no trained checkpoint yet. This demo makes one of RANDOM weights, so the text it prints is noise."
	@echo
	$(BIN)/python -m training init --preset demo build/demo/checkpoint
	$(BIN)/python -m export build/demo/checkpoint build/demo/bundle --encoder-precision int8 --llm-precision int8
	$(BIN)/python -m runtime check build/demo/bundle
	$(BIN)/python -m runtime transcribe build/demo/bundle demo/recordings/* --max-new-tokens 24

test: lint types imports pytest ## everything that must pass

check: lint types imports ## the fast checks alone

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports

pytest: $(VENV)/.dev
	$(BIN)/python -m pytest

clean: ## remove the environment and all caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.export: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (the first time this takes a few minutes) ..."
	$(PIP) --editable '.[export]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (the first time this takes a few minutes) ..."
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.export
