"""Is no write lost of several threads in the same blocks, while those are evicted, stored and put back?

Each thread has elements of its own, every so many, that it counts up. If it finds one of them otherwise than it left it, one
write is lost; whoever reads the array later finds that too.
"""

from __future__ import annotations

import numpy as np

from lazymem.soak.actor import Actor
from lazymem.soak.held import Held

THREADS = 3
COUNTS = ("increments",)
_TIMES = 4


def _certain(held: Held) -> bool:
    return held.written and held.certain


def act(me: Actor) -> None:
    """Count up what is mine of some elements, a few times."""
    with me.field.use(me.rng, _certain) as held:
        if held is None:
            return
        start, stop = held.part(me.rng, 1 << 14)
        first = start + (int(me.name.rpartition(" ")[2]) - start) % THREADS
        what = f"grow [{first}:{stop}:{THREADS}] of {len(held.expected)}, {held.name}"
        with held.still(start, stop, together=True) as still, me.within(held.limit_s(start, stop), what):
            if not still:
                return
            expected, plain = held.expected[first:stop:THREADS], np.asarray(held.array)[first:stop:THREADS]
            for _ in range(_TIMES):
                expected += np.uint64(1)
                plain += np.uint64(1)
            lost = int(np.count_nonzero(plain != expected))
            me.count("increments", _TIMES * len(expected))
            me.count("bytes_compared", expected.nbytes)
            me.count("lost_writes", lost)
            if lost:
                me.say(f"LOST: {lost} elements: {what}")
