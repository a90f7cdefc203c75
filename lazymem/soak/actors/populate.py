"""Do populate and prefetch meet touches of the same blocks, and raise only for what cannot be had?"""

from __future__ import annotations

import numpy as np

import lazymem
from lazymem.soak.actor import Actor

COUNTS = ("populates", "prefetches")
PAUSE_S = 0.001


def act(me: Actor) -> None:
    """Have some elements fetched, now or in the background."""
    with me.field.use(me.rng) as held:
        if held is None:
            return
        start, stop = held.part(me.rng, min(held.fits, 8 * held.block_words if held.mortal else 1 << 16))
        plain = np.asarray(held.array)[start:stop]
        if me.rng.random() < 0.5:
            with me.within(5.0, f"prefetch, {held.name}"):
                lazymem.prefetch(plain)
            me.count("prefetches")
            return
        with me.looking(held, start, stop, "populate"):
            lazymem.populate(held.array[start:stop] if me.rng.random() < 0.5 else plain)
        me.count("populates")
