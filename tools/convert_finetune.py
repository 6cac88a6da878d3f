"""Fine-tunes converted networks of digits in the wild, by method and anchor, into a CSV file.

    python tools/convert_finetune.py --output results/convert-finetune.csv

The BatchNorm network of `digits_small_bn` is trained, converted by each method with 256 unlabelled
images, and fine-tuned as `digits_converted` says: 300 steps, the same for every row. Rows are
written as they come; those that the table holds are passed over.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch

import batchfree
from batchfree._naming import load_weights
from batchfree.data import DigitsInTheWild
from batchfree.recipes.digits import digits_converted, digits_small_bn, digits_small_bn_network
from batchfree.train import fit

sys.path.insert(0, str(Path(__file__).parent))
from tables import Table

FIELDS = ("seed", "method", "anchor", "bn_error", "converted_error", "fine_tuned_error")
SOURCE = "batchfree.recipes.digits:digits_small_bn_network"
WAYS = (("copy", None), ("calibrated", 2.0), ("calibrated", 0.0), ("calibrated", None))
BLENDS = (("blend", 2.0), ("blend", None))


def main() -> None:
    """Trains, converts, fine-tunes what the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/convert-finetune"))
    parser.add_argument("--output", type=Path, default=Path("results/convert-finetune.csv"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table = Table(options.output, FIELDS, keys=3)
    for seed in range(options.seeds):
        for method, anchor in WAYS + BLENDS:
            key = (seed, method, "none" if anchor is None else anchor)
            if not table.has(*key):
                table.add(*key, **errors(options.runs, seed, method, anchor))


def errors(runs: Path, seed: int, method: str, anchor: float | None) -> dict[str, float]:
    """The row's errors, %."""
    trained = runs / f"bn-{seed}"
    threads = {"threads": 1, "accelerator": "cpu"}
    if not (trained / "model.safetensors").exists():
        fit(digits_small_bn().replace(seed=seed, trainer=threads), output=trained, progress=False)
    network = digits_small_bn_network()
    load_weights(network, trained / "model.safetensors")
    images = DigitsInTheWild("train", num_samples=256, seed=1000 + seed).batch(range(256))[0]
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    result = batchfree.convert(
        network.eval(),
        images,
        method=method,  # type: ignore[arg-type]
        anchor=anchor,
        chunk=256,
    )
    file = runs / f"{method}-{anchor}-{seed}.safetensors"
    result.save(file, source=SOURCE)
    config = digits_converted().replace(
        seed=100 + seed, model={"converted": str(file)}, trainer=threads
    )
    tuned = fit(config, progress=False)
    return {
        "bn_error": error_of(network),
        "converted_error": error_of(result.model),
        "fine_tuned_error": round(tuned.val_error, 3),
    }


def error_of(network: torch.nn.Module) -> float:
    """Of the test digits."""
    data = DigitsInTheWild("test")
    wrong = 0
    with torch.inference_mode():
        for start in range(0, len(data), 199):
            x, y = data.batch(range(start, min(start + 199, len(data))))
            wrong += int((network.eval()(x).argmax(1) != y).sum())
    return round(100 * wrong / len(data), 3)


if __name__ == "__main__":
    main()
