"""Does who reads in order get all of it, each block fetched once, while units are fetched whole and ahead of him?"""

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from memory_kit import EVERYBODY, run, together
from support import needs_compiler, wait_until

import lazymem as lm

pytestmark = needs_compiler

UNIT = 2 << 20
BLOCK = 64 << 10
UNITS = 48
BUDGET = 32 << 20      # sixteen units: the least with which there are any
ELEMENTS = UNIT // 8


def file_of_units(folder, units=UNITS, more=0):
    """float64 that are their own index."""
    path = os.path.join(folder, "stream")
    np.arange(units * ELEMENTS + more, dtype="f8").tofile(path)
    os.chmod(path, 0o666)
    return path


def sum_of(first, last):
    return (first + last - 1) * (last - first) / 2


@pytest.mark.parametrize("more", [0, 3, 5 * BLOCK // 8 + 3])
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
def test_each_block_of_a_stream_is_fetched_once(folder, user, delivery, more):
    run(each_block_is_fetched_once, str(folder), delivery, more, user=user)


def each_block_is_fetched_once(folder, delivery, more):
    a = lm.memmap(file_of_units(folder, more=more), "f8", "r", delivery=delivery, budget_nbytes=BUDGET)
    assert lm.region(a).block_nbytes == BLOCK
    assert np.asarray(a).sum() == sum_of(0, len(a))
    nblocks = -(-a.nbytes // BLOCK)
    wait_until(lambda: lm.stats(a).blocks >= nblocks, 5)      # (a handler thread counts after it has woken who waits)
    stats = lm.stats(a)
    assert stats.blocks == nblocks, stats
    assert stats.units > UNITS // 2, stats      # (while memory for one is just being emptied, its blocks come one by one)
    assert stats.held_nbytes <= BUDGET, stats
    lm.close(a)


@pytest.mark.parametrize("delivery", ["inline", "threads"])
def test_streams_that_meet(folder, delivery):
    run(streams_that_meet, str(folder), delivery)


def streams_that_meet(folder, delivery):
    """Two forwards, one half an array behind the other, and one backwards: all that each sees is right."""
    a = lm.memmap(file_of_units(folder), "f8", "r", delivery=delivery, budget_nbytes=2 * BUDGET)

    def forwards(start):
        plain = np.asarray(a)
        return [plain[k * ELEMENTS : (k + 1) * ELEMENTS].sum() for k in range(start, UNITS)]

    def backwards():
        plain = np.asarray(a)
        return [plain[k * ELEMENTS : (k + 1) * ELEMENTS][::-1].sum() for k in reversed(range(UNITS))][::-1]

    expected = [sum_of(k * ELEMENTS, (k + 1) * ELEMENTS) for k in range(UNITS)]
    found = together(lambda: forwards(0), lambda: forwards(UNITS // 2), backwards)
    assert found == [expected, expected[UNITS // 2 :], expected]
    lm.close(a)


def test_a_few_units_are_read_ahead_and_no_more(folder):
    run(goes_no_further, str(folder))


def goes_no_further(folder):
    a = lm.memmap(file_of_units(folder), "f8", "r", delivery="threads", budget_nbytes=2 * BUDGET)
    assert np.asarray(a)[: 2 * ELEMENTS].sum() == sum_of(0, 2 * ELEMENTS)
    before = -1
    while before != lm.stats(a).blocks:      # until nobody fetches any more
        before = lm.stats(a).blocks
        time.sleep(0.05)
    assert 3 * UNIT // BLOCK <= before <= 5 * UNIT // BLOCK, lm.stats(a)
    lm.close(a)


def test_a_stream_ends_where_its_file_was_cut(folder):
    run(ends_where_it_was_cut, str(folder))


def ends_where_it_was_cut(folder):
    path = file_of_units(folder)
    a = lm.memmap(path, "f8", "r", delivery="threads", budget_nbytes=BUDGET)
    half = UNITS // 2 * ELEMENTS
    assert a[:ELEMENTS].sum() == sum_of(0, ELEMENTS)
    os.truncate(path, half * 8)
    with pytest.raises(lm.PageError):
        a.sum()
    lm.close(a)


@pytest.mark.parametrize("pinned", [False, True])
def test_closed_while_it_is_read_ahead(folder, pinned):
    run(closed_while_it_is_read_ahead, str(folder), pinned)


def closed_while_it_is_read_ahead(folder, pinned):
    """`pinned`: there is soon no memory for more units."""
    path = file_of_units(folder)
    for turn in range(12):
        a = lm.memmap(path, "f8", "r", delivery="threads", budget_nbytes=BUDGET)
        pins = []
        for k in range(2 + turn):
            part = a[k * ELEMENTS : (k + 1) * ELEMENTS]
            assert part.sum() == sum_of(k * ELEMENTS, (k + 1) * ELEMENTS)
            if pinned:
                pins.append(lm.pin(part))
            del part
        for pin in pins:
            pin.release()
        lm.close(a)


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_what_a_writing_stream_leaves_is_written_back_at_once(folder, user):
    run(is_written_back_at_once, str(folder), user=user)


def is_written_back_at_once(folder):
    """Once memory is short; and what is then written to it again is not lost."""
    path = file_of_units(folder)
    a = lm.memmap(path, "f8", "r+", delivery="threads", budget_nbytes=BUDGET)
    plain, last = np.asarray(a), 32
    want = np.arange(UNITS * ELEMENTS, dtype="f8")
    for k in range(last + 1):
        plain[k * ELEMENTS : (k + 1) * ELEMENTS] += 1
    left = slice((last - 1) * ELEMENTS, last * ELEMENTS)
    assert wait_until(lambda: np.array_equal(np.fromfile(path)[left], want[left] + 1), 10), lm.stats(a)
    asked = lm.stats(a).nbytes_asked
    plain[left] += 1
    assert lm.stats(a).nbytes_asked == asked, "it waits still, and is put back without a fetch"
    del plain
    lm.close(a)
    want[: (last + 1) * ELEMENTS] += 1
    want[left] += 1
    assert np.array_equal(np.fromfile(path), want)


def huge_nbytes(a):
    """Bytes of an array that are in huge pages."""
    low, high = np.asarray(a).ctypes.data, np.asarray(a).ctypes.data + a.nbytes
    found, inside = 0, False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            if bounds:
                inside = int(bounds[1], 16) < high and int(bounds[2], 16) > low
            elif inside and line.startswith("AnonHugePages:"):
                found += int(line.split()[1]) << 10
    return found


def thp():
    try:
        return Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().split("[")[1].split("]")[0]
    except OSError:
        return "never"


@pytest.mark.skipif(thp() == "never", reason="this machine makes no huge pages")
@pytest.mark.parametrize("options", [{"block_nbytes": UNIT}, {}], ids=["blocks", "units"])
@pytest.mark.parametrize("delivery", ["inline", "threads"])
def test_huge_pages_stay_whole(folder, delivery, options):
    run(stay_whole, str(folder), delivery, options)


def stay_whole(folder, delivery, options):
    """Moved to where a page table of small pages is, each would be split into 512."""
    a = lm.memmap(file_of_units(folder), "f8", "r", delivery=delivery, **options)
    for k in range(UNITS):      # by touches, each of which leaves a page table
        assert np.asarray(a)[k * ELEMENTS : (k + 1) * ELEMENTS].sum() == sum_of(k * ELEMENTS, (k + 1) * ELEMENTS)
    if not lm.stats(a).moved:
        pytest.skip("nothing is moved here")
    assert huge_nbytes(a) > 0.8 * a.nbytes, (huge_nbytes(a), lm.stats(a))
    lm.close(a)
