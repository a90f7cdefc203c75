"""What does a failure cost: until it is raised, others meanwhile, and a fork?

Every part runs in a fresh process, pinned nowhere.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import lazymem as lm
from lazymem.bench.array import huge_nbytes
from lazymem.bench.parts import Part, grouped_spread, print_rows, run_parts
from lazymem.core import measure
from lazymem.options import PAGE_NBYTES

HANG_S = 1.0
HELD_NBYTES = 1 << 30
WIDE_NBYTES = 1 << 40


class Failing:
    """A provider that says, of every block, when it failed: on the clock that all processes share."""

    nbytes = 1 << 30
    block_nbytes = PAGE_NBYTES

    def read_into(self, buffer: memoryview, offset: int) -> None:
        raise OSError(5, str(time.monotonic_ns()))


class Hanging:
    """A provider that never has its first block, and has the others ready."""

    block_nbytes = PAGE_NBYTES

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.block = bytes(PAGE_NBYTES)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        if offset == 0:
            time.sleep(3600)
        buffer[:] = self.block


def _since_failing(error: lm.PageError) -> int:
    """How long ago did the provider's last attempt fail? ns."""
    now_ns = time.monotonic_ns()
    return now_ns - int(str(error.__cause__).strip().rpartition(" ")[2])


def _by_operation(array: lm.LazyArray, plain: np.ndarray[Any, Any], i: int) -> None:
    array[i]


def _by_populate(array: lm.LazyArray, plain: np.ndarray[Any, Any], i: int) -> None:
    lm.populate(array[i : i + 1])


def _by_guard(array: lm.LazyArray, plain: np.ndarray[Any, Any], i: int) -> None:
    with lm.guard():
        plain[i]


def _by_touch(array: lm.LazyArray, plain: np.ndarray[Any, Any], i: int) -> None:
    plain[i]
    while True:  # a touch that failed is told of as Python next looks: here
        pass


_WAYS: dict[str, tuple[str, Callable[[lm.LazyArray, np.ndarray[Any, Any], int], None]]] = {
    "operation": ("a[i]", _by_operation),
    "populate": ("lm.populate(a[i:i+1])", _by_populate),
    "guard": ("numpy.asarray(a)[i] under lm.guard()", _by_guard),
    "told": ("numpy.asarray(a)[i]: TouchError", _by_touch),
}


def _raised(delivery: str, quick: bool) -> Iterator[dict[str, Any]]:
    for retries in (0, 3):
        array = lm.from_provider(Failing(), delivery=delivery, retries=retries)
        plain = np.asarray(array)
        for way, (text, touch) in _WAYS.items():
            spent_ns: list[float] = []
            for i in range(1 + (5 if quick else 20 if retries else 400)):
                try:
                    touch(array, plain, i * PAGE_NBYTES)
                except lm.PageError as error:
                    spent_ns.append(_since_failing(error))
                except lm.TouchError as error:
                    if error.error.__cause__ is not None:  # else not asked: it failed at once
                        spent_ns.append(_since_failing(error.error))
            del spent_ns[0]  # the process has started
            of = f"from the provider's last attempt to the exception: {text}, {delivery}, retries={retries}"
            row = {"case": f"raised-{way}-{delivery}-{retries}", "of": of, "value": round(statistics.median(spent_ns))}
            yield row | {"unit": "ns", "limit": 1e6, "n": len(spent_ns), "spread": grouped_spread(spent_ns)}
        del array, plain


def _p99_ns(array: lm.LazyArray, blocks: int) -> float:
    """Touch every block but the first, once. ns."""
    offsets = np.random.default_rng(5).permutation(np.arange(1, blocks + 1, dtype=np.uint64)) * np.uint64(PAGE_NBYTES)
    took_ns = np.ones(blocks, np.uint64)
    measure.touch(lm.region(array).address, offsets.ctypes.data, took_ns.ctypes.data, blocks)
    return float(np.quantile(took_ns, 0.99))


