"""Does what is pinned stay, whatever is evicted beside it?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import lazymem
from lazymem.soak.actor import Actor
from lazymem.soak.held import Held

COUNTS = ("pins",)
PAUSE_S = 0.01
_BLOCKS = 4  # others need some of the least budget
_LOOKS = 20


def _kind(held: Held) -> bool:
    return held.written  # of others single pages are dropped (drop.py): then a block is not there for a moment


def act(me: Actor) -> None:
    """Pin some blocks, see that they stay, and write to them as a device would: nobody is asked for leave."""
    with me.field.use(me.rng, _kind) as held:
        if held is None:
            return
        start, stop = held.part(me.rng, (_BLOCKS - 1) * held.block_words)
        what = f"pin [{start}:{stop}] of {len(held.expected)}, {held.name}"
        plain = np.asarray(held.array)[start:stop]
        with held.still(start, stop) as still:
            if not still:
                return
            pinned = None
            with me.looking(held, start, stop, "pin"):
                pinned = lazymem.pin(plain, write=True)
            if pinned is None:
                return
            with me.within(2 * held.limit_s(start, stop), what), pinned:
                for _ in range(_LOOKS):
                    if not _is_there(plain, held.limit_s(start, stop)):
                        me.unexpected(f"{what}: it does not stay")
                        break
                    time.sleep(0.0005)
                values = me.rng.integers(0, 1 << 63, stop - start, "u8")
                held.expected[start:stop] = values
                plain[:] = values
                me.count("pins")


def _is_there(plain: Any, within_s: float) -> bool:
    """Is all of it in memory, or as soon as nobody is at it? A block that is just being stored is not quite."""
    end = time.monotonic() + within_s
    while not lazymem.residency(plain).all():
        if time.monotonic() > end:
            return False
    return True
