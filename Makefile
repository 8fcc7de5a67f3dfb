# `make demo` and `make test` need Python >= 3.10, a C++ compiler and make; the rest is set up in
# .venv. Only `make gpu` uses the Python that is there, with the torch that it has.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# pip takes the CUDA build of torch. For the much smaller CPU build:
#   make demo TORCH="torch==2.13.0 --extra-index-url INDEX"
# with the index that pytorch.org/get-started names for it.

VENV := .venv
PY := $(VENV)/bin/python
CXX_FILES := $(shell find csrc cuda examples -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# Prints the targets for the instruction sets below the best that this processor has.
define LOWER_SETS
from pyext import _jit, _libraries
root = _libraries.source_root()
known, best = _libraries.instruction_sets(root), _jit.this_machine(root).instruction_sets[0]
print(*(f"test-{name}" for name in reversed(known[: known.index(best)])))
endef
export LOWER_SETS

.DEFAULT_GOAL := help
.PHONY: help demo test bench docs wheel lint format gpu clean cuda-sources FORCE

help: ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(VENV)/.ready-demo ## Train two small models with torch's ops and with pyext's, write demo.png
	@$(PY) -m examples.demo

# Tests beside each other have more threads than there are processors: theirs must not wait spinning.
test: $(VENV)/.ready-dev lint ## Build, run all tests for every instruction set, lint, compile CUDA
	PYEXT_WERROR=1 $(PY) -m pyext build --isa all
	OMP_WAIT_POLICY=passive $(PY) -m pytest -n logical --maxprocesses 4 --dist worksteal \
	    --doctest-glob='*.md' README.md docs tests
	@lower="$$($(PY) -c "$$LOWER_SETS")"; \
	[ -z "$$lower" ] || $(MAKE) --no-print-directory --jobs --output-sync $$lower
	@$(MAKE) --no-print-directory cuda-sources

bench: $(VENV)/.ready-dev ## Measure every op beside torch's, write benchmarks/results and README
	@$(PY) -m benchmarks
	@$(PY) -m benchmarks report

docs: $(VENV)/.ready-dev ## Build the documentation in docs/_site; a broken link is an error
	$(PY) -m sphinx -W -n -q --keep-going docs docs/_site
	@echo "docs/_site/index.html"

wheel: $(VENV)/.ready-dev ## Pack sources, and from them the wheel that compiles itself, into dist/
	$(PY) -m build

lint: $(VENV)/.ready-dev ## Check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)
	$(PY) -m mypy

format: $(VENV)/.ready-dev ## Bring all files into shape
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

gpu: ## With an NVIDIA GPU and torch in python3: build, run the CUDA tests and benchmarks; no network
	$(PYTHON) -m pyext build --cuda
	@failed=; \
	$(PYTHON) -m pytest -q -m 'not build' -k cuda tests || failed="tests $$failed"; \
	$(PYTHON) -m benchmarks --device cuda || failed="benchmarks $$failed"; \
	echo; $(PYTHON) -m pyext doctor; \
	if [ -n "$$failed" ]; then echo "make gpu: failed: $$failed"; exit 1; fi; \
	echo "make gpu: the CUDA tests passed; results are in benchmarks/results"

clean: ## Remove .venv and what was built here
	rm -rf $(VENV) build dist docs/_site *.egg-info

# The sets run beside each other on a thread each: the first run has seen that threads change nothing.
test-%:
	@echo "ATEN_CPU_CAPABILITY=$*"
	@OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=$* $(PY) -m pytest -m 'not once and not build' tests

# The headers that a toolkit may lack come from PyPI.
cuda-sources: $(VENV)/.ready-dev
	@if ! $(PY) -c 'from pyext._toolchain import find_cuda as f; raise SystemExit(not f())'; then \
	    echo "The CUDA sources were not compiled: there is no nvcc."; \
	else \
	    $(PY) -c 'from pyext._toolchain import *; cuda_header_flags(find_cuda())' 2>/dev/null \
	    || $(PY) -m pip install -q --no-deps nvidia-cublas nvidia-cusolver nvidia-cusparse; \
	    $(PY) -m pyext build --compile-only; \
	fi

# ---- set-up ----

# An editable install without torch in the build environment compiles nothing: that is left to the
# first import.
$(VENV)/.ready-%: pyproject.toml $(VENV)/.torch
	@echo "installing $(TORCH) and pyext[$*] into $(VENV) ..."
	@$(PY) -m pip install -q --disable-pip-version-check $(TORCH) -e '.[$*]'
	@touch $@

$(VENV)/.torch: FORCE | $(PY)
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "pyext needs Python 3.10 or newer: make PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "Debian, Ubuntu: apt install python3-venv"; exit 1; }
