"""What is everybody on stage given: a row on the board, dice of his own, the arrays, and the one way to compare?

An actor is a module of `lazymem.soak.actors`. It has `act(me)`, one short step, which is run again and again until the round
is over, and may have

- `THREADS`: how many threads of it there are (1); 0: it runs on Python's main thread
- `PAUSE_S`: how long it waits between two steps (0)
- `COUNTS`: what it alone counts
- `plays(seed)`: is it in the round of this seed? Otherwise in each
- `start(me)`: before the first step; `end(me)`, on the main thread only: after the last
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import lazymem
from lazymem.soak.board import Board, Row
from lazymem.soak.field import Field
from lazymem.soak.held import Held

_SAID_MAX = 20
_said = 0


class Actor:
    """One of them, on one thread.

    Parameters
    ----------
    name : str
        Of the module, and which of its threads.
    seed : int
        Of the round.
    field : Field
    board : Board
    row : int
        On it.
    stop : threading.Event
        Set when the round is over.
    """

    def __init__(self, name: str, seed: int, field: Field, board: Board, row: int, stop: threading.Event) -> None:
        self.name, self.seed, self.field, self.board, self.stop = name, seed, field, board, stop
        self.rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        self.last_error = ""
        self._row = Row(board, row)
        self.count = self._row.count

    def within(self, limit_s: float, what: str) -> contextlib.AbstractContextManager[None]:
        """Whoever watches sees that this must be over in so many seconds."""
        return self._row.within(limit_s, f"{self.name}: {what}", threading.get_native_id())

    def say(self, text: str) -> None:
        """To standard error, past locks that a fork may have left held; at most so many times."""
        global _said
        _said += 1
        if _said <= _SAID_MAX:
            os.write(2, f"[seed {self.seed}] {self.name}: {text}\n".encode())

    def unexpected(self, what: str) -> None:
        """Something was raised, or was not, against what is promised."""
        self.count("unexpected")
        self.say(what)

    def same(self, got: Any, expected: Any, what: str) -> None:
        """Compare every byte."""
        right = bool(np.array_equal(got, expected))
        self.count("bytes_compared", expected.nbytes)
        if not right:
            self.count("mismatches")
            self.say(f"WRONG: {what}: {_difference(np.array(got), expected)}{self.field.failures()}")

    @contextlib.contextmanager
    def looking(self, held: Held, start: int, stop: int, what: str) -> Iterator[None]:
        """Around a look at elements by what can raise: it raises if, and only if, a block there can never be had."""
        bad = held.bad_in(start, stop)
        what = f"{what} [{start}:{stop}] of {len(held.expected)}, {held.name}"
        try:
            with self.within(held.limit_s(start, stop), what):
                yield
        except lazymem.PageError as error:
            self.count("errors_seen")
            self.last_error = f"{error}: {error.__cause__}"
            # What another thread's look at the same array has met is told here too: also of good blocks that its operation,
            # having failed, did not try any more. A process may be killed again and again.
            if not any(held.bad) and not held.mortal:
                self.unexpected(f"{what}: {error}")
        except TimeoutError:
            # Another thread's failed operation lasts too long on a busy machine: that too is an answer, and a true one.
            self.count("errors_seen")
        else:
            if bad:
                self.unexpected(f"{what}: no error, where a block can never be had")

    def step(self, act: Any) -> None:
        """One step; what it raises is noted."""
        try:
            act(self)
        except Exception:
            self.unexpected(traceback.format_exc())


def _difference(got: Any, expected: Any) -> str:
    if got.shape != expected.shape:
        return f"shape {got.shape}, not {expected.shape}"
    places = np.flatnonzero(got != expected)
    if not places.size:
        return "right when it was looked at again"
    first = int(places[0])
    return (
        f"{places.size} of {expected.size} differ, +{first} to +{places[-1]}; "
        f"the first is {got[first]:#x}, not {expected[first]:#x}"
    )
