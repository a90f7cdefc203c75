"""What is touched in each case of `bench fault`, and how is it made, one slice after another, in a process of its own?

Every case makes a fresh region, has each of its blocks touched once in the order it is told, and takes the region away. What
is made and taken away is not timed. The child process: `serve`.

One hot block. What the floors and the native cases copy is memory where every page is the kernel's one page of zeros (a
private read-only mapping that was only ever read): one physical page, always in the first-level cache, behind one mapping,
with page tables in place. So a source as large as the region costs no more memory traffic than one block, and we measure
ourselves. What remains different: the floors read one address again and again, the product an address that moves with the
block, so the kernel walks the page table once more per source page (one or two cached loads).
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
from typing import Any, BinaryIO

import numpy as np

import lazymem as lm
from lazymem.core import measure

PAGE_NBYTES = mmap.PAGESIZE
HEAD = struct.Struct("<QQ")  # how many latencies follow, wall ns
REFUSED = (1 << 64) - 1  # instead of how many: a message of so many bytes follows
# How long a process is left alone before it is asked, so that it and its core are surely asleep; and how often in a slice.
ASLEEP_NS = 2_000_000
ASLEEP_TOUCHES = 50


class Case:
    """One case at one block size.

    `write_nbytes`: 0, the touch is a load of one byte; else a write to every page of so many bytes.
    """

    write_nbytes = 0

    def make(self) -> int:
        """Make a fresh region and return its address."""
        raise NotImplementedError

    def touch(self, base: int, offsets: np.ndarray[Any, Any], took_ns: np.ndarray[Any, Any], threads: int) -> tuple[int, int]:
        """Touch the region at `base + offsets`, in that order. Returns how many were touched, and the time of all, ns."""
        n = len(offsets)
        return n, measure.touch(base, offsets.ctypes.data, took_ns.ctypes.data, n, self.write_nbytes, threads)

    def end(self, touched: int) -> None:
        """Take it away, after checking that so many touches did what is measured."""
        raise NotImplementedError


def hot_memory(nbytes: int) -> mmap.mmap:
    """Memory that is one page of zeros everywhere, its page tables filled."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # first: a huge page of zeros would be 2 MiB of cache
    np.frombuffer(memory, "u1")[::PAGE_NBYTES].max()
    return memory


def address(buffer: Any) -> int:
    """Of a buffer's first byte."""
    return int(np.frombuffer(buffer, "u1").ctypes.data)


def close_checked(array: lm.LazyArray, filled: int) -> None:
    """Close an array, of which so many blocks must have been filled, by faults: all but a few that were read ahead, where
    touches out of order looked like a stream by chance."""
    region = lm.region(array)
    array.close()  # a handler thread may still have to count its last fill; this waits for it
    stats = region.stats()
    if stats.blocks < filled or stats.filled < filled * 0.95:
        raise RuntimeError(f"{filled} touches, but {stats.filled} faults that filled a block: {stats}")


