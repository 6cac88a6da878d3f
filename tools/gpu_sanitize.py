"""A call of every Triton kernel, forward and backward, for tools/gpu_sanitize.sh to look at."""

import torch
from fused_cases import LAYOUTS, draw, fused
from triton_paths import PATHS, limits

for path in PATHS:
    with limits(PATHS[path]):
        for layout in LAYOUTS:
            for shape in ((3, 6, 11, 13), (2, 20, 9)):
                fused(draw(shape, torch.bfloat16, layout), 2, "relu")
        torch.cuda.synchronize()
        print(path, "done", flush=True)
