"""Does moving a page into place beat copying it?

The question of a mail of 2014, when the kernel did neither. Every part runs in a fresh process,
pinned to one core; what computes or sleeps beside it has another. In each round every way fills a fresh region once, alone and
with the other core busy, and who begins changes with the round: noise hits all alike. A figure is the median of the rounds'.
Blocks during which somebody else's thread had the other core do not count: such a core is sent no interrupt.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lazymem.bench.array import huge_nbytes
from lazymem.bench.cases import make_case
from lazymem.bench.fault import spread_of
from lazymem.bench.parts import Part, print_rows, run_parts
from lazymem.core import measure, moves
from lazymem.options import PAGE_NBYTES

HUGE_NBYTES = 2 << 20
SOURCE_NBYTES = 8 << 20  # as much as a cache may hold, the same at every block size
BLOCKS = {block: n for block, n in ((4 << 10, 2048), (64 << 10, 512), (HUGE_NBYTES, 32)) if block >= PAGE_NBYTES}
VMAS_MOST = 1 << 17
PART_S = 30.0  # no new round after so long, where there have been three
STRACE_LIMIT_S = 60.0
TRIES = 20  # of a round in which others have the second core

WAYS = {
    "memcpy": "memcpy into memory that is there: the limit",
    "copy": "fetch into staging memory, COPY",
    "copy-protected": "fetch into staging memory, COPY write-protected",
    "move-fresh": "fetch into fresh memory, MOVE",
    "move-fresh-small": "fetch into fresh memory of small pages, MOVE",
    "move-recycled": "MOVE a block out, fetch into its pages, MOVE them in",
    "copy-evicting": "drop a block, fetch into staging memory, COPY",
    "zero": "ZEROPAGE, nothing fetched",
    "shared-copy": "shared memory: fetch into staging memory, COPY",
    "shared-continue": "shared memory: fetch into a second mapping of it, CONTINUE",
    "mremap": "fetch into a fresh mapping, mremap it onto the region",
    "ranges-memcpy": "from one ordinary range to another that is there: memcpy",
    "ranges-move": "from one ordinary range to another: MOVE",
    "ranges-mremap": "from one ordinary range to another: mremap",
}
# What is compared, beside every way of filling with "copy".
RATIOS = (
    ("move-recycled", "memcpy"), ("move-recycled", "copy-evicting"),
    ("ranges-move", "ranges-mremap"), ("ranges-move", "ranges-memcpy"), ("ranges-mremap", "ranges-memcpy"),
)  # fmt: skip
DELIVERIES = {
    "inline": ("inline-native", "a fault, delivery inline"),
    "threads": ("threads-native", "a fault, delivery threads"),
    "floor-inline": ("floor-inline", "a fault, a bare SIGBUS handler and COPY"),
    "floor-threads": ("floor-threads", "a fault, a bare thread that reads and does COPY"),
}
COUNTED = ("copy", "move-recycled", "move-fresh", "copy-evicting", "zero", "shared-copy", "shared-continue", "mremap")

Figures = np.ndarray[Any, Any]


def _pin() -> int | None:
    """Stay on the last core. Returns another one for whoever runs beside us, if there is one."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    return min(cores - {max(cores)}, default=None)


def _resident_source() -> tuple[mmap.mmap, Figures]:
    """Bytes to fetch, in huge pages, no two pages alike; and what keeps them."""
    memory = mmap.mmap(-1, SOURCE_NBYTES + HUGE_NBYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, "u1")
    first = -whole.ctypes.data % HUGE_NBYTES
    source = whole[first : first + SOURCE_NBYTES]
    source[:] = np.random.default_rng(3).integers(0, 256, SOURCE_NBYTES, np.uint8)
    return memory, source


def _warm(nbytes: int) -> None:
    """Have so much memory once and give it back: a host that backs ours only when it is touched has done so then."""
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        np.frombuffer(memory, "u1")[::PAGE_NBYTES] = 1


class WrongBytesError(RuntimeError):
    """A way brought other bytes than the source's: what it costs is of no interest."""


