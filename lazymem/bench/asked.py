"""What is touched in the cases of `bench fault` whose bytes a Python provider gives, and where do both sides run?

The toucher, with all threads of its process, is pinned to one core, the provider's process with all of its to another: asked
side by side, they need two. They are pinned after the array is made, since a process that is made on one core is asked
without waiting awake.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import numpy as np

import lazymem as lm
from lazymem.bench.cases import ASLEEP_NS, ASLEEP_TOUCHES, Case, close_checked
from lazymem.core import measure
from lazymem.core.provider import process_ids
from lazymem.options import PAGE_NBYTES
from lazymem.provided import BLOCK_NBYTES
from lazymem.providers.base import check_provider

SLICE_NS = 250_000_000  # how long a slice of a user's provider goes on beginning touches


class Ready:
    """A provider that has its bytes ready, the same for every block: one slice assignment."""

    def __init__(self, nbytes: int, block_nbytes: int) -> None:
        self.nbytes = nbytes
        self.block_nbytes = block_nbytes
        self.block = bytes(block_nbytes)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self.block


def load_provider(where: str) -> Any:
    """A user's provider, by MODULE:NAME; modules of the current directory are found too.

    Raises
    ------
    ValueError, ImportError, AttributeError
        No such form, module or name; and whatever the module or a callable raises.
    """
    module, colon, name = where.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{where!r}: give MODULE:NAME")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found if hasattr(found, "read_into") and not isinstance(found, type) else found()


def suited_block_nbytes(provider: Any) -> int:
    """The block that a provider asks for, in whole pages; else lazymem's own choice."""
    return -(-(check_provider(provider).block_nbytes or BLOCK_NBYTES) // PAGE_NBYTES) * PAGE_NBYTES


class Asked(Case):
    """A lazy array over a Python provider.

    Its last block is fetched before the clock runs: the process has started and loaded the provider.

    Parameters
    ----------
    cores : list of int
        The toucher's and the process's; none: anywhere.
    how : {"", "gil", "asleep"}
        gil: held while touching. asleep: before each touch the process is left alone until it sleeps.
    """

    def __init__(
        self, provider: Any, nblocks: int, block_nbytes: int, options: dict[str, Any], cores: list[int], how: str = ""
    ) -> None:
        self._provider = provider
        self._options = options
        self._last = nblocks * block_nbytes
        self._nbytes = self._last + block_nbytes
        self._everywhere = os.sched_getaffinity(0)
        self._cores = cores
        self._asleep = how == "asleep"
        self._keep_gil = how == "gil"
        self._array: lm.LazyArray | None = None

    def make(self) -> int:
        os.sched_setaffinity(0, self._everywhere)
        self._array = lm.from_provider(self._provider, self._nbytes, **self._options)
        self._array[-1]
        self._pin()
        return lm.region(self._array).address

    def _pin(self) -> None:
        if self._cores:
            for pid, core in [(os.getpid(), self._cores[0]), *((pid, self._cores[1]) for pid in process_ids())]:
                for thread in os.listdir(f"/proc/{pid}/task"):
                    os.sched_setaffinity(int(thread), {core})

    def touch(self, base: int, offsets: np.ndarray[Any, Any], took_ns: np.ndarray[Any, Any], threads: int) -> tuple[int, int]:
        n = min(len(offsets), ASLEEP_TOUCHES) if self._asleep else len(offsets)
        pause_ns = ASLEEP_NS if self._asleep else 0
        at, to = offsets.ctypes.data, took_ns.ctypes.data
        return n, measure.touch(base, at, to, n, threads=threads, pause_ns=pause_ns, keep_gil=self._keep_gil)

    def end(self, touched: int) -> None:
        array, self._array = self._array, None
        assert array is not None
        close_checked(array, touched)


class Provided(Asked):
    """The same over a provider of the user's, which may be slow: as many touches in a slice as time allows."""

    def touch(self, base: int, offsets: np.ndarray[Any, Any], took_ns: np.ndarray[Any, Any], threads: int) -> tuple[int, int]:
        offsets = offsets[offsets < self._last]
        done = spent_ns = 0
        while done < len(offsets) and spent_ns < SLICE_NS:
            some = offsets[done : done + max(done, threads)]  # twice as many in all, each time
            n, ns = super().touch(base, some, took_ns[done:], threads)
            done += n
            spent_ns += ns
        return done, spent_ns


def make_asked(what: str, nbytes: int, block_nbytes: int, options: dict[str, Any], cores: list[int], provider: str) -> Case:
    """Prepare a case: `what` is python, python-gil, python-asleep or provider.

    Parameters
    ----------
    provider : str
        MODULE:NAME, for the last.

    Raises
    ------
    ValueError
        A provider of the user's that is too short to be touched at all, or has no such name.
    """
    nblocks = nbytes // block_nbytes
    if what == "provider":
        own = load_provider(provider)
        nblocks = min(nblocks, check_provider(own).nbytes // block_nbytes - 1)
        if nblocks < 1:
            raise ValueError(f"{provider} has {own.nbytes} bytes: at least two blocks of {block_nbytes} are needed")
        return Provided(own, nblocks, block_nbytes, options, cores)
    ready = Ready(nbytes + block_nbytes, block_nbytes)
    return Asked(ready, nblocks, block_nbytes, options, cores, what.removeprefix("python").removeprefix("-"))
