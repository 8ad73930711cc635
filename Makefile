# One list of commands, the same here and in CI. `make help` lists them.
# Everything happens in a virtual environment of its own; every step is skipped when nothing it depends on has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUST_SOURCES := $(shell find rust -name '*.rs' -o -name 'Cargo.toml') Cargo.toml $(wildcard Cargo.lock) pyproject.toml
PACKAGE_FILES := $(shell find python -name '*.py' -o -name '*.pyi' -o -path '*/bundled/*' -type f | grep -v __pycache__)

.DEFAULT_GOAL := help
.PHONY: help demo test test-rust test-python test-arm64 lint format bench bench-table gpu-wheel gpu-check kernels kernel-tools clean

help: ## List the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# The extension, optimised, with what it needs at run time: all that a user of the wheel gets.
$(VENV)/built: $(VENV)/created $(RUST_SOURCES)
	$(BIN)/python -m pip install --quiet 'maturin>=1.10,<2'
	$(BIN)/maturin develop --release --quiet
	touch $@

# What tests and linters need besides; torch is by far the largest part.
$(VENV)/dev: $(VENV)/created requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: $(VENV)/built ## Write a story with the bundled model, offline
	@$(BIN)/spikelet generate "Once upon a time" --echo --max-new-tokens 200 --seed 7 --stats

test: test-rust test-python ## Run all tests

TESTED := --workspace --exclude spikelet-py --exclude spikelet-benches
test-rust: $(VENV)/created ## Run the tests of the Rust crates
	@if cargo nextest --version >/dev/null 2>&1; \
		then cargo nextest run $(TESTED); \
		else cargo test $(TESTED) --lib --tests; fi
	cargo test --quiet $(TESTED) --doc

test-python: $(VENV)/built $(VENV)/dev ## Run the tests of the package, the command line and the documents
	$(BIN)/python -m pytest

test-arm64: ## Run the tests of kernels and arithmetic on an emulated Arm
	scripts/test_arm64.sh all

lint: $(VENV)/built $(VENV)/dev ## Check format, lints, types and stubs
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --document-private-items
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/dev ## Format all code
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/built $(VENV)/dev ## Measure speed and memory, roughly, in a few minutes
	for name in decode prefill verify batch load contention; do $(BIN)/python benches/$$name.py --quick || exit; done

# Nothing else may run on the machine: the figures of README files rest on this.
bench-table: $(VENV)/built $(VENV)/dev ## Measure all that benches/README.md shows and write it (15 minutes)
	$(BIN)/python benches/peers.py
	$(BIN)/python benches/decode.py
	$(BIN)/python benches/prefill.py --threads 2
	$(BIN)/python benches/verify.py --threads 2
	$(BIN)/python benches/batch.py --formats bf16,q8,q4
	$(BIN)/python benches/load.py
	$(BIN)/python benches/contention.py --formats bf16,q8
	$(BIN)/python benches/table.py

# To be carried to a machine with a GPU: it runs where glibc is as old as this one's symbols, which the wheel's name tells.
gpu-wheel: $(VENV)/created ## Build the wheel that benches/gpu_check takes along, into dist/
	$(BIN)/python -m pip install --quiet 'maturin>=1.10,<2'
	$(BIN)/maturin build --release --quiet --out dist
	git describe --always --dirty > dist/COMMIT
	@ls -l dist/*.whl

gpu-check: $(VENV)/built $(VENV)/dev ## Check and measure on an NVIDIA GPU; without one, rehearse it on the emulated driver
	nvidia-smi -L >/dev/null 2>&1 && dry= || dry=--dry; $(BIN)/python benches/gpu_check $$dry

# Apart from the environment, because PyTorch brings another NVRTC under the same name.
TOOLS := $(VENV)/kernel-tools
$(TOOLS)/installed: $(VENV)/created
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(TOOLS) \
		nvidia-cuda-nvrtc-cu12==12.0.140 nvidia-cuda-nvcc-cu12==12.9.86
	touch $@

kernel-tools: $(TOOLS)/installed ## Install the compilers of the CUDA kernels (64 MB)

kernels: $(TOOLS)/installed ## Compile the CUDA kernels to PTX
	$(BIN)/python kernels/build_ptx.py

clean: ## Remove everything that was built
	cargo clean
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
