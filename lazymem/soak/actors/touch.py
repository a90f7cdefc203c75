"""Does a plain array, which knows nothing of all this, read right? Scans on several threads, whose pages may be faults."""

from __future__ import annotations

import numpy as np

from lazymem.soak.actor import Actor
from lazymem.soak.held import Held

THREADS = 2


def _certain(held: Held) -> bool:
    return held.certain


def act(me: Actor) -> None:
    """Scan some elements of an array whose fetches cannot fail there."""
    with me.field.use(me.rng, _certain) as held:
        if held is None:
            return
        start, stop = held.part(me.rng, 1 << 20)
        what = f"touch [{start}:{stop}] of {len(held.expected)}, {held.name}"
        with held.still(start, stop) as still, me.within(held.limit_s(start, stop), what):
            if not still:
                return
            me.same(np.asarray(held.array)[start:stop], held.expected[start:stop], what)
