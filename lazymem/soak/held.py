"""What does the soak know of an array: what is right there, what is never to be had, how long a look may take?"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import lazymem
from lazymem.soak.content import Words
from lazymem.soak.kept import Kept

STRIPES = 8
WORD_NBYTES = 8
# Past a limit there is a second of grace (command.py), and a machine may be busy.
LOOK_S = 5.0


class _Stripe:
    """Who is at a part of an array: nobody, one alone, or several together."""

    def __init__(self) -> None:
        self._lock, self._together, self._alone = threading.Lock(), 0, False

    def take(self, together: bool) -> bool:
        """Go in, if whoever is there allows it."""
        with self._lock:
            if self._alone or (self._together and not together):
                return False
            self._alone = not together
            self._together += together
            return True

    def leave(self) -> None:
        """Go."""
        with self._lock:
            if self._alone:
                self._alone = False
            else:
                self._together -= 1


class Held:
    """One array.

    Parameters
    ----------
    array : LazyArray
        uint64, 1-D.
    kind : str
        Of its source.
    expected : numpy.ndarray
        What it holds; what is written is written here too.
    bad : numpy.ndarray of bool
        Blocks that are never to be had.
    mortal : bool
        Its bytes come from a process that may be killed: a fetch may fail for that too.
    fetch_s : float, s
        How long one fetch may take, all its attempts.
    injected : callable
        How many errors its source has made so far.
    kept : Kept, optional
        Where what is written to it is to arrive (mode "r+").
    """

    def __init__(
        self,
        array: Any,
        kind: str,
        expected: Words,
        bad: Any,
        mortal: bool,
        fetch_s: float,
        injected: Callable[[], int],
        kept: Kept | None = None,
    ) -> None:
        self.array: Any = array
        self.region: Any = lazymem.region(array)
        self.kind, self.expected, self.bad, self.mortal, self.fetch_s = kind, expected, bad, mortal, fetch_s
        self.injected = injected
        self.written = self.region.mode != "r"
        self.kept = kept
        self.block_words = self.region.block_nbytes // WORD_NBYTES
        self.stripe_words = -(-len(expected) // STRIPES)
        self.stripes = [_Stripe() for _ in range(STRIPES)]
        # Can no fetch of it fail? While an operation fails, others' plain touches may meet what stands in, and are not told.
        self.certain = not mortal and not bad.any()
        self.uses, self.leaving = 0, False
        budget_nbytes = self.region.budget_nbytes
        # Elements that can be in memory at once, with room for the blocks that they begin and end in (`lazymem.populate`).
        self.fits = (budget_nbytes - budget_nbytes // 8) // WORD_NBYTES if budget_nbytes else len(expected)
        self.name = (
            f"{kind}, {self.region.delivery}, mode {self.region.mode}, blocks of {self.region.block_nbytes}, "
            f"budget {budget_nbytes}"
        )

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
    def still(self, start: int, stop: int, together: bool = False) -> Iterator[bool]:
        """Nobody else changes these elements meanwhile. False: somebody is at it; one that hangs must not hold up all.

        `together`: with others that say so too, each of whom changes elements that are his alone.
        """
        stripes = self.stripes[start // self.stripe_words : -(-stop // self.stripe_words)] if self.written else []
        mine: list[_Stripe] = []
        try:
            while len(mine) < len(stripes) and stripes[len(mine)].take(together):
                mine.append(stripes[len(mine)])
            yield len(mine) == len(stripes)
        finally:
            for stripe in mine:
                stripe.leave()
