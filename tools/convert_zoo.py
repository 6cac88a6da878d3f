"""Converts every BatchNorm architecture of torchvision and timm, with random weights, into a table.

    python tools/convert_zoo.py --output results/convert-zoo.csv [--only NAME ...] [--workers 2]

Each model is converted without data, runs forward and backward in train mode at a small input, and
has to pass `assert_batch_independent` in train mode. A model runs in a process of its own with a
time limit. Rows are written as they come; models that the table holds already are passed over, so
an interrupted sweep goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from audit_zoo import _make_small, input_of

FIELDS = (
    *("model", "verdict", "batch_norms", "converted", "kept", "input", "parameters"),
    *("seconds", "problem"),
)
SAMPLES = 2
# Above, audits do not fit a small machine in reasonable time; converted and run, not audited.
LARGE = 200_000_000


def main() -> None:
    """Runs the sweep, or one model in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results/convert-zoo.csv"))
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=float, default=300, help="seconds a model")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(convert_one(options.one)))
        return
    done = set()
    if options.output.exists():
        with options.output.open() as file:
            done = {row["model"] for row in csv.DictReader(file)}
    else:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("w", newline="") as file:
            csv.DictWriter(file, FIELDS).writeheader()
    lock = Lock()

    def run(name: str) -> None:
        row = in_process(name, options.limit)
        if not row:
            return
        with lock, options.output.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS, extrasaction="ignore").writerow(row)
            print(f"{name}: {row['verdict']} {row.get('problem', '')}", flush=True)

    names = options.only or with_batch_norm(options.output.with_suffix(".names"))
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(run, [n for n in names if n not in done]))


def with_batch_norm(cache: Path) -> list[str]:
    """Every architecture with a BatchNorm, the smallest first; found on the meta device."""
    import timm
    import torch
    from torchvision import models

    from batchfree._naming import load_model
    from batchfree.convert.kinds import is_batch_norm

    if cache.exists():
        return cache.read_text().split()
    names = [f"torchvision:{n}" for n in models.list_models()]
    names = [n for n in names if not n.startswith(("torchvision:raft", "torchvision:quantized"))]
    names += [f"timm:{n}" for n in timm.list_models()]
    found = []
    for name in names:
        try:
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                model = load_model(name)
        except Exception as error:  # not built on meta: tried by itself
            print(f"{name}: not on the meta device: {type(error).__name__}", flush=True)
            found.append((0, name))
            continue
        if any(is_batch_norm(m) for m in model.modules()):
            found.append((sum(p.numel() for p in model.parameters()), name))
    ordered = [name for _, name in sorted(found)]
    cache.write_text("\n".join(ordered) + "\n")
    return ordered


def in_process(name: str, limit: float) -> dict[str, object]:
    """One model's row, with what went wrong, where it did; empty for one without BatchNorm."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and file, no shell
            command, capture_output=True, text=True, timeout=limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"model": name, "verdict": "not finished", "problem": f"over {limit:.0f} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"model": name, "verdict": "failed", "problem": last[0][:200]}
    row: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def convert_one(name: str) -> dict[str, object]:
    """The row of one model."""
    import torch

    import batchfree
    from batchfree._naming import load_model
    from batchfree.audit.tree import tensors
    from batchfree.cli.audit import detection_batch, takes_lists
    from batchfree.convert.kinds import is_batch_norm

    torch.manual_seed(0)
    torch.set_num_threads(1)
    started = time.perf_counter()
    original = load_model(name)
    norms = sum(is_batch_norm(m) for m in original.modules())
    if not norms:
        return {}
    result = batchfree.convert(original)
    del original
    model = result.model.train()
    shape = (SAMPLES, *input_of(name, model))
    batch: Any = torch.randn(shape)
    if takes_lists(model):
        batch = detection_batch(torch.rand(shape))
        _make_small(model, shape[-1])
    output = model(*batch) if isinstance(batch, tuple) else model(batch)
    loss = sum(t.float().square().mean() for t in tensors(output) if t.is_floating_point())
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    finite = all(bool(g.isfinite().all()) for g in gradients) and bool(loss.isfinite())
    model.zero_grad()
    parameters = sum(p.numel() for p in model.parameters())
    row: dict[str, object] = {
        "model": name,
        "verdict": "independent",
        "batch_norms": norms,
        "converted": len(result.report.converted),
        "kept": sum(x.action == "keep" for x in result.plan.layers),
        "input": "x".join(map(str, shape)),
        "parameters": parameters,
        "problem": "" if finite and gradients else "loss or gradients are not finite",
    }
    try:
        if parameters > LARGE:
            row["verdict"] = "runs, not audited"
        else:
            batchfree.assert_batch_independent(model, batch, mode="train")
    except AssertionError as error:
        row["verdict"], row["problem"] = "coupled", " ".join(str(error).split())[:200]
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


if __name__ == "__main__":
    main()
