# amcli: every routine of the project, one target each. `make` alone lists them.

VENV ?= .venv
PYTHON ?= python3
PYTEST_ARGS ?=
# One test process for each core, and no more than four: each of them loads torch.
PYTEST_PROCESSES ?= -n auto --maxprocesses 4

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

# Make must not leave a stamp behind for an installation that failed half way.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help quickstart install dev test check lint docs picture bench torture prep-torture clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

quickstart: $(INSTALLED)  ## install, prepare a text, train on it, resume, inspect, sample
	@PATH="$(abspath $(BIN)):$$PATH" scripts/quickstart.sh

test: $(INSTALLED_DEV)  ## run the default test suite (PYTEST_ARGS="-k resume" narrows it)
	$(BIN)/python -m pytest $(PYTEST_PROCESSES) $(PYTEST_ARGS)

check: lint  ## lint, format, types, the layers of the package, the documents
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/gen_cli_docs.py --check
	$(BIN)/python scripts/draw_architecture.py --check
	$(BIN)/python scripts/check_links.py

lint: $(INSTALLED_DEV)  ## style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

docs: $(INSTALLED_DEV)  ## write docs/cli.md and the picture of the architecture anew, check every link
	$(BIN)/python scripts/gen_cli_docs.py
	$(BIN)/python scripts/draw_architecture.py
	$(BIN)/python scripts/check_links.py

picture: $(INSTALLED_DEV)  ## run the quickstart in a directory of its own and draw the README's picture (minutes)
	rm -rf build/picture && mkdir -p build/picture
	cd build/picture && PATH="$(abspath $(BIN)):$$PATH" python ../../scripts/capture_terminal.py \
		--output ../../docs/images/quickstart.svg --title "make quickstart" --columns 110 --fold-keep 3 \
		--fold '^ *step|^saved|^  (model[.]|dataset[.]|optimizer[.]|step_scheduler[.]|seed )' \
		-- ../../scripts/quickstart.sh

bench: $(INSTALLED_DEV)  ## measure start-up times into benchmarks/results/
	$(BIN)/python benchmarks/startup.py

torture: $(INSTALLED_DEV)  ## kill training 200 times, resume it, compare every bit (TORTURE_ARGS="--kills 50 --seed 3")
	$(BIN)/python scripts/torture.py $(TORTURE_ARGS)

prep-torture: $(INSTALLED_DEV)  ## kill preparation more than 100 times at random moments and compare every byte (minutes)
	$(BIN)/python -m pytest -m slow tests/engine/prep/test_resume.py

install: $(INSTALLED)  ## make the environment that runs amcli
dev: $(INSTALLED_DEV)  ## make the environment with the tools for development

clean:  ## remove the environment, caches and build results; data/ and checkpoints/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find automodel_cli tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "amcli needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (PyTorch is large: the first time takes minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) with the tools for development (PyTorch is large: the first time takes minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED) $@
