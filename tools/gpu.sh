#!/bin/sh
# Tests and benchmarks on a GPU, from a plain source tree: torch >= 2.11, triton >= 3.6 and no network.
# usage: tools/gpu.sh <results folder> [seconds for tests] [seconds for benchmarks] [kernels]
#
# Results: tests.log, then folders that `batchfree report` reads. What is cut short is told and kept.
set -u
output="$1"
test_seconds="${2:-240}"
bench_seconds="${3:-160}"
only="${4:-all}"
failed=0
build=""
python="${PYTHON:-python3}"
parallel=""
"$python" -c "import xdist" 2>/dev/null && parallel="-n $(nproc)"
mkdir -p "$output"
output="$(cd "$output" && pwd)"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1

"$python" - >"$output/machine.txt" <<'END' || exit 1
import torch, triton
gpu = torch.cuda.get_device_properties(0)
print(f"{gpu.name}, {gpu.multi_processor_count} multiprocessors, {gpu.total_memory >> 30} GiB,")
print(f"torch {torch.__version__}, triton {triton.__version__}")
END
cat "$output/machine.txt"

# The C++ kernels, where there is a compiler: in the background, they are for the CPU.
if [ ! -e src/batchfree/_kernels.so ] && command -v "${CXX:-c++}" >/dev/null; then
    BATCHFREE_BUILD_KERNELS=1 timeout "$test_seconds" nice "$python" setup.py -q build_ext --inplace >"$output/build.log" 2>&1 &
    build=$!
fi

bench() {  # name, seconds, arguments of batchfree bench
    name="$1"; seconds="$2"; shift 2
    timeout $((seconds + 12)) "$python" -m batchfree.cli bench "$@" --device cuda \
        --budget "$seconds" --threads 1 --output "$output/$name" >"$output/$name.log" 2>&1 \
        || { echo "bench $name: exit code $?"; failed=1; }
    tail -1 "$output/$name.log"
}

# Kernels take seconds to compile, so the caches are filled by all processors during the tests.
filled=""
fill() {
    timeout "$test_seconds" "$@" >/dev/null 2>&1 &
    filled="$filled $!"
}
steps() {  # runs "$@" with a name and the arguments of each training step that is timed
    for batch in 2 8 32; do
        "$@" "step-$batch" --batch $batch --layouts channels_last --clock both
    done
    "$@" step-unet --network unet --batch 2 --size 512 --clock both
    "$@" step-maskrcnn --network maskrcnn --batch 2 --size 800 --layouts channels_last
}
fill_step() {
    shift
    fill "$python" tools/fill_compile_cache.py step "$@"
}
if [ "$bench_seconds" -gt 60 ]; then
    cases="$("$python" -c 'from batchfree.bench.suites import cases; print(len(cases("gpu")))')"
    for i in $(seq 0 $((cases - 1))); do
        fill "$python" tools/fill_compile_cache.py kernels "$i"
    done
    [ "$only" = all ] && steps fill_step
fi

# By Ctrl-C, and after 20 failures: pytest then still says what they were.
timeout -s INT -k 15 "$test_seconds" env BATCHFREE_BACKEND=triton \
    "$python" -m pytest -q -p no:cacheprovider -p no:benchmark --maxfail 20 --tb short $parallel \
    tests/ops/test_triton.py tests/ops/test_fused_special_values.py \
    tests/ops/test_fused_transforms.py tests/ops/test_fuzz.py tests/ops/test_fused_accuracy.py \
    tests/ops/test_fused_bits.py tests/ops/test_fused_op.py \
    -k "${GPU_TESTS:-chosen or test_triton or test_fuzz or test_fused_bits}" \
    >"$output/tests.log" 2>&1
status=$?
[ "$status" = 124 ] && echo "tests: cut short after $test_seconds s"
tail -3 "$output/tests.log"
[ -n "$filled$build" ] && wait $filled $build # nothing beside the benchmarks

tenth=$((bench_seconds / 10))
bench_step() {
    name="$1"; shift
    bench "$name" $((tenth / 2)) training-step --precision bfloat16 "$@"
}
bench_kernels() {  # name, tenths of the time, arguments
    name="$1"; tenths="$2"; shift 2
    bench "$name" $((tenth * tenths)) gpu --dtypes bf16 --clock device --cache cold \
        --repetitions 10 "$@"
}
if [ "$bench_seconds" -gt 0 ]; then
    bench_kernels kernels 5 --layouts contiguous channels_last \
        --peers eager batchfree compile liger apex batch_norm floor
fi
if [ "$bench_seconds" -gt 0 ] && [ "$only" = all ]; then
    steps bench_step
    bench overhead $((tenth / 2)) overhead --repetitions 20
    bench_kernels kernels-max 2 --peers eager batchfree compile-max floor
fi
[ "$status" = 0 ] && status=$failed
exit "$status"
