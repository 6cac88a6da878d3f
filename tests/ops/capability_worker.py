"""Run by test_cpu.py: calls the kernels under one instruction set and saves what they return.

python capability_worker.py <file>, with the instruction set in BATCHFREE_CPU_CAPABILITY.
"""

import itertools
import sys

import torch
from fused_cases import DTYPES, LAYOUTS, assert_same_bits, draw, fused, per_sample
from oracle import ACTIVATIONS

from batchfree.ops import cpu

# (N, C, *), groups: vectors of 4, 8 and 16 lanes with and without a rest, one leaf and several.
SHAPES = [
    ((5, 12), 4),
    ((3, 516), 1),
    ((4, 7, 33), 7),
    ((3, 6, 5, 7), 2),
    ((2, 64, 17, 16), 32),
    ((3, 3, 61, 67), 1),
    ((3, 40, 5, 9, 7), 4),
]


def cases():
    """A name, inputs, groups and activation: all shapes, dtypes and layouts; activations in turn,
    with a residual in every other case, and float32 parameters in every third."""
    activations = itertools.cycle(ACTIVATIONS)
    every = itertools.product(SHAPES, DTYPES, LAYOUTS, range(2))
    for i, ((shape, groups), dtype, layout, _) in enumerate(every):
        parameter_dtype = None if i % 3 else torch.float32
        inputs = draw(shape, dtype, layout, residual=i % 2 == 0, parameter_dtype=parameter_dtype)
        yield f"{i}: {shape} {dtype} {layout}", inputs, groups, next(activations)


def main(path):
    """Saves the capability and each case's outputs, after a check that threads and batch do not
    change their bits."""
    saved = {"capability": cpu.capability()}
    for name, inputs, groups, activation in cases():
        torch.set_num_threads(1)
        outputs = fused(inputs, groups, activation)
        torch.set_num_threads(3)
        assert_same_bits(fused(inputs, groups, activation), outputs)
        alone = fused(inputs.rows(slice(1, 2)), groups, activation)
        assert_same_bits(per_sample(alone), per_sample(outputs, slice(1, 2)))
        saved[name] = outputs._asdict()
    torch.save(saved, path)


if __name__ == "__main__":
    main(sys.argv[1])
