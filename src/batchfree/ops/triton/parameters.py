"""The gradients of weight and bias, from the sums of each sample's channels."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

RUNTIME = ("samples", "per_split")


@triton.jit(do_not_specialize=RUNTIME)
def parameters(
    totals,
    dweight,
    dbias,
    samples: tl.int64,
    per_split: tl.int64,
    C: tl.constexpr,
    CB: tl.constexpr,
    NB: tl.constexpr,
):
    """dweight and dbias of CB channels, over a run of `per_split` samples, added in float64."""
    BLOCKS: tl.constexpr = (C + CB - 1) // CB
    pid = tl.program_id(0)
    split = (pid // BLOCKS).to(tl.int64)
    c = pid % BLOCKS * CB + tl.arange(0, CB)
    i = tl.arange(0, NB)
    dw = tl.zeros((NB, CB), tl.float64)
    db = tl.zeros((NB, CB), tl.float64)
    for first in range(0, per_split, NB):
        mask = (first + i < per_split)[:, None] & (c < C)[None, :]
        at = totals + (split * per_split + first + i)[:, None] * C + c[None, :]
        db += tl.load(at, mask=mask, other=0.0)
        dw += tl.load(at + samples * C, mask=mask, other=0.0)
    out = split * C + c
    if dweight is not None:
        total = tl.sum(dw, 0).to(tl.float32)
        tl.store(dweight + out, total.to(dweight.dtype.element_ty), mask=c < C)
    if dbias is not None:
        total = tl.sum(db, 0).to(tl.float32)
        tl.store(dbias + out, total.to(dbias.dtype.element_ty), mask=c < C)
