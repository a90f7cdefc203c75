"""Is everything still right when memory is taken away all the time, also of what is looked at or written to?"""

from __future__ import annotations

import numpy as np

import lazymem
from lazymem.soak.actor import Actor

COUNTS = ("evicts", "stayed")
PAUSE_S = 0.002


def act(me: Actor) -> None:
    """Have a part of an array evicted, or all of it."""
    with me.field.use(me.rng) as held:
        if held is None:
            return
        start, stop = held.part(me.rng, len(held.expected)) if me.rng.random() < 0.7 else (0, len(held.expected))
        with me.within(held.limit_s(start, stop), f"evict [{start}:{stop}], {held.name}"):
            me.count("stayed", lazymem.evict(np.asarray(held.array)[start:stop]))
        me.count("evicts")
