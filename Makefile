# make run, make flow, make test, make ui: each makes the environment first, if it is not there.
PYTHON ?= python3
VENV := .venv
SCREENSHOTS := BOSS_SCREENSHOTS=$(CURDIR)/screenshots
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: run flow test test-slow test-long test-ui check docs notebooks ui lock
.DEFAULT_GOAL := run

run: $(VENV)/installed
	@boss repro

flow: $(VENV)/installed
	@boss run

# Two processes, a file each at a time, with a core each.
test: $(VENV)/installed
	@OMP_NUM_THREADS=1 python -m pytest -m "not slow and not ui" -n 2 --dist loadfile

# Whole runs of the flow on real servers, which have a port each, and their pages in a browser; files
# in the order of tests/conftest.py, the long ones first. A third process would take from the servers the time that
# they answer in.
test-slow: $(VENV)/installed
	@OMP_NUM_THREADS=1 $(SCREENSHOTS) python -m pytest -m "(slow or ui) and not long" -n 2 --dist loadfile --no-loadscope-reorder

# What .ci/run has no time for, and kills of the whole pipeline: before a release, and after a change
# of what they are about.
test-long: $(VENV)/installed
	@OMP_NUM_THREADS=1 BOSS_KILLS=$${BOSS_KILLS:-10} python -m pytest -m long -n 2 --dist loadfile

# The pages of Prefect and MLflow in Debian's Chromium alone; leaves pictures in screenshots/.
test-ui: $(VENV)/installed
	@OMP_NUM_THREADS=1 $(SCREENSHOTS) python -m pytest -m ui

check: $(VENV)/installed
	@ruff check . && ruff format --check . && mypy
	@$(MAKE) --no-print-directory docs

# README, docs and the reference of the public names as a site, site/index.html. A warning, as for
# a link that leads nowhere, is an error; so is a page that would load something from elsewhere.
docs: $(VENV)/installed
	@rm -rf site && sphinx-build --quiet --fail-on-warning --keep-going -c docs . site
	@! grep -rEn --include=*.html '<(script|img|link|iframe)[^>]+(src|href)="?([a-z]+:)?//' site
	@echo "site/index.html: the docs, for a browser"

# The tutorials' code as notebooks, in build/notebooks.
notebooks: $(VENV)/installed
	@python -m docs.notebooks

ui: $(VENV)/installed
	@boss ui

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python %d.%d found; 3.11 or later needed: make PYTHON=python3.11" % sys.version_info[:2])'
	@echo "installing into $(VENV): about 7 GB, a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes --requirement requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Pins every package with its hashes, for Linux and Python 3.11 or later; names no index. Keeps
# the pins that still fit; `rm requirements.lock` first to take the newest of everything.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --output-file requirements.lock
