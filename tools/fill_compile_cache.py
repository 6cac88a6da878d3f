"""Compiles ours and torch.compile's kernels of a case of the suite `gpu`, for their caches' sake.

Not max-autotune's: it times kernels, and the GPU has other work meanwhile.

usage: fill_compile_cache.py <index of the case>
"""

import sys

from batchfree.bench.inputs import make_inputs, settings
from batchfree.bench.peers import make_peer
from batchfree.bench.suites import cases

case = cases("gpu")[int(sys.argv[1])]
layouts = ["contiguous", "channels_last"]
for setting in settings([("gpu", case)], dtypes=["bfloat16"], layouts=layouts, device="cuda"):
    inputs = make_inputs(setting)
    for name in ("batchfree", "compile"):
        make_peer(name, setting)(inputs)(1)
