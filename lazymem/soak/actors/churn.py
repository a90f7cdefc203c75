"""Do many faults in a row come out right? What was dropped a moment ago is read again at once, page after page."""

from __future__ import annotations

import numpy as np

from lazymem.options import PAGE_NBYTES
from lazymem.soak.actor import Actor
from lazymem.soak.actors.drop import drop
from lazymem.soak.held import WORD_NBYTES, Held

_PAGE_WORDS = PAGE_NBYTES // WORD_NBYTES


def _cheap(held: Held) -> bool:
    return held.certain and not held.written


def act(me: Actor) -> None:
    """Drop a run of pages of an array, and read them."""
    with me.field.use(me.rng, _cheap) as held:
        if held is None:
            return
        start, stop = held.part(me.rng, 1 << 20)
        what = f"churn [{start}:{stop}] of {len(held.expected)}, {held.name}"
        for _ in range(4):
            with me.within(held.limit_s(start, stop), what):
                drop(held, start // _PAGE_WORDS, -(-stop // _PAGE_WORDS))
                me.same(np.asarray(held.array)[start:stop], held.expected[start:stop], what)