class Field:
    """What is filled, again and again, at one block size.

    Parameters
    ----------
    nblocks : int
        Of each fresh region.
    """

    def __init__(self, block_nbytes: int, nblocks: int) -> None:
        self._memory, source = _resident_source()
        self._source = source.reshape(-1, block_nbytes)
        self.block_nbytes = block_nbytes
        self.nblocks = nblocks
        self.huge: dict[str, int] = {}

    def lay(self, way: str) -> int:
        """Lay out what a way needs. Returns the address of the region."""
        return moves.lay(way, self.nblocks, self.block_nbytes, self._source.ctypes.data, len(self._source))

    def order(self, seed: int) -> Figures:
        """All blocks, shuffled."""
        return np.random.default_rng(seed).permutation(self.nblocks).astype(np.uint64)

    def fill(self, way: str, seed: int, busy_core: int | None, check: bool = False) -> tuple[Figures, Figures]:
        """Fill a fresh region by one way. Returns what each block that counts took, and what of it was not the fetch, ns.

        Raises
        ------
        WrongBytesError
            Where the bytes are to be looked at.
        """
        order = self.order(seed)
        took_ns, placing_ns = np.ones(self.nblocks, np.uint64), np.ones(self.nblocks, np.uint64)
        base = self.lay(way)
        try:
            core = -1 if busy_core is None else busy_core
            moves.fill(order.ctypes.data, self.nblocks, took_ns.ctypes.data, placing_ns.ctypes.data, core)
            if check:
                self.check(way, base)
        finally:
            moves.clear()
        return took_ns[took_ns > 0], placing_ns[took_ns > 0]

    def check(self, way: str, base: int) -> None:
        """Look at every byte, and at how much of it lies in huge pages."""
        region = np.ctypeslib.as_array((ctypes.c_ubyte * (self.nblocks * self.block_nbytes)).from_address(base))
        for i, block in enumerate(region.reshape(self.nblocks, -1)):
            expected = 0 if way == "zero" else self._source[i % len(self._source)]
            if not (block == expected).all():
                raise WrongBytesError(f"{way}, blocks of {self.block_nbytes} bytes: block {i} is wrong")
        self.huge[way] = huge_nbytes(base, self.nblocks * self.block_nbytes)


def _median(values: list[float]) -> float:
    return float(statistics.median(values))


def _p50s(rounds: list[Figures]) -> list[float]:
    return [float(np.median(r)) for r in rounds]


def _ratio(name: str, above: list[Figures], below: list[Figures], block_nbytes: int, threads: int) -> Iterator[dict[str, Any]]:
    """Each round's own, where both have something that counts; no row where no round has."""
    both = [(a, b) for a, b in zip(above, below, strict=True) if len(a) and len(b)]
    ratios = [float(np.median(a)) / float(np.median(b)) for a, b in both]
    if ratios:
        row: dict[str, Any] = {"case": name, "block_nbytes": block_nbytes, "threads": threads}
        row |= {"value": round(_median(ratios), 4), "unit": "ratio"}
        yield row | {"spread": spread_of(ratios), "n": sum(len(a) for a, _ in both), "rounds": len(both)}


