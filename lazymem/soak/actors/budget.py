"""What if all arrays together may have more memory, and then less, and then more?"""

from __future__ import annotations

import lazymem
from lazymem.soak.actor import Actor

COUNTS = ("budgets",)
PAUSE_S = 0.2
# The least of it has room for every array that cannot be evicted (sources.py), and for the least that each other must have.
_NBYTES = (8 << 20, 8 << 20, 12 << 20, 16 << 20, 32 << 20, None)


def act(me: Actor) -> None:
    """Another budget for the process."""
    lazymem.set_budget(_NBYTES[int(me.rng.integers(len(_NBYTES)))])
    me.count("budgets")
