"""Do operations of a LazyArray give what numpy gives of an ordinary array, and raise exactly where bytes cannot be had?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from lazymem.soak.actor import Actor
from lazymem.soak.held import Held

THREADS = 3
COUNTS = ("operations",)
_MOST = 16 << 10  # elements


def _copied(a: Any) -> Any:
    return a.copy()


def _mixed(a: Any) -> Any:
    return a ^ np.uint64(0x5555)


def _strided(a: Any) -> Any:
    return a[::97] + np.uint64(1)


def _backwards(a: Any) -> Any:
    return a[::-1].copy()


def _bytes(a: Any) -> Any:
    return np.frombuffer(a.tobytes(), "u8")


def _sum(a: Any) -> Any:
    return np.array([a.sum(), np.max(a), a[len(a) // 2], a[-1]])


def _picked(a: Any) -> Any:
    return a[np.arange(0, len(a), 61)]


def _sorted(a: Any) -> Any:
    return np.sort(a[:1000])


def _written(a: Any) -> Any:
    with tempfile.TemporaryFile(buffering=0) as file:
        a.tofile(file)
        file.seek(0)
        return np.frombuffer(os.pread(file.fileno(), a.nbytes, 0), "u8")


# Those that look at every element, and those that do not. What is being written must not be dropped (`drop`) meanwhile.
_WHOLE = (_copied, _mixed, _backwards, _bytes, _sum, _written)
_PARTLY = (_strided, _picked, _sorted)


def act(me: Actor) -> None:
    """One operation."""
    with me.field.use(me.rng) as held:
        if held is None:
            return
        start, stop = held.part(me.rng, min(_MOST, 4 * held.block_words) if held.mortal else _MOST)
        operation = (*_WHOLE, *_PARTLY)[int(me.rng.integers(len(_WHOLE) + len(_PARTLY)))]
        if (operation in _PARTLY and held.bad_in(start, stop)) or (operation is _written and not held.written):
            return
        with held.still(start, stop) as still:
            if still:
                _operate(me, held, start, stop, operation)


def _operate(me: Actor, held: Held, start: int, stop: int, operation: Callable[[Any], Any]) -> None:
    with me.looking(held, start, stop, operation.__name__[1:]):
        got = operation(held.array[start:stop])
        me.same(got, operation(held.expected[start:stop]), f"{operation.__name__[1:]} [{start}:{stop}], {held.name}")
    me.count("operations")
