# Every target sets up what it needs in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
NATIVE_SOURCES := $(shell find csrc -type f 2>/dev/null)

.PHONY: install test test-slow sanitize cross-aarch64 quickstart family-table lint format clean

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

# The tables of detectors in RESULTS.md, into OUT. What is done is kept, and several processes may do it together, each with
# OMP_NUM_THREADS=1. BCCD is the folder of that dataset; without it its table is left out.
OUT ?= runs/detectors
BCCD ?=
DETECTORS := configs/compare/detectors
COMPARE := $(BIN)/python benchmarks/detector_family.py
BENT := data.deformation=1 --seeds 0 1 2 3 4
ON_BCCD := "data={name: coco, root: $(BCCD), annotations: annotations/train.json, images: images, \
	val_annotations: annotations/val.json}" transform.short_side=160 transform.max_size=216 loader.batch_size=4 \
	--tune data.val_annotations=null --tune data.val_fraction=0.25 --tune data.near_copies=null
family-table: install
	$(COMPARE) $(DETECTORS)/faster_rcnn_fpn.yaml $(DETECTORS)/*.yaml --out $(OUT)/generated
	$(COMPARE) $(DETECTORS)/faster_rcnn_dc5.yaml $(DETECTORS)/deformable_faster_rcnn.yaml $(BENT) --out $(OUT)/bent_faster_rcnn
	$(COMPARE) $(DETECTORS)/rfcn.yaml $(DETECTORS)/deformable_rfcn.yaml $(BENT) --out $(OUT)/bent_rfcn
	test -z "$(BCCD)" || $(COMPARE) $(DETECTORS)/faster_rcnn_fpn.yaml $(DETECTORS)/*.yaml $(ON_BCCD) --out $(OUT)/bccd

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