class Anonymous(Case):
    """The kernel's own zero fill. A block is filled by writing to each of its pages: as many bytes as the others bring."""

    def __init__(self, nbytes: int, block_nbytes: int) -> None:
        self.nbytes = nbytes
        self.write_nbytes = block_nbytes
        self._memory: mmap.mmap | None = None

    def make(self) -> int:
        self._memory = mmap.mmap(-1, self.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        return address(self._memory)

    def end(self, touched: int) -> None:
        assert self._memory is not None
        self._memory.close()


class Floor(Case):
    """Bare loops over the core's own ioctls: measure.pyx."""

    def __init__(self, delivery: str, nbytes: int, block_nbytes: int) -> None:
        self.nbytes = nbytes
        self._source = hot_memory(block_nbytes)
        self._mapping = (0, 0)
        self._served = 0
        measure.floor_start(delivery, address(self._source), block_nbytes)

    def make(self) -> int:
        self._served = measure.floor_served()
        base, *mapping = measure.floor_map(self.nbytes)
        self._mapping = (mapping[0], mapping[1])
        return base

    def end(self, touched: int) -> None:
        served = measure.floor_served() - self._served
        measure.floor_unmap(*self._mapping)
        # Several touching threads count past each other, by a little.
        if not 0.9 * touched <= served <= touched:
            raise RuntimeError(f"{touched} touches were {served} faults: something else filled the pages")


class Product(Case):
    """A lazy array, as users make it.

    Parameters
    ----------
    path : str or None
        Of a file; None: hot memory.
    options : dict
        As the constructors take them.
    """

    def __init__(self, path: str | None, nbytes: int, options: dict[str, Any]) -> None:
        self._path = path
        self._options = options
        self._source = None if path is not None else hot_memory(nbytes)
        self._array: lm.LazyArray | None = None

    def make(self) -> int:
        if self._path is None:
            self._array = lm.from_provider(self._source, **self._options)
        else:
            self._array = lm.memmap(self._path, **self._options)
        return lm.region(self._array).address

    def end(self, touched: int) -> None:
        array, self._array = self._array, None
        assert array is not None
        close_checked(array, touched)


class MemoryMap(Case):
    """The kernel's own answers for a file in the page cache: np.memmap.

    Read (`copy` false), a fault maps up to 16 pages around the touched one where they lie (fault-around; MADV_RANDOM does not
    turn it off), so at 4 KiB most touches are no faults. `copy`: mode "c", each page of the block written to: private copies,
    which is what we make.
    """

    def __init__(self, path: str, block_nbytes: int, copy: bool) -> None:
        self._path = path
        self._copy = copy
        self.write_nbytes = block_nbytes if copy else 0
        self._array: np.memmap[Any, Any] | None = None

    def make(self) -> int:
        self._array = np.memmap(self._path, "u1", "c" if self._copy else "r")
        return int(self._array.ctypes.data)

    def end(self, touched: int) -> None:
        self._array = None


class Wake(Case):
    """What waking a process that sleeps costs, and nothing else: measure.pyx."""

    def __init__(self, cores: list[int]) -> None:
        pid = measure.wake_start()
        if cores:
            os.sched_setaffinity(pid, {cores[1]})

    def make(self) -> int:
        return 0

    def touch(self, base: int, offsets: np.ndarray[Any, Any], took_ns: np.ndarray[Any, Any], threads: int) -> tuple[int, int]:
        n = min(len(offsets), ASLEEP_TOUCHES)
        return n, measure.wake(took_ns.ctypes.data, n, ASLEEP_NS)

    def end(self, touched: int) -> None:
        pass


# In the order of their rows. The auto- ones are made with no option at all; the -provider ones are over one of the user's.
PINNED = (
    "floor-anon", "floor-inline", "inline-native", "floor-threads", "threads-native", "inline-file", "threads-file",
    "mprotect-native",
    "inline-python", "inline-python-gil", "threads-python", "threads-python-gil",
    "floor-wake", "inline-python-asleep", "threads-python-asleep", "memmap-warm", "memmap-copy",
)  # fmt: skip
DEFAULTS = ("auto-native", "auto-file", "auto-python")
PROVIDED = ("inline-provider", "threads-provider")
BESIDE_PROVIDED = ("floor-inline", "inline-python", "floor-threads", "threads-python")
# Above, below, and the limit at one page.
RATIOS = (
    ("inline-native", "floor-inline", 1.25),
    ("threads-native", "floor-threads", 1.25),
    ("inline-python", "floor-inline", 2.0),
    ("inline-python-gil", "floor-inline", 2.0),
    ("threads-python", "floor-threads", None),
    ("inline-python-asleep", "floor-inline", 25.0),
    ("inline-python-asleep", "floor-wake", None),
)


def asks_python(name: str) -> bool:
    """Does a case ask a Python provider, in a process of its own?"""
    return name.partition("-")[2].startswith(("python", "provider"))


def make_case(name: str, nbytes: int, block_nbytes: int, path: str, cores: list[int], provider: str) -> Case:
    """Prepare a case in this process.

    Parameters
    ----------
    path : str
        Of a file of so many bytes.
    cores : list of int
        Where to touch and handle, where a provider's process runs; or none: anywhere.
    provider : str
        MODULE:NAME, for the cases of a user's own.
    """
    how, _, what = name.partition("-")
    if name == "floor-anon":
        return Anonymous(nbytes, block_nbytes)
    if name == "floor-wake":
        return Wake(cores)
    if how == "floor":
        return Floor(what, nbytes, block_nbytes)
    if how == "memmap":
        return MemoryMap(path, block_nbytes, what == "copy")
    if how not in ("auto", "inline", "threads", "mprotect"):
        raise ValueError(f"no case {name!r}")
    options = {} if how == "auto" else {"block_nbytes": block_nbytes, "delivery": how}
    if asks_python(name):
        from lazymem.bench.asked import make_asked

        return make_asked(what, nbytes, block_nbytes, options, cores, provider)
    return Product(path if what == "file" else None, nbytes, options)


def run_slice(case: Case, nblocks: int, block_nbytes: int, seed: int, threads: int) -> tuple[np.ndarray[Any, Any], int]:
    order = np.random.default_rng(seed).permutation(nblocks).astype(np.uint64)
    offsets = order * np.uint64(block_nbytes)
    took_ns = np.ones(nblocks, np.uint64)  # ones: its own pages are there before the clock runs
    base = case.make()
    touched, wall_ns = case.touch(base, offsets, took_ns, threads)
    case.end(touched)
    return took_ns[:touched], wall_ns


def serve(requests: BinaryIO, answers: BinaryIO, told: dict[str, Any]) -> None:
    """The child's life: a line of JSON (seed, threads) in, latencies out, until the parent closes its end.

    Parameters
    ----------
    told : dict
        nblocks, and the arguments of `make_case` but for nbytes.
    """
    try:
        nblocks = told.pop("nblocks")
        case = make_case(nbytes=nblocks * told["block_nbytes"], **told)
        for line in iter(requests.readline, b""):
            asked = json.loads(line)
            took_ns, wall_ns = run_slice(case, nblocks, told["block_nbytes"], asked["seed"], asked["threads"])
            answers.write(HEAD.pack(len(took_ns), wall_ns) + took_ns.tobytes())
            answers.flush()
    except Exception as error:
        text = f"{type(error).__name__}: {error}".encode()
        answers.write(HEAD.pack(REFUSED, len(text)) + text)
        answers.flush()


def main() -> None:
    """Started by fault.py, affinity already set: what `serve` is told, as JSON."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write between the answers
    serve(sys.stdin.buffer, answers, json.loads(sys.argv[1]))
