"""Do system calls, devices, locks and limits come out right on memory that is just being taken away? 21-25, 28-31, 44."""

import ctypes
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from injection_kit import Injector
from memory_kit import EVERYBODY, LEAST, WORDS, each_way, file_of, over_and_over, run
from native_kit import MADV_HUGEPAGE, PAGE, address_of, counted, libc, library, must
from support import check_child, needs_compiler, needs_root

import lazymem as lm

pytestmark = needs_compiler

BLOCKS = LEAST // PAGE
SOME = 16 * PAGE           # of one system call
MADV_MERGEABLE, PR_SET_MEMORY_MERGE = 12, 67
MCL_CURRENT, MCL_FUTURE = 1, 2


def elements(at):
    """Of SOME bytes from byte `at` on."""
    return slice(at // 8, (at + SOME) // 8)


# ---------------------------------------------------------------------------------------------------------------------------
# 21, 22. System calls that read

@pytest.mark.thin
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
def test_trap_22_system_calls_read_what_is_pinned_while_all_else_goes(folder, user, delivery, way):
    run(system_calls_read, str(folder), delivery, True, way=way, user=user)


@needs_root
@each_way
def test_trap_22_system_calls_wait_for_what_goes(folder, way):
    run(system_calls_read, str(folder), "threads", False, way=way)


def system_calls_read(folder, delivery, pinned, rounds=150):
    a, _ = counted(4 * LEAST, delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST)
    if not pinned and not lm.region(a).kernel_faults:
        return
    file, expected = os.open(folder + "/out", os.O_RDWR | os.O_CREAT), np.arange(a.size)
    dice = np.random.default_rng(1)
    with over_and_over(lambda: lm.evict(a), lambda: np.take(a, dice.integers(0, a.size, 50))):
        for i in range(rounds):
            at = i * 5 % (4 * BLOCKS - 16) * PAGE
            pin = lm.pin(a[elements(at)]) if pinned else None
            assert must(libc().pwrite(file, address_of(a) + at, SOME, 0)) == SOME
            assert os.pread(file, SOME, 0) == expected[elements(at)].tobytes()
            if pin is not None:
                pin.release()
    assert lm.stats(a).evicted > rounds
    os.close(file)
    lm.close(a)


# ---------------------------------------------------------------------------------------------------------------------------
# 23, 24. Devices that write

@pytest.mark.thin
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
def test_trap_23_direct_reads_into_what_is_pinned(folder, user, delivery, way):
    run(direct_reads_into_it, str(folder), delivery, True, way=way, user=user)


@needs_root
def test_trap_23_direct_reads_hold_their_pages_themselves(folder):
    """Pages that the kernel has handed to a device are not moved."""
    run(direct_reads_into_it, str(folder), "threads", False)


def direct_reads_into_it(folder, delivery, pinned, rounds=60):
    source = Path(folder, "source")
    values = np.random.default_rng(2).integers(0, 1 << 62, 4 * LEAST // 8)
    values.tofile(source)
    try:
        file = os.open(source, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return  # this file system has no O_DIRECT
    path = file_of(folder, 4 * BLOCKS)
    a = lm.memmap(path, "i8", "r+", delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST)
    if not pinned and not lm.region(a).kernel_faults:
        return
    expected = np.arange(a.size)
    with over_and_over(lambda: lm.evict(a), lambda: int(a[::WORDS].sum())):
        for i in range(rounds):
            at = i * 5 % (4 * BLOCKS - 16) * PAGE
            pin = lm.pin(a[elements(at)], write=True) if pinned else None
            assert must(libc().pread(file, address_of(a) + at, SOME, at)) == SOME
            if pin is not None:
                pin.release()
            expected[elements(at)] = values[elements(at)]
    assert np.array_equal(a, expected)
    lm.close(a)
    assert np.array_equal(np.fromfile(path, "i8"), expected)
    os.close(file)


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
def test_trap_23_io_uring_holds_a_buffer_for_long(folder, user, delivery, way, pinned):
    if not pinned and way == "no-move":
        pytest.skip("without MOVE nobody says that the kernel holds a page: lm.pin is for that")
    library("uring.c")
    said = run(a_buffer_held_for_long, str(folder), delivery, pinned, way=way, user=user)
    if said:
        pytest.skip(f"no io_uring here: {said.strip()}")


def a_buffer_held_for_long(folder, delivery, pinned, rounds=60):
    source = Path(folder, "source")
    values = np.random.default_rng(2).integers(0, 1 << 62, rounds * SOME // 8)
    values.tofile(source)
    file = os.open(source, os.O_RDONLY)
    path = file_of(folder, 4 * BLOCKS)
    a = lm.memmap(path, "i8", "r+", delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST)
    expected, at = np.arange(a.size), 8 * PAGE
    held = a[elements(at)]
    uring = ctypes.CDLL(str(library("uring.c")))
    uring.uring_open.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    uring.uring_read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int64]
    held[:] = -1
    pin = lm.pin(held, write=True)
    error = uring.uring_open(address_of(held), SOME)
    if error in (-errno.ENOSYS, -errno.EPERM, -errno.EACCES):
        print(os.strerror(-error))
        pin.release()
        return
    assert error == 0, os.strerror(-error)
    if not pinned:
        pin.release()       # the kernel holds it by itself
    with over_and_over(lambda: lm.evict(a), lambda: int(a[::WORDS].sum())):
        for i in range(rounds):
            assert uring.uring_read(file, address_of(held), SOME, i * SOME) == SOME
            assert np.array_equal(held, values[i * SOME // 8 : (i + 1) * SOME // 8])
    stats = lm.stats(a)
    assert lm.evict(a) == SOME // PAGE
    assert stats.evicted > rounds
    assert stats.pinned_skips > SOME // PAGE
    assert pinned or stats.refused > SOME // PAGE, "MOVE has said no"
    expected[elements(at)] = held
    uring.uring_close()
    if pinned:
        pin.release()
    assert np.array_equal(a, expected)
    del held
    lm.close(a)
    assert np.array_equal(np.fromfile(path, "i8"), expected)
    os.close(file)


def test_trap_24_pinned_for_writing_is_written_until_it_is_released(folder, delivery):
    run(pinned_for_writing, str(folder), delivery)


def pinned_for_writing(folder, delivery):
    """A device writes without a fault; a flush meanwhile does not make it clean for good."""
    a = lm.memmap(file_of(folder, 8), "i8", "r+", delivery=delivery, block_nbytes=PAGE)
    lm.populate(a)
    a.flush()
    stored = lm.stats(a).stored
    pin = lm.pin(a[WORDS : 3 * WORDS], write=True)
    a.flush()
    assert lm.stats(a).stored == stored + 2
    pin.release()
    a.flush()
    assert lm.stats(a).stored == stored + 4
    a.flush()
    assert lm.stats(a).stored == stored + 4
    lm.close(a)


# ---------------------------------------------------------------------------------------------------------------------------
# 25. Pages that are lent

@pytest.mark.thin
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
def test_trap_25_what_is_pinned_can_be_lent_to_a_pipe(user, delivery, way):
    run(lent_to_a_pipe, delivery, way=way, user=user)


def lent_to_a_pipe(delivery, n=8):
    a, _ = counted(4 * LEAST, delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST)
    r, w = os.pipe()
    for first in (0, 40):
        lent = a[first * WORDS : (first + n) * WORDS]
        with lm.pin(lent):
            vector = (ctypes.c_uint64 * 2)(address_of(lent), n * PAGE)
            assert must(libc().vmsplice(w, ctypes.addressof(vector), 1, 0)) == n * PAGE
            for _ in range(3):
                assert np.array_equal(a, np.arange(a.size))
                assert lm.evict(a) == n
            assert os.read(r, n * PAGE) == np.arange(first * WORDS, (first + n) * WORDS).tobytes()
        del lent
    os.close(r)
    os.close(w)
    lm.close(a)


# ---------------------------------------------------------------------------------------------------------------------------
# 28, 29, 44. Locks, huge pages, pages that are merged

HANDS = ["locked before", "huge", "merged", "merged all"]


@needs_root
def test_trap_28_locked_arrays_hold_their_memory(delivery):
    run(locked_arrays_hold_their_memory, delivery)


def locked_arrays_hold_their_memory(delivery):
    """Locked after they were made: somebody wants them to stay."""
    a, _ = counted(4 * LEAST, delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST, fill="move")
    expected = np.arange(a.size)
    with lm.pin(a[: LEAST // 16]):
        must(libc().mlock(address_of(a), LEAST // 2))
    for _ in range(3):
        assert np.array_equal(a, expected)
    stats = lm.stats(a)
    if stats.refused:
        assert all(lm.residency(a)[: BLOCKS // 2])
        assert stats.pinned_skips > 0
        assert lm.evict(a) == BLOCKS // 2
    must(libc().munlock(address_of(a), LEAST // 2))
    assert lm.evict(a) == 0
    assert np.array_equal(a, expected)
    lm.close(a)


@pytest.mark.parametrize("poisons", [True, False])
@each_way
@needs_root
def test_trap_28_all_memory_is_locked_while_blocks_wait(folder, delivery, way, poisons):
    library("inject.c")
    run(all_is_locked_while_blocks_wait, str(folder), delivery, poisons, way=way)


def all_is_locked_while_blocks_wait(folder, delivery, poisons):
    """Where they wait is locked too, and asked for: it can be emptied, and nothing old is taken for what comes there."""
    path = file_of(folder, 2 * BLOCKS)
    a = lm.memmap(path, "i8", "r+", delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST, timeout=10)
    expected = np.arange(a.size)
    dice = np.random.default_rng(3)
    if not poisons:     # a kernel before 6.6
        Injector().arm("POISON", errno.EINVAL, 1, True)
    for turn in range(4):
        if turn == 1:
            must(libc().mlockall(MCL_CURRENT))
        before = lm.stats(a)
        for at in dice.integers(0, a.size, 300):
            assert a[at] == expected[at]
            a[at] = expected[at] = -turn
        after = lm.stats(a)
        assert after.rescued - before.rescued > 10
        assert after.evicted - before.evicted > 100
        assert after.held_nbytes <= LEAST
    assert np.array_equal(a, expected)
    assert lm.evict(a) == 0
    lm.close(a)
    assert np.array_equal(np.fromfile(path, "i8"), expected)


@pytest.mark.thin
@pytest.mark.parametrize("hand", HANDS)
@each_way
@needs_root
def test_trap_28_29_44_other_hands_on_memory_that_is_evicted(folder, delivery, way, hand):
    run(other_hands, str(folder), delivery, hand, way=way)


def other_hands(folder, delivery, hand):
    if hand == "locked before":
        must(libc().mlockall(MCL_CURRENT | MCL_FUTURE))
    if hand == "merged all" and libc().prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0):
        return  # not in this kernel
    path = file_of(folder, 4 * BLOCKS)
    given = {"delivery": delivery, "block_nbytes": PAGE, "budget_nbytes": LEAST, "timeout": 10}
    a, b = lm.memmap(path, "i8", "r", **given), lm.memmap(file_of(folder, 4 * BLOCKS, "b"), "i8", "r+", **given)
    for x in (a, b):
        if hand == "huge":
            must(libc().madvise(address_of(x), x.nbytes, MADV_HUGEPAGE))
        if hand == "merged" and libc().madvise(address_of(x), x.nbytes, MADV_MERGEABLE):
            return
    for turn in range(4):
        assert np.array_equal(a, np.arange(a.size))
        assert np.array_equal(b, a + turn)
        b += 1
        assert lm.evict(a) == lm.evict(b) == 0
        assert lm.stats(a).held_nbytes == lm.stats(b).held_nbytes == 0
    lm.close(a)
    lm.close(b)
    assert np.array_equal(np.fromfile(Path(folder, "b"), "i8"), np.arange(4 * BLOCKS * WORDS) + 4)


# ---------------------------------------------------------------------------------------------------------------------------
# 30. A limit that kills

GROUPS = Path("/sys/fs/cgroup/memory")
ALIVE = f"""
    import os, resource
    open({str(GROUPS)!r} + "/NAME/cgroup.procs", "w").write(str(os.getpid()))
    import numpy as np, lazymem as lm
    from native_kit import counted
    from lazymem.core.memory import budget
    for mode in ("r", "c"):
        a, _ = counted(LIMIT * 2, mode=mode, delivery=DELIVERY, block_nbytes=1 << 16)
        assert 0 < budget()[0] <= LIMIT // 2, budget()
        if mode == "c":
            a += 1
        step = 1 << 17
        for i in range(0, a.size, step):
            assert np.array_equal(a[i : i + step], np.arange(i, i + step) + (mode == "c"))
        lm.close(a)
"""


@needs_root
@pytest.mark.skipif(not GROUPS.is_dir(), reason="no memory cgroups, version 1, to be made here")
def test_trap_30_half_the_working_set_is_enough(delivery):
    name = f"lazymem-test-{os.getpid()}-{delivery}"
    try:
        (GROUPS / name).mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        limit = 240 << 20
        (GROUPS / name / "memory.limit_in_bytes").write_text(str(limit))
        from native_kit import _command

        _, env = _command(other_hands, ())
        code = ALIVE.replace("NAME", name).replace("LIMIT", str(limit)).replace("DELIVERY", repr(delivery))
        check_child(code, env=env, fresh=True)
    finally:
        (GROUPS / name).rmdir()


# ---------------------------------------------------------------------------------------------------------------------------
# 31. No memory

@pytest.mark.parametrize("fill", ["copy", "move"])
def test_trap_31_no_memory_for_a_fill(folder, delivery, fill):
    library("inject.c")
    run(no_memory_for_a_fill, str(folder), delivery, fill)


def no_memory_for_a_fill(folder, delivery, fill):
    given = {"fill": fill, "delivery": delivery, "block_nbytes": PAGE, "budget_nbytes": LEAST}
    a = lm.memmap(file_of(folder, 4 * BLOCKS), "i8", "r+", **given)
    a[::WORDS] = -1
    expected = np.arange(a.size)
    expected[::WORDS] = -1
    injector = Injector()
    failed = 0
    for nth in range(1, 60, 3):
        injector.arm("COPY", errno.ENOMEM, nth, False)
        try:
            right = np.array_equal(a, expected)
        except lm.PageError as error:
            failed, right = failed + 1, error.errno == errno.ENOMEM
        injector.disarm()
        assert right
        assert np.array_equal(a, expected), "nothing is lost, and it goes on"
        assert lm.stats(a).held_nbytes <= LEAST
    assert failed or fill == "move"
    lm.close(a)
    assert np.array_equal(np.fromfile(Path(folder, "counts"), "i8"), expected)


# ---------------------------------------------------------------------------------------------------------------------------
# 56. Written, made safe, and only then clean

@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
def test_trap_56_what_is_not_safe_is_not_clean(folder, user, delivery):
    library("inject.c")
    run(not_safe_not_clean, str(folder), delivery, user=user)


def not_safe_not_clean(folder, delivery, n=6):
    """Each write and each fsync fails once: flush tells, the blocks stay, changed, and the next flush saves them."""
    path = file_of(folder, 2 * n)
    a = lm.memmap(path, "i8", "r+", delivery=delivery, block_nbytes=2 * PAGE)
    expected, injector = np.arange(a.size), Injector()
    failures = [("pwrite", error, nth) for error in (errno.ENOSPC, errno.EIO, errno.EDQUOT) for nth in range(1, n + 1)]
    for kind, error, nth in [*failures, ("fsync", errno.EIO, 1)]:
        told = f"{kind} {errno.errorcode[error]} at {nth}"
        a[:: 2 * WORDS] += 1
        expected[:: 2 * WORDS] += 1
        before = lm.stats(a)
        injector.arm(kind, error, nth, False)
        with pytest.raises(lm.PageError) as raised:
            lm.flush(a)
        injector.disarm()
        assert raised.value.errno == error, told
        assert injector.state.struck == 1, told
        assert injector.counts()["fsync"] == (kind == "fsync"), f"{told}: nothing is made safe before all is written"
        assert lm.stats(a).stored - before.stored == (n if kind == "fsync" else nth - 1), told
        assert all(lm.residency(a)), told
        assert np.array_equal(a, expected), told
        before = lm.stats(a)
        lm.flush(a)
        assert lm.stats(a).stored - before.stored == (n if kind == "fsync" else n - nth + 1), told
        assert np.array_equal(np.fromfile(path, "i8"), expected), told
        lm.flush(a)
        assert lm.stats(a).stored - before.stored == (n if kind == "fsync" else n - nth + 1), f"{told}: now it is clean"
    lm.close(a)
