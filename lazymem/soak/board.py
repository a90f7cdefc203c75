"""What do the processes of a soak know of one another?

A board in shared memory: what each thread counts, and since when it is at what. Each row has one writer, so nothing is lost
and nothing is locked; it outlives the process that wrote it, however that died. A row's clock is set in this order: limit and
name, then the beginning; it is ended by a beginning of 0.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

ROWS = 64
FORKED_ROWS = 2  # the last are forked children's

# What every soak counts; actors add what they alone count (`COUNTS` in their files).
COUNTS = (
    "faults", "filled", "joins", "failed", "blocks", "refilled", "eexist", "eagain",
    "evicted", "rescued", "recycled", "moved", "refused", "units", "pinned_skips", "stored", "store_errors",
    "errors_injected", "errors_seen", "bytes_compared", "mismatches", "lost_writes", "unexpected",
    "opened", "closed", "unaccounted", "leaked_descriptors", "leaked_threads", "leaked_mappings", "leaked_memory",
)  # fmt: skip


class Board:
    """The board of one round.

    Parameters
    ----------
    path : str
        Of a file; it is made if it is empty.
    counts : sequence of str
        What is counted.
    """

    def __init__(self, path: str, counts: Sequence[str]) -> None:
        self.counts = tuple(counts)
        kind = np.dtype(
            [("began_ns", "i8"), ("limit_ns", "i8"), ("thread", "i8"), ("what", "S104"), ("counts", "i8", len(self.counts))]
        )
        with open(path, "r+b") as file:
            file.truncate(ROWS * kind.itemsize)
            self._shared = mmap.mmap(file.fileno(), ROWS * kind.itemsize)
        self.rows: Any = np.frombuffer(self._shared, kind)

    def totals(self) -> dict[str, int]:
        """What was counted in all rows."""
        return dict(zip(self.counts, map(int, self.rows["counts"].sum(axis=0)), strict=True))

    def forget_threads(self) -> None:
        """The round's process has ended: nobody is late any more but its children."""
        self.rows["began_ns"][:-FORKED_ROWS] = 0

    def late(self, grace_s: float) -> str | None:
        """Who is at something for longer than its limit and so much more; None: nobody."""
        now = time.monotonic_ns()
        for row in range(ROWS):
            began_ns = int(self.rows["began_ns"][row])
            limit_ns = int(self.rows["limit_ns"][row])
            if began_ns and now > began_ns + limit_ns + grace_s * 1e9 and began_ns == int(self.rows["began_ns"][row]):
                what = bytes(self.rows["what"][row]).decode(errors="replace")
                thread = int(self.rows["thread"][row])
                return f"thread {thread}: {what}: {(now - began_ns) / 1e9:.1f} s, of {limit_ns / 1e9:.1f} s"
        return None


class Row:
    """One thread's row.

    Parameters
    ----------
    board : Board
    number : int
        Nobody else's.
    """

    def __init__(self, board: Board, number: int) -> None:
        self._row = board.rows[number]
        self._counts = self._row["counts"]
        self._places = {name: i for i, name in enumerate(board.counts)}

    def count(self, name: str, n: int = 1) -> None:
        """Add n to what is counted under a name."""
        self._counts[self._places[name]] += n

    @contextmanager
    def within(self, limit_s: float, what: str, thread: int) -> Iterator[None]:
        """Whoever watches sees that this must be over in so many seconds."""
        self._row["limit_ns"], self._row["thread"], self._row["what"] = int(limit_s * 1e9), thread, what.encode()
        self._row["began_ns"] = time.monotonic_ns()
        try:
            yield
        finally:
            self._row["began_ns"] = 0
