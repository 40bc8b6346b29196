# make run, make flow, make test, make ui: each makes the environment first, if it is not there.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: run flow test test-slow test-ui test-more check ui lock
.DEFAULT_GOAL := run

run: $(VENV)/installed
	@boss repro

flow: $(VENV)/installed
	@boss run

# Two processes, a file each at a time, with a core each.
test: $(VENV)/installed
	@OMP_NUM_THREADS=1 python -m pytest -m "not slow and not ui" -n 2 --dist loadfile

# Whole runs of the flow on real servers, which have a port each. Three processes, as these wait
# for servers and clocks; files in the order of tests/conftest.py, the long ones first.
SPREAD := -n 3 --dist loadfile --no-loadscope-reorder
test-slow: $(VENV)/installed
	@OMP_NUM_THREADS=1 python -m pytest -m slow $(SPREAD)

# The pages of Prefect and MLflow in Debian's Chromium; leaves pictures in screenshots/.
test-ui: $(VENV)/installed
	@OMP_NUM_THREADS=1 BOSS_SCREENSHOTS=$(CURDIR)/screenshots python -m pytest -m ui

# The two above at once: what both need is made once, and no core waits for a last file.
test-more: $(VENV)/installed
	@OMP_NUM_THREADS=1 BOSS_SCREENSHOTS=$(CURDIR)/screenshots python -m pytest -m "slow or ui" $(SPREAD)

check: $(VENV)/installed
	@ruff check . && ruff format --check . && mypy

ui: $(VENV)/installed
	@boss ui

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python %d.%d found; 3.11 or later needed: make PYTHON=python3.11" % sys.version_info[:2])'
	@echo "installing into $(VENV): about 5.5 GB, a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Pins every package with its hashes, for Linux and Python 3.11 or later; names no index. Keeps
# the pins that still fit; `rm requirements.lock` first to take the newest of everything.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --output-file requirements.lock
