"""Synthetic rows: numbers from formulas, from no training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from batchfree.experiments.results import CurvePoint, Results, Row

SIZES = (32, 16, 8, 4, 2)
FINAL = {"gn": 5.9, "gn+ws": 5.0, "ln": 7.1, "in": 9.8}
BN = {32: 5.2, 16: 5.3, 8: 5.7, 4: 6.4, 2: 9.5}


def synthetic_row(norm: str, size: int | None, seed: int, error: float, **changes: Any) -> Row:
    steps = range(100, 1501, 100)
    wobble = (seed - 1) * 0.2
    curve = tuple(
        CurvePoint(
            step=step,
            train_loss=2.3 * 0.5 ** (step / 200),
            train_error=min(90.0, 0.6 * error + 90 * 0.5 ** (step / 130)),
            val_error=min(90.0, error + wobble + 85 * 0.5 ** (step / 150)),
        )
        for step in steps
    )
    row = Row(
        norm=norm,
        normalization_batch=size,
        seed=seed,
        steps=1500,
        batch_size=32,
        learning_rate=0.1,
        train_error=0.6 * error,
        val_error=error + wobble,
        curve=curve,
        seconds=45.0,
        commit="0123456789abcdef",
        versions={"batchfree": "0.1.0", "torch": "2.15.0"},
        machine={"cpu": "Synthetic CPU", "cores": 2, "system": "Linux"},
        command=f"batchfree reproduce batch-size --seed {seed}",
        config={"width": 32, "groups": 8, "data": {"name": "synthetic", "size": 16}},
    )
    return replace(row, **changes)


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Row]:
    return synthetic_row


@pytest.fixture(scope="session")
def results() -> Results:
    """Five norms, five sizes, three seeds, protocol `isolated`."""
    rows = [
        synthetic_row("bn", size, seed, error) for size, error in BN.items() for seed in range(3)
    ]
    rows += [
        synthetic_row(norm, None, seed, error) for norm, error in FINAL.items() for seed in range(3)
    ]
    return Results(
        experiment="batch-size",
        protocol="isolated",
        preset="synthetic",
        sizes=SIZES,
        rows=tuple(rows),
        command="batchfree reproduce batch-size --preset synthetic",
        created="2026-01-31T12:00:00+00:00",
    )
