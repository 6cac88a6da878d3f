"""Rows of benchmarks from formulas, from no run."""

from __future__ import annotations

from typing import Any

from batchfree.bench.results import KernelRow, Origin

TIMES = {"eager": 1.0, "batchfree": 4.0, "batch_norm": 0.5, "floor": 8.0}


def kernel_row(peer: str = "eager", **changes: Any) -> KernelRow:
    fast = TIMES[peer]
    fields: dict[str, Any] = {
        **{"device": "cpu", "threads": 2, "allocator": "keep", "repetitions": 30, "calls": 1},
        **{"median_us": 1000 / fast, "p10_us": 990 / fast, "p90_us": 1100 / fast},
        **{"ratio": fast, "ratio_p10": 0.9 * fast, "ratio_p90": 1.1 * fast, "failure": None},
        **{"suite": "target", "case": "block", "shape": (2, 320, 64, 64), "groups": 32},
        **{"activation": "silu", "residual": False, "count": 8, "dtype": "float32"},
        **{"layout": "contiguous", "mode": "forward", "parameters": "same", "bytes": 10485760},
        **{"floor_bytes": 20971520, "peer": peer, "floors": 8 / fast},
        "backend": "cpu" if peer == "batchfree" else None,
    }
    return KernelRow(**{**fields, **changes})


ORIGIN = Origin(
    command="batchfree bench target",
    created="2026-01-31T12:00:00+00:00",
    commit="0123456789ab",
    versions={"python": "3.11", "torch": "2.15.0", "batchfree": "0.1.0"},
    machine={"cpu": "Synthetic CPU", "cores": 2, "system": "Linux", "load before": 0.1},
)
