"""Do many threads, of Python, C and OpenMP, read right bytes, each block fetched once?"""

import ctypes
import threading

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, in_child, pest
from support import each_user, has_openmp, needs_compiler, settled

import lazymem as lm

pytestmark = needs_compiler

WORDS = PAGE // 8
COUNTS = [1, 2, 3, 8, 32]


def per_block_counts(nblocks):
    held = np.zeros(nblocks, "u4")
    return held, held.ctypes.data


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("nthreads", COUNTS)
@pytest.mark.parametrize("how", ["same blocks", "different blocks"])
def test_c_threads(delivery, user, nthreads, how):
    in_child(c_threads, delivery, nthreads, how, user=user)


def c_threads(delivery, nthreads, how):
    nblocks, pages = 192, 3
    for delay in (0, 50_000):
        calls, address = per_block_counts(nblocks)
        block = pages * PAGE
        a, kit = counted(nblocks * block, delivery=delivery, block_nbytes=block, per_block=address, delay_ns=delay)
        if how == "same blocks":
            assert pest().touch_together(address_of(a), nthreads, nblocks * pages, PAGE) == 0
        else:
            each = nblocks // nthreads
            assert pest().touch_apart(address_of(a), nthreads, each, pages * PAGE, 0) == 0
            calls = calls[: each * nthreads]
        assert np.array_equal(calls, np.ones(len(calls))), "each block was fetched once"
        s = settled(a)
        assert s.failed == 0
        assert s.blocks == kit.calls == len(calls)
        assert np.array_equal(a, np.arange(a.size))


@pytest.mark.parametrize("nthreads", COUNTS)
def test_python_threads(delivery, nthreads):
    nblocks = 64
    calls, address = per_block_counts(nblocks)
    a, _ = counted(nblocks * PAGE, delivery=delivery, block_nbytes=PAGE, per_block=address)
    expected = np.arange(a.size)
    start = threading.Barrier(nthreads)
    wrong = []

    def read(seed):
        order = np.random.default_rng(seed).permutation(nblocks)
        start.wait()
        for block in order:
            at = slice(block * WORDS, (block + 1) * WORDS)
            if int(a[at].sum()) != int(expected[at].sum()) or int(a[at.start + 7]) != at.start + 7:
                wrong.append(block)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(nthreads)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    assert np.array_equal(calls, np.ones(nblocks))


def test_touches_populate_and_prefetch_share_one_fetch(delivery):
    nblocks = 300
    calls, address = per_block_counts(nblocks)
    a, _ = counted(nblocks * PAGE, delivery=delivery, block_nbytes=PAGE, per_block=address, delay_ns=20_000)
    lm.prefetch(a)
    threads = [threading.Thread(target=lm.populate, args=(a,)) for _ in range(3)]
    for t in threads:
        t.start()
    assert pest().touch_together(address_of(a), 4, nblocks, PAGE) == 0
    for t in threads:
        t.join()
    assert np.array_equal(calls, np.ones(nblocks))
    assert settled(a).blocks == nblocks


@pytest.mark.skipif(not has_openmp(), reason="the compiler has no OpenMP")
@pytest.mark.parametrize("nthreads", [1, 4, 16])
def test_openmp(delivery, nthreads):
    a, kit = counted(500 * PAGE, delivery=delivery, block_nbytes=4 * PAGE)
    assert pest().omp_sum(address_of(a), a.size, nthreads) == a.size * (a.size - 1) // 2
    assert kit.calls == 125


def test_blas(delivery):
    n = 256
    values = np.random.default_rng(1).standard_normal((n, n))
    a = lm.from_provider(values, dtype="f8", shape=(n, n), delivery=delivery, block_nbytes=PAGE)
    b = lm.from_provider(values, dtype="f8", shape=(n, n), delivery=delivery, block_nbytes=PAGE)
    assert np.array_equal(a @ b, values @ values)


@pytest.mark.slow
def test_a_spinning_reader_sees_a_block_wholly_right_in_100_000_fills(delivery):
    in_child(a_spinning_reader, delivery, 2, 100_000, timeout=100)


@pytest.mark.slow
@each_user
@pytest.mark.parametrize("readers", [1, 4])
def test_a_spinning_reader_of_each_user(delivery, user, readers):
    in_child(a_spinning_reader, delivery, readers, 5_000, user=user, timeout=60)


def a_spinning_reader(delivery, readers, wanted):
    """Blocks are dropped as fast as they come, each of one byte value of its own, through the same staging blocks: a reader
    that ever saw a word half filled, of another block, or zero, counts it."""
    nblocks, pages = 24, 2
    a, kit = counted(nblocks * pages * PAGE, delivery=delivery, block_nbytes=pages * PAGE, pattern=1)
    out = (ctypes.c_uint64 * 3)(ctypes.addressof(kit))  # the kit begins with its count of calls
    pest().read_and_drop(address_of(a), nblocks, pages * PAGE, readers, wanted, 12345, out)
    bad, reads, dropped = out
    assert bad == 0
    assert reads > wanted / 4
    assert dropped > 0
    s = settled(a)
    assert s.blocks == kit.calls >= wanted
    assert s.failed == 0
