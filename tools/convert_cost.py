"""What calibrating ResNet-50 costs: forward passes, seconds, peak memory; into a JSON file.

    python tools/convert_cost.py [--samples 256] [--keep 'layer[234].*'] [--output FILE]

Random weights and images: the cost does not depend on them. --keep leaves layers out, for a machine
on which all of them take too long; memory peaks in the first stage and in the first pass, which is
always a whole one.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
import warnings
from pathlib import Path

import torch
import torchvision

import batchfree


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", nargs="+", default=[])
    parser.add_argument("--output", type=Path, default=Path("results/convert-cost.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", batchfree.ConversionWarning)
    model = torchvision.models.resnet50().eval()
    images = torch.randn(options.samples, 3, 224, 224)
    with torch.no_grad():
        started = time.perf_counter()
        model(images[: options.chunk])
        one_pass = (time.perf_counter() - started) * options.samples / options.chunk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    report = batchfree.convert(
        model,
        images,
        held_out=images[: options.chunk],
        samples=options.samples,
        chunk=options.chunk,
        keep=options.keep,
    ).report
    seconds = time.perf_counter() - started
    row = {
        "model": "torchvision:resnet50",
        "samples": options.samples,
        "pixels": 224,
        "chunk": options.chunk,
        "threads": options.threads,
        "keep": options.keep,
        "layers": len(report.converted),
        "passes_begun": report.passes,
        "seconds": round(seconds, 1),
        "in_whole_passes": round(seconds / one_pass, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "peak_gib_before": round(before, 2),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    rows = json.loads(options.output.read_text()) if options.output.exists() else []
    options.output.write_text(json.dumps([*rows, row], indent=1) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