def _fills(block_nbytes: int, quick: bool) -> Iterator[dict[str, Any]]:
    other = _pin()
    nblocks, rounds, tries = (BLOCKS[block_nbytes] // 16, 2, 3) if quick else (BLOCKS[block_nbytes], 15, TRIES)
    known = moves.start()
    ways = [way for way in WAYS if way in known and (way != "move-fresh-small" or block_nbytes == HUGE_NBYTES)]
    for way in WAYS.keys() - known:
        print(f"bench copy-or-move: {way}: skipped: this kernel has no such thing", file=sys.stderr)
    sides = [(1, None)] + ([(2, other)] if other is not None else [])
    if other is None:
        print("bench copy-or-move: a second busy core: skipped: there is one", file=sys.stderr)
    _warm(4 * nblocks * block_nbytes)
    field = Field(block_nbytes, nblocks)
    turns = [(way, *side) for way in ways for side in sides]
    for way, _, core in turns:  # warm, and right
        field.fill(way, 0, core, True)
    took: dict[tuple[str, int], list[Figures]] = {(way, threads): [] for way, threads, _ in turns}
    placing: dict[tuple[str, int], list[Figures]] = {key: [] for key in took}
    until_s = time.monotonic() + PART_S
    for number in range(rounds):
        if number >= 3 and time.monotonic() > until_s:
            break
        first = number * 5 % len(turns)  # nobody is always the one behind the same neighbour
        for way, threads, core in turns[first:] + turns[:first]:
            for _ in range(tries):
                spent_ns, placing_ns = field.fill(way, number + 1, core)
                if len(spent_ns) > nblocks // 8:
                    break
            took[way, threads].append(spent_ns)
            placing[way, threads].append(placing_ns)
    for (way, threads), every in took.items():
        spent = [r for r in every if len(r)]
        if not spent:
            print(f"bench copy-or-move: {way}, a second busy core: skipped: others have it", file=sys.stderr)
            continue
        row: dict[str, Any] = {"case": way, "of": WAYS[way], "block_nbytes": block_nbytes, "threads": threads}
        row |= {"value": round(_median(_p50s(spent))), "unit": "ns", "spread": spread_of(_p50s(spent))}
        row["p90_ns"] = round(_median([float(np.percentile(r, 90)) for r in spent]))
        row["mean_ns"] = round(_median([float(r.mean()) for r in spent]))
        row["placing_ns"] = round(_median(_p50s([r for r in placing[way, threads] if len(r)])))
        row["gb_per_s"] = round(block_nbytes / row["value"], 3)
        row |= {"n": sum(map(len, spent)), "rounds": len(spent)}
        if block_nbytes == HUGE_NBYTES:
            row["huge_nbytes"] = field.huge[way]
        yield row
    beside = [(way, "copy") for way in ways if way != "copy" and not way.startswith("ranges")]
    for threads, _ in sides:
        for above, below in [*beside, *RATIOS]:
            if above in ways and below in ways:
                yield from _ratio(f"{above}/{below}", took[above, threads], took[below, threads], block_nbytes, threads)
    if other is not None:
        for way in ways:
            yield from _ratio(f"{way}-busy/{way}", took[way, 2], took[way, 1], block_nbytes, 2)


def _wakes(quick: bool) -> Iterator[dict[str, Any]]:
    other = _pin()
    moves.start()
    rounds = 2 if quick else 7
    sides = [(1, -1)] + ([(2, other)] if other is not None else [])
    for block_nbytes, nblocks in BLOCKS.items():
        field = Field(block_nbytes, 16 if quick else min(nblocks, 100))
        turns = [(apart, *side) for apart in (False, True) for side in sides]
        filled: dict[tuple[bool, int], list[Figures]] = {(apart, threads): [] for apart, threads, _ in turns}
        woke: dict[tuple[bool, int], list[Figures]] = {key: [] for key in filled}
        for number in range(rounds + 1):
            first = number % len(turns)
            for apart, threads, core in turns[first:] + turns[:first]:
                order = field.order(number)
                filled_ns, woke_ns = np.ones(len(order), np.uint64), np.ones(len(order), np.uint64)
                base = field.lay("copy")
                moves.wake(order.ctypes.data, len(order), filled_ns.ctypes.data, woke_ns.ctypes.data, apart, core)
                if number:
                    filled[apart, threads].append(filled_ns)
                    woke[apart, threads].append(woke_ns)
                else:
                    field.check("copy", base)
                moves.clear()
        for (apart, threads), spent in filled.items():
            name, how = ("apart", "COPY wakes nobody, one WAKE does") if apart else ("folded", "COPY wakes")
            where = "on this core" if threads == 1 else "on another core"
            of = f"placing a block for a thread that sleeps for it {where}: {how}"
            row: dict[str, Any] = {"case": f"wake-{name}", "of": of}
            row |= {"block_nbytes": block_nbytes, "threads": threads, "value": round(_median(_p50s(spent))), "unit": "ns"}
            row |= {"spread": spread_of(_p50s(spent)), "went_on_ns": round(_median(_p50s(woke[apart, threads])))}
            yield row | {"n": sum(map(len, spent)), "rounds": rounds}
        for threads, _ in sides:
            yield from _ratio("wake-folded/wake-apart", filled[False, threads], filled[True, threads], block_nbytes, threads)


def _vmas(quick: bool) -> Iterator[dict[str, Any]]:
    """In order, which is the best case. A process may be allowed more mappings than are worth making."""
    moves.start()
    with open("/proc/sys/vm/max_map_count") as f:
        allowed = int(f.read())
    if allowed > VMAS_MOST:
        print(f"bench copy-or-move: vmas: skipped: vm.max_map_count is {allowed}", file=sys.stderr)
        return
    moved, mappings, error = moves.run_out(VMAS_MOST)
    of = "mappings of the process when mremap of one more ready page onto a region fails"
    row = {"case": "mremap-vmas", "of": of, "value": mappings, "unit": "mappings", "n": moved}
    yield row | {"errno": error, "error": errno.errorcode.get(error, ""), "max_map_count": allowed}


# ---------------------------------------------------------------------------------------------------------------------------
# System calls


def do_counted(what: str, nblocks: int, n: int) -> None:
    """Fill, or touch, `n` of `nblocks` single pages: the life of a process whose system calls are counted."""
    order = np.random.default_rng(4).permutation(nblocks).astype(np.uint64)
    took_ns, placing_ns = np.ones(nblocks, np.uint64), np.ones(nblocks, np.uint64)
    if what in DELIVERIES:
        case = make_case(DELIVERIES[what][0], nblocks * PAGE_NBYTES, PAGE_NBYTES, "", [], "")
        base = case.make()
        offsets = order * np.uint64(PAGE_NBYTES)
        measure.touch(base, offsets.ctypes.data, took_ns.ctypes.data, n)
        case.end(n)
        return
    moves.start()
    field = Field(PAGE_NBYTES, nblocks)
    field.lay(what)
    moves.fill(order.ctypes.data, n, took_ns.ctypes.data, placing_ns.ctypes.data)
    moves.clear()


def _count(strace: str, what: str, nblocks: int, n: int) -> dict[str, int]:
    """How often that process makes each system call, all threads. Raises OSError: it cannot be traced."""
    code = f"from lazymem.bench.copy_or_move import do_counted; do_counted({what!r}, {nblocks}, {n})"
    # Python lists the folders that it imports from once more whenever they have changed: it starts where nobody writes.
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="lazymem-strace-") as empty, tempfile.NamedTemporaryFile() as table:
        done = subprocess.run(
            [strace, "-c", "-f", "-qq", "-o", table.name, sys.executable, "-c", code], cwd=empty,
            env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=STRACE_LIMIT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise OSError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}")
        lines = [line.split() for line in table.read().decode().splitlines()]
    # % time, seconds, usecs/call, calls, (errors,) syscall
    return {words[-1]: int(words[3]) for words in lines if len(words) > 4 and words[3].isdigit() and words[-1] != "total"}


