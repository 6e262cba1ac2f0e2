# Targets for people and CI. Each one first creates .venv, or updates it.
# Required: make, and Python 3.11 or newer with its venv module. `make PYTHON=/path/to/python3 …` selects an interpreter.

SHELL = /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

PYTHONS = python3.14 python3.13 python3.12 python3.11 python3 python
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --constraint constraints.txt
LOGGED = >.venv/pip.log 2>&1 || { cat .venv/pip.log >&2; echo 'Installing into .venv failed; see the output of pip above.' >&2; exit 1; }
USABLE = import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

.PHONY: help demo up test check format docs picture clean
help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s%s\n", $$1, $$2 }'

demo: .venv/made ## Watch four agents beat, one die, be flagged, and come back (a minute)
	@$(BIN)/fleetbeat demo

up: .venv/made ## Run the whole pipeline until Ctrl-C: Valkey, SQLite, workers
	@$(BIN)/fleetbeat up

test: .venv/made-dev ## Run all tests (ARGS="-k sweep" selects, ARGS="-n 0" runs one at a time)
	@$(BIN)/python -m pytest --numprocesses auto --dist loadscope $(ARGS)

check: .venv/made-dev ## Check format, lint, types and import rules
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/made-dev ## Format the code, and apply automatic lint fixes
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

docs: .venv/made-dev ## Generate docs/cli.md and the tables of settings and metrics from the code
	@$(BIN)/python docs/generate.py

picture: .venv/made-dev ## Renew docs/dashboard.svg, the picture in the README (a minute)
	@$(BIN)/python docs/picture.py

clean: ## Remove .venv, caches and build output
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	@find . -name __pycache__ -prune -exec rm -rf {} +

# A virtual environment contains the absolute path of its clone. One that was copied or moved with its clone would run the
# other clone's code, so it is created again; so is one whose Python was removed.
ifneq ($(shell .venv/bin/python --version >/dev/null 2>&1 && cat .venv/place 2>/dev/null),$(shell pwd))
.PHONY: .venv/place
endif
.venv/place:
	@python=''; \
	for name in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)); do \
	    if "$$name" -c '$(USABLE)' >/dev/null 2>&1; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo 'Fleetbeat needs Python 3.11 or newer with its venv module. Found none among: $(or $(PYTHON),$(PYTHONS)).' >&2; \
	    echo 'Install it (Debian and Ubuntu: python3 and python3-venv), or give its path: make PYTHON=/path/to/python3' >&2; \
	    exit 1; \
	fi; \
	echo "Creating .venv with $$("$$python" --version), once; this takes about half a minute."; \
	rm -rf .venv && "$$python" -m venv .venv && pwd > .venv/place

# pip is updated first: older ones don't know --group and --build-constraint. Its output is shown only if it fails.
.venv/made: .venv/place pyproject.toml constraints.txt
	@$(PIP) pip $(LOGGED)
	@$(PIP) --build-constraint constraints.txt --editable '.[worker,postgres,embedded]' $(LOGGED)
	@touch $@

.venv/made-dev: .venv/made
	@$(PIP) --group dev $(LOGGED)
	@touch $@
