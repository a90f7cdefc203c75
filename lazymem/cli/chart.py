"""How does one see which blocks are in memory? As vmtouch shows it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

import lazymem
from lazymem.counters import human

CELLS = 60


def resident_line(array: Any) -> str:
    """How many blocks are in memory, and how much that is, of all."""
    region, here = lazymem.region(array), lazymem.residency(array)
    n = int(here.sum())
    share = 100 * n / here.size if here.size else 100.0
    percent = f"{share:.3g}%" if share >= 0.001 or not n else "less than 0.001%"
    return f"Resident blocks: {n}/{here.size}  {human(n * region.block_nbytes)}/{human(region.nbytes)}  {percent}"


def chart(array: Any) -> str:
    """A cell for each sixtieth of it: O all of its blocks are in memory, o some, blank none."""
    here = lazymem.residency(array)
    edges = np.linspace(0, here.size, min(CELLS, here.size) + 1).astype(int)
    cells = ""
    for low, high in pairwise(edges):
        part = here[low:high]
        cells += "O" if part.all() else "o" if part.any() else " "
    return f"[{cells}]"
