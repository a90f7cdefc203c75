"""Do limits, locks, huge pages and foreign hands on the mapping end right, in an error or in a stop? 28, 29, 32, 37, 41."""

import ctypes
import errno
import gc
import mmap
import os
import resource
import signal
import threading

import numpy as np
import pytest
from native_kit import (
    MADV_HUGEPAGE,
    PAGE,
    PROT_NONE,
    PROT_READ,
    address_of,
    counted,
    end_of_child,
    in_child,
    libc,
    must,
    pages_here,
    pest,
)
from support import each_user, needs_compiler, needs_root, settled, wait_until

import lazymem as lm

pytestmark = needs_compiler

WORDS = PAGE // 8
ANONYMOUS, NORESERVE = 0x22, 0x4000
MCL_CURRENT, MCL_FUTURE = 1, 2


# ---------------------------------------------------------------------------------------------------------------------------
# 28. Locked memory


@pytest.mark.parametrize("when", ["before", "after", "between"])
@needs_root
def test_trap_28_mlockall_future(delivery, when):
    in_child(mlockall_future, delivery, when)


def mlockall_future(delivery, when):
    n = 32
    old = counted(n * PAGE, delivery=delivery, block_nbytes=2 * PAGE) if when != "before" else None
    must(libc().mlockall(MCL_FUTURE))
    a, kit = counted(n * PAGE, mode="c", delivery=delivery, block_nbytes=2 * PAGE)
    if when == "between":
        must(libc().munlockall())
    assert pages_here(address_of(a), n) == [False] * n, "locked memory is filled with zeros before it is registered"
    assert int(a[5 * WORDS]) == 5 * WORDS
    assert sum(pages_here(address_of(a), n)) == 2
    assert np.array_equal(a, np.arange(n * WORDS))
    assert kit.calls == n // 2
    if old is not None:
        assert np.array_equal(old[0], np.arange(n * WORDS))
    a[3] = -1
    lm.close(a)
    with pytest.raises(ValueError, match="closed"):
        a[3]


@needs_root
def test_trap_28_mlockall_current_fetches_or_skips_but_never_zeros(delivery):
    in_child(mlockall_current, delivery)


def mlockall_current(delivery):
    a = counted(32 * PAGE, delivery=delivery, block_nbytes=2 * PAGE)[0]
    assert int(a[0]) == 0
    must(libc().mlockall(MCL_CURRENT))
    assert np.array_equal(a, np.arange(32 * WORDS))
    assert settled(a).failed == 0


# ---------------------------------------------------------------------------------------------------------------------------
# 29. Huge pages and neighbours


