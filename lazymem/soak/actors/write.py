"""Does what is written stay, wherever its block goes meanwhile? And private writes only there?"""

from __future__ import annotations

import numpy as np

from lazymem.soak.actor import Actor
from lazymem.soak.content import Words
from lazymem.soak.held import Held

COUNTS = ("writes",)
_TRIES = 10


def _written(held: Held) -> bool:
    return held.written


def write(me: Actor, held: Held, start: int, values: Words) -> None:
    """Write elements that no bad block is among. A write that fails may have written some of them: it is done again."""
    stop = start + len(values)
    held.expected[start:stop] = values
    for _ in range(_TRIES):
        written = False
        with me.looking(held, start, stop, "write"):
            if me.rng.random() < 0.5 and held.certain:
                np.asarray(held.array)[start:stop] = values
            else:
                held.array[start:stop] = values
            written = True
        if written:
            return
    me.unexpected(f"write [{start}:{stop}], {held.name}: it fails again and again: {me.last_error}")


def act(me: Actor) -> None:
    """Write some elements of an array of mode "c" or "r+", and read them and their neighbours back."""
    with me.field.use(me.rng, _written) as held:
        if held is None:
            return
        start, stop = held.part(me.rng, 2048)
        if held.bad_in(start, stop):
            return
        low = start // held.stripe_words * held.stripe_words
        around = (max(low, start - 512), min(stop + 512, low + held.stripe_words, len(held.expected)))
        values = me.rng.integers(0, 1 << 63, stop - start, "u8")
        with held.still(start, stop) as still:
            if not still:
                return
            write(me, held, start, values)
            me.count("writes")
            with me.looking(held, *around, "read what was written"):
                me.same(held.array[slice(*around)] + np.uint64(0), held.expected[slice(*around)], f"written, {held.name}")
