"""How does a test ask a provider for its bytes, as a provider process would?"""

from __future__ import annotations

import mmap
import traceback

import numpy as np
from support import PAGE

GARBAGE = 0xA5


def read_block(provider, offset: int, nbytes: int) -> bytes:
    """One block, into memory that begins on a page and holds garbage. The provider must let go of it."""
    memory = mmap.mmap(-1, max(-(-nbytes // PAGE), 1) * PAGE)
    np.frombuffer(memory, "u1").fill(GARBAGE)
    buffer = memoryview(memory)[:nbytes]
    try:
        count = provider.read_into(buffer, offset)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold arrays over the buffer
        raise
    finally:
        buffer.release()
    assert count in (None, nbytes)
    assert not (np.frombuffer(memory, "u1")[nbytes:] != GARBAGE).any(), "written past the end"
    made = memory[:nbytes]
    memory.close()  # BufferError: it was kept
    return made


def read_all(provider, block_nbytes: int = PAGE, order=None) -> np.ndarray:
    """All blocks, in some order: what the array would hold, uint8."""
    made = np.zeros(provider.nbytes, "u1")
    blocks = range(-(-provider.nbytes // block_nbytes))
    for block in order if order is not None else blocks:
        start = block * block_nbytes
        stop = min(start + block_nbytes, provider.nbytes)
        made[start:stop] = np.frombuffer(read_block(provider, start, stop - start), "u1")
    return made


def elements(provider, block_nbytes: int = PAGE) -> np.ndarray:
    """All blocks, as the array."""
    return np.ndarray(provider.shape, provider.dtype, read_all(provider, block_nbytes))
