"""What must every byte of an array be? A function of its place and the array's seed, computed here and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint64]]

_GOLDEN = 0x9E3779B97F4A7C15
_ALL = (1 << 64) - 1


def words(seed: int, n: int) -> Words:
    """The first n numbers of splitmix64, as `lazymem.core.samples.mixed` makes them: no two arrays agree by accident.

    Parameters
    ----------
    seed : int
        0 to 2**64 - 1.
    n : int
    """
    x = np.arange(1, n + 1, dtype="u8")
    x *= np.uint64(_GOLDEN)
    x += np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


def bad_blocks(seed: int, nblocks: int, one_in: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which blocks of an array are never to be had: one in so many, by its seed; 0: none."""
    if not one_in:
        return np.zeros(nblocks, bool)
    bad: np.ndarray[Any, np.dtype[np.bool_]] = words(seed ^ _ALL, nblocks) % np.uint64(one_in) == 0
    return bad
