# A façade: everything here is a command that the README also shows. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
# Which PyTorch: by default the one that pip finds. For a CPU build on Linux, or for another CUDA version, give the index address
# that the PyTorch installation page shows for it:  make venv TORCH_INDEX=https://...
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
CORES ?= 2
# of `make torture`
N ?= 100
SEED ?= 1
ONLY ?=
WRITE ?=
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --quiet --no-compile
STAMP := $(VENV)/.installed
STAMP_DEV := $(VENV)/.installed-dev

.PHONY: help venv demo test check torture bench clean
help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

venv: $(STAMP) ## make .venv and install the project into it

demo: $(STAMP) ## train the tiny world on this machine's CPU, from text to chat, in minutes
	$(BIN)/snakemake --profile profiles/laptop --configfile config/tiny.yaml --cores $(CORES)
	@echo
	@echo "Report: results/tiny/report/report.html"
	@echo "The forward pass and a training step, line by line: results/tiny/trace/forward.html and step.html"
	@echo "Where does Otto live?"
	@$(BIN)/python -m nanochat.chat results/tiny/sft -p "Where does Otto live?" --temperature 0
	@echo
	@echo "Go on: $(BIN)/python -m nanochat.chat results/tiny/sft"
	@echo "In a browser: $(BIN)/python -m nanochat.serve results/tiny/sft"

test: $(STAMP_DEV) ## run every test
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

check: $(STAMP_DEV) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/snakemake --lint --configfile config/tiny.yaml

torture: $(STAMP_DEV) ## kill, damage and confuse everything N times, and count what survives: make torture N=100 [ONLY=kills]
	PYTHONPATH=tests $(BIN)/python -m torture $(ONLY) --size $(N) --seed $(SEED) $(if $(WRITE),--write)

bench: $(STAMP_DEV) ## print this machine's figures
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/dryrun.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/sandbox.py

clean: ## remove the environment; results/ and resources/ stay
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

$(STAMP_DEV): $(STAMP)
	$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@
