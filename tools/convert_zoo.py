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
import multiprocessing
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torchvision import models

import batchfree
from batchfree._naming import load_model
from batchfree.audit.tree import tensors
from batchfree.cli.audit import detection_batch, takes_lists
from batchfree.convert.kinds import is_batch_norm

sys.path.insert(0, str(Path(__file__).parent))
from audit_zoo import _make_small, _weight, input_of

FIELDS = (
    *("model", "verdict", "batch_norms", "converted", "kept", "input", "parameters"),
    *("seconds", "problem"),
)
SAMPLES = 2


def main() -> None:
    """Runs the sweep, or one model in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results/convert-zoo.csv"))
    parser.add_argument(
        "--without",
        type=Path,
        default=Path("runs/convert-zoo-without.txt"),
        help="where names of models without BatchNorm are kept",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=float, default=300, help="seconds a model")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    done = set()
    if options.output.exists():
        with options.output.open() as file:
            done = {row["model"] for row in csv.DictReader(file)}
    else:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("w", newline="") as file:
            csv.DictWriter(file, FIELDS).writeheader()
    if options.without.exists():
        done |= set(options.without.read_text().split())
    waiting = [n for n in options.only or all_names() if n not in done]
    running: list[Run] = []
    while waiting or running:
        while waiting and len(running) < options.workers:
            running.append(Run(waiting.pop(0), options.limit))
        for run in [r for r in running if r.finished()]:
            running.remove(run)
            row = run.row()
            if not row:
                options.without.parent.mkdir(parents=True, exist_ok=True)
                with options.without.open("a") as file:
                    print(run.name, file=file)
            else:
                with options.output.open("a", newline="") as file:
                    csv.DictWriter(file, FIELDS, extrasaction="ignore").writerow(row)
                print(f"{run.name}: {row['verdict']} {row.get('problem', '')}", flush=True)
        time.sleep(0.05)


class Run:
    """A model in a process of its own, forked, since importing the libraries takes longest.

    Args:
        name: of the model.
        limit: seconds.
    """

    def __init__(self, name: str, limit: float) -> None:
        self.name, self.limit, self.started = name, limit, time.monotonic()
        context = multiprocessing.get_context("fork")
        self.receiver, sender = context.Pipe(False)
        self.process = context.Process(target=_send, args=(name, sender))
        self.process.start()
        sender.close()

    def finished(self) -> bool:
        """Whether it is done, or over its time."""
        over = time.monotonic() - self.started > self.limit
        return over or self.receiver.poll() or not self.process.is_alive()

    def row(self) -> dict[str, object]:
        """Its row, with what went wrong, where it did; empty for a model without BatchNorm."""
        found: dict[str, object] = {}
        try:
            if self.receiver.poll() or not self.process.is_alive():
                found = self.receiver.recv()
            else:
                found = {"verdict": "not finished", "problem": f"over {self.limit:.0f} s"}
                self.process.kill()
        except EOFError:
            found = {"verdict": "failed", "problem": "the process ended, out of memory perhaps"}
        self.process.join()
        return {"model": self.name, **found} if found else {}


def _send(name: str, sender: Any) -> None:
    try:
        sender.send(convert_one(name))
    except BaseException as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        sender.send({"verdict": "failed", "problem": text[:200]})


def all_names() -> list[str]:
    """Every architecture, the light ones by their names first."""
    found = [f"torchvision:{n}" for n in models.list_models()]
    found += [f"timm:{n}" for n in timm.list_models()]
    return sorted(found, key=_weight)


def has_batch_norm(name: str) -> bool:
    """Whether the architecture has one; on the meta device where it can be built there."""
    try:
        with torch.device("meta"):
            model = load_model(name)
    except Exception:
        model = load_model(name)
    return any(is_batch_norm(m) for m in model.modules())


def convert_one(name: str) -> dict[str, object]:
    """The row of one model."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    started = time.perf_counter()
    if not has_batch_norm(name):
        return {}
    original = load_model(name)
    norms = sum(is_batch_norm(m) for m in original.modules())
    result = batchfree.convert(original)
    del original
    model = result.model.train()
    shape = (SAMPLES, *input_of(name, model))
    batch: Any = torch.randn(shape)
    if takes_lists(model):
        batch = detection_batch(torch.rand(shape))
        _make_small(model, shape[-1])
    if "raft" in name:
        batch = (batch, torch.randn(shape))
    output = model(*batch) if isinstance(batch, tuple) else model(batch)
    floats = [t.float() for t in tensors(output) if t.is_floating_point()]
    loss = torch.stack([t.square().mean() for t in floats]).sum()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    finite = all(bool(g.isfinite().all()) for g in gradients) and bool(loss.isfinite())
    model.zero_grad()
    row: dict[str, object] = {
        "model": name,
        "verdict": "independent",
        "batch_norms": norms,
        "converted": len(result.report.converted),
        "kept": sum(x.action == "keep" for x in result.plan.layers),
        "input": "x".join(map(str, shape)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "problem": "" if finite and gradients else "loss or gradients are not finite",
    }
    try:
        batchfree.assert_batch_independent(model, batch, mode="train")
    except AssertionError as error:
        row["verdict"], row["problem"] = "coupled", " ".join(str(error).split())[:200]
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


if __name__ == "__main__":
    main()
