"""Does a sequential stream read right, and what it writes stay? A long one is fetched in units of 2 MiB."""

from __future__ import annotations

import numpy as np

from lazymem.soak.actor import Actor
from lazymem.soak.held import STRIPES, Held

COUNTS = ("streams",)
PAUSE_S = 0.005


def _certain(held: Held) -> bool:
    return held.certain


def act(me: Actor) -> None:
    """All of an array from its first element to its last, each counted up where it may be written."""
    with me.field.use(me.rng, _certain) as held:
        if held is None:
            return
        for i in range(STRIPES):
            start, stop = (min(n * held.stripe_words, len(held.expected)) for n in (i, i + 1))
            if start == stop:
                break
            what = f"stream [{start}:{stop}] of {len(held.expected)}, {held.name}"
            with held.still(start, stop) as still, me.within(held.limit_s(start, stop), what):
                if not still:
                    return
                expected, plain = held.expected[start:stop], np.asarray(held.array)[start:stop]
                if held.written:
                    expected += np.uint64(1)
                    plain += np.uint64(1)
                me.same(plain, expected, what)
        me.count("streams")
