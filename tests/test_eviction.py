"""Is every write there, and does every instruction end, while memory is taken away as fast as it can be?"""

import ctypes
import os
import time

import numpy as np
import pytest
from memory_kit import EVERYBODY, LEAST, WORDS, crowd, each_way, file_of, over_and_over, run, together
from native_kit import PAGE, address_of, counted
from support import each_user, needs_compiler

import lazymem as lm

pytestmark = needs_compiler

BLOCKS = LEAST // PAGE


# ---------------------------------------------------------------------------------------------------------------------------
# Counters

each_work = pytest.mark.parametrize(("mode", "work"), [("r+", "evict"), ("c", "evict"), ("r+", "flush")])


@pytest.mark.thin(2)
@each_work
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
def test_no_increment_is_lost(folder, user, delivery, way, mode, work):
    run(no_increment_is_lost, str(folder), delivery, mode, work, 0.3, way=way, user=user)


@pytest.mark.long
@pytest.mark.timeout(0)
@each_work
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
def test_no_increment_is_lost_in_a_minute_of_every_thread(folder, user, delivery, way, mode, work):
    print(run(no_increment_is_lost, str(folder), delivery, mode, work, 20, way=way, user=user, timeout=200))


def no_increment_is_lost(folder, delivery, mode, work, seconds, nthreads=3):
    """Each thread owns a counter in every page, so that every page is everybody's: what is lost is lost by eviction.

    Flushing beside it protects pages that are just being written and moved: `uffd_move` says which of those a kernel lost.
    """
    npages = 4 * BLOCKS
    path = file_of(folder, npages)
    a = lm.memmap(path, "i8", mode, delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST)
    mine = np.zeros((nthreads, npages), "i8")
    base = address_of(a)
    with over_and_over(lambda: lm.evict(a) if work == "evict" else lm.flush(a)) as turns:
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
    print(f"{sum(counts)} counted, 0 lost; {turns[0]} times {work}, {stats.evicted} of blocks, {stats.rescued} rescued")
    assert stats.evicted > npages, stats
    lm.close(a)
    on_disk = np.fromfile(path, "i8").reshape(npages, WORDS)
    assert np.array_equal(on_disk, expected if mode == "r+" else np.arange(npages * WORDS).reshape(npages, WORDS))


# ---------------------------------------------------------------------------------------------------------------------------
# Instructions that touch many blocks at once

@pytest.mark.thin(2)
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
def test_trap_27_gathers_end(folder, user, delivery, way):
    """More threads than the budget has blocks, eight blocks an instruction."""
    run(gathers_end, str(folder), delivery, way=way, user=user)


