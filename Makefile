# Everything here sets up what it needs: Python 3.10 or later is all that must be there. PYTHON chooses which one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HUBS := gevent eventlet threads
PORT ?= 8000

.DEFAULT_GOAL := help
.PHONY: help demo test $(HUBS:%=test-%) check bench psycopg2-suite compat-suites clean

help:  ## what there is to make
	@grep -hE '^[a-z0-9-]+:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(VENV)/demo  ## a web app on a PostgreSQL of its own, at http://127.0.0.1:8000 (PORT=... for another port)
	@$(BIN)/greenpg demo --port $(PORT)

test: $(VENV)/test  ## the tests on all three hubs, with a PostgreSQL of their own
	@for hub in $(HUBS); do $(BIN)/pytest --hub=$$hub || exit 1; done
	@echo "left out: psycopg2's own suite (make psycopg2-suite), those of the libraries in greenpg.compat (make compat-suites)"

$(HUBS:%=test-%): test-%: $(VENV)/test
	$(BIN)/pytest --hub=$*

psycopg2-suite: $(VENV)/suite  ## psycopg2's own test suite on greenpg (a minute or two; not a part of `make test`)
	timeout 1800 $(BIN)/python tests/psycopg2_suite.py

compat-suites: $(VENV)/test  ## the test suites of pgclient, queries and others on greenpg.compat (needs GitHub)
	timeout 1800 $(BIN)/python tests/compat_suites.py

check: $(VENV)/check  ## ruff, mypy --strict, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --hub=threads -q tests/test_architecture.py

bench: $(VENV)/bench  ## the benchmarks, peers and greenpg in one run, into benchmarks/results
	$(BIN)/python benchmarks/run.py

clean:  ## remove what make has made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(VENV)/pip: 
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp for each set of extras.
$(VENV)/demo $(VENV)/test $(VENV)/bench $(VENV)/suite: $(VENV)/%: pyproject.toml | $(VENV)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(VENV)/check: pyproject.toml $(VENV)/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[check]'
	@touch $@
