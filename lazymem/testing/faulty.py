"""What if a provider fails now and then, in a way and at a time that were ordered?"""

from __future__ import annotations

import copy
import errno
import os
import threading
from collections.abc import Iterable
from typing import Any

from lazymem.providers.wrapper import Wrapper, fill
from lazymem.testing.chance import chance
from lazymem.testing.failure import KINDS, Failure, Kind, check_kind
from lazymem.testing.given import provider_of
from lazymem.testing.tally import Tally

_kept: list[memoryview] = []


class FaultyProvider(Wrapper):
    """A provider that fails by a schedule, by chance, or both; what does not fail is right.

    Parameters
    ----------
    provider : object or bytes
        What resembles `lazymem.providers.Provider`, or its bytes.
    schedule : iterable of Failure
        Each read gets the first that is due.
    rate : float
        0 to 1: how many of the other reads fail besides. Which do is decided by `seed`, where the read begins and how often
        that page was read before: by nothing that differs from run to run, whichever thread or process comes first.
    kinds : iterable of str
        How they fail, each as often as the others: kinds of `Failure`. An "error" is then an OSError, EIO.
    seed : int

    Raises
    ------
    TypeError, ValueError
        No provider; a rate out of range; an unknown kind.
    OSError
        There is no folder for temporary files, where the reads are counted.

    Notes
    -----
    Reads are counted in all processes together, and a process that dies of it takes no count along: a failure that is for the
    first attempt is not for the second. What else was under way in that process is asked for again, and counts again. The
    process that made it must be there, and hold it, as long as it is read.

    Examples
    --------
    >>> import lazymem as lm
    >>> from lazymem.testing import Failure, FaultyProvider
    >>> faulty = FaultyProvider(bytes(range(256)) * 1000, [Failure("die", at=0, times=2)], rate=0.1, seed=1)
    >>> a = lm.from_provider(faulty, block_nbytes="4 KiB", retries=9)
    >>> int(a[0]), int(a[1000])
    (0, 232)
    >>> faulty.counts()["die"]
    2
    """

    def __init__(
        self,
        provider: Any,
        schedule: Iterable[Failure] = (),
        *,
        rate: float = 0.0,
        kinds: Iterable[Kind] = ("error",),
        seed: int = 0,
    ) -> None:
        super().__init__(provider_of(provider))
        self.schedule, self.kinds = tuple(schedule), tuple(kinds)
        self.rate, self.seed = rate, seed
        if not 0 <= rate <= 1:
            raise ValueError(f"rate={rate!r}: give 0 to 1")
        for kind in self.kinds:
            check_kind(kind)
        if not self.kinds:
            raise ValueError("kinds: give one at least")
        self._tally = Tally(1 + len(KINDS) + len(self.schedule))

    def open(self) -> None:
        self._tally.open()
        super().open()

    def close(self) -> None:
        super().close()
        self._tally.close()

    def counts(self) -> dict[str, int]:
        """How many reads there were ("reads"), and how many of them failed in each way, in all processes up to now."""
        return dict(zip(("reads", *KINDS), self._tally.values(), strict=False))

    def read_into(self, buffer: memoryview, offset: int) -> int | None:
        with self._tally.alone():
            attempt = self._tally.add_page(offset)
            failure = self._due(offset, len(buffer), attempt)
            self._tally.add(0)
            if failure is not None:
                self._tally.add(1 + KINDS.index(failure.kind))
        if failure is not None and failure.kind in ("error", "hang", "die"):
            self._fail(failure, offset, attempt)
        fill(self.provider, buffer, offset)
        match failure:
            case Failure(kind="short"):
                return len(buffer) - 1
            case Failure(kind="long"):
                return len(buffer) + 1
            case Failure(kind="keep"):
                _kept.append(buffer[:])
            case Failure(kind="wrong") if len(buffer):
                byte, bit = divmod(int(chance(self.seed, offset, attempt, 2) * len(buffer) * 8), 8)
                buffer[byte] ^= 1 << bit
        return None

    def _due(self, offset: int, nbytes: int, attempt: int) -> Failure | None:
        """What is to go wrong with this read."""
        due = None
        for k, failure in enumerate(self.schedule):
            if failure.is_about(offset, nbytes) and failure.is_due(self._tally.add(1 + len(KINDS) + k)) and due is None:
                due = failure
        if due is None and chance(self.seed, offset, attempt, 0) < self.rate:
            kind = self.kinds[int(chance(self.seed, offset, attempt, 1) * len(self.kinds))]
            due = Failure(kind, OSError(errno.EIO, f"by chance: attempt {attempt} at byte {offset}"))
        return due

    def _fail(self, failure: Failure, offset: int, attempt: int) -> None:
        if failure.kind == "hang":
            threading.Event().wait()
        if failure.kind == "die":
            if self._tally.is_here:
                raise RuntimeError("a FaultyProvider ends processes of lazymem's, not the one that made it")
            os._exit(1)
        if isinstance(failure.error, BaseException):
            raise copy.copy(failure.error)  # each its own traceback
        raise failure.error(f"as ordered: attempt {attempt} at byte {offset}")
