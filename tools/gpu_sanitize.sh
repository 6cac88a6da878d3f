#!/bin/sh
# The Triton kernels under NVIDIA's compute-sanitizer: memory accesses, then races in shared memory.
# usage: tools/gpu_sanitize.sh [tool ...]
#
# racecheck told of four hazards with Triton 3.6, lanes that write one value (benchmarks/NOTES.md).
set -eu
export PYTHONPATH="src:tests/ops${PYTHONPATH:+:$PYTHONPATH}" BATCHFREE_BACKEND=triton
export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # each tensor an allocation of its own, so that its end shows
for tool in ${*:-memcheck racecheck}; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 \
        "${PYTHON:-python3}" tools/gpu_sanitize.py
done