def _syscalls(quick: bool) -> Iterator[dict[str, Any]]:
    """What `n` more blocks add, divided by n: what starting and ending cost is in both runs."""
    _pin()
    strace = shutil.which("strace")
    few, many = (20, 120) if quick else (200, 2200)
    counted = f"strace -c -f: what is more with {many} blocks than with {few}, a block"
    not_theirs = {"clock_gettime", "brk"}  # the bench's own clock, where that is a call; its arrays
    known = moves.start()
    for what in [*list(DELIVERIES)[: 2 if quick else None], *(way for way in COUNTED[: 2 if quick else None] if way in known)]:
        try:
            if strace is None:
                raise OSError("there is no strace")
            less, more = (_count(strace, what, many, n) for n in (few, many))
        except OSError as error:
            print(f"bench copy-or-move: system calls: skipped: {error}", file=sys.stderr)
            return
        each = {name: (more[name] - less.get(name, 0)) / (many - few) for name in more.keys() - not_theirs}
        calls = {name: round(each[name], 2) for name in sorted(each) if each[name] >= 0.01}
        of = f"system calls of {DELIVERIES[what][1] if what in DELIVERIES else WAYS[what]}"
        row = {"case": f"syscalls-{what}", "of": of, "block_nbytes": PAGE_NBYTES, "value": round(sum(calls.values()), 2)}
        yield row | {"unit": "calls", "calls": calls, "counted": counted, "n": many - few}


_PARTS: dict[str, Part] = {
    **{f"fills-{block}": functools.partial(_fills, block) for block in BLOCKS},
    "wakes": _wakes,
    "vmas": _vmas,
    "syscalls": _syscalls,
}


def main() -> None:
    """The child's life: one part, a row a line. Arguments: part, quick (0 or 1)."""
    print_rows(_PARTS)


def measure_copy_or_move(quick: bool, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The rows of `bench copy-or-move`."""
    yield from run_parts("copy-or-move", _PARTS, quick, None, say)
