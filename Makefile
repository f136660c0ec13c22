# Each target sets everything up by itself: a virtual environment in $(VENV), the installation, the run.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-lowest lint help
.DELETE_ON_ERROR:

help:
	@echo "make demo   set up, then run the main job on the built-in demo world into runs/demo"
	@echo "make test   set up, then run the tests"
	@echo "make test-lowest   the same with the lowest versions of everything that setup.py allows, in $(VENV)-lowest"
	@echo "make lint   set up, then run ruff and mypy"
	@echo "PYTHON=python3.11 chooses the interpreter (3.10 to 3.14), VENV=DIR the environment"

# Waiting threads sleep instead of spinning: the demo's processes share the cores with each other and with yours.
demo: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(RUN) tools/demo.py

# A process for each core; a file's tests share what they set up. `python -m pytest` runs them in one process.
PYTEST := -m pytest -n auto --dist loadfile

test: $(VENV)/.installed-dev
	$(RUN) $(PYTEST)

# Python 3.11: some of the lowest versions have no wheels for 3.12. TESTS=... for fewer.
test-lowest: $(VENV)-lowest/.installed
	$(VENV)-lowest/bin/python $(PYTEST) $(TESTS)

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 14) else \
	  "Python 3.10 to 3.14 is needed, $(PYTHON) is %d.%d; try: make $(MAKECMDGOALS) PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable '.[native]'
	@touch $@

$(VENV)/.installed-dev: setup.py pyproject.toml | $(VENV)/bin/python
	@$(RUN) -c 'import sys; sys.exit(0 if sys.version_info < (3, 13) else "the simulators that tests need have no \
	  wheels for Python 3.13 and later; try: make $(MAKECMDGOALS) VENV=.venv-test PYTHON=python3.12")'
	$(RUN) -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)-lowest/.installed: setup.py constraints/lowest.txt
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --requirement constraints/lowest.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@
