# Everything here sets up what it needs, by the lock file: Python 3.10 or later is all that must be there.
# PYTHON chooses which one; each that is named has an environment of its own: `make test PYTHON=python3.13`.
PYTHON ?= python3
FOUND := $(or $(shell tools/pythons.sh $(PYTHON)),$(error $(PYTHON) is not on this machine))
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(FOUND) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN := $(VENV)/bin
LOCK := requirements.lock
HUBS := gevent eventlet threads
QUICK_HUBS := gevent threads
PORT ?= 8000

# pip's options for the lock; newer ones apply the second to what builds greenpg. Empty, they are as if not set.
PIP := PIP_CONSTRAINT=$(LOCK) PIP_BUILD_CONSTRAINT=$(LOCK) $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo demo-cluster patroni-storm test test-quick test-separate slow-tests test-latest $(HUBS:%=test-%) extras lowest-extras lowest check docs docs-serve dist bench lock clean \
    psycopg2-suite sqlalchemy-suite compat-suites django-suite

help:  ## what there is to make
	@grep -hE '^[a-z0-9-]+:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{printf "  make %-16s %s\n", $$1, $$2}'

demo: $(VENV)/demo  ## a web app on a PostgreSQL of its own, at http://127.0.0.1:8000 (PORT=... for another port)
	@$(BIN)/greenpg demo --port $(PORT)

demo-cluster: $(VENV)/demo  ## a Patroni cluster, and a page where you kill its primary (needs etcd and haproxy)
	@exec $(BIN)/python examples/cluster/demo.py --port $(PORT)

patroni-storm: $(VENV)/demo  ## the primary of a Patroni cluster fails in 5 ways, 5 times each (20 minutes; not a part of `make test`)
	$(BIN)/python examples/cluster/installing.py
	timeout 3600 $(BIN)/python tests/patroni_storm.py

test: $(VENV)/test  ## the tests on all three hubs, with a PostgreSQL of their own (PYTHON=python3.13 for another Python)
	@$(BIN)/python tools/test_hubs.py "$(HUBS:threads=threads/each threads/once)" -q
	@echo "left out: psycopg2's own suite (make psycopg2-suite), SQLAlchemy's (make sqlalchemy-suite), those of the libraries in greenpg.compat (make compat-suites), most of Django's (make django-suite)"

# Those whose transactions begin with the first statement.
SEPARATE := tests/test_transactions.py tests/test_lazy_begin.py tests/test_pool_sessions.py tests/test_differential.py

test-separate: $(VENV)/test  ## what is about transactions, with psycopg2 beginning them by itself (GREENPG_BEGIN)
	GREENPG_BEGIN=separate $(BIN)/pytest --hub=gevent -q $(SEPARATE)

$(HUBS:%=test-%): test-%: $(VENV)/test
	$(BIN)/pytest --hub=$*

test-quick: $(VENV)/test  ## the quick ones of the tests, on two hubs, in less than half a minute: for use while working
	@$(BIN)/python tools/test_hubs.py "$(QUICK_HUBS)" --quick -q

slow-tests: $(VENV)/test  ## measure anew which tests `make test-quick` leaves out
	rm -f tests/slow_tests.txt
	@for hub in $(HUBS); do $(BIN)/pytest --hub=$$hub --note-slow -q || exit 1; done

test-latest:  ## the tests, and each extra by itself, with the newest release of everything instead of the locked one
	rm -rf $(VENV)-latest
	$(MAKE) test extras VENV=$(VENV)-latest LOCK=

extras: $(VENV)/test $(VENV)/lock  ## the wheel with each extra by itself, in a new environment, used as a user would
	$(BIN)/python tools/check_extras.py $(LOCK:%=--constraint=%)

lowest-extras: $(VENV)/test $(VENV)/lock  ## the same with the lowest versions that pyproject.toml allows
	$(BIN)/python tools/check_extras.py --lowest

lowest: lowest-extras  ## and the quick tests with the lowest versions
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python $(BIN)/python --extra test -o $(VENV)/lowest.txt pyproject.toml
	rm -rf $(VENV)-lowest
	$(MAKE) test-quick VENV=$(VENV)-lowest LOCK=$(VENV)/lowest.txt QUICK_HUBS='$(HUBS)'

sqlalchemy-suite: $(VENV)/test  ## SQLAlchemy's own tests on greenpg's dialect (half an hour; not a part of `make test`)
	timeout 7200 $(BIN)/python tests/sqlalchemy_suite.py

psycopg2-suite: $(VENV)/suite  ## psycopg2's own test suite on greenpg (a minute or two; not a part of `make test`)
	timeout 1800 $(BIN)/python tests/psycopg2_suite.py

django-suite: $(VENV)/test  ## Django's own test suite on greenpg's engine (an hour; needs PyPI once, for its sdist)
	nice -n 10 $(BIN)/python tests/django_suite.py

compat-suites: $(VENV)/test  ## the test suites of pgclient, queries and others on greenpg.compat (needs GitHub)
	timeout 1800 $(BIN)/python tests/compat_suites.py

check: $(VENV)/check  ## ruff, mypy --strict, who imports whom, and the types that users see
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --hub=threads -q tests/test_architecture.py tests/test_types.py

docs: $(VENV)/docs  ## the manual, into site/, with every warning an error; needs no network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

docs-serve: $(VENV)/docs  ## the manual at http://127.0.0.1:8000 (PORT=...), built anew whenever you save
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:$(PORT)

dist: $(VENV)/dist  ## sdist and wheel, into dist/: checked, and the wheel used in an empty environment
	rm -rf dist
	PIP_CONSTRAINT=$(abspath $(LOCK)) PIP_BUILD_CONSTRAINT=$(abspath $(LOCK)) $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tools/check_extras.py $(LOCK:%=--constraint=%) --wheel dist/*.whl nothing embedded

bench: $(VENV)/bench  ## the benchmarks, peers and greenpg in one run, into benchmarks/results
	$(BIN)/python benchmarks/run.py

# All extras, all Pythons, and what builds greenpg.
lock: $(VENV)/lock  ## renew requirements.lock: the newest of everything (KEEP=1: only what pyproject.toml has got anew)
	printf '%s\n' hatchling editables | $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras \
	    $(if $(KEEP),,--upgrade) --custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml -

clean:  ## remove what make has made
	rm -rf .venv .venv-* site dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/pip:
	$(FOUND) -m venv $(VENV)
	@touch $@

# One stamp for each set of extras.
$(VENV)/demo $(VENV)/test $(VENV)/check $(VENV)/bench $(VENV)/suite $(VENV)/docs $(VENV)/dist $(VENV)/lock: $(VENV)/%: pyproject.toml $(LOCK) | $(VENV)/pip
	$(PIP) install --editable '.[$*]'
	@touch $@
