"""What have tests of evicted memory in common: both ways out of a region, files that count, and nothing left afterwards?"""

from __future__ import annotations

import ctypes
import functools
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_kit import PAGE, in_child, library
from support import USERS, wait_until

WORDS = PAGE // 8
LEAST = 64 * PAGE       # the least budget there is with blocks of a page
# Out of a region by MOVE, and by protecting, copying and dropping.
each_way = pytest.mark.parametrize("way", ["move", "no-move"])
# Whose system calls wait, and whose do not; each delivery is there for either.
EVERYBODY = [(user, delivery) for user in USERS for delivery in ("inline", "threads")]


@functools.cache
def crowd() -> ctypes.CDLL:
    """tests/native/crowd.c: threads that count, gather and copy."""
    lib = ctypes.CDLL(str(library("crowd.c")))
    u64, pointer, i64 = ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int64
    lib.count_up.argtypes, lib.count_up.restype = [pointer, u64, u64, u64, u64, pointer], i64
    lib.gather.argtypes, lib.gather.restype = [pointer, pointer, u64], i64
    lib.copy_in_one.argtypes, lib.copy_in_one.restype = [pointer, pointer, u64], None
    return lib


def run(function: Callable[..., Any], *args: Any, way: str = "move", user: str | None = None, timeout: float = 60) -> str:
    """`in_child`, with MOVE or without; afterwards nothing is counted as memory of an array any more."""
    library("crowd.c")
    made = Path(function.__code__.co_filename)
    return in_child(_and_nothing_is_left, made.stem, function.__name__, args, user=user, timeout=timeout,
                    env={"LAZYMEM_NO_MOVE": "1"} if way == "no-move" else None)  # fmt: skip


def _and_nothing_is_left(module: str, name: str, args: tuple[Any, ...]) -> None:
    import importlib

    getattr(importlib.import_module(module), name)(*args)
    nothing_is_left()


def nothing_is_left() -> None:
    """Once all arrays are gone nothing counts in the budget of the process."""
    from lazymem.core.memory import budget

    def left() -> int:
        gc.collect()
        return int(budget()[1])

    assert wait_until(lambda: left() == 0, 3), f"{left()} bytes are counted as memory of arrays that are gone"


def file_of(folder: Path, nblocks: int, name: str = "counts") -> Path:
    """A file of int64 that are their own index, so many pages."""
    path = Path(folder, name)
    np.arange(nblocks * WORDS, dtype="i8").tofile(path)
    path.chmod(0o666)
    return path


@contextmanager
def over_and_over(*calls: Callable[[], Any]) -> Iterator[list[int]]:
    """Each call in a thread of its own, again and again, until the `with` ends; how often. What one raised is raised then."""
    turns, failed, over = [0] * len(calls), [], threading.Event()

    def loop(i: int) -> None:
        try:
            while not over.is_set():
                calls[i]()
                turns[i] += 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=loop, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    try:
        yield turns
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "it does not end"
    if failed:
        raise failed[0]


def together(*calls: Callable[[], Any], seconds: float = 40) -> list[Any]:
    """Each call in a thread of its own, once; what they return, or the first thing raised."""
    results: list[Any] = [None] * len(calls)
    failed: list[BaseException] = []

    def once(i: int) -> None:
        try:
            results[i] = calls[i]()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=once, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads), "it does not end"
    if failed:
        raise failed[0]
    return results
