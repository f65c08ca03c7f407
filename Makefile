# Needs Python 3.11 with venv and pip, make and a C compiler; everything else comes from the lock files.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: env run ui test lint lock clean

env: $(VENV)/.installed

# the source packages among the dependencies are built with pinned tools, not with whatever is newest that day
$(VENV)/.installed: requirements-build.lock requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-build.lock
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --no-build-isolation -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: env
	$(BIN)/panoramic run

ui: env
	$(BIN)/panoramic ui

test: env
	$(BIN)/python -m pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock:
	uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --extra dev pyproject.toml -o requirements.lock
	uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url -c requirements.lock requirements-build.in -o requirements-build.lock

clean:
	rm -rf $(VENV) build dist *.egg-info