def test_trap_29_huge_pages_never_fill_behind_our_back(delivery):
    nbytes = 8 << 20
    a, kit = counted(nbytes, mode="c", delivery=delivery, block_nbytes=PAGE)
    must(libc().madvise(address_of(a), nbytes, MADV_HUGEPAGE))
    step = 517 * WORDS
    touched = range(0, nbytes // 8, step)
    assert [int(a[i]) for i in touched] == list(touched)
    assert sum(pages_here(address_of(a), nbytes // PAGE)) == len(touched) == kit.calls
    libc().madvise(address_of(a), nbytes, 25)  # MADV_COLLAPSE: refused, or of what is there
    assert sum(pages_here(address_of(a), nbytes // PAGE)) == len(touched)
    lm.populate(a)
    libc().madvise(address_of(a), nbytes, 25)
    assert np.array_equal(a, np.arange(nbytes // 8))


def maps(of_files=True):
    with open("/proc/self/maps") as f:
        for line in f:
            span, access, _, _, inode = line.split()[:5]
            low, high = (int(x, 16) for x in span.split("-"))
            if of_files or inode == "0":
                yield low, high, access


def test_trap_29_neighbours_never_merge(delivery):
    sizes = [PAGE, 3 * PAGE, 2 << 20, (2 << 20) + PAGE]
    options = {"delivery": delivery, "block_nbytes": PAGE, "fill": "copy"}
    arrays = [counted(s, mode=m, **options)[0] for s in sizes for m in "rc" for _ in range(2)]
    inside = {low: (high, access) for low, high, access in maps()}
    for a in arrays:
        low, high = address_of(a), address_of(a) + a.nbytes
        assert low % (2 << 20) == 0
        assert inside[low] == (high, "rw-p" if lm.region(a).mode == "c" else "r--p"), "a mapping of its own"
        for guard in (low - PAGE, high):
            assert [access for start, end, access in maps() if start <= guard < end] == ["---p"], "and a guard page beside it"


# ---------------------------------------------------------------------------------------------------------------------------
# 32. Limits


def leaks():
    """What a failed constructor must leave as it was."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), sum(1 for _ in maps())


@each_user
def test_trap_32_address_space(delivery, user):
    in_child(address_space, delivery, user=user)


def address_space(delivery):
    a, _ = counted(PAGE, delivery=delivery, block_nbytes=PAGE)  # descriptors and threads are there
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, resource.RLIM_INFINITY))
    before = leaks()
    for _ in range(3):
        with pytest.raises(MemoryError, match="RLIMIT_AS"):
            counted(1 << 40, delivery=delivery, block_nbytes=PAGE)
    with pytest.raises((MemoryError, ValueError, OSError)):
        counted((1 << 63) - PAGE, delivery=delivery, block_nbytes=PAGE)
    assert leaks() == before
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    b, _ = counted(1 << 40, delivery=delivery, block_nbytes=PAGE)
    assert int(b[(1 << 37) - 1]) == (1 << 37) - 1
    assert int(a[3]) == 3


@each_user
def test_trap_32_descriptors(delivery, user):
    in_child(descriptors, delivery, user=user)


def descriptors(delivery):
    used = max(int(n) for n in os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    with pytest.raises(OSError) as caught:
        lm.from_provider(bytes(PAGE), delivery=delivery)
    assert caught.value.errno == errno.EMFILE, caught.value
    for fd in taken[:4]:
        os.close(fd)
    a = lm.from_provider(b"\x05" * PAGE, delivery=delivery)  # its descriptor cannot be moved high here
    assert int(a[9]) == 5
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@each_user
def test_trap_32_locked_memory(delivery, user):
    in_child(locked_memory, delivery, user=user)


def locked_memory(delivery):
    a = counted(PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    if os.geteuid():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (min(1 << 16, resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]),) * 2)
    if libc().mlockall(MCL_FUTURE):
        return
    before = leaks()
    try:
        b = counted(64 << 20, delivery=delivery, block_nbytes=PAGE)[0]
        assert int(b[12345]) == 12345
        del b
    except (MemoryError, OSError):
        assert os.geteuid(), "root may lock all it wants"
    must(libc().munlockall())
    after = leaks()
    assert after[0] == before[0]
    assert abs(after[1] - before[1]) < 8  # unlocking splits and joins mappings of the allocator's
    assert int(a[5]) == 5


@needs_root
def test_trap_32_mappings(delivery):
    in_child(mappings, delivery)


def mappings(delivery):
    with open("/proc/sys/vm/max_map_count") as f:
        most = int(f.read())
    if most > 200_000:
        return
    a = counted(PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    nbytes = 2 * most * PAGE
    wall = must(libc().mmap(None, nbytes, PROT_NONE, ANONYMOUS | NORESERVE, -1, 0))
    i = 0
    while libc().mprotect(wall + i * PAGE, PAGE, PROT_READ) == 0:  # every second page its own mapping
        i += 2
    assert ctypes.get_errno() == errno.ENOMEM
    # Ordinary allocations fail here too, so only our own answer is looked at.
    refused = None
    try:
        for _ in range(4):
            b = counted(PAGE, delivery=delivery, block_nbytes=PAGE)[0]
            refused = b
    except (MemoryError, OSError) as error:
        refused = error
    must(libc().munmap(wall, nbytes))
    assert isinstance(refused, (MemoryError, OSError)), refused
    assert int(a[7]) == 7
    b = counted(PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    assert int(b[7]) == 7


def test_trap_32_nothing_is_left_of_arrays_that_came_and_went(delivery):
    in_child(nothing_is_left, delivery)


def nothing_is_left(delivery):
    def one():
        a = counted(64 * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
        assert int(a[100]) == 100

    for _ in range(10):
        one()
    before, threads = leaks(), len(os.listdir("/proc/self/task"))
    for _ in range(300):
        one()

    def gone():
        one()  # an array that a handler was in when it went is let go by the next
        descriptors, mappings = leaks()
        more = len(os.listdir("/proc/self/task")) - threads
        return descriptors == before[0] and mappings <= before[1] + 2 + 4 * more  # a stack, its guard, an arena's two

    assert wait_until(gone), (before, threads, leaks(), os.listdir("/proc/self/task"))


# ---------------------------------------------------------------------------------------------------------------------------
# 37. Foreign hands


@pytest.mark.parametrize("what", ["munmap", "mprotect", "mremap"])
def test_trap_37_a_plain_touch_behind_foreign_hands_stops(delivery, what):
    status, out, err = end_of_child(touch_behind_foreign_hands, delivery, what)
    assert status == -signal.SIGSEGV, (status, out, err)
    assert "read" not in err


def meddle(a, what):
    at = address_of(a) + 2 * PAGE
    if what == "munmap":
        must(libc().munmap(at, 2 * PAGE))
    elif what == "mprotect":
        must(libc().mprotect(at, 2 * PAGE, PROT_NONE))
    else:
        return must(libc().mremap(at, 2 * PAGE, 2 * PAGE, 1, None))
    return at


def touch_behind_foreign_hands(delivery, what):
    a = counted(8 * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    old = address_of(a) + 2 * PAGE
    if what == "mremap":  # somewhere else for certain
        elsewhere = must(libc().mmap(None, 2 * PAGE, PROT_NONE, ANONYMOUS, -1, 0))
        must(libc().mremap(old, 2 * PAGE, 2 * PAGE, 3, elsewhere))
    else:
        meddle(a, what)
    print("read", pest().touch_one(old))


@pytest.mark.parametrize("what", ["munmap", "mremap"])
def test_trap_37_populate_says_that_the_mapping_is_gone(delivery, what):
    in_child(populate_says_that_the_mapping_is_gone, delivery, what)


def populate_says_that_the_mapping_is_gone(delivery, what):
    a = counted(8 * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    at = address_of(a) + 2 * PAGE
    if what == "munmap":
        must(libc().munmap(at, 2 * PAGE))
    else:
        # At the new address, which is no array's any more, absent pages read as zeros: the kernel drops the registration and
        # tells nobody. The old address is gone.
        elsewhere = must(libc().mmap(None, 2 * PAGE, PROT_NONE, ANONYMOUS, -1, 0))
        must(libc().mremap(at, 2 * PAGE, 2 * PAGE, 3, elsewhere))
        assert not lm.is_lazy((ctypes.c_ubyte * PAGE).from_address(elsewhere))
    with pytest.raises(lm.PageError, match="no longer mapped"):
        lm.populate(a)
    rest = np.concatenate([np.arange(2 * WORDS), np.arange(4 * WORDS, 8 * WORDS)])
    assert np.array_equal(np.concatenate([a[: 2 * WORDS], a[4 * WORDS :]]), rest), "the rest goes on"
    lm.close(a)


def test_trap_37_protection_that_is_given_back(delivery):
    in_child(protection_that_is_given_back, delivery)


def protection_that_is_given_back(delivery):
    a = counted(8 * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    at = meddle(a, "mprotect")
    lm.populate(a)
    must(libc().mprotect(at, 2 * PAGE, PROT_READ))
    assert np.array_equal(a, np.arange(8 * WORDS))


# ---------------------------------------------------------------------------------------------------------------------------
# Read-only memory is read-only to C code too, where pages are not moved


@pytest.mark.parametrize("resident", [False, True])
def test_a_store_into_a_read_only_array_is_a_segmentation_fault(delivery, resident):
    status, _, err = end_of_child(store_into, delivery, "r", resident)
    assert status == -signal.SIGSEGV, err
    assert end_of_child(store_into, delivery, "c", resident)[0] == 0


def store_into(delivery, mode, resident):
    a = counted(4 * PAGE, mode=mode, delivery=delivery, block_nbytes=PAGE, dtype="u1", fill="copy")[0]
    if resident:
        lm.populate(a)
    pest().poke(address_of(a) + PAGE + 3, 99)
    assert int(a[PAGE + 3]) == 99
    assert int(a[PAGE]) == np.arange(WORDS * 4).view("u1")[PAGE]


# ---------------------------------------------------------------------------------------------------------------------------
# 41. Garbage


@each_user
def test_trap_41_garbage_collection_while_faulting(delivery, user):
    in_child(garbage_collection_while_faulting, delivery, user=user)


def garbage_collection_while_faulting(delivery):
    stop = threading.Event()
    errors = []

    class Node:
        pass

    def churn(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(150):
                n = int(rng.integers(1, 20))
                a = counted(n * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
                node = Node()
                node.a, node.view, node.me = a, np.asarray(a)[::2], node  # a cycle: only the collector frees it
                node.export = memoryview(a)
                assert int(a[-1]) == n * WORDS - 1
                assert int(node.view[-1]) == n * WORDS - 2
                lm.prefetch(a)
                del a, node
                if rng.integers(4) == 0:
                    gc.collect()
        except BaseException as error:
            errors.append(error)

    def collect():
        while not stop.is_set():
            gc.collect()

    collector = threading.Thread(target=collect)
    collector.start()
    workers = [threading.Thread(target=churn, args=(i,)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    stop.set()
    collector.join()
    assert not errors, errors
    gc.collect()
    left = [
        (low, high)
        for low, high, access in maps(of_files=False)
        if access == "r--p" and (high - low) % mmap.PAGESIZE == 0 and low % (2 << 20) == 0 and high - low < 20 * PAGE
    ]
    assert left == [], "their memory is gone"
