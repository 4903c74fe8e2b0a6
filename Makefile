# Two commands do all the set-up: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info < (3,14))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
DEVICE := .venv-device
PIP_FLAGS := --disable-pip-version-check --no-input -q
ARGS ?=
# Tests of one file stay in one process; more than four processes would need more memory than they save time.
WORKERS ?= -n auto --maxprocesses 4 --dist loadfile
export PYTHONDONTWRITEBYTECODE ?=

.PHONY: help demo test check test-system environments lock format clean bench-setup
.DEFAULT_GOAL := help

help: ## say what each target does
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

environments: $(VENV)/.ready $(DEVICE)/.ready ## make .venv and .venv-device from the hashed locks

$(VENV)/.ready: requirements/all.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 on PATH: install one, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "making .venv: TensorFlow, LiteRT, the cloud, the tools (about a minute the first time)" >&2
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install $(PIP_FLAGS) --require-hashes -r requirements/all.txt
	@$(VENV)/bin/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .
	@touch $@

$(DEVICE)/.ready: requirements/device.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 on PATH: install one, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "making .venv-device: the device's interpreters, no TensorFlow" >&2
	@test -x $(DEVICE)/bin/python || $(PYTHON) -m venv $(DEVICE)
	@$(DEVICE)/bin/python -m pip install $(PIP_FLAGS) --require-hashes -r requirements/device.txt
	@$(DEVICE)/bin/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .
	@$(DEVICE)/bin/python -c 'import sys; sys.version_info >= (3, 12) and print("Python %d.%d: tflite-runtime has no wheel for it and is not tried here; the device environment holds ai-edge-litert only" % sys.version_info[:2], file=sys.stderr)'
	@touch $@

demo: environments ## a fleet learns from real text: export, nights, updates, releases, suggestions
	@$(VENV)/bin/keyboard-demo story --device-python $(DEVICE)/bin/python $(ARGS)

test: environments ## the whole suite in .venv, then the edge suite in .venv-device
	@$(VENV)/bin/python -m pytest -m "not system" $(WORKERS) $(ARGS)
	@$(DEVICE)/bin/python -m pytest -m "not system" $(WORKERS) tests/edge_runtime tests/wire_contract $(ARGS)

test-system: environments ## slow stories with real processes, power cuts, a browser or an emulator
	@$(VENV)/bin/python -m pytest -m system $(ARGS)

check: environments ## ruff, mypy (strict), import-linter
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

format: environments ## let ruff write the code's form
	@$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

bench-setup: environments ## make what benchmarks need: peers' environments, the converged base, real deltas (15 minutes)
	@$(VENV)/bin/python -m benchmarks.peer_environments
	@$(VENV)/bin/python -m benchmarks.learning_inputs

bench-uplink bench-downlink bench-aggregate: bench-setup

bench-%: environments ## run benchmarks/NAME.py: make bench-train_step
	@$(VENV)/bin/python -m benchmarks.$* $(ARGS)

lock: ## make requirements/*.txt again (needs uv)
	uv pip compile pyproject.toml requirements/all.in --extra device --extra cloud --extra fast --extra export --extra bench --extra flash --extra demo --extra dev \
		--universal --python-version 3.11 --generate-hashes --no-annotate --no-header -q -o requirements/all.txt
	uv pip compile pyproject.toml requirements/device.in --extra device --extra device-tflite \
		--universal --python-version 3.11 --generate-hashes --no-annotate --no-header -q -o requirements/device.txt

clean: ## remove the environments and caches
	rm -rf $(VENV) $(DEVICE) .pytest_cache .mypy_cache .ruff_cache .hypothesis
