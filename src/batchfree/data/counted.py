"""Random numbers by counting: each is a hash of what it is for, so none depends on the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def uniform(index: NDArray[np.uint64], draws: int, stream: int) -> NDArray[np.float32]:
    """Uniform numbers in [0, 1), (len(index), draws), each a hash of (stream, index, draw).

    SplitMix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014): a counter
    instead of a state, so a sample's numbers do not depend on what was drawn before.
    """
    z: NDArray[Any] = index[:, None] * np.uint64(draws) + np.arange(draws, dtype=np.uint64)
    z = z * np.uint64(0x9E3779B97F4A7C15)
    z = z + np.uint64((stream + 1) * 0xD1342543DE82EF95 % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float32)) / np.float32(2**24)


def mix(seed: int, number: int) -> int:
    """A seed, 0 to 2**63 - 1, of a seed and a number; neighbouring pairs share nothing."""
    # Weyl-type mixing.
    x = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    x ^= x >> 31
    x = x * 0xD6E8FEB86659FD93 % 2**64
    return (x ^ (x >> 32)) % 2**63
