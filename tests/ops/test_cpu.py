"""How the compiled library is found, chosen from and loaded, each in a process of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from capability_worker import cases
from rounding import assert_within, expected

import batchfree
from batchfree.ops import cpu

# What torch says of this processor, which has all of an instruction set's extensions or none.
HERE = {"AVX2": ("baseline", "avx2"), "AVX512": cpu.CAPABILITIES}.get(
    torch.backends.cpu.get_cpu_capability(), ("baseline",)
)
LIBRARY = Path(os.environ.get("BATCHFREE_KERNELS") or Path(cpu.__file__).parents[1] / "_kernels.so")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which is Linux's")


def python(*arguments, **environment):
    """A Python process with other environment variables; asserts that it succeeds."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """results(capability): what capability_worker.py saved under it, computed once."""
    folder, known = tmp_path_factory.mktemp("capabilities"), {}

    def of(capability):
        if capability not in HERE:
            pytest.skip(f"this processor lacks {capability}")
        if capability not in known:
            worker, path = Path(__file__).with_name("capability_worker.py"), folder / capability
            python(worker, path, BATCHFREE_CPU_CAPABILITY=capability)
            known[capability] = torch.load(path, weights_only=True)
        return known[capability]

    return of


@pytest.mark.parametrize("capability", cpu.CAPABILITIES)
def test_each_capability_is_right_and_has_the_same_bits_for_any_threads_and_batch(
    capability, results
):
    """The bits are compared by the worker."""
    got = results(capability)
    assert got["capability"] == capability
    for name, inputs, groups, activation in cases():
        want, allowed = (t._asdict() for t in expected(inputs, groups, activation=activation))
        for part, t in got[name].items():
            if t is not None:
                assert_within(f"{name}: {part}", t, want[part], allowed[part])


@pytest.mark.parametrize("capability", cpu.CAPABILITIES[1:])
def test_capabilities_agree_within_rounding_but_not_in_bits(capability, results):
    """Equal bits would mean that the environment variable chose nothing."""
    one, other = results("baseline"), results(capability)
    for name, inputs, groups, activation in cases():
        allowed = expected(inputs, groups, activation=activation)[1]._asdict()
        for part, t in one[name].items():
            if t is not None:
                assert_within(f"{name}: {part}", t, other[name][part].double(), allowed[part])
    names = [name for name, *_ in cases()]
    assert any(not torch.equal(one[name]["y"], other[name]["y"]) for name in names)


def test_the_best_capability_is_the_default():
    assert cpu.capability() == (os.environ.get("BATCHFREE_CPU_CAPABILITY") or HERE[-1])


@pytest.mark.parametrize("forced", ["sse9", *(c for c in cpu.CAPABILITIES if c not in HERE)])
def test_an_unknown_or_missing_capability_is_refused(forced):
    code = f"""
import pytest, torch, batchfree
from batchfree.ops import cpu
says = "one of baseline, avx2, avx512, and an instruction set of this processor.*{forced}"
with pytest.raises(batchfree.ConfigError, match=says):
    cpu.capability()
with pytest.raises(batchfree.ConfigError, match=says):
    batchfree.group_norm(torch.ones(1, 2, 3), 2)
"""
    python("-c", code, BATCHFREE_CPU_CAPABILITY=forced)


def test_without_the_library_pytorchs_operators_serve_and_it_is_said_once(tmp_path):
    code = """
import warnings
import pytest, torch, batchfree
from batchfree.ops import cpu
x = torch.randn(2, 4, 3, requires_grad=True)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    y = batchfree.group_norm(x, 2, activation="silu", residual=x)
    batchfree.group_norm(x.detach(), 2)
    batchfree.GroupNorm(2, 4)(x)
(warning,) = said
assert warning.category is RuntimeWarning
assert "does not exist" in str(warning.message)
assert "pip install --force-reinstall" in str(warning.message)
assert warning.filename == "<string>", warning.filename
torch.testing.assert_close(y, torch.nn.functional.silu(torch.group_norm(x, 2) + x))
assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()
assert cpu.capability() is None
with batchfree.backend("cpu"), pytest.raises(batchfree.BackendError, match="does not exist"):
    batchfree.group_norm(x, 2)
"""
    python("-c", code, BATCHFREE_KERNELS=str(tmp_path / "none.so"))


def test_a_file_that_is_no_library_is_a_reason_to_go_without(tmp_path, monkeypatch):
    path = tmp_path / "kernels.so"
    path.write_text("no library")
    monkeypatch.setenv("BATCHFREE_KERNELS", str(path))
    assert re.search(f"do not load into this PyTorch.*{path}", cpu._load())


@linux
def test_threads_are_torchs_own_and_as_many_as_set():
    """One OpenMP runtime is mapped, and each thread that torch is allowed is started once."""
    code = """
import os, torch, batchfree
def threads():
    return len(os.listdir("/proc/self/task"))
def call():
    x = torch.randn(4, 32, 64, 64, requires_grad=True)
    for t in (x, x.to(memory_format=torch.channels_last)):
        with batchfree.backend("cpu"):
            batchfree.group_norm(t, 8, activation="silu").sum().backward()
torch.set_num_threads(1)
before = threads()
call()
assert threads() == before, "set_num_threads(1) started threads"
torch.set_num_threads(3)
call()
assert threads() == before + 2, f"set_num_threads(3) started {threads() - before}"
with open("/proc/self/maps") as maps:
    files = {os.path.realpath(line.split()[-1]) for line in maps if "/" in line}
runtimes = [f for f in files if os.path.basename(f).startswith(("libgomp", "libomp", "libiomp"))]
assert len(runtimes) == 1, runtimes
"""
    python("-c", code, OMP_NUM_THREADS="4")


@linux
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_the_library_needs_neither_python_nor_openmp_nor_torchs_unstable_symbols():
    def lines(option):
        command = ["readelf", option, "--wide", str(LIBRARY)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    needed = [line for line in lines("--dynamic") if "(NEEDED)" in line]
    assert any("libtorch_cpu" in line for line in needed)
    assert not [line for line in needed if "python" in line or "omp" in line]
    # Number, value, size, type, binding, visibility, section, name.
    rows = [line.split() for line in lines("--dyn-syms")]
    undefined = [row[7] for row in rows if len(row) > 7 and row[6] == "UND"]
    assert "aoti_torch_empty_strided" in undefined
    unstable = (
        "Py",
        "_Py",
        "GOMP_",
        "omp_",
        "_ZN2at",
        "_ZNK2at",
        "_ZN3c10",
        "_ZNK3c10",
        "_ZN5torch",
    )
    assert not [name for name in undefined if name.startswith(unstable)]


def test_without_the_library_a_first_call_compiles_too():
    code = """
import torch, batchfree
layer = batchfree.GroupNorm(2, 4, activation="relu")
compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
assert compiled(torch.randn(2, 4, 3), residual=torch.randn(2, 4, 3)).shape == (2, 4, 3)
"""
    python("-W", "ignore", "-c", code, BATCHFREE_KERNELS="nowhere")


@pytest.mark.parametrize("name", ["x", "weight", "bias", "residual"])
def test_a_tensor_whose_memory_was_freed_is_an_error(name):
    tensors = dict(x=torch.ones(2, 4, 3), weight=torch.ones(4), bias=torch.ones(4))
    tensors["residual"] = torch.ones(2, 4, 3)
    tensors[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=rf"{name} has no memory: its storage was freed"):
        batchfree.group_norm(tensors.pop("x"), 2, **tensors)
