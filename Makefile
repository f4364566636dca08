# Every target makes .venv and installs what it needs with pip; `make help` lists them.
# Another interpreter: make test PYTHON=python3.12    Arguments: make demo APP=driving ARGS="--seconds 30"

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
APP    ?= read-text

BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install --quiet --quiet
DEMO := $(VENV)/.installed-demo
DEV  := $(VENV)/.installed-dev

# Tests and benchmarks measure one thread a call; a math library's own pool would only fight with them.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench bench-agent bench-demo bench-matcher bench-planner bench-profiler install-dev clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO) ## run a whole fleet on this machine (APP=read-text, meeting, gaming, driving or mixed)
	@$(BIN)/compass demo --app $(APP) $(ARGS)

test: $(DEV) ## run all tests (ARGS="tests/unit -k codec")
	@$(BIN)/python -m pytest $(or $(ARGS),--numprocesses 2)

lint: $(DEV) ## ruff, mypy --strict and the layer rules
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports $$($(BIN)/lint-imports --help | grep -o -e --no-logo) # releases for Python 3.10 print none

format: $(DEV) ## let ruff format and repair what it can
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

bench: bench-agent bench-demo bench-matcher bench-planner bench-profiler ## run all benchmarks; tables here, JSON in bench/results

bench-agent: $(DEV) ## what the agent adds to the bare operators
	@$(BIN)/python bench/agent.py $(ARGS)

bench-demo: $(DEV) ## predicted against measured latency in the demo's fleet
	@$(BIN)/python bench/demo.py $(ARGS)

bench-matcher: $(DEV) ## the matcher beside LP, MILP, greedy, POP and dede
	@$(BIN)/python bench/matcher.py $(ARGS)

bench-planner: $(DEV) ## templates, evaluation, candidates and search, beside planning each query alone
	@$(BIN)/python bench/planner.py $(ARGS)

bench-profiler: $(DEV) ## what knowing all configs takes, beside random sampling, halving and Bayesian optimisation
	@$(BIN)/python bench/profiler.py $(ARGS)

install-dev: $(DEV) ## only make .venv, with everything that developers need

clean: ## remove build output and tool caches
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	@rm -rf $(VENV)

# A virtual environment that was left half made has no stamp and is made again.
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: Compass needs Python 3.10 or newer; name one with PYTHON=..." >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "make: no virtual environment; Debian and Ubuntu keep this in the package python3-venv" >&2; exit 1; }
	@touch $@

$(DEMO): pyproject.toml $(VENV)/.created
	@echo "installing into $(VENV) (the first time takes a minute or two)"
	@$(PIP) --editable '.[demo]'
	@touch $@

# Developers' tools include all that the demo needs.
$(DEV): pyproject.toml $(VENV)/.created
	@echo "installing into $(VENV) with developers' tools (the first time takes a minute or two)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(DEMO)
