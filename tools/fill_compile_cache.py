"""Compiles the kernels of a benchmark on a GPU, for their caches' sake; tools/gpu.sh runs it.

Not max-autotune's: it times kernels, and the GPU has other work meanwhile.

usage: fill_compile_cache.py kernels <index of the case in the suite `gpu`>
       fill_compile_cache.py step <options of batchfree bench training-step>
"""

import argparse
import sys

from batchfree.bench.inputs import make_inputs, settings
from batchfree.bench.networks import FUSED
from batchfree.bench.peers import make_peer
from batchfree.bench.suites import cases
from batchfree.bench.training_step import Step


def kernels(index: int) -> None:
    """Ours and torch.compile's."""
    case = cases("gpu")[index]
    layouts = ["contiguous", "channels_last"]
    for setting in settings([("gpu", case)], dtypes=["bfloat16"], layouts=layouts, device="cuda"):
        inputs = make_inputs(setting)
        for name in ("batchfree", "compile"):
            make_peer(name, setting)(inputs)(1)


def step(args: list[str]) -> None:
    """Those of a network with our norms."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--layouts", default="contiguous")
    options, _ = parser.parse_known_args(args)
    sizes = (options.network, options.batch, options.size)
    Step(FUSED, *sizes, options.layouts, "bfloat16", "cuda").run(1)


if sys.argv[1] == "step":
    step(sys.argv[2:])
else:
    kernels(int(sys.argv[2]))
