"""Does a guard hear of every touch that failed meanwhile, so that what was read under it otherwise is right?"""

from __future__ import annotations

import numpy as np

import lazymem
from lazymem.soak.actor import Actor

THREADS = 2
COUNTS = ("guards", "guards_raised")


def plays(seed: int) -> bool:
    """While a guard waits to be entered, a failure outside of guards ends the process: not together with `told`."""
    return seed % 2 == 0


def act(me: Actor) -> None:
    """Look at a plain view under a guard; what cannot be had is had a look at too."""
    with me.field.use(me.rng) as held:
        if held is None:
            return
        start, stop = held.part(me.rng, 4 * held.block_words if held.mortal else 1 << 16)
        bad = held.bad_in(start, stop)
        what = f"guarded [{start}:{stop}] of {len(held.expected)}, {held.name}"
        with held.still(start, stop) as still, me.within(1 + held.limit_s(start, stop), what):
            if not still:
                return
            plain = np.asarray(held.array)[start:stop]
            try:
                with lazymem.guard():
                    got = plain.copy()
            except (lazymem.PageError, TimeoutError):  # it says so too if another thread has failed elsewhere
                me.count("errors_seen")
                me.count("guards_raised")
            else:
                if bad:
                    me.unexpected(f"{what}: no error, where a block can never be had")
                me.same(got, held.expected[start:stop], what)
        me.count("guards")
