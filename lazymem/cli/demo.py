"""What is it like? Arrays of a file, a C function, Python functions and a URL, touched here and there and counted."""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import lazymem
from lazymem import system
from lazymem.cli.chart import chart, resident_line
from lazymem.counters import human

ROWS, COLUMNS = 12_500, 10_000  # of 8 bytes: 1 GB
# Where values are written into the file; a page around each holds its own indices; the rest is a hole.
PLACES = (1_234_567, 31_415_926, 62_500_000, 99_999_999, ROWS * COLUMNS - 1)
TIB_NBYTES = 1 << 40
TOUCHES = 60


class Demo:
    """Prints as it goes, unless told not to, and keeps the facts."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.right = True

    def say(self, line: str = "") -> None:
        """Print a line, now."""
        if not self.quiet:
            print(line, flush=True)

    def touch(self, what: str, look: Callable[[], Any], wanted: Any) -> dict[str, Any]:
        """Touch once, compare, and say what came."""
        got = look()
        fine = bool(got == wanted)
        self.right &= fine
        self.say(f"  {what:<44} {got:>15,}  {'right' if fine else f'WRONG, expected {wanted:,}'}")
        return {"what": what, "value": int(got), "expected": int(wanted), "right": fine}

    def time_touches(self, pointer: Any, array: Any) -> dict[str, int]:
        """Touch absent blocks through a pointer, one load each; then the same places again, to know what Python adds."""
        region = lazymem.region(array)
        absent = np.flatnonzero(~lazymem.residency(array))
        blocks = absent[np.linspace(0, absent.size - 1, TOUCHES).astype(int)]
        places = [int(block) * region.block_nbytes // array.itemsize for block in blocks]
        before = settled_stats(array).faults
        first_ns, again_ns = _loads(pointer, places), _loads(pointer, places)
        faults = settled_stats(array).faults - before
        each = human(region.block_nbytes)
        self.say(f"  A touch took {_time(first_ns)}: the median of {TOUCHES} loads, each of which fetched {each}.")
        self.say(f"  Python's own part is in that; it is about {_time(again_ns)}, what the same loads took the second time.")
        return {"touches": TOUCHES, "faults": faults, "first_ns": first_ns, "again_ns": again_ns}

    def account(self, array: Any) -> dict[str, Any]:
        """Say how little was moved, and show where."""
        stats = settled_stats(array)
        self.say(f"  Moved {human(stats.nbytes_used)} of {human(stats.nbytes)}, in {stats.blocks} blocks.")
        self.say(f"  {resident_line(array)}")
        self.say(f"  {chart(array)}")
        return {
            "nbytes": stats.nbytes, "nbytes_moved": stats.nbytes_used, "faults": stats.faults, "blocks": stats.nblocks,
            "blocks_resident": stats.resident_blocks, "block_nbytes": stats.block_nbytes, "delivery": stats.delivery,
        }  # fmt: skip


def settled_stats(array: Any) -> lazymem.Stats:
    """The counters once the touches so far are in them: a handler thread counts after it has let the toucher go on."""
    end = time.monotonic() + 1
    while True:
        stats = lazymem.stats(array)
        served = stats.filled + stats.joins + stats.failed
        if (stats.faults == served and stats.resident_blocks == stats.blocks - stats.refilled) or time.monotonic() > end:
            return stats
        time.sleep(0.001)


def _loads(pointer: Any, places: list[int]) -> int:
    """The median time of one load, ns."""
    clock, times = time.perf_counter_ns, []
    for place in places:
        start = clock()
        pointer[place]
        times.append(clock() - start)
    return int(statistics.median(times))


def _time(ns: int) -> str:
    return f"{ns / 1000:.1f} us" if ns < 10**6 else f"{ns / 1e6:.1f} ms"


def write_sparse(path: str) -> None:
    """Write the 1 GB file: a header, five pages, and holes."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (ROWS, COLUMNS)})
        start = file.tell()
        file.truncate(start + 8 * ROWS * COLUMNS)
        for place in PLACES:
            n = mmap.PAGESIZE // 8
            low = max(0, min(place - n // 2, ROWS * COLUMNS - n))
            file.seek(start + 8 * low)
            file.write(np.arange(low, low + n, dtype="<f8").tobytes())
        file.flush()
        os.fsync(file.fileno())  # some file systems give out disk space only now


def file_part(demo: Demo, folder: str) -> dict[str, Any]:
    """The file, through numpy and through a pointer."""
    path = os.path.join(folder, "demo.npy")
    write_sparse(path)
    made = os.stat(path)
    disk_nbytes = made.st_blocks * 512
    size = f"{made.st_size / 1e9:.2f} GB, {human(disk_nbytes)} on disk"
    start = time.perf_counter_ns()
    with lazymem.open(path) as a:
        opened_ns = time.perf_counter_ns() - start
        demo.say(f"1. A .npy file of {size}: element i of five pages holds i, the rest is a hole")
        demo.say("     a = lazymem.open('demo.npy')")
        demo.say(f"  {a.dtype} {a.shape}, opened in {_time(opened_ns)}, as a process's first array; only its header was read")
        pointer = ctypes.cast(a.ctypes.data, ctypes.POINTER(ctypes.c_double))
        touched = [
            demo.touch("numpy    a[123, 4567]", lambda: int(a[123, 4567]), PLACES[0]),
            demo.touch("numpy    a[3141, 5926]", lambda: int(a[3141, 5926]), PLACES[1]),
            demo.touch(f"pointer  p[{PLACES[2]}]", lambda: int(pointer[PLACES[2]]), PLACES[2]),
            demo.touch("numpy    a[9999, -10:].sum()", lambda: int(a[9999, -10:].sum()), sum(range(99_999_990, 100_000_000))),
            demo.touch("numpy    a[-1, -1]", lambda: int(a[-1, -1]), PLACES[4]),
            demo.touch("pointer  p[12000000], in a hole", lambda: int(pointer[12_000_000]), 0),
        ]
        moved = demo.account(a)
        timed = demo.time_touches(pointer, a)
    size_facts = {"file_nbytes": made.st_size, "disk_nbytes": disk_nbytes, "opened_ns": opened_ns}
    return {**size_facts, "touched": touched, **moved, "touch": timed}


def function_part(demo: Demo) -> dict[str, Any]:
    """A tebibyte that exists nowhere: a C function computes what is touched."""
    from lazymem.core import samples

    n = TIB_NBYTES // 8
    demo.say("2. A 1 TiB array from a C function: f writes the index of each element, block by block, when one is touched")
    demo.say("     b = lazymem.from_provider(lazymem.CFunction(f, 2**40), dtype='i8')")
    start = time.perf_counter_ns()
    with lazymem.from_provider(lazymem.CFunction(samples.iota(), TIB_NBYTES), dtype="i8") as b:
        made_ns = time.perf_counter_ns() - start
        demo.say(f"  {b.dtype} {b.shape}, made in {_time(made_ns)}")
        pointer = ctypes.cast(b.ctypes.data, ctypes.POINTER(ctypes.c_int64))
        middle = n // 2
        touched = [
            demo.touch("numpy    b[42]", lambda: b[42], 42),
            demo.touch("numpy    b[12345678901]", lambda: b[12_345_678_901], 12_345_678_901),
            demo.touch(f"numpy    b[{middle}:{middle}+100].max()", lambda: int(b[middle : middle + 100].max()), middle + 99),
            demo.touch("pointer  p[98765432109]", lambda: pointer[98_765_432_109], 98_765_432_109),
            demo.touch("numpy    b[-1]", lambda: b[-1], n - 1),
        ]
        moved = demo.account(b)
        timed = demo.time_touches(pointer, b)
    return {"made_ns": made_ns, "touched": touched, **moved, "touch": timed}


def _squares(out: Any, start: int) -> None:
    """What a user's fill function looks like: element i is i squared."""
    i = np.arange(start, start + out.size)
    np.multiply(i, i, out=out)


def python_part(demo: Demo) -> dict[str, Any]:
    """Functions of Python: they run in another process, so that no touch needs the GIL."""
    demo.say("3. Functions of Python, run in a process of their own when an element is touched")
    demo.say("     c = lazymem.from_fill(squares, 10**9, 'i8')")
    demo.say("     d = lazymem.from_function(lambda i, j: i * j, (10**6, 10**6), 'i8')")
    start = time.perf_counter_ns()
    with (
        lazymem.from_fill(_squares, 10**9, "i8") as c,
        lazymem.from_function(lambda i, j: i * j, (10**6, 10**6), "i8") as d,
    ):
        made_ns = time.perf_counter_ns() - start
        first = demo.touch("numpy    c[12345]", lambda: c[12_345], 12_345**2)
        first_ns = time.perf_counter_ns() - start
        demo.say(f"  both made in {_time(made_ns)}; to the first value it took {_time(first_ns)}, a Python starting included")
        pointer = ctypes.cast(c.ctypes.data, ctypes.POINTER(ctypes.c_int64))
        touched = [
            first,
            demo.touch("pointer  p[99999999]", lambda: pointer[99_999_999], 99_999_999**2),
            demo.touch("numpy    c[5 * 10**8 : 5 * 10**8 + 3].sum()", lambda: int(c[5 * 10**8 :][:3].sum()), _SUM),
            demo.touch("numpy    c[-1]", lambda: c[-1], (10**9 - 1) ** 2),
        ]
        products = [
            demo.touch("numpy    d[123, 456789]", lambda: d[123, 456_789], 123 * 456_789),
            demo.touch("numpy    d[999999, 999999]", lambda: d[-1, -1], 999_999**2),
        ]
        moved = demo.account(c)
        timed = demo.time_touches(pointer, c)
        products_moved = settled_stats(d).nbytes_used
    return {
        "made_ns": made_ns, "first_value_ns": first_ns, "touched": touched, "lambda": products, **moved, "touch": timed,
        "lambda_nbytes_moved": products_moved,
    }  # fmt: skip


_SUM = sum(i * i for i in range(5 * 10**8, 5 * 10**8 + 3))


def url_part(demo: Demo, folder: str) -> dict[str, Any]:
    """The file of part 1 again, from a server."""
    from lazymem.testing.apart import ServerApart  # in a process of its own: a touch may hold this one's GIL

    path = os.path.join(folder, "demo.npy")
    with ServerApart({"demo.npy": path}) as server:
        url = server.url_of("demo.npy")
        demo.say("4. The file of part 1 over HTTP, from a server that was started for it")
        demo.say(f"     e = lazymem.open({url!r})")
        start = time.perf_counter_ns()
        with lazymem.open(url) as e:
            opened_ns = time.perf_counter_ns() - start
            demo.say(f"  {e.dtype} {e.shape}, opened in {_time(opened_ns)}")
            pointer = ctypes.cast(e.ctypes.data, ctypes.POINTER(ctypes.c_double))
            touched = [
                demo.touch("numpy    e[123, 4567]", lambda: int(e[123, 4567]), PLACES[0]),
                demo.touch("numpy    e[3141, 5926]", lambda: int(e[3141, 5926]), PLACES[1]),
                demo.touch(f"pointer  p[{PLACES[2]}]", lambda: int(pointer[PLACES[2]]), PLACES[2]),
                demo.touch("numpy    e[-1, -1]", lambda: int(e[-1, -1]), PLACES[4]),
                demo.touch("pointer  p[12000000], in a hole", lambda: int(pointer[12_000_000]), 0),
            ]
            moved = demo.account(e)
        requests = server.counts()["requests"]
        demo.say(f"  The server was asked {requests} times.")
    return {"opened_ns": opened_ns, "requests": requests, "touched": touched, **moved}


def run(args: argparse.Namespace) -> int:
    """The command. Returns the exit status."""
    system.require()
    demo = Demo(quiet=args.json)
    with tempfile.TemporaryDirectory(prefix="lazymem-demo-") as folder:
        of_file = file_part(demo, folder)
        demo.say()
        of_function = function_part(demo)
        demo.say()
        of_python = python_part(demo)
        demo.say()
        of_url: dict[str, Any] | None = None
        if importlib.util.find_spec("urllib3") is not None:
            of_url = url_part(demo, folder)
        else:
            demo.say("4. The file over HTTP: left out, since urllib3 is not installed (pip install 'lazymem[http]')")
    demo.say()
    verdict = "Every value was right" if demo.right else "SOME VALUES WERE WRONG"
    demo.say(f"{verdict}; delivery '{of_file['delivery']}' (what that means: lazymem doctor).")
    if args.json:
        print(json.dumps({"right": demo.right, "file": of_file, "function": of_function, "python": of_python, "url": of_url}))
    return 0 if demo.right else 1