def _others(delivery: str, quick: bool) -> Iterator[dict[str, Any]]:
    blocks, rounds = (500, 1) if quick else (20_000, 5)
    nbytes = (blocks + 2) * PAGE_NBYTES
    values = np.ones(nbytes, "u1")
    options: dict[str, Any] = {"delivery": delivery, "block_nbytes": PAGE_NBYTES}

    def native() -> lm.LazyArray:
        return lm.from_provider(values, **options)

    def provided() -> lm.LazyArray:
        array = lm.from_provider(Hanging(nbytes), timeout=HANG_S, retries=0, **options)
        array[-1]
        return array

    for kind, make in (("native", native), ("python", provided)):
        taken = []
        quiet_ns = 0.0
        for i in range(2 * rounds):
            hang = provided()
            # Those of its own provider, or of another array.
            array = hang if kind == "python" else make()
            if i % 2:
                lm.prefetch(hang[:1])
                time.sleep(0.01)
            p99_ns = _p99_ns(array, blocks)
            still = lm.stats(hang).errors == 0
            lm.close(hang)
            lm.close(array)
            if i % 2:
                taken.append((p99_ns, quiet_ns, still))
            quiet_ns = p99_ns
        ratios = [a / b for a, b, _ in taken]
        of = f"p99 of first touches of {blocks} other blocks while one hangs, against the same without: {kind}, {delivery}"
        row = {"case": f"others-{kind}-{delivery}", "of": of, "value": round(statistics.median(ratios), 4), "unit": "ratio"}
        yield row | {
            "limit": 1.5, "n": blocks * rounds, "spread": grouped_spread(ratios),
            "hanging_ns": round(statistics.median(a for a, _, _ in taken)),
            "quiet_ns": round(statistics.median(b for _, b, _ in taken)),
            "hung_on": sum(still for *_, still in taken), "rounds": rounds,
        }  # fmt: skip


def _fork_ns(times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter_ns()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        taken.append(time.perf_counter_ns() - began)
        os.waitpid(pid, 0)
    return statistics.median(taken)


def _forks(quick: bool) -> Iterator[dict[str, Any]]:
    held, times, rounds = (64 << 20, 3, 2) if quick else (HELD_NBYTES, 25, 6)
    with tempfile.NamedTemporaryFile() as sparse:
        os.truncate(sparse.name, WIDE_NBYTES)
        for mode in "rc":
            taken = []
            for _ in range(rounds):
                without = _fork_ns(times)
                with lm.memmap(sparse.name, mode=mode) as array:
                    lm.populate(array[:held])
                    deadline = time.monotonic() + 5  # its pages are joined behind populate, and a fork waits for that
                    while huge_nbytes(lm.region(array).address) < held and time.monotonic() < deadline:
                        time.sleep(0.02)
                    taken.append((_fork_ns(times), without))
            ratios = [a / b for a, b in taken]
            of = f"os.fork() with a 1 TiB array, mode {mode!r}, {held >> 20} MiB resident, against the same process without it"
            row = {"case": f"fork-{mode}", "of": of, "value": round(statistics.median(ratios), 4), "unit": "ratio"}
            row |= {"n": times * rounds, "spread": grouped_spread(ratios)}
            row |= {"limit": 2.0} if mode == "r" else {}
            row["with_ns"] = round(statistics.median(a for a, _ in taken))
            yield row | {"without_ns": round(statistics.median(b for _, b in taken))}


_PARTS: dict[str, Part] = {
    "raised-inline": lambda quick: _raised("inline", quick),
    "raised-threads": lambda quick: _raised("threads", quick),
    "others-inline": lambda quick: _others("inline", quick),
    "others-threads": lambda quick: _others("threads", quick),
    "forks": _forks,
}


def main() -> None:
    """The child's life: one part, a row a line. Arguments: part, quick (0 or 1)."""
    print_rows(_PARTS)


def measure_failure(quick: bool, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The rows of `bench failure`."""
    yield from run_parts("failure", _PARTS, quick, None, say)
