"""Does a thread hear of a plain touch that failed, soon, when nothing guards it?

Of an array that nobody else looks at: what stands in while an operation of another thread fails is no fault of this one, and
it is told nothing.
"""

from __future__ import annotations

import threading
import time

import numpy as np

import lazymem
from lazymem.soak import sources
from lazymem.soak.actor import Actor
from lazymem.soak.field import settle
from lazymem.soak.held import Held

COUNTS = ("told",)
PAUSE_S = 0.05
_SOON_S = 5.0


def plays(seed: int) -> bool:
    """Not together with `guarded`, which says why."""
    return seed % 2 == 1


def act(me: Actor) -> None:
    """Have a thread touch what cannot be had."""
    held = sources.from_c(me.field.place, me.rng, str(me.rng.choice(me.field.place.deliveries)))
    me.count("opened")
    for block in np.flatnonzero(held.bad):
        place = min(int(block) * held.block_words + int(me.rng.integers(held.block_words)), len(held.expected) - 1)
        heard: list[str] = []
        thread = threading.Thread(target=_touch, args=(held, place, int(block), heard), name="told")
        with me.within(2 * _SOON_S, f"told of block {block}, {held.name}"):
            thread.start()
            thread.join()
        if heard == ["told"]:
            me.count("told")
            me.count("errors_seen")
        else:
            me.unexpected(f"told of block {block}, {held.name}: {heard or 'no TouchError'}")
    settle(me, held)
    lazymem.close(held.array)
    me.count("closed")


def _touch(held: Held, place: int, block: int, heard: list[str]) -> None:
    try:
        np.asarray(held.array)[place : place + 1].sum()
        end = time.monotonic() + _SOON_S
        while time.monotonic() < end:
            time.sleep(0.0001)
    except lazymem.TouchError as error:
        heard.append("told" if error.error.block == block else f"of block {error.error.block}")
