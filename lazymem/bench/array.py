"""What does a lazy array cost once its pages are there, and what do making one and importing us cost?

Every part runs in a fresh process. Times are compared in pairs, taken alternately; the median of the pairs' ratios counts.
"""

from __future__ import annotations

import gc
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lazymem.bench.parts import Part, grouped_spread, print_rows, run_parts

CREATE_NBYTES = 1 << 40
TINY = {"item": ("a[5]", 2.0), "slice": ("a[1:5]", 2.0), "slice-add": ("a[1:5] + 1", 2.0)}


def _ratio(lazy: Callable[[], object], plain: Callable[[], object], number: int, pairs: int) -> dict[str, Any]:
    """Time both `number` times in a row, alternately, in pairs whose order swaps."""
    clock = time.perf_counter_ns

    def spent(run: Callable[[], object]) -> float:
        began = clock()
        for _ in range(number):
            run()
        return (clock() - began) / number

    spent(lazy), spent(plain)
    taken = []
    for i in range(pairs):
        if i % 2:
            a = spent(lazy)
            b = spent(plain)
        else:
            b = spent(plain)
            a = spent(lazy)
        taken.append((a, b))
    ratios = [a / b for a, b in taken]
    return {
        "value": round(statistics.median(ratios), 4),
        "unit": "ratio",
        "spread": grouped_spread(ratios),
        "n": number * pairs,
        "lazy_ns": round(statistics.median(a for a, _ in taken)),
        "plain_ns": round(statistics.median(b for _, b in taken)),
    }


