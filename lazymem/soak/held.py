"""What does the soak know of an array: what is right there, what is never to be had, how long a look may take?"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

import lazymem
from lazymem.soak.content import Words

STRIPES = 8
WORD_NBYTES = 8
# Past a limit there is a second of grace (command.py), and a machine may be busy.
LOOK_S = 5.0


class Held:
    """One array.

    Parameters
    ----------
    array : LazyArray
        uint64, 1-D.
    kind : str
        Of its source.
    expected : numpy.ndarray
        What it holds; private writes are made here too.
    bad : numpy.ndarray of bool
        Blocks that are never to be had.
    mortal : bool
        Its bytes come from a process that may be killed: a fetch may fail for that too.
    fetch_s : float, s
        How long one fetch may take, all its attempts.
    injected : callable
        How many errors its source has made so far.
    """

    def __init__(self, array: Any, kind: str, expected: Words, bad: Any, mortal: bool, fetch_s: float, injected: Any) -> None:
        self.array: Any = array
        self.region = lazymem.region(array)
        self.kind, self.expected, self.bad, self.mortal, self.fetch_s = kind, expected, bad, mortal, fetch_s
        self.injected = injected
        self.private = self.region.mode == "c"
        self.block_words = self.region.block_nbytes // WORD_NBYTES
        self.stripe_words = -(-len(expected) // STRIPES)
        self.stripes = [threading.Lock() for _ in range(STRIPES)]
        # Can no fetch of it fail? While an operation fails, others' plain touches may meet what stands in, and are not told.
        self.certain = not mortal and not bad.any()
        self.uses, self.leaving = 0, False
        self.name = f"{kind}, {self.region.delivery}, mode {self.region.mode}, blocks of {self.region.block_nbytes}"

    def bad_in(self, start: int, stop: int) -> bool:
        """Can a block that these elements lie in never be had?"""
        return bool(self.bad[start // self.block_words : -(-stop // self.block_words)].any())

    def limit_s(self, start: int, stop: int) -> float:
        """How long it may take to look at these elements."""
        blocks = -(-stop // self.block_words) - start // self.block_words
        return LOOK_S + (self.fetch_s * blocks if self.mortal else self.fetch_s)

    def part(self, rng: np.random.Generator, most: int) -> tuple[int, int]:
        """Some elements, at most so many, of one stripe: from and to."""
        low = int(rng.integers(STRIPES)) * self.stripe_words
        high = min(low + self.stripe_words, len(self.expected))
        if high <= low:
            low, high = 0, min(self.stripe_words, len(self.expected))
        n = int(rng.integers(1, min(most, high - low) + 1))
        start = int(rng.integers(low, high - n + 1))
        return start, start + n

    @contextlib.contextmanager
    def still(self, start: int, stop: int) -> Iterator[bool]:
        """Nobody else changes these elements meanwhile. False: somebody is at it; one that hangs must not hold up all."""
        locks = self.stripes[start // self.stripe_words : -(-stop // self.stripe_words)] if self.private else []
        mine: list[threading.Lock] = []
        try:
            while len(mine) < len(locks) and locks[len(mine)].acquire(blocking=False):
                mine.append(locks[len(mine)])
            yield len(mine) == len(locks)
        finally:
            for lock in mine:
                lock.release()
