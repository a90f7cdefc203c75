"""What if pages go while they are read? By madvise, whole blocks and single pages of blocks: they are fetched again.

Pages that stayed are met by the next fill of their block, at its beginning and in its middle: hence EEXIST and EAGAIN.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from lazymem.options import PAGE_NBYTES
from lazymem.soak.actor import Actor
from lazymem.soak.held import WORD_NBYTES, Held

COUNTS = ("drops",)
PAUSE_S = 0.002
_PAGE_WORDS = PAGE_NBYTES // WORD_NBYTES
_libc = ctypes.CDLL(None, use_errno=True)


def drop(held: Held, first: int, last: int) -> None:
    """Give pages first..last-1 back to the kernel; of what was written nothing is left."""
    address = held.region.address + first * PAGE_NBYTES
    status = _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t((last - first) * PAGE_NBYTES), mmap.MADV_DONTNEED)
    if status:
        raise OSError(ctypes.get_errno(), "madvise")


def _unwritten(held: Held) -> bool:
    return not held.written


def act(me: Actor) -> None:
    """Drop much of an array, or every so many pages of it."""
    with me.field.use(me.rng, _unwritten) as held:
        if held is None:
            return
        pages = len(held.expected) // _PAGE_WORDS
        first = int(me.rng.integers(pages))
        last = int(me.rng.integers(first + 1, pages + 1))
        if held.mortal:
            last = min(last, first + 8)
        stride = int(me.rng.choice([1, 1, 2, 3, 5]))
        if stride == 1:
            drop(held, first, last)
        else:
            for page in np.arange(first, last, stride)[:256]:
                drop(held, int(page), int(page) + 1)
        me.count("drops")