def _random(nbytes: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).random(nbytes // 8)


def _resident_twins(values: np.ndarray[Any, Any]) -> tuple[Any, np.ndarray[Any, Any]]:
    """A lazy array, and ordinary memory of the same page size, both filled with `values`.

    Filled in turns, stripe by stripe, so that both lie in the same parts of physical memory: where the pages of an array
    happen to lie makes up to a fifth of the time of a sum, whoever filled it.
    """
    import lazymem as lm

    lazy = lm.from_provider(values, dtype="f8")
    memory = mmap.mmap(-1, values.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    plain = np.frombuffer(memory, "f8")
    step = lm.region(lazy).block_nbytes // 8
    for i in range(0, len(values), step):
        lm.populate(lazy[i : i + step])
        plain[i : i + step] = values[i : i + step]
    assert lm.residency(lazy).all()
    return lazy, plain


def huge_nbytes(address: int, nbytes: int = 1) -> int:
    """How much of the mappings in a range is huge pages. Source: proc(5) smaps AnonHugePages."""
    inside, found = False, 0
    with open("/proc/self/smaps") as f:
        for line in f:
            if line[0] in "0123456789abcdef":
                start, end = (int(word, 16) for word in line.split()[0].split("-"))
                inside = start < address + nbytes and address < end
            elif inside and line.startswith("AnonHugePages:"):
                found += int(line.split()[1]) << 10
    return found


def _populated(values: np.ndarray[Any, Any]) -> Any:
    """A lazy array populated whole, as users do, once the kernel has joined its pages (at most 10 s later)."""
    import lazymem as lm

    lazy = lm.from_provider(values, dtype="f8")
    lm.populate(lazy)
    deadline = time.monotonic() + 10
    while huge_nbytes(lm.region(lazy).address) < values.nbytes >> 21 << 21 and time.monotonic() < deadline:
        time.sleep(0.02)
    return lazy


def _bulk(quick: bool) -> Iterator[dict[str, Any]]:
    """Large enough to be beyond any shared cache."""
    import lazymem as lm

    nbytes = (4 << 20) if quick else (256 << 20)
    pairs = 10 if quick else 40
    values = _random(nbytes)
    lazy, plain = _resident_twins(values)
    assert lazy.sum() == values.sum()
    assert (lazy == plain).all()
    size = f"{nbytes >> 20} MiB of f8"
    # Ordinary memory as numpy gets it: it asks for huge pages (of large arrays), and Linux by default gives them.
    row = {"case": "sum", "of": f"{size} against ordinary memory, huge pages and all", "limit": 1.05}
    whole = _populated(values)
    yield row | {"huge_nbytes": huge_nbytes(lm.region(whole).address)} | _ratio(whole.sum, values.sum, 1, pairs)
    del whole
    # Memory of the same page size: what is left is ours.
    row = {"case": "sum-same-pages", "of": f"{size} against memory in pages of {mmap.PAGESIZE} bytes", "limit": 1.05}
    yield row | _ratio(lazy.sum, plain.sum, 1, pairs)
    where = np.random.default_rng(3).integers(0, len(values), 20_000 if quick else 500_000)
    row = {"case": "gather", "of": f"{len(where)} of {size} against memory in pages of {mmap.PAGESIZE} bytes", "limit": 1.05}
    yield row | _ratio(lambda: lazy.take(where), lambda: plain.take(where), 1, pairs)


def _tiny(quick: bool) -> Iterator[dict[str, Any]]:
    lazy, plain = _resident_twins(_random(8 * 1000))
    for case, (text, limit) in TINY.items():
        # A function per array, of the same code: what it costs beside the expression is the same for both.
        runs = []
        for a in (lazy, plain):
            namespace: dict[str, Any] = {"a": a}
            loop = f"def run(a=a):\n    for _ in range({100 if quick else 1000}):\n        {text}\n"
            exec(loop, namespace)
            runs.append(namespace["run"])
        row = {"case": case, "of": f"{text} against ndarray", "limit": limit}
        yield row | _ratio(runs[0], runs[1], 1, 20 if quick else 200)


def _resident_nbytes() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * mmap.PAGESIZE


def _create(quick: bool) -> Iterator[dict[str, Any]]:
    import ctypes

    import lazymem as lm

    # Any C function will do: nothing is touched, so it is never called.
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
    address = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value or 0
    provider = lm.CFunction(kind(address), CREATE_NBYTES)
    gc.collect()
    before = _resident_nbytes()
    began = time.perf_counter_ns()
    array = lm.from_provider(provider)
    first_ns = time.perf_counter_ns() - began
    first_nbytes = _resident_nbytes() - before
    assert array.nbytes == CREATE_NBYTES
    arrays = [array]
    later_ns: list[float] = []
    before = _resident_nbytes()
    for _ in range(10 if quick else 20):
        began = time.perf_counter_ns()
        arrays.append(lm.from_provider(provider))
        later_ns.append(time.perf_counter_ns() - began)
    later_nbytes = (_resident_nbytes() - before) / len(later_ns)
    for each in arrays:
        each.close()
    first, later = "a process's first array, 1 TiB", "each further 1 TiB array"
    yield {"case": "create-first", "of": first, "value": first_ns, "unit": "ns", "limit": 2e6, "n": 1}
    row = {"case": "create-later", "of": later, "value": round(statistics.median(later_ns)), "unit": "ns", "limit": 2e6}
    yield row | {"n": len(later_ns), "spread": grouped_spread(later_ns)}
    row = {"case": "create-first-memory", "of": f"{first}: resident memory", "value": first_nbytes}
    yield row | {"unit": "bytes", "limit": 2 << 20, "n": 1}
    row = {"case": "create-later-memory", "of": f"{later}: resident memory", "value": round(later_nbytes)}
    yield row | {"unit": "bytes", "limit": 2 << 20, "n": len(later_ns)}


def _import_ns(module: str, compiled: str) -> int:
    """`compiled`: a folder for its byte code, which an installed package has and a checkout may lack, or may not write."""
    code = f"import time; t = time.perf_counter_ns(); import {module}; print(time.perf_counter_ns() - t)"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": compiled}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=env)
    return int(done.stdout)


def _imports(quick: bool) -> Iterator[dict[str, Any]]:
    pairs = 5 if quick else 25
    with tempfile.TemporaryDirectory() as compiled:
        _import_ns("lazymem", compiled), _import_ns("numpy", compiled)
        taken = [(_import_ns("lazymem", compiled), _import_ns("numpy", compiled)) for _ in range(pairs)]
    ours = statistics.median(a for a, _ in taken)
    numpys = statistics.median(b for _, b in taken)
    row = {"case": "import", "of": "import lazymem against import numpy, fresh interpreters", "limit": 1.3}
    row |= {"value": round(ours / numpys, 4), "unit": "ratio", "n": pairs}
    yield row | {"lazy_ns": round(ours), "plain_ns": round(numpys), "spread": grouped_spread([float(a) for a, _ in taken])}


_PARTS: dict[str, Part] = {"bulk": _bulk, "tiny": _tiny, "create": _create, "import": _imports}


def main() -> None:
    """The child's life: one part, a row a line. Arguments: part, quick (0 or 1)."""
    print_rows(_PARTS)


def measure_array(quick: bool, core: int | None, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The rows of `bench array`.

    Parameters
    ----------
    core : int or None
        Where all run; None: anywhere.
    """
    yield from run_parts("array", _PARTS, quick, core, say)
