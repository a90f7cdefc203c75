"""What does it cost to work on arrays that are larger than the memory they may have?

Every part runs in a fresh process, pinned nowhere, with no option but the budget (and the block size, or `fill`, where that is
the question). What is compared takes turns in every round, and who begins changes with the round; a figure is the median of
the rounds' ratios. Arrays are opened anew for each turn, and only the work on them is timed. Files lie where temporary files
do, which should be a disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

import lazymem as lm
from lazymem.bench.parts import Part, grouped_spread, print_rows, run_parts
from lazymem.core import measure
from lazymem.options import PAGE_NBYTES

HUGE_NBYTES = 2 << 20
BUDGET_NBYTES = 32 << 20
PIECE_NBYTES = 64 << 10  # the smaller ones of those that are worked on by hand
PART_S = 20.0  # no new round after so long, where there have been three
MEMORY_MORE_NBYTES = 64 << 20  # that a scan may take beyond its budget
RANDOM_READS = 8 << 10  # in a turn: as many blocks as the budget holds
HOT_SHARE = 10  # one block of the budget's in so many is hot
TABLE_BLOCKS = 1 << 20
ADDRESS_SPACE_NBYTES = 64 << 40

Values = np.ndarray[Any, Any]


def _huge(nbytes: int) -> Any:
    """Memory in huge pages, all of it there: an array of bytes."""
    memory = mmap.mmap(-1, nbytes + HUGE_NBYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, "u1")
    first = -whole.ctypes.data % HUGE_NBYTES
    found = whole[first : first + nbytes]
    found[:] = 1
    return found


def _back() -> None:
    """Have the machine's own memory behind what is taken next. A virtual machine gives free memory back to its host, and what
    it takes anew costs whoever touches it first (3 ms a MiB, seen), which says nothing of him. Eight budgets of it, since the
    kernel has other free pages too: with two one `a += 1` in ten took twice as long, clearing those."""
    _huge(8 * BUDGET_NBYTES)


@contextlib.contextmanager
def _file(nbytes: int) -> Iterator[str]:
    """The path of a file of float64 from 0 to 1, on the disk and in the page cache."""
    some: Any = np.random.default_rng(1).random(HUGE_NBYTES // 8)
    with tempfile.TemporaryDirectory(prefix="lazymem-bench-") as folder:
        path = os.path.join(folder, "values")
        with open(path, "wb", buffering=0) as f:
            for start in range(0, nbytes, HUGE_NBYTES):
                f.write(some[: (nbytes - start) // 8] + start / HUGE_NBYTES)
            os.fsync(f.fileno())
        yield path


def _sum_of(nbytes: int) -> float:
    """Of what `_file` wrote."""
    some = np.random.default_rng(1).random(HUGE_NBYTES // 8)
    pieces = nbytes // HUGE_NBYTES
    return float(some.sum() * pieces + pieces * (pieces - 1) / 2 * len(some))


def _take_turns(sides: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, list[int]]:
    """What each side says it took, ns, in each round; a first round does not count."""
    took: dict[str, list[int]] = {name: [] for name in sides}
    names = list(sides)
    until_s = time.monotonic() + PART_S
    for number in range(rounds + 1):
        if number > 3 and time.monotonic() > until_s:
            break
        first = number % len(names)  # nobody is always the one behind the same neighbour
        for name in names[first:] + names[:first]:
            ns = sides[name]()
            if number:
                took[name].append(ns)
    return took


def _ns(do: Callable[[], object]) -> int:
    began = time.perf_counter_ns()
    do()
    return time.perf_counter_ns() - began


def _ratio(above: list[int], below: list[int]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    row = {"value": round(statistics.median(ratios), 4), "unit": "ratio", "spread": grouped_spread(ratios)}
    return row | {"n": len(ratios), "rounds": len(ratios)}


def _time_row(case: str, of: str, took: list[int], nbytes: int) -> dict[str, Any]:
    ns = statistics.median(took)
    row = {"case": case, "of": of, "value": round(ns), "unit": "ns", "gb_per_s": round(nbytes / ns, 3), "nbytes": nbytes}
    return row | {"spread": grouped_spread([float(t) for t in took]), "n": len(took), "rounds": len(took)}


# ---------------------------------------------------------------------------------------------------------------------------
# In order


class WrongSumError(RuntimeError):
    """A way of reading brought other bytes: what it costs is of no interest."""


class _Scans:
    """The ways to sum a file of float64 up."""

    def __init__(self, path: str, nbytes: int) -> None:
        self._path = path
        self._nbytes = nbytes
        self._right = _sum_of(nbytes)
        self._piece = _huge(HUGE_NBYTES)
        self._resident = _huge(nbytes).view("f8")
        self._fd = os.open(path, os.O_RDONLY)

    def close(self) -> None:
        os.close(self._fd)

    def _check(self, found: float) -> None:
        if abs(found / self._right - 1) > 1e-9:
            raise WrongSumError(f"the sum is {self._right}, not {found}")

    def first(self, before: int = 0, **options: Any) -> int:
        """One call of numpy's sum over the plain view of all of it, after so many others."""
        _back()
        a = lm.memmap(self._path, "f8", budget_nbytes=BUDGET_NBYTES, **options)
        plain = np.asarray(a)
        for _ in range(before):
            plain.sum()
        began = time.perf_counter_ns()
        found = plain.sum()
        took = time.perf_counter_ns() - began
        del plain
        lm.close(a)
        self._check(float(found))
        return took

    def lazy(self, **options: Any) -> int:
        """Once more: its memory is there, and holds the end of the file, so that all is fetched again."""
        return self.first(1, **options)

    def operation(self) -> int:
        """The same asked of the LazyArray itself."""
        _back()
        with lm.memmap(self._path, "f8", budget_nbytes=BUDGET_NBYTES) as a:
            a.sum()
            began = time.perf_counter_ns()
            found = a.sum()
            took = time.perf_counter_ns() - began
        self._check(float(found))
        return took

    def copy(self) -> int:
        return self.lazy(fill="copy")

    def memmap(self) -> int:
        a = np.memmap(self._path, "f8", "r")
        began = time.perf_counter_ns()
        found = a.sum()
        took = time.perf_counter_ns() - began
        self._check(float(found))
        return took

    def pread(self) -> int:
        return _ns(self._pread)

    def _pread(self) -> None:
        for offset in range(0, self._nbytes, HUGE_NBYTES):
            os.preadv(self._fd, [self._piece], offset)

    def sum(self) -> int:
        return _ns(self._resident.sum)

    def hand(self) -> int:
        piece, found = self._piece.view("f8"), 0.0
        began = time.perf_counter_ns()
        for offset in range(0, self._nbytes, HUGE_NBYTES):
            os.preadv(self._fd, [self._piece], offset)
            found += piece.sum()
        took = time.perf_counter_ns() - began
        self._check(found)
        return took

    def forget(self) -> bool:
        """Drop the file from the page cache. Returns whether it has gone: some file systems are nothing else."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(self._fd, [self._piece], self._nbytes // 2, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def cold(self, scan: Callable[[], int]) -> Callable[[], int]:
        def run() -> int:
            self.forget()
            return scan()

        return run


_SIDES = {
    "lazy": "a lazy array with a budget of 32 MiB, np.asarray(a).sum(), for the second time",
    "first": "the same, for the first time",
    "operation": "the same, a.sum()",
    "fill-copy": 'the same as lazy, fill="copy"',
    "memmap": "np.memmap(...).sum()",
    "pread": "pread alone, 2 MiB a piece, into one warm huge page",
    "sum": "numpy's sum alone, of as much resident memory in huge pages, more than caches hold",
    "hand": "pread and sum by hand, 2 MiB a piece, in one warm huge page",
}


def _warm(quick: bool) -> Iterator[dict[str, Any]]:
    nbytes = (3 if quick else 16) * BUDGET_NBYTES
    with _file(nbytes) as path:
        scans = _Scans(path, nbytes)
        sides = {
            "lazy": scans.lazy, "first": scans.first, "operation": scans.operation, "fill-copy": scans.copy,
            "memmap": scans.memmap, "pread": scans.pread, "sum": scans.sum, "hand": scans.hand,
        }  # fmt: skip
        took = _take_turns(sides, 2 if quick else 11)
        scans.close()
    size = f"{nbytes >> 20} MiB of float64 in the page cache"
    for name, of in _SIDES.items():
        yield _time_row(f"time-{name}", of, took[name], nbytes)
    bound = [pread + add for pread, add in zip(took["pread"], took["sum"], strict=True)]
    of = f"speed of np.asarray(a).sum() over {size}, budget 32 MiB, against 1/(1/pread + 1/sum)"
    row: dict[str, Any] = {"case": "scan", "of": of}
    yield row | {"least": 0.85} | _ratio(bound, took["lazy"])
    row = {"case": "scan-first", "of": "the same of an array that was just opened: its memory must be had first"}
    yield row | _ratio(bound, took["first"])
    row = {"case": "scan-operation", "of": "the same as scan, of a.sum()"}
    yield row | _ratio(bound, took["operation"])
    row = {"case": "scan-hand", "of": "the same as scan, against pread and sum by hand, the piece warm in the CPU's caches"}
    yield row | _ratio(took["hand"], took["lazy"])
    row = {"case": "scan-fill-copy", "of": 'the same as scan, against fill="copy"', "least": 2.5}
    yield row | _ratio(took["fill-copy"], took["lazy"])
    row = {"case": "scan-memmap", "of": "the same as scan, against a fresh np.memmap, which maps what is there", "least": 0.4}
    yield row | _ratio(took["memmap"], took["lazy"])
    row = {"case": "scan-first-memmap", "of": "the same as scan-first, against a fresh np.memmap"}
    yield row | _ratio(took["memmap"], took["first"])


def _cold(quick: bool) -> Iterator[dict[str, Any]]:
    nbytes = (3 if quick else 16) * BUDGET_NBYTES
    with _file(nbytes) as path:
        scans = _Scans(path, nbytes)
        if not scans.forget():
            scans.close()
            print("bench scan: a cold file: skipped: this file system's files cannot be dropped from memory", file=sys.stderr)
            return
        sides = {"first": scans.cold(scans.first), "memmap": scans.cold(scans.memmap)}
        took = _take_turns(sides, 2 if quick else 11)
        scans.close()
    for name in sides:
        yield _time_row(f"time-{name}-cold", f"{_SIDES[name]}, of a file that is on the disk alone", took[name], nbytes)
    of = "speed of a scan of a file that is on the disk alone, against np.memmap"
    row: dict[str, Any] = {"case": "scan-cold-memmap", "of": of}
    yield row | {"least": 0.9} | _ratio(took["memmap"], took["first"])


# ---------------------------------------------------------------------------------------------------------------------------
# Memory


def _status(*names: str) -> int:
    """Bytes. Source: proc(5) status."""
    with open("/proc/self/status") as f:
        return sum(int(line.split()[1]) << 10 for line in f if line.partition(":")[0] in names)


class _Watch:
    """The most memory that this process has of its own, looked at again and again by another thread."""

    def __init__(self) -> None:
        self.most_nbytes = 0
        self.looks = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.001):
            self.most_nbytes = max(self.most_nbytes, _status("RssAnon", "RssShmem"))
            self.looks += 1

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def _memory(quick: bool) -> Iterator[dict[str, Any]]:
    budgets = 4 if quick else 100
    nbytes = budgets * BUDGET_NBYTES
    with _file(nbytes) as path:
        gc.collect()
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # the peak is that from here on
        before, own_before = _status("VmRSS"), _status("RssAnon", "RssShmem")
        watch = _Watch()
        with lm.memmap(path, "f8", budget_nbytes=BUDGET_NBYTES) as a:
            found = a.sum()
            watch.stop()
            held = lm.stats(a).held_nbytes
    if abs(found / _sum_of(nbytes) - 1) > 1e-9:
        raise WrongSumError(f"the sum is {_sum_of(nbytes)}, not {found}")
    peak, own = _status("VmHWM") - before, watch.most_nbytes - own_before
    of = f"resident memory above that before opening, a.sum() over {budgets} x the budget: VmHWM, or RssAnon + RssShmem"
    row = {"case": "memory", "of": of, "value": max(peak, own), "unit": "bytes", "limit": BUDGET_NBYTES + MEMORY_MORE_NBYTES}
    yield row | {"peak_nbytes": peak, "own_nbytes": own, "held_nbytes": held, "nbytes": nbytes, "n": watch.looks}


def _table(quick: bool) -> Iterator[dict[str, Any]]:
    """Blocks of a hole take no memory but their word in the table."""
    blocks = TABLE_BLOCKS // (4 if quick else 1)  # few pages are too few: the kernel counts them in batches
    offsets = np.arange(blocks, dtype=np.uint64) * np.uint64(PAGE_NBYTES)
    took_ns = np.ones(blocks, np.uint64)
    with tempfile.TemporaryFile(prefix="lazymem-bench-") as f:
        f.truncate(blocks * PAGE_NBYTES)
        with lm.memmap(f, "u1", block_nbytes=PAGE_NBYTES) as a:
            a[0], a[-1]
            before = _status("VmRSS")
            measure.touch(lm.region(a).address, offsets.ctypes.data, took_ns.ctypes.data, blocks)
            grown = _status("VmRSS") - before
            region = lm.region(a)
    zeroed = region.stats().zeroed  # closed: handler threads have counted all
    assert zeroed == blocks, (zeroed, blocks)
    of = "resident memory of the table, a block: of a hole, which takes no other. What is in memory takes 16 bytes more"
    row = {"case": "table", "of": of, "value": round(grown / blocks, 3), "unit": "bytes", "limit": 4.1, "n": blocks}
    yield row | {"block_nbytes": PAGE_NBYTES}

    # Any C function will do: nothing is touched, so it is never called.
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
    address = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value or 0
    provider = lm.CFunction(kind(address), ADDRESS_SPACE_NBYTES)
    made_ns: list[float] = []
    grown = 0
    for _ in range(3 if quick else 10):
        before = _status("VmRSS")
        began = time.perf_counter_ns()
        a = lm.from_provider(provider, budget_nbytes=BUDGET_NBYTES)
        made_ns.append(float(time.perf_counter_ns() - began))
        grown = max(grown, _status("VmRSS") - before)
        assert a.nbytes == ADDRESS_SPACE_NBYTES
        a.close()
        del a  # its addresses are kept as long as it is
        until_s = time.monotonic() + 10
        while _status("VmSize") > ADDRESS_SPACE_NBYTES and time.monotonic() < until_s:
            time.sleep(0.01)  # there is no room for two
    row = {"case": "create-64-tib", "of": "an array of 64 TiB is made", "value": round(statistics.median(made_ns))}
    yield row | {"unit": "ns", "spread": grouped_spread(made_ns), "n": len(made_ns), "resident_nbytes": grown}


# ---------------------------------------------------------------------------------------------------------------------------
# Out of order


class _Reader:
    """Copies pages out of an array that stays open, some others in each turn.

    With a budget it has been filled before, so that each read takes some other block's memory; without one nothing
    of it is there when a turn begins.
    """

    def __init__(self, path: str, pages: Values, out: Values, options: dict[str, Any]) -> None:
        self._array = lm.memmap(path, "u1", **options)
        self._pages, self._out, self._next = pages, out, 0
        self._is_short = "budget_nbytes" in options
        while self._is_short and not lm.stats(self._array).evicted:
            self._read()

    def _read(self) -> int:
        rows = np.asarray(self._array).reshape(-1, PAGE_NBYTES)
        some = self._pages[self._next : self._next + len(self._out)]
        self._next = (self._next + len(some)) % len(self._pages)
        return _ns(lambda: np.take(rows, some, axis=0, out=self._out[: len(some)], mode="clip"))

    def turn(self) -> int:
        """How long it takes, ns."""
        if not self._is_short:
            lm.evict(self._array)
            _back()
        return self._read()

    def close(self) -> None:
        """Close the array."""
        lm.close(self._array)


def _random(quick: bool) -> Iterator[dict[str, Any]]:
    budgets = 3 if quick else 16
    nbytes = budgets * BUDGET_NBYTES
    reads = RANDOM_READS // (8 if quick else 1)
    order = np.random.default_rng(5)
    default = 64 << 10
    every = order.permutation(nbytes // PAGE_NBYTES)
    each = order.permutation(nbytes // default) * (default // PAGE_NBYTES) + 3
    of = f"reads of {PAGE_NBYTES} bytes in random order over {budgets} x the budget of 32 MiB, none twice before all are read"
    with _file(nbytes) as path:
        for case, pages, n, options, more in (
            ("random", every, reads, {"block_nbytes": PAGE_NBYTES}, {"block_nbytes": PAGE_NBYTES, "limit": 1.3}),
            ("random-default-block", each, reads // 16, {}, {"block_nbytes": default}),
        ):
            out = _huge(HUGE_NBYTES if n * PAGE_NBYTES < HUGE_NBYTES else n * PAGE_NBYTES).reshape(-1, PAGE_NBYTES)[:n]
            short = _Reader(path, pages, out, {**options, "budget_nbytes": BUDGET_NBYTES})
            free = _Reader(path, pages, out, options)
            took = _take_turns({"with": short.turn, "without": free.turn}, 2 if quick else 31)
            short.close()
            free.close()
            row: dict[str, Any] = {"case": case, "of": f"{of}, against the same without a budget"} | more
            row |= _ratio(took["with"], took["without"]) | {"read_ns": round(statistics.median(took["with"]) / n)}
            yield row | {"plain_read_ns": round(statistics.median(took["without"]) / n), "reads": n}


def _hot(quick: bool) -> Iterator[dict[str, Any]]:
    """How often a hot block was fetched its bytes say: before each touch the file holds another number there."""
    budgets = 3 if quick else 16
    nbytes = (budgets + 1) * BUDGET_NBYTES
    block = 64 << 10
    for case, where, step in (("hot", "all over the array's first 32 MiB", HOT_SHARE), ("hot-together", "side by side", 1)):
        with _file(nbytes) as path, open(path, "r+b", buffering=0) as f:
            fd, stamp = f.fileno(), os.stat(path)
            hot = np.arange(BUDGET_NBYTES // block // HOT_SHARE) * step * block
            fetches = np.zeros(len(hot), int)
            seen = np.full(len(hot), -1.0)
            with lm.memmap(path, "f8", budget_nbytes=BUDGET_NBYTES) as a:
                assert lm.region(a).block_nbytes == block
                plain, wrong = np.asarray(a), 0
                for turn, start in enumerate(range(BUDGET_NBYTES, nbytes, HUGE_NBYTES), 1):
                    number = np.array([float(turn)]).tobytes()
                    for offset in hot:
                        os.pwrite(fd, number, int(offset))
                    os.utime(fd, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # else a fetch would say that it was changed
                    there = plain[hot // 8]
                    fetches += there != seen
                    seen = there
                    piece = plain[start // 8 : (start + HUGE_NBYTES) // 8]
                    wrong += not start // HUGE_NBYTES <= piece.min() <= piece.max() <= start // HUGE_NBYTES + 1
                stats = lm.stats(a)
                del plain, piece
        if wrong:
            raise WrongSumError(f"{wrong} pieces of a scan are wrong")
        of = f"fetches of the hot block that was fetched most: a tenth of the budget's, {where}, touched before each 2 MiB of"
        row = {"case": case, "of": f"{of} a scan of {budgets} x the budget", "value": int(fetches.max()), "unit": "fetches"}
        row |= {"limit": 2, "n": turn, "hot_blocks": len(hot), "mean_fetches": round(float(fetches.mean()), 3)}
        yield row | {"rescued": stats.rescued}


# ---------------------------------------------------------------------------------------------------------------------------
# Writing


def _add_by_hand(path: str, nbytes: int, piece: Any) -> int:
    numbers = piece.view("f8")
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)  # everybody begins with nothing left to be written
    began = time.perf_counter_ns()
    for offset in range(0, nbytes, len(piece)):
        os.preadv(fd, [piece], offset)
        np.add(numbers, 1, out=numbers)
        os.pwritev(fd, [piece], offset)
    took = time.perf_counter_ns() - began
    os.close(fd)
    return took


def _add_lazily(path: str, nbytes: int) -> int:
    with open(path, "r+b") as f:
        os.fsync(f.fileno())
    _back()
    a = lm.memmap(path, "f8", "r+", budget_nbytes=BUDGET_NBYTES)
    began = time.perf_counter_ns()
    a += 1
    while lm.evict(a) or lm.stats(a).held_nbytes:  # writes the rest, and waits for no disk; the last may still be on its way
        pass
    took = time.perf_counter_ns() - began
    lm.close(a, discard=True)
    return took


def _write(quick: bool) -> Iterator[dict[str, Any]]:
    budgets = 3 if quick else 16
    nbytes = budgets * BUDGET_NBYTES
    large = _huge(HUGE_NBYTES)
    small = large[:PIECE_NBYTES]
    with _file(nbytes) as path:
        first = np.fromfile(path)
        sides = {
            "lazy": lambda: _add_lazily(path, nbytes),
            "hand": lambda: _add_by_hand(path, nbytes, large),
            "hand-small": lambda: _add_by_hand(path, nbytes, small),
        }
        took = _take_turns(sides, 2 if quick else 9)
        times = len(sides) * (len(took["lazy"]) + 1)
        for _ in range(times):
            first += 1
        if not (np.fromfile(path) == first).all():
            raise WrongSumError(f"1 was not added {times} times to each element")
    for name, of in (
        ("lazy", "a += 1, mode 'r+', budget 32 MiB, until all of it is written"),
        ("hand", "pread, add, pwrite, 2 MiB a piece"),
        ("hand-small", "pread, add, pwrite, 64 KiB a piece"),
    ):
        yield _time_row(f"time-add-{name}", of, took[name], nbytes)
    least = min(("hand", "hand-small"), key=lambda name: statistics.median(took[name]))
    of = f"a += 1 over {budgets} x the budget, mode 'r+', against the faster by hand; nobody waits for the disk"
    row: dict[str, Any] = {"case": "add", "of": of, "limit": 2.5, "against": f"time-add-{least}"}
    yield row | _ratio(took["lazy"], took[least])


_PARTS: dict[str, Part] = {
    "warm": _warm, "cold": _cold, "memory": _memory, "random": _random, "hot": _hot, "write": _write, "table": _table,
}  # fmt: skip


def main() -> None:
    """The child's life: one part, a row a line. Arguments: part, quick (0 or 1)."""
    print_rows(_PARTS)


def measure_scan(quick: bool, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The rows of `bench scan`."""
    yield from run_parts("scan", _PARTS, quick, None, say)
