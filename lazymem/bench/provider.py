"""What do provider processes cost, and what do several of them gain?

Every part runs in a fresh process, pinned nowhere: the processes it asks need cores of their own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import lazymem as lm
from lazymem.bench.http import http
from lazymem.bench.parts import Part, grouped_spread, print_rows, run_parts
from lazymem.core import measure
from lazymem.core.provider import process_ids
from lazymem.options import PAGE_NBYTES

TOUCHERS = 4
COMPUTE_NS = 1_000_000

# A fresh interpreter, lazymem and numpy imported: when the array was made, when its first value was there, how long a second
# array took to make.
_FIRST = """
import json, time, numpy, lazymem
began = time.perf_counter_ns()
a = lazymem.from_function(lambda i: 2 * i, 10**9, "i8")
made = time.perf_counter_ns()
value = int(a[123_456_789])
first = time.perf_counter_ns()
b = lazymem.from_function(lambda i: 3 * i, 10**9, "i8")
second = time.perf_counter_ns()
assert (value, int(b[5])) == (246_913_578, 15)
print(json.dumps([made - began, first - began, second - first]))
"""


class Computing:
    """A provider that computes for a while, holding the GIL of its process as Python code does."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def read_into(self, buffer: memoryview, offset: int) -> None:
        end_ns = time.thread_time_ns() + COMPUTE_NS
        while time.thread_time_ns() < end_ns:
            pass
        buffer[:] = bytes(len(buffer))


def _touch_all(blocks: int, processes: int) -> int:
    """How long the blocks of a fresh array take, touched by threads without the GIL. ns."""
    warm = 8 * processes  # its processes have started and loaded the provider
    with lm.from_provider(Computing((warm + blocks) * PAGE_NBYTES), block_nbytes=PAGE_NBYTES, processes=processes) as array:
        base = lm.region(array).address
        offsets = np.arange(warm + blocks, dtype=np.uint64) * np.uint64(PAGE_NBYTES)
        took_ns = np.ones(warm + blocks, np.uint64)
        measure.touch(base, offsets.ctypes.data, took_ns.ctypes.data, warm, threads=TOUCHERS)
        return measure.touch(base, offsets[warm:].ctypes.data, took_ns[warm:].ctypes.data, blocks, threads=TOUCHERS)


def _parallel(quick: bool) -> Iterator[dict[str, Any]]:
    blocks, pairs = (40, 2) if quick else (500, 10)
    _touch_all(blocks, 2)
    taken = [(_touch_all(blocks, 1), _touch_all(blocks, 2)) for _ in range(pairs)]
    ratios = [one / two for one, two in taken]
    one, two = (round(statistics.median(each[i] for each in taken)) for i in range(2))
    of = f"throughput of {TOUCHERS} touching threads, {COMPUTE_NS // 1_000_000} ms of computing a block, processes=2 against 1"
    row = {"case": "two-processes", "of": of, "value": round(statistics.median(ratios), 4), "unit": "ratio"}
    if len(os.sched_getaffinity(0)) > 1:
        row["least"] = 1.7
    yield row | {"one_ns": one, "two_ns": two, "spread": grouped_spread(ratios), "n": blocks * pairs}


def _first(quick: bool) -> Iterator[dict[str, Any]]:
    taken = []
    for _ in range(2 if quick else 20):
        done = subprocess.run([sys.executable, "-c", _FIRST], capture_output=True, text=True, timeout=60, check=True)
        taken.append(json.loads(done.stdout))
    rows: tuple[tuple[str, str, float | None], ...] = (
        ("create-first", "a process's first array of a Python function", None),
        ("first-value", "the same, and its first value", 250e6),
        ("create-second", "a second array", 2e6),
    )
    for i, (case, of, limit) in enumerate(rows):
        spent = [float(each[i]) for each in taken]
        row = {"case": case, "of": of, "value": round(statistics.median(spent)), "unit": "ns", "n": len(spent)}
        yield row | ({} if limit is None else {"limit": limit}) | {"spread": grouped_spread(spent)}


def _rollup(pid: int) -> dict[str, int]:
    """A process's memory in bytes, by kind. Source: proc(5) smaps_rollup."""
    with open(f"/proc/{pid}/smaps_rollup") as f:
        lines = [line.split() for line in f.readlines()[1:]]
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines}


def _memory(quick: bool) -> Iterator[dict[str, Any]]:
    with lm.from_function(np.sqrt, 10**9) as array:
        assert array[25] == 5
        (pid,) = process_ids()
        found = _rollup(pid)
    of = "a provider process that has imported numpy and served a block"
    private = found["Private_Clean"] + found["Private_Dirty"]
    common = {"unit": "bytes", "n": 1}
    yield {"case": "memory-rss", "of": of, "value": found["Rss"], "limit": 40_000_000, **common}
    yield {"case": "memory-pss", "of": f"{of}: shared pages shared out", "value": found["Pss"], **common}
    yield {"case": "memory-uss", "of": f"{of}: what it has alone", "value": private, **common}


def _spent_ns(pid: int) -> int:
    """The CPU time of all threads that a process ever had. Source: clock_getcpuclockid(3), whose macro this is."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def _idle(delivery: str, quick: bool) -> Iterator[dict[str, Any]]:
    wait_s, watch_s = (0.5, 0.5) if quick else (10.0, 10.0)
    with lm.from_provider(Computing(1 << 20), block_nbytes=PAGE_NBYTES, delivery=delivery) as array:
        base, page = lm.region(array).address, np.zeros(100, np.uint64)
        offsets = np.arange(100, dtype=np.uint64) * np.uint64(PAGE_NBYTES)
        measure.touch(base, offsets.ctypes.data, page.ctypes.data, len(page))
        time.sleep(wait_s)
        pids = [os.getpid(), *process_ids()]
        before_ns, began = [_spent_ns(pid) for pid in pids], time.monotonic()
        time.sleep(watch_s)
        spent_ns = [_spent_ns(pid) - before for pid, before in zip(pids, before_ns, strict=True)]
        share = sum(spent_ns) / 1e9 / (time.monotonic() - began)
    of = f"CPU of both processes together, {wait_s:g} s after the last fault, for {watch_s:g} s, {delivery}"
    row = {"case": f"idle-{delivery}", "of": of, "value": round(100 * share, 5), "unit": "%", "limit": 0.1, "n": 1}
    yield row | {"asking_ns": spent_ns[0], "provider_ns": spent_ns[1]}


_PARTS: dict[str, Part] = {
    "parallel": _parallel,
    "first": _first,
    "memory": _memory,
    "idle-inline": lambda quick: _idle("inline", quick),
    "idle-threads": lambda quick: _idle("threads", quick),
    "http": http,
}


def main() -> None:
    """The child's life: one part, a row a line. Arguments: part, quick (0 or 1)."""
    print_rows(_PARTS)


def measure_provider(quick: bool, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The rows of `bench provider`."""
    yield from run_parts("provider", _PARTS, quick, None, say)
