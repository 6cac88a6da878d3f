"""What an audit of ResNet-50 costs, batch 8 at 224 pixels, in forward-backward passes.

    python tools/audit_cost.py [--rounds 3] [--threads 2] > results/audit-cost.json

Time and peak memory of the audit against those of one forward and backward of the same batch, in
turns and in a process of its own each, so that a peak is that of nothing else.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time


def main() -> None:
    """Runs the two in turns, or one of them in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=("audit", "pass"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.threads)))
        return
    rows = []
    for _ in range(options.rounds):
        row = {}
        for what in ("pass", "audit"):
            command = [sys.executable, __file__, "--threads", str(options.threads), "--one", what]
            done = subprocess.run(  # noqa: S603 - our own interpreter and file, no shell
                command, capture_output=True, text=True, check=True
            )
            row[what] = json.loads(done.stdout)
        row["passes"] = row["audit"]["seconds"] / row["pass"]["seconds"]
        row["memory"] = row["audit"]["peak_mib"] / row["pass"]["peak_mib"]
        rows.append(row)
    import torch

    from batchfree.bench.origin import here

    found = {
        "origin": here("python tools/audit_cost.py").to_json(),
        "model": "torchvision:resnet50, batch 8, 224 px",
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "forward_backward_passes": statistics.median(r["passes"] for r in rows),
        "memory_of_one": statistics.median(r["memory"] for r in rows),
        "rounds": rows,
    }
    print(json.dumps(found, indent=1))


def measure(what: str, threads: int) -> dict[str, float]:
    """Seconds, and MiB of memory beyond what the model and its input take."""
    import torch
    import torchvision

    import batchfree

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    x = torch.randn(8, 3, 224, 224)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def once() -> None:
        model(x).square().mean().backward()
        model.zero_grad()

    if what == "audit":
        start = time.perf_counter()
        batchfree.audit(model, x)
        seconds = time.perf_counter() - start
    else:
        once()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            once()
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": round(seconds, 3), "peak_mib": round(peak / 1024, 1)}


if __name__ == "__main__":
    main()
