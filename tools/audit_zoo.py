"""Audits the models of torchvision and timm, with random weights and small inputs, into a table.

    python tools/audit_zoo.py --output results/audit-zoo.csv [--only NAME ...] [--workers 2]

Each model runs in a process of its own with a time limit. Rows are written as they come; models
that the table holds already are passed over, so an interrupted sweep goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from batchfree.cli.audit import detection_batch, takes_lists

FIELDS = (
    *("model", "input", "verdict", "batch_norms", "zero_gamma", "eval", "train"),
    *("entries_train", "first_train", "entries_eval", "first_eval"),
    *("bits", "degenerate", "smallest_batch", "seconds", "passes", "problem"),
)
# timm architectures: the lightest of each of its modules by their names, then the next, and so on.
TIMM = 170
LIGHT = ("test_", "atto", "femto", "pico", "nano", "micro", "mini", "tiny", "small", "_xxs", "_xs")
HEAVY = (
    *("base", "large", "huge", "giant", "gigantic", "enormous", "so400m", "so150m", "_xl", "xxl"),
    *("1b", "3b", "2b", "_l_", "_h_", "_g_", "384", "448", "512", "_b36", "_m48", "_c64"),
)


def main() -> None:
    """Runs the sweep, or one model in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results/audit-zoo.csv"))
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=240, help="seconds a model")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(audit_one(options.one)))
        return
    names = options.only or all_names()
    done = set()
    if options.output.exists():
        done = {row["model"] for row in csv.DictReader(options.output.open())}
    else:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("w", newline="") as file:
            csv.DictWriter(file, FIELDS).writeheader()
    lock = Lock()

    def run(name: str) -> None:
        row = in_process(name, options.limit)
        with lock, options.output.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS, extrasaction="ignore").writerow(row)
            print(f"{name}: {row['verdict']} {row.get('problem', '')}", flush=True)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(run, [n for n in names if n not in done]))


def all_names() -> list[str]:
    """torchvision's classification, segmentation and detection models, and a spread of timm's."""
    import timm
    from torchvision import models

    found = [f"torchvision:{name}" for name in models.list_models()]
    found = [n for n in found if not n.startswith(("torchvision:raft", "torchvision:quantized"))]
    by_module: dict[str, list[str]] = {}
    for name in timm.list_models():
        by_module.setdefault(timm.models.model_entrypoint(name).__module__, []).append(name)
    for members in by_module.values():
        members.sort(key=_weight)
    chosen: list[str] = []
    turn = 0
    while len(chosen) < TIMM:
        for members in by_module.values():
            if turn < len(members) and len(chosen) < TIMM:
                chosen.append(members[turn])
        turn += 1
    return found + [f"timm:{name}" for name in chosen]


def _weight(name: str) -> int:
    return 2 * sum(word in name for word in HEAVY) - sum(word in name for word in LIGHT)


def in_process(name: str, limit: float) -> dict[str, object]:
    """One model's row; what went wrong, where it did."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and file, no shell
            command, capture_output=True, text=True, timeout=limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"model": name, "verdict": "not audited", "problem": f"over {limit:.0f} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"model": name, "verdict": "not audited", "problem": last[0][:200]}
    row: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def audit_one(name: str) -> dict[str, object]:
    """The row of one model."""
    import torch

    import batchfree
    from batchfree._naming import load_model

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = load_model(name)
    shape = (4, *input_of(name, model))
    batch: object = torch.randn(shape)
    if takes_lists(model):
        batch = detection_batch(torch.rand(shape))
        _make_small(model, shape[-1])
    ran: set[torch.nn.Module] = set()
    handles = [m.register_forward_hook(lambda m, *_: ran.add(m)) for m in model.modules()]
    report = batchfree.audit(model, batch, name=name, probes=2)
    for handle in handles:
        handle.remove()
    row: dict[str, object] = {
        "model": name,
        "input": "x".join(map(str, shape)),
        "verdict": _verdict(report),
        # Where no other code mixes, the train mode's entries are the BatchNorms that ran, but for
        # those whose gamma is zero.
        "batch_norms": sum(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in ran),
        "zero_gamma": sum(f.kind == "zero gamma" for f in report.findings),
        "bits": sum(f.level == "bits" for f in report.findings),
        "degenerate": sum(f.kind == "degenerate" for f in report.findings),
        "smallest_batch": report.smallest_batch,
        "seconds": report.seconds,
        "passes": report.passes,
        "problem": "; ".join(f.message for f in report.findings if f.kind == "not measured")[:200],
    }
    for mode in report.modes:
        row[mode.mode] = "coupled" if mode.coupled else "independent"
        row[f"entries_{mode.mode}"] = len(mode.entries)
        row[f"first_{mode.mode}"] = mode.entries[0][0] if mode.entries else ""
    return row


def _verdict(report: Any) -> str:
    """Independent only where both modes ran."""
    if report.at_least("coupling"):
        return "coupled"
    return "partly audited" if report.skipped else "independent"


def _make_small(detector: Any, pixels: int) -> None:
    """Keeps images as small as they are, and the regions of an image few."""
    detector.transform.min_size, detector.transform.max_size = (pixels,), pixels
    if hasattr(detector, "rpn"):
        for name in ("_pre_nms_top_n", "_post_nms_top_n"):
            setattr(detector.rpn, name, {"training": 32, "testing": 32})


def input_of(name: str, model: Any) -> tuple[int, ...]:
    """(C, H, W) or (C, T, H, W), as small as the architecture takes."""
    if name.startswith("timm:"):
        config = getattr(model, "default_cfg", {})
        channels, height, width = config.get("input_size", (3, 224, 224))
        if not config.get("fixed_input_size") and height >= 128:
            height = width = max(96, config.get("min_input_size", (0, 0, 0))[1])
        return channels, height, width
    short = name.partition(":")[2]
    if short == "s3d":
        return 3, 14, 224, 224
    if short in ("r3d_18", "mc3_18", "r2plus1d_18"):
        return 3, 14, 64, 64
    if short.startswith("swin3d"):
        return 3, 8, 64, 64
    if short.startswith("mvit"):
        return 3, 16, 224, 224
    if short.startswith(("vit", "swin", "maxvit")):
        return 3, 224, 224
    if short.startswith("raft"):
        return 3, 128, 128
    if short.endswith("inception_v3"):
        return 3, 299, 299
    return (3, 96, 96) if takes_lists(model) else (3, 64, 64)


if __name__ == "__main__":
    main()
