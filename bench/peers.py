"""What does a random read of a file's element cost a Python program, by the ways there are to do it?

One element of each block, in shuffled order, file in the page cache; ordinary Python code, the clock around one expression.
Peers that are not installed are left out. Rows as of `python -m lazymem bench`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

BLOCK_NBYTES = 64 << 10  # lazymem's default for files
NBLOCKS = 1024
ROUNDS = 5

Read = Callable[[int], object]


@contextlib.contextmanager
def _lazymem(path: str, delivery: str) -> Iterator[Read]:
    import lazymem as lm

    with lm.memmap(path, dtype="f8", delivery=delivery) as a:
        yield lambda i: a[i]


@contextlib.contextmanager
def _memmap(path: str) -> Iterator[Read]:
    a = np.memmap(path, "f8", "r")
    yield lambda i: a[i]


@contextlib.contextmanager
def _pread(path: str) -> Iterator[Read]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield lambda i: np.frombuffer(os.pread(fd, 8, 8 * i), "f8")[0]
    finally:
        os.close(fd)


@contextlib.contextmanager
def _pread_block(path: str) -> Iterator[Read]:
    """The whole block, as a program that keeps blocks by itself would."""
    fd = os.open(path, os.O_RDONLY)
    per_block = BLOCK_NBYTES // 8
    try:
        yield lambda i: np.frombuffer(os.pread(fd, BLOCK_NBYTES, i // per_block * BLOCK_NBYTES), "f8")[i % per_block]
    finally:
        os.close(fd)


@contextlib.contextmanager
def _h5py(path: str) -> Iterator[Read]:
    import h5py

    with h5py.File(path + ".h5", "a") as f:
        if "a" not in f:
            f["a"] = np.fromfile(path, "f8")
        a = f["a"]
        yield lambda i: a[i]


PEERS = {
    "lazymem-inline": lambda path: _lazymem(path, "inline"),
    "lazymem-threads": lambda path: _lazymem(path, "threads"),
    "numpy-memmap": _memmap,
    "pread-element": _pread,
    "pread-block": _pread_block,
    "h5py": _h5py,
}


def _round(make: Callable[[str], contextlib.AbstractContextManager[Read]], path: str, seed: int) -> np.ndarray:
    """A fresh opening, each block touched once. ns."""
    rng = np.random.default_rng(seed)
    where = (rng.permutation(NBLOCKS) * (BLOCK_NBYTES // 8) + rng.integers(0, BLOCK_NBYTES // 8, NBLOCKS)).tolist()
    clock = time.perf_counter_ns
    took = np.ones(NBLOCKS)
    total = 0.0
    with make(path) as read:
        for n, i in enumerate(where):
            began = clock()
            value = read(i)
            took[n] = clock() - began
            total += float(value)
    if total != sum(map(float, where)):
        raise AssertionError("wrong values")
    return took


def main() -> None:
    from lazymem.bench.facts import facts
    from lazymem.bench.fault import summary

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before any thread
    common = facts("python bench/peers.py", True)
    with tempfile.TemporaryDirectory(prefix="lazymem-peers-") as folder:
        path = os.path.join(folder, "elements")
        np.arange(NBLOCKS * BLOCK_NBYTES // 8, dtype="f8").tofile(path)
        took: dict[str, list[np.ndarray]] = {}
        for number in range(-1, ROUNDS):  # -1: warm up
            for name, make in PEERS.items():
                try:
                    latencies = _round(make, path, 100 + number)
                except ImportError:
                    continue
                if number >= 0:
                    took.setdefault(name, []).append(latencies)
    for name, rounds in took.items():
        row = summary(rounds, [int(r.sum()) for r in rounds])
        print(json.dumps({"bench": "peers", "case": name, "block_nbytes": BLOCK_NBYTES, "threads": 1, **row, **common}))
        print(f"{name:18} p50 {row['p50_ns']:>9,}  p99 {row['p99_ns']:>9,}  mean {row['mean_ns']:>9,} ns", file=sys.stderr)


if __name__ == "__main__":
    main()
