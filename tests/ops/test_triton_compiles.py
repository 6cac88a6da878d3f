"""The Triton kernels compiled for GPUs that need not be there: what an interpreter does not see."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from fused_cases import INTERPRETED

triton = pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, compile  # noqa: E402

from batchfree.ops.fused import CODES  # noqa: E402
from batchfree.ops.triton import backward_kernels, forward_kernels, parameters  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

LIKE_X = {"x", "dy", "residual", "y", "dx", "dr"}
FLOATS = {"weight", "bias", "dweight", "dbias", "statistics", "workspace", "sums", "totals"}
# Of 64 channels in groups of 2, at a number of positions that 16 divides.
COMMON = dict(C=64, D=2, HV=16, SV=16, ACT=CODES["silu"], SIGN=False, UNIT=1, E=64, DP=2, T=64)
COMMON |= dict(CHUNK=16384, CB=8, NB=64)
FIRST = COMMON | dict(LAST=False, R=2, K=1, P=1024, STEPS=16, STAGES=4)
LAST = COMMON | dict(LAST=True, R=64, K=16, P=32, STEPS=16, STAGES=4)
PIECES = ["moments", "apply", "interleaved", "sums"]
EVERY = [
    (module, name)
    for module, names in (
        (forward_kernels, ("resident", "moments", "combine", "apply", "interleaved")),
        (backward_kernels, ("resident", "sums", "combine", "apply", "interleaved")),
        (parameters, ("parameters",)),
    )
    for name in names
]


def compiled(kernel, dtype, constants, capability=90, missing=()):
    """A kernel for tensors aligned to 16 bytes, with constants by name."""
    signature, values, attributes = {}, {}, {}
    for i, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        if name in missing or parameter.is_constexpr:
            signature[name] = "constexpr"
            values[name] = None if name in missing else constants[name]
        elif name in LIKE_X | FLOATS | {"counters"}:
            kind = dtype if name in LIKE_X else "fp32" if name in FLOATS else "i32"
            signature[name] = f"*{kind}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name == "eps" else "i64"
    source = ASTSource(kernel, signature, values, attributes)
    options = dict(num_warps=4, enable_fp_fusion=True)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("constants", [FIRST, LAST], ids=["first", "last"])
@pytest.mark.parametrize(
    ("module", "name"), EVERY, ids=[f"{m.__name__[24:]}-{n}" for m, n in EVERY]
)
def test_every_kernel_compiles(module, name, constants, capability):
    assert compiled(getattr(module, name), "fp32", constants, capability).asm["cubin"]


@pytest.mark.parametrize("constants", [FIRST, LAST], ids=["first", "last"])
@pytest.mark.parametrize(("module", "name"), [e for e in EVERY if e[1] in PIECES])
def test_loads_and_stores_of_pieces_are_16_bytes_wide_and_ahead(module, name, constants):
    ptx = compiled(getattr(module, name), "bf16", constants, missing=("residual", "dr")).asm["ptx"]
    assert "cp.async" in ptx
    assert not re.search(r"cp\.async\.ca[^;]*, 0x[48],", ptx)
    assert not re.search(r"(ld|st)\.global[^;]*\.b16", ptx)
    if name in ("apply", "interleaved"):
        assert re.search(r"st\.global[^;]*\.v4\.b32", ptx)


@pytest.mark.skipif(not os.access(CUOBJDUMP, os.X_OK), reason="this Triton carries no cuobjdump")
@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("constants", [FIRST, LAST], ids=["first", "last"])
@pytest.mark.parametrize(
    ("module", "name"), EVERY, ids=[f"{m.__name__[24:]}-{n}" for m, n in EVERY]
)
def test_registers_suffice(module, name, constants, activation, tmp_path):
    """A few spilt values are no matter, an array in memory would be."""
    if activation != "silu" and "ACT" not in getattr(module, name).arg_names:
        pytest.skip("the same kernel for every activation")
    kernel = compiled(getattr(module, name), "bf16", constants | dict(ACT=CODES[activation]))
    path = tmp_path / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    command = [str(CUOBJDUMP), "--dump-resource-usage", str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(re.search(r"STACK:(\d+)", told)[1]) <= 64
    assert int(re.search(r"REG:(\d+)", told)[1]) <= 168  # three blocks of 128 threads


def reductions(kernel, constants):
    """The layouts that a kernel's sums are over, which decide the order of additions."""
    text = compiled(kernel, "bf16", constants).asm["ttgir"]
    layouts = dict(re.findall(r"(#\w+) = (#ttg\.blocked<.*>)", text))
    found = re.findall(r'"tt\.reduce"\(.*?\}\) : \((tensor<[^>]*>)', text, re.DOTALL)
    return {re.sub(r"#\w+", lambda m: layouts.get(m[0], m[0]), one) for one in found}


@pytest.mark.parametrize("constants", [FIRST, LAST], ids=["first", "last"])
@pytest.mark.parametrize(
    ("module", "steps"),
    [(forward_kernels, ("moments", "combine")), (backward_kernels, ("sums", "combine"))],
)
def test_sums_are_taken_in_one_order_apart_and_interleaved(module, steps, constants):
    apart = set().union(*(reductions(getattr(module, name), constants) for name in steps))
    assert apart
    assert reductions(module.interleaved, constants) == apart
