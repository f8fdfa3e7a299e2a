# Every target sets up what it needs in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
NATIVE_SOURCES := $(shell find csrc -type f 2>/dev/null)

.PHONY: install test test-slow sanitize cross-aarch64 quickstart lint format clean

install: .venv/installed

# torch first: the extension then builds against the torch it will run with.
.venv/installed: setup.cfg setup.py pyproject.toml $(NATIVE_SOURCES)
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "torch>=2.10"
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# One process for each core, and one thread for each process. Tests of a file share what they prepare; slow ones are so long
# that it does not matter.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test: install
	$(PYTEST) --dist loadfile

test-slow: install
	$(PYTEST) --dist load -m slow

# Every operator on random and hostile arguments under AddressSanitizer and UBSan; `scalar` is the arithmetic of the GPU.
CASES ?= 100000
LEVELS ?= ,scalar
sanitize: install
	VISIONLAB_SANITIZE=address,undefined,float-cast-overflow VISIONLAB_CUDA=0 \
		$(BIN)/python setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	PYTHONPATH=build/sanitize/lib $(BIN)/python benchmarks/fuzz_ops.py --sanitized --cases $(CASES) --levels $(LEVELS)

# Compiles and links the CPU library for 64-bit Arm. Nothing of it is run.
cross-aarch64: install
	@if command -v aarch64-linux-gnu-g++; then \
		CXX=aarch64-linux-gnu-g++ VISIONLAB_CUDA=0 \
			$(BIN)/python setup.py -q build --build-base build/aarch64 --build-lib build/aarch64/lib && \
		readelf -h build/aarch64/lib/visionlab/_C.so | grep -q AArch64 && \
		echo "aarch64: compiled and linked, not run"; \
	else \
		echo "aarch64: skipped, there is no aarch64-linux-gnu-g++ (Debian: apt-get install g++-aarch64-linux-gnu)"; \
	fi

quickstart: install
	$(BIN)/visionlab quickstart

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

clean:
	rm -rf .venv build dist *.egg-info visionlab/*.so
