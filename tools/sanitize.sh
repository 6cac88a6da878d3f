#!/bin/sh
# Runs the tests of the C++ kernels on a build with the address and undefined-behaviour sanitisers.
# usage: tools/sanitize.sh <venv> [<folder for the build, kept for the next run>]
set -eu
python="$(cd "$1/bin" && pwd)/python"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
build="${2:-$scratch}"
compiler="${CXX:-c++}"

library="$build/lib/batchfree/_kernels.so"

# Not in place: the package's own library stays as it is. Takes ten minutes of one processor.
if [ ! -e "$library" ] || [ -n "$(find src/batchfree/csrc setup.py -newer "$library")" ]; then
    BATCHFREE_SANITIZE=1 BATCHFREE_BUILD_KERNELS=1 "$python" setup.py --quiet build_ext \
        --build-lib "$build/lib" --build-temp "$build/temp"
fi

# The sanitisers must be mapped before Python is. Python and torch keep memory until the end, so
# leaks are not looked for. pytest swallows what a dying process prints: reports go to files.
export BATCHFREE_KERNELS="$library"
export ASAN_OPTIONS="detect_leaks=0:log_path=$scratch/report"
export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1:log_path=$scratch/report"
preload="$($compiler -print-file-name=libasan.so):$($compiler -print-file-name=libubsan.so)"

# Left out: torch.compile and export, which take minutes here and whose C++ compiler would inherit
# the preloaded libraries, and distributed processes. Neither changes what the kernels are given.
status=0
LD_PRELOAD="$preload" "$python" -m pytest -q -p no:cacheprovider \
    tests/ops/test_fused_*.py tests/ops/test_fuzz.py tests/ops/test_cpu.py \
    -k 'not compile and not export and not autocast and not gloo' || status=$?
for report in "$scratch"/report*; do
    [ -e "$report" ] || continue
    cat "$report" >&2
    status=1
done
exit "$status"
