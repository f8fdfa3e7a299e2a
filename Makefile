# Every target sets up what it needs in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
NATIVE_SOURCES := $(shell find csrc -type f 2>/dev/null)

.PHONY: install test test-slow quickstart lint format clean

install: .venv/installed

# torch first: the extension then builds against the torch it will run with.
.venv/installed: setup.cfg setup.py pyproject.toml $(NATIVE_SOURCES)
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "torch>=2.10"
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# One process for each core, and one thread for each process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test: install
	$(PYTEST)

test-slow: install
	$(PYTEST) -m slow

quickstart: install
	$(BIN)/visionlab quickstart

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' | xargs $(BIN)/clang-format -i

clean:
	rm -rf .venv build dist *.egg-info visionlab/*.so