def gathers_end(folder, delivery, nthreads=20, n=160):
    nblocks = 16
    path = file_of(folder, 16 * BLOCKS)
    a = lm.memmap(path, "i8", "r", delivery=delivery, block_nbytes=LEAST // nblocks, budget_nbytes=LEAST)
    base, dice = address_of(a), np.random.default_rng(1)
    at = dice.integers(0, a.size, (nthreads, n)) * 8
    sums = together(*(lambda row=row: crowd().gather(base, row.ctypes.data, n) for row in at))
    assert sums == [int(s) for s in (at // 8).sum(axis=1)]
    taken = together(*(lambda row=row: np.take(a, row // 8) for row in at))
    assert np.array_equal(taken, at // 8)
    stats = lm.stats(a)
    assert stats.held_nbytes <= LEAST, stats
    assert stats.blocks > 16 * nblocks, stats
    lm.close(a)


@pytest.mark.thin(2)
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
def test_trap_27_copies_between_arrays_end(folder, user, delivery, way):
    run(copies_between_arrays_end, str(folder), delivery, way=way, user=user)


def copies_between_arrays_end(folder, delivery, npages=6 * BLOCKS, nthreads=4):
    given = {"delivery": delivery, "block_nbytes": PAGE, "budget_nbytes": LEAST}
    source = lm.memmap(file_of(folder, npages), "i8", "r", **given)
    target = lm.memmap(os.path.join(folder, "target"), "i8", "w+", shape=source.shape, **given)
    part = source.nbytes // nthreads
    together(*(
        lambda at=at: crowd().copy_in_one(address_of(target) + at, address_of(source) + at, part)
        for at in range(0, source.nbytes, part)
    ))  # fmt: skip
    assert np.array_equal(target, np.arange(source.size))
    np.copyto(target, source[::-1])                    # backwards: no stream is to be seen
    assert np.array_equal(source, np.arange(source.size))
    for x in (source, target):
        assert lm.stats(x).held_nbytes <= LEAST
    lm.close(source)
    lm.close(target)
    assert np.array_equal(np.fromfile(os.path.join(folder, "target"), "i8"), np.arange(npages * WORDS)[::-1])


# ---------------------------------------------------------------------------------------------------------------------------
# Who is wanted again

@pytest.mark.thin(2)
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
@pytest.mark.parametrize("fill", ["move", "auto"])
def test_what_is_touched_again_in_time_costs_no_fetch(user, delivery, way, fill):
    run(what_is_touched_again_in_time_costs_no_fetch, delivery, fill, way=way, user=user)


def what_is_touched_again_in_time_costs_no_fetch(delivery, fill):
    """A few blocks that are touched between the others stay, though all memory is handed on again and again.

    Fetched twice at most: the first time round the hand that recycles is right behind the one that evicts.
    """
    per_block = (ctypes.c_uint32 * (16 * BLOCKS))()
    a, _ = counted(16 * BLOCKS * PAGE, delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST, fill=fill,
                     per_block=ctypes.cast(per_block, ctypes.c_void_p))  # fmt: skip
    hot = range(0, 5)
    for block in range(16 * BLOCKS):
        assert int(a[block * WORDS + 1]) == block * WORDS + 1
        for h in hot:
            assert int(a[h * WORDS + 7]) == h * WORDS + 7
    stats = lm.stats(a)
    assert stats.rescued > 0
    assert stats.held_nbytes <= LEAST
    assert stats.recycled > 10 * BLOCKS, stats
    fetched = list(per_block)
    assert max(fetched[h] for h in hot) <= 2, fetched[: len(hot)]
    assert max(fetched[len(hot) :]) == 1
    assert stats.rescued >= 10 * len(hot), stats
    lm.close(a)


@each_user
def test_the_memory_of_evicted_blocks_is_used_again_but_for_single_pages(folder, user):
    """A page that comes alone is copied for less than it is moved: bench/COPY_OR_MOVE.md."""
    run(the_memory_of_evicted_blocks_is_used_again, str(folder), user=user)


def the_memory_of_evicted_blocks_is_used_again(folder):
    path = file_of(folder, 16 * BLOCKS)
    for npages, fill, moves in ((1, "auto", False), (4, "auto", True), (1, "move", True)):
        a = lm.memmap(path, "i8", block_nbytes=npages * PAGE, budget_nbytes=npages * LEAST, fill=fill, delivery="inline")
        order = np.random.default_rng(3).permutation(a.nbytes // (npages * PAGE))
        at = order * (npages * WORDS) + 5
        assert np.array_equal(np.take(a, at), at)
        stats = lm.stats(a)
        assert stats.held_nbytes <= npages * LEAST, stats
        assert stats.recycled > 0, stats
        assert (stats.moved > 0) == moves, (npages, fill, stats)
        lm.close(a)


def test_evict_gives_memory_back_and_it_is_fetched_again(delivery):
    run(evict_gives_memory_back, delivery)


def evict_gives_memory_back(delivery):
    a, kit = counted(8 * PAGE + 16, delivery=delivery, block_nbytes=2 * PAGE)
    lm.populate(a)
    assert lm.stats(a).held_nbytes == 10 * PAGE
    assert lm.evict(a[2 * WORDS + 5 : 4 * WORDS + 1]) == 0, "blocks that lie in it partly go too"
    assert lm.stats(a).held_nbytes == 6 * PAGE
    assert [bool(there) for there in lm.residency(a)] == [True, False, False, True, True]
    assert np.array_equal(a, np.arange(a.size))
    assert kit.calls == 5 + 2
    with lm.pin(a[:WORDS]):
        assert lm.evict(a) == 1
        assert kit.calls == 7
        assert int(a[1]) == 1
        assert kit.calls == 7
    assert lm.evict(a) == 0
    assert lm.stats(a).held_nbytes == 0
    assert lm.evict(a) == 0
    lm.close(a)


# ---------------------------------------------------------------------------------------------------------------------------
# Pins

def test_where_all_is_pinned_the_next_touch_is_told_at_once(delivery):
    run(where_all_is_pinned, delivery)


def where_all_is_pinned(delivery):
    a, kit = counted(2 * LEAST, delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST, timeout=20)
    pins = [lm.pin(a[i * LEAST // 32 : (i + 1) * LEAST // 32]) for i in range(4)]
    began = time.monotonic()
    with pytest.raises(lm.PageError) as raised:
        int(a[-1])
    assert time.monotonic() - began < 2
    assert raised.value.errno == 122
    assert np.array_equal(np.asarray(a)[: LEAST // 8], np.arange(LEAST // 8)), "what is pinned is there"
    assert kit.calls == BLOCKS
    pins[0].release()
    assert np.array_equal(a, np.arange(a.size))
    assert kit.calls >= 2 * BLOCKS
    calls = kit.calls
    assert np.array_equal(a[LEAST // 32 : LEAST // 8], np.arange(LEAST // 32, LEAST // 8))
    assert kit.calls == calls, "what is pinned has stayed"
    del pins
    assert lm.evict(a) == 0
    lm.close(a)


def test_pins_of_views_and_twice(delivery):
    run(pins_of_views_and_twice, delivery)


def pins_of_views_and_twice(delivery):
    a, _ = counted(4 * LEAST, delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST)
    view = np.asarray(a).reshape(-1, WORDS)[3:9:2, 5:7]        # three pages, not those between
    first, second = lm.pin(view), lm.pin(a[3 * WORDS : 4 * WORDS])
    everything = lambda: np.array_equal(a, np.arange(a.size))  # noqa: E731
    del view
    assert everything()
    assert {3, 5, 7} <= {i for i, there in enumerate(lm.residency(a)) if there}
    first.release()
    first.release()                                            # once is all it counts
    assert lm.evict(a) == 1
    assert [i for i, there in enumerate(lm.residency(a)) if there] == [3]
    second.release()
    assert lm.evict(a) == 0
    with pytest.raises(ValueError, match="cannot be in memory at once"):
        lm.pin(a)
    with pytest.raises(ValueError, match="cannot be in memory at once"):
        lm.populate(a)
    with pytest.raises(ValueError, match="read-only"):
        lm.pin(a[:1], write=True)
    assert lm.stats(a).held_nbytes <= LEAST
    lm.close(a)


# ---------------------------------------------------------------------------------------------------------------------------
# Budgets

def test_the_budget_of_the_process(delivery):
    run(the_budget_of_the_process, delivery)


def the_budget_of_the_process(delivery):
    """The array that has most gives way; those that have little keep it."""
    from lazymem.core.memory import budget

    lm.set_budget("4 MiB")
    given = {"delivery": delivery, "block_nbytes": 4 * PAGE}
    small = [counted(LEAST, **given)[0] for _ in range(3)]
    large, _ = counted(16 << 20, **given)
    for x in small:
        assert int(x.sum()) == x.size * (x.size - 1) // 2
    for _ in range(3):
        for x in (large, *small):
            assert np.array_equal(x, np.arange(x.size))
            assert budget()[1] <= 4 << 20
    assert [lm.stats(x).recycled for x in small] == [0] * 3, "they had their least"
    with pytest.raises(ValueError, match="set_budget"):
        lm.populate(large)
    other, _ = counted(16 << 20, **given)
    assert np.array_equal(other, np.arange(other.size))
    assert budget()[1] <= 4 << 20
    assert lm.stats(other).held_nbytes >= (4 << 20) // 8, "the array that has most gave way"
    lm.set_budget("16 MiB")
    assert np.array_equal(large, np.arange(large.size))
    assert 4 << 20 < budget()[1] <= 16 << 20
    lm.set_budget("4 MiB")                                     # what is beyond goes as memory is needed
    assert np.array_equal(other, np.arange(other.size))
    assert budget()[1] <= 4 << 20
    for x in (large, other, *small):
        lm.close(x)
    assert budget()[1] == 0


@pytest.mark.parametrize("fill", ["auto", "copy", "move"])
def test_memory_of_a_short_last_block_serves_whole_ones(folder, delivery, fill):
    run(memory_of_a_short_last_block, str(folder), delivery, fill)


def memory_of_a_short_last_block(folder, delivery, fill):
    path = file_of(folder, 65 * 4 + 1)
    a = lm.memmap(path, "i8", "r", delivery=delivery, fill=fill, block_nbytes=4 * PAGE, budget_nbytes=LEAST)
    for _ in range(5):
        assert int(a[-1]) == a.size - 1
        assert np.array_equal(a[:-WORDS], np.arange(a.size - WORDS))
    lm.close(a)
