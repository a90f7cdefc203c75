"""Is what was flushed where it belongs when the flush is over?"""

from __future__ import annotations

import numpy as np

import lazymem
from lazymem.soak.actor import Actor
from lazymem.soak.held import Held

COUNTS = ("flushes",)
PAUSE_S = 0.01


def _kept(held: Held) -> bool:
    return held.kept is not None


def act(me: Actor) -> None:
    """Flush a part of an array: while others write to it, or while nobody may, and then look at what has arrived."""
    with me.field.use(me.rng, _kept) as held:
        if held is None or held.kept is None:
            return
        start, stop = held.part(me.rng, len(held.expected))
        alone = me.rng.random() < 0.7
        what = f"flush [{start}:{stop}] of {len(held.expected)}, {held.name}"
        with held.still(start, stop, together=not alone) as still, me.within(2 * held.limit_s(start, stop), what):
            if not still:
                return
            try:
                lazymem.flush(np.asarray(held.array)[start:stop])
            except lazymem.PageError as error:
                me.count("errors_seen")
                if not held.mortal:
                    me.unexpected(f"{what}: {error}")
                return
            me.count("flushes")
            if alone:
                lost = int(np.count_nonzero(held.kept.words()[start:stop] != held.expected[start:stop]))
                me.count("bytes_compared", 8 * (stop - start))
                me.count("lost_writes", lost)
                if lost:
                    me.say(f"LOST: {lost} elements have not arrived: {what}")
