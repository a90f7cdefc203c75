"""How is a provider given memory so that whatever it does wrongly shows?"""

from __future__ import annotations

import gc
import mmap
from collections.abc import Iterator
from random import Random
from typing import Any

PAGE_NBYTES = mmap.PAGESIZE
_AROUND = 0xA5
_ANOTHER = bytes(range(255, -1, -1))  # for each byte one that it is not
_BLOCKS_MAX = 12
_PARTS_BY_CHANCE = 16


class Loan:
    """Memory for one read. Every byte of it is wrong beforehand, and there is more of it on both sides.

    Parameters
    ----------
    wanted : bytes
        What is right.
    shift : int, bytes
        How far from the beginning of a page it begins.
    """

    def __init__(self, wanted: bytes, shift: int = 0) -> None:
        self.wanted, self.shift = wanted, shift
        self._start = PAGE_NBYTES + shift
        pages = -(-(self._start + len(wanted)) // PAGE_NBYTES) + 1
        self._memory = mmap.mmap(-1, pages * PAGE_NBYTES)
        self._memory[:] = bytes([_AROUND]) * len(self._memory)
        self._before = wanted.translate(_ANOTHER)
        self._memory[self._start : self._start + len(wanted)] = self._before

    def read(self, provider: Any, offset: int) -> Any:
        """Have a provider write into it; what `read_into` returned."""
        view = memoryview(self._memory)[self._start : self._start + len(self.wanted)]
        return provider.read_into(view, offset)

    def what_is_wrong(self, offset: int) -> str | None:
        """What is wrong with what was written; None: nothing."""
        stop = self._start + len(self.wanted)
        around = self._memory[: self._start] + self._memory[stop:]
        what = f"read_into(buffer, {offset}), a buffer of {len(self.wanted)} bytes"
        if self.shift:
            what += f" that begins {self.shift} bytes after the beginning of a page"
        if around.count(_AROUND) != len(around):
            return f"{what}: memory outside of the buffer was written"
        made = self._memory[self._start : stop]
        if made == self.wanted:
            return None
        wrong = [i for i in range(len(made)) if made[i] != self.wanted[i]]
        first = wrong[0]
        if all(made[i] == self._before[i] for i in wrong):
            how = "was not written; what a buffer holds before is of no meaning"
        else:
            how = f"is {made[first]:#04x}, expected {self.wanted[first]:#04x}"
        return f"{what}: byte {first} of it (byte {offset + first} of all) {how}; {len(wrong)} bytes are wrong"

    def is_kept(self) -> bool:
        """Does anything still refer to it, after `read` has returned?"""
        return _is_kept(self._memory)


class Offer:
    """Memory for one write: read-only, and of its own.

    Parameters
    ----------
    content : bytes
        What is to be taken back.
    """

    def __init__(self, content: bytes) -> None:
        self._memory = mmap.mmap(-1, max(1, len(content)))
        self._memory[: len(content)] = content
        self._nbytes = len(content)

    def write(self, provider: Any, offset: int) -> Any:
        """Have a provider take it; what `write_from` returned."""
        return provider.write_from(memoryview(self._memory)[: self._nbytes].toreadonly(), offset)

    def is_kept(self) -> bool:
        """Does anything still refer to it, after `write` has returned?"""
        return _is_kept(self._memory)


def _is_kept(memory: mmap.mmap) -> bool:
    """Close it, if nothing refers to it."""
    for tidy in (False, True):
        if tidy:
            gc.collect()
        try:
            memory.close()
        except BufferError:
            continue
        return False
    return True


def blocks(nbytes: int, block_nbytes: int) -> list[tuple[int, int]]:
    """(offset, nbytes) of blocks as lazymem asks for them; of many the first, the last, and some between."""
    count = -(-nbytes // block_nbytes)
    numbers = set(range(count)) if count <= _BLOCKS_MAX else {0, 1, 2, count - 2, count - 1}
    by_chance = Random(count)
    while len(numbers) < min(count, _BLOCKS_MAX):
        numbers.add(by_chance.randrange(count))
    return [(n * block_nbytes, min(block_nbytes, nbytes - n * block_nbytes)) for n in sorted(numbers)]


def parts(nbytes: int, unit: int) -> list[tuple[int, int]]:
    """(offset, nbytes) of parts that begin and end anywhere, in whole units, the end excepted."""
    return sorted({part for part in _parts(nbytes, unit) if part[1]})


def _parts(nbytes: int, unit: int) -> Iterator[tuple[int, int]]:
    page, last = PAGE_NBYTES, max(nbytes - 1, 0) // unit * unit
    by_chance = Random(nbytes)
    places = [0, unit, page - unit, page, page + unit, nbytes // 2 // unit * unit, last]
    places += [by_chance.randrange(last // unit + 1) * unit for _ in range(_PARTS_BY_CHANCE)]
    for place in places:
        for length in (unit, page - unit, by_chance.randrange(1, 3 * page // unit + 1) * unit):
            start = min(place, last)
            yield start, min(length, nbytes - start)
