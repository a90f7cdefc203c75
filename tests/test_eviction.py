"""Is every write there, and does every instruction end, while memory is taken away as fast as it can be?"""

import ctypes
import itertools
import os
import time

import numpy as np
import pytest
from memory_kit import EVERYBODY, LEAST, WORDS, crowd, each_way, file_of, over_and_over, run, together
from native_kit import PAGE, address_of, counted
from support import needs_compiler

import lazymem as lm

pytestmark = needs_compiler

BLOCKS = LEAST // PAGE


# ---------------------------------------------------------------------------------------------------------------------------
# Counters

@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
def test_no_increment_is_lost(folder, user, delivery, way, mode):
    run(no_increment_is_lost, str(folder), delivery, mode, 0.3, way=way, user=user)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
def test_no_increment_is_lost_in_a_minute_of_every_thread(folder, user, delivery, way, mode):
    print(run(no_increment_is_lost, str(folder), delivery, mode, 20, way=way, user=user, timeout=200))


def no_increment_is_lost(folder, delivery, mode, seconds, nthreads=3):
    """Each thread owns a counter in every page, so that every page is everybody's: what is lost is lost by eviction."""
    npages = 4 * BLOCKS if mode == "r+" else BLOCKS
    path = file_of(folder, npages)
    a = lm.memmap(path, "i8", mode, delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST)
    mine = np.zeros((nthreads, npages), "i8")
    base = address_of(a)
    with over_and_over(lambda: lm.evict(a)) as turns:
        counts = together(*(
            lambda slot=slot: crowd().count_up(base, npages, PAGE, slot, int(seconds * 1e9), mine[slot].ctypes.data)
            for slot in range(nthreads)
        ), seconds=seconds + 60)  # fmt: skip
    assert counts == [int(n) for n in mine.sum(axis=1)]
    expected = np.arange(npages * WORDS).reshape(npages, WORDS)
    expected[:, :nthreads] += mine.T
    lost = int((expected - np.asarray(a).reshape(npages, WORDS)).sum())
    assert np.array_equal(np.asarray(a).reshape(npages, WORDS), expected), f"{lost} of {sum(counts)} are lost"
    stats = lm.stats(a)
    print(f"{sum(counts)} counted, 0 lost; {turns[0]} evictions of all, {stats.evicted} of blocks, {stats.rescued} rescued")
    assert stats.evicted > npages, stats
    lm.close(a)
    on_disk = np.fromfile(path, "i8").reshape(npages, WORDS)
    assert np.array_equal(on_disk, expected if mode == "r+" else np.arange(npages * WORDS).reshape(npages, WORDS))
