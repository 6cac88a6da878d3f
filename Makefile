# Two commands on a fresh machine: `make demo` and `make test`. The rest is below.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
# Two workers of one thread each beat one of two on a small machine.
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2

.PHONY: help setup demo test check sanitize triton gpu gpu-quick gpu-sanitize bench nightly tune clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv from constraints.txt and install batchfree into it

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	PYTHON="$(PYTHON)" sh tools/setup.sh "$(VENV)"
	@touch $@

demo: $(STAMP)  ## the small-batch experiment on embedded data; ends in runs/demo/report.html
	$(BIN)/batchfree demo

test: $(STAMP)  ## the whole test suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(STAMP)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sanitize: $(STAMP)  ## the kernels' tests under the address and undefined-behaviour sanitisers
	sh tools/sanitize.sh "$(VENV)"

triton: $(STAMP)  ## the kernels' tests on the Triton kernels, in Triton's interpreter, a few minutes
	TRITON_INTERPRET=1 BATCHFREE_BACKEND=triton $(BIN)/python -m pytest -n $(WORKERS) -q \
	  tests/ops/test_triton.py tests/ops/test_fuzz.py tests/ops/test_fused_special_values.py \
	  tests/ops/test_fused_op.py tests/ops/test_fused_bits.py \
	  -k "$(or $(ONLY),test_triton or test_fuzz or (chosen or interleaved) and not nan_pattern)"

gpu:  ## tests and benchmarks on a GPU from a plain source tree, 9 minutes; results in benchmarks/
	sh tools/gpu.sh benchmarks/$$(date +%F)-gpu 210 200

gpu-quick:  ## the same, 3 minutes: fewer tests, and kernels alone
	GPU_TESTS="chosen and (bits or special) or test_triton" sh tools/gpu.sh runs/$$(date +%F)-gpu-quick 70 60 kernels

gpu-sanitize:  ## every Triton kernel under compute-sanitizer's memcheck and racecheck
	sh tools/gpu_sanitize.sh

bench: $(STAMP)  ## time the layers against their peers on this machine, a few minutes
	$(BIN)/batchfree bench target --allocator keep --output runs/bench
	$(BIN)/batchfree bench overhead --allocator keep --output runs/bench-overhead

nightly: $(STAMP)  ## random kernel calls, the audit of 260 models, the conversion of 700, the sweeps: hours
	BATCHFREE_FUZZ_EXAMPLES=5000 $(BIN)/python -m pytest -n $(WORKERS) tests/ops/test_fuzz.py
	$(BIN)/python tools/audit_zoo.py --output runs/audit-zoo.csv --workers $(WORKERS)
	$(BIN)/python -W ignore tools/convert_zoo.py --output runs/convert-zoo.csv --workers $(WORKERS)
	$(BIN)/batchfree reproduce batch-size --preset hour --output runs/batch-size
	$(BIN)/batchfree reproduce scratch --preset hour --output runs/scratch
	$(BIN)/batchfree reproduce detection --preset hour --output runs/detection

tune: $(STAMP)  ## the short sweeps behind the choices in docs/batch-size.md, about ten minutes
	for field in optimizer.base_lr=0.1 optimizer.base_lr=0.2 optimizer.base_lr=0.4 \
	    model.zero_init_residual=true model.channels_per_group=16; do \
	  $(BIN)/batchfree reproduce batch-size --norms bn gn --sizes 32 --seeds 1 --steps 600 \
	    --$$field --output results/tuning/$$field || exit 1; \
	done

clean:  ## remove the environment and build leftovers
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
