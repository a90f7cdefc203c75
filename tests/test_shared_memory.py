"""Is an array of memory="shared" one like any other, filled by COPY and by CONTINUE?"""

import ctypes
import errno
import fcntl
import os
import struct
import threading

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, drop, in_child, libc, must, ours, pages_here, pest
from shared_kit import in_shared_memory
from support import check_child, each_user, needs_compiler, over_deliveries, settled, wait_until
from test_fork import child_of
from test_operations import CHILD, OPERATIONS, SOME, prelude

import lazymem as lm
from lazymem.testing import Failure, FaultyProvider

pytestmark = needs_compiler
delivery = over_deliveries(("inline", "threads"))
fills = pytest.mark.parametrize("fill", ["copy", "continue"])
one_fill = pytest.mark.parametrize("fill", [pytest.param("copy", marks=pytest.mark.slow), "continue"])
modes = pytest.mark.parametrize("mode", ["r", "c"])

WORDS = PAGE // 8
N = 64 * WORDS
MADV_REMOVE = 9
MCL_FUTURE = 2
UFFDIO_UNREGISTER = 0x8010AA01


def array(delivery, fill, mode="r", **options):
    options = {"block_nbytes": 2 * PAGE, **options}
    return counted(64 * PAGE, mode=mode, delivery=delivery, memory="shared", fill=fill, **options)


def files():
    """How many mappings there are of files of ours."""
    with open("/proc/self/maps") as maps:
        return sum("/memfd:lazymem (deleted)" in line for line in maps)


# ---------------------------------------------------------------------------------------------------------------------------
# Values


@each_user
@one_fill
def test_operations(delivery, fill, user):
    for source in ("file", "provider"):
        code = prelude(source, 64, delivery) + f"\noptions.update(memory='shared', fill={fill!r})\n"
        out = check_child(code + CHILD.format(operations=OPERATIONS, some=SOME), timeout=60, user=user)
        assert "wrong: []" in out


@each_user
@fills
@pytest.mark.parametrize("mode", ["r", pytest.param("c", marks=pytest.mark.slow)])
def test_files(folder, delivery, fill, mode, user):
    in_child(over_files, str(folder / "raw"), delivery, fill, mode, user=user)


def over_files(path, delivery, fill, mode):
    np.random.default_rng(3).integers(0, 256, 37 * PAGE + 11, "u1").tofile(path)
    for offset, npages in ((0, 1), (3, 4), (PAGE + 1, 64), (37 * PAGE + 11, 1)):
        want = np.memmap(path, "u1", "r", offset) if offset < 37 * PAGE + 11 else np.zeros(0, "u1")
        a = lm.memmap(path, "u1", mode, offset, delivery=delivery, memory="shared", fill=fill, block_nbytes=npages * PAGE)
        assert lm.region(a).memory == "shared"
        assert np.array_equal(a, want)
        s = settled(a)
        assert (s.nbytes_asked, s.refilled, s.failed) == (want.size, 0, 0)
        if mode == "c" and want.size:
            a[5:-5] = 7
            assert np.array_equal(np.fromfile(path, "u1")[offset:], want), "private to this process"
            assert (np.asarray(a)[5:-5] == 7).all()
        lm.close(a)
    with open(path, "r+b") as file:  # a hole is known to be zeros here too, though it takes memory
        file.truncate(80 * PAGE)
    a = lm.memmap(path, "u1", mode, delivery=delivery, memory="shared", fill=fill, block_nbytes=PAGE)
    assert np.array_equal(a, np.fromfile(path, "u1"))
    assert settled(a).zeroed == 80 - 38


@fills
def test_what_is_written_back(folder, delivery, fill):
    want = np.arange(N)
    want.tofile(folder / "raw")
    a = lm.memmap(folder / "raw", "i8", "r+", delivery=delivery, memory="shared", fill=fill, block_nbytes=2 * PAGE)
    a[5] = want[5] = -5
    drop(address_of(a), 2 * PAGE)
    a[9 * WORDS] = want[9 * WORDS] = -9
    assert child_of(lambda: a.fill(0)) == 0, "a child's are its own"
    lm.flush(a)
    assert np.array_equal(np.fromfile(folder / "raw", "i8"), want)
    a[6] = want[6] = -6
    lm.close(a)
    assert np.array_equal(np.fromfile(folder / "raw", "i8"), want)


@fills
def test_system_calls(folder, delivery, fill):
    a, _ = array(delivery, fill)
    with open(folder / "out", "wb", buffering=0) as out:
        assert out.write(a) == a.nbytes
    assert np.array_equal(np.fromfile(folder / "out", "i8"), np.arange(N))


# ---------------------------------------------------------------------------------------------------------------------------
# Pages that are in the file and not mapped, or not in the file


@pytest.mark.thin
@each_user
@fills
@modes
def test_a_dropped_mapping_is_mapped_again_without_a_fetch(delivery, fill, mode, user):
    in_child(a_dropped_mapping, delivery, fill, mode, user=user)


def a_dropped_mapping(delivery, fill, mode):
    a, kit = array(delivery, fill, mode)
    want = np.arange(N)
    lm.populate(a)
    if mode == "c":
        a[3 * WORDS : 5 * WORDS] = want[3 * WORDS : 5 * WORDS] = -1
    drop(address_of(a), 64 * PAGE)
    assert np.array_equal(np.asarray(a), want)
    assert (kit.calls, settled(a).refilled) == (32, 0)
    drop(address_of(a) + 7 * PAGE, PAGE)
    assert np.array_equal(np.asarray(a)[7 * WORDS : 8 * WORDS], want[7 * WORDS : 8 * WORDS])
    assert kit.calls == 32


@fills
def test_what_is_taken_out_of_the_file_is_fetched_again(delivery, fill):
    a, kit = array(delivery, fill, "c")
    a[:] = -1
    must(libc().madvise(address_of(a) + 7 * PAGE, PAGE, MADV_REMOVE))
    drop(address_of(a) + 6 * PAGE, 4 * PAGE)
    want = np.full(N, -1)
    want[7 * WORDS : 8 * WORDS] = np.arange(7 * WORDS, 8 * WORDS)
    assert np.array_equal(np.asarray(a), want), "the other page of its block keeps what was written to it"
    assert (kit.calls, settled(a).refilled) == (33, 1)


@fills
def test_a_look_for_lost_registrations_changes_nothing(delivery, fill):
    in_child(a_look, delivery, fill)


def a_look(delivery, fill):
    a, _ = array(delivery, fill)
    assert a[0] == 0
    before = pages_here(address_of(a), 64)
    lm.check(a)
    with lm.guard():
        pass
    assert pages_here(address_of(a), 64) == before == [True] * 2 + [False] * 62
    (number,) = ours()
    fcntl.ioctl(number, UFFDIO_UNREGISTER, struct.pack("QQ", address_of(a) + 40 * PAGE, PAGE))
    with pytest.raises(RuntimeError, match="no longer registered"):
        lm.check(a)


# ---------------------------------------------------------------------------------------------------------------------------
# Failures


@fills
@modes
def test_a_failed_fetch_is_tried_again(delivery, fill, mode):
    want = np.random.default_rng(5).integers(0, 256, 16 * PAGE, "u1")
    faulty = FaultyProvider(want.tobytes(), [Failure("error", at=n * PAGE, times=1) for n in (5, 9)])
    a = lm.from_provider(
        faulty, delivery=delivery, memory="shared", fill=fill, mode=mode, block_nbytes=PAGE, retries=0
    )  # fmt: skip
    with pytest.raises(lm.PageError):
        a[5 * PAGE]
    with pytest.raises(lm.PageError), lm.guard():
        assert np.asarray(a)[9 * PAGE] == 0, "what stands in"
    assert np.array_equal(a, want)
    assert settled(a).blocks == 16


@fills
def test_a_budget_is_kept(delivery, fill):
    in_child(a_budget_is_kept, delivery, fill)


def in_the_files():
    """Bytes of memory that files of ours hold, whether or not they are mapped."""
    return sum(os.fstat(fd).st_blocks * 512 for fd in map(int, os.listdir("/proc/self/fd")) if ours_is(fd))


def ours_is(fd):
    try:
        return "/memfd:lazymem" in os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # the folder's own
        return False


def a_budget_is_kept(delivery, fill):
    """What nobody may write to gives way, to the array's own blocks and to another's."""
    a, kit = array(delivery, fill, block_nbytes=PAGE, budget_nbytes=PAGE * 64)
    b, other = counted(512 * PAGE, delivery=delivery, memory="shared", fill=fill, block_nbytes=PAGE, budget_nbytes=PAGE * 64)
    assert np.array_equal(a, np.arange(N))
    for _ in range(2):
        assert np.array_equal(b, np.arange(8 * N))
        assert in_the_files() <= 2 * 64 * PAGE
    assert kit.calls == 64
    assert other.calls >= 512 + 512 - 64
    assert lm.stats(b).evicted >= 512 + 512 - 64 - 64
    drop(address_of(b), b.nbytes)  # what lies in the file counts, though it is not mapped
    assert np.array_equal(b, np.arange(8 * N))
    assert in_the_files() <= 2 * 64 * PAGE
    with lm.pin(b[: 32 * WORDS]):
        calls = other.calls
        assert b[-1] == 8 * N - 1
        assert np.array_equal(b, np.arange(8 * N))
        assert np.array_equal(b[: 32 * WORDS], np.arange(32 * WORDS))
        assert other.calls <= calls + 512 - 32
    # (the handler of the last touch may still be about to say that the block is there)
    assert wait_until(lambda: lm.evict(b) == 0 and in_the_files() == 64 * PAGE)
    lm.set_budget("4 MiB")
    c, _ = counted(8 << 20, delivery=delivery, memory="shared", fill=fill, block_nbytes=16 * PAGE)
    assert np.array_equal(c, np.arange(1 << 20))
    assert in_the_files() <= 4 << 20


@one_fill
def test_readers_while_blocks_are_dropped(delivery, fill):
    in_child(readers_while_blocks_are_dropped, delivery, fill)


def readers_while_blocks_are_dropped(delivery, fill):
    a, _ = counted(512 * PAGE, delivery=delivery, memory="shared", fill=fill, block_nbytes=PAGE, budget_nbytes=PAGE * 64)
    plain = np.asarray(a)
    wrong = []

    def read(seed):
        at = np.random.default_rng(seed).integers(0, plain.size, 200)
        for _ in range(20):
            got = plain[at]
            if not np.array_equal(got, at):
                wrong.append((got, at))

    threads = [threading.Thread(target=read, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert lm.stats(a).evicted > 1000


@fills
def test_more_readers_than_blocks_may_be_there(delivery, fill):
    in_child(more_readers_than_blocks, delivery, fill)


def more_readers_than_blocks(delivery, fill):
    """While all there may be are being fetched, who wants another one waits."""
    options = {"block_nbytes": 4 * PAGE, "budget_nbytes": 64 * PAGE, "delay_ns": 5_000_000}
    a, kit = counted(4 * 64 * PAGE, delivery=delivery, memory="shared", fill=fill, **options)
    threads = [threading.Thread(target=lambda i=i: pest().touch_one(address_of(a) + i * 4 * PAGE)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lm.stats(a).failed == 0
    assert kit.most_at_once <= 16


@fills
@pytest.mark.parametrize("mode", ["c", "r+"])
def test_what_may_be_written_to_stays(folder, delivery, fill, mode):
    in_child(what_may_be_written_stays, str(folder / "raw"), delivery, fill, mode)


def what_may_be_written_stays(path, delivery, fill, mode):
    want = np.arange(2 * N)
    want.tofile(path)
    a = lm.memmap(path, "i8", mode, delivery=delivery, memory="shared", fill=fill, block_nbytes=PAGE, budget_nbytes=PAGE * 64)
    a[:N] = want[:N] = -1
    for _ in range(2):
        with pytest.raises(lm.PageError, match="budget") as caught:
            a[N]
        assert caught.value.errno == errno.EDQUOT
        assert np.array_equal(np.asarray(a)[:N], want[:N])
    assert lm.evict(a) == 64
    lm.flush(a)
    assert lm.evict(a) == 64, "nobody says whether they were written to since"
    lm.close(a)
    if mode == "r+":
        assert np.array_equal(np.fromfile(path, "i8"), want)


# ---------------------------------------------------------------------------------------------------------------------------
# Coming and going


@fills
@modes
def test_nothing_is_left(delivery, fill, mode):
    in_child(nothing_is_left, delivery, fill, mode)


def nothing_is_left(delivery, fill, mode):
    lm.close(array(delivery, fill)[0])
    descriptors = os.listdir("/proc/self/fd")
    for i in range(20):
        a, _ = array(delivery, fill, mode)
        assert a[70] == 70
        assert wait_until(lambda: files() == (2 if fill == "continue" else 1))  # a handler may be leaving the one before
        if i % 2:
            lm.close(a)
            with pytest.raises(ValueError, match="closed"):
                a[0]
        del a
        array(delivery, fill)[0].sum()
    lm.close(array(delivery, fill)[0])
    assert wait_until(lambda: files() == 0 and os.listdir("/proc/self/fd") == descriptors)


@fills
@modes
def test_descriptors_that_somebody_closed(delivery, fill, mode):
    in_child(somebody_closed, delivery, fill, mode)


def somebody_closed(delivery, fill, mode):
    a, _ = array(delivery, fill, mode)
    assert a[0] == 0
    os.closerange(3, 65536)
    assert np.array_equal(np.asarray(a), np.arange(N))

    def child():
        if mode == "c":  # there is no file to copy from
            with pytest.raises(ValueError, match="was not inherited"):
                a[0]
        else:
            assert np.array_equal(a, np.arange(N))

    assert child_of(child) == 0
    lm.close(a)


@fills
def test_locked_memory(delivery, fill):
    in_child(locked_memory, delivery, fill)


def locked_memory(delivery, fill):
    if libc().mlockall(MCL_FUTURE):
        pytest.skip(f"mlockall: {os.strerror(ctypes.get_errno())}")
    a, kit = array(delivery, fill, "c")
    assert pages_here(address_of(a), 64) == [False] * 64
    assert np.array_equal(a, np.arange(N))
    assert kit.calls == 32
    a[5] = -5
    assert child_of(lambda: np.testing.assert_array_equal(a[:10], [0, 1, 2, 3, 4, -5, 6, 7, 8, 9])) == 0


@fills
def test_no_huge_pages(delivery, fill):
    in_child(no_huge_pages, delivery, fill)


def no_huge_pages(delivery, fill):
    a, _ = counted(8 << 20, delivery=delivery, memory="shared", fill=fill, block_nbytes=2 << 20)
    lm.populate(a)
    assert np.array_equal(a, np.arange(1 << 20))
    with open("/proc/self/smaps") as file:
        parts = file.read().split("/memfd:lazymem (deleted)")[1:]
    assert len(parts) == (2 if fill == "continue" else 1)
    for part in parts:
        flags = part.split("VmFlags:")[1].splitlines()[0].split()
        assert {"nh", "sh", "dc"} <= set(flags), flags
        assert "ShmemPmdMapped:        0 kB" in part


# ---------------------------------------------------------------------------------------------------------------------------
# Forks


@one_fill
def test_a_write_just_before_a_fork_is_the_childs_too(delivery, fill):
    in_child(a_write_just_before, delivery, fill)


def a_write_just_before(delivery, fill):
    """The handler that answered the touch may not have said so yet."""
    a, _ = array(delivery, fill, "c", block_nbytes=PAGE)
    for i in range(64):
        a[i * WORDS + 3] = -i
        pid = os.fork()
        if pid == 0:
            os._exit(0 if np.asarray(a)[i * WORDS + 3] == -i and np.asarray(a)[3] == 0 else 1)
        assert os.waitpid(pid, 0)[1] == 0, i


@one_fill
def test_a_fork_needs_no_room_in_the_budget(delivery, fill):
    in_child(more_than_half_of_the_budget, delivery, fill)


def more_than_half_of_the_budget(delivery, fill):
    """What a child gets is its own memory; its parent may have used all that it may use."""
    lm.set_budget("4 MiB")
    a, _ = counted(3 << 20, mode="c", delivery=delivery, memory="shared", fill=fill, block_nbytes=PAGE)
    a[:] = -1
    assert child_of(lambda: np.testing.assert_array_equal(a, np.full(a.size, -1))) == 0


@fills
def test_what_is_left_of_a_block_is_the_childs_too(delivery, fill):
    in_child(what_is_left, delivery, fill)


def what_is_left(delivery, fill):
    a, kit = array(delivery, fill, "c", block_nbytes=4 * PAGE)
    a[:] = -1
    must(libc().madvise(address_of(a) + 5 * PAGE, PAGE, MADV_REMOVE))
    want = np.full(N, -1)
    want[5 * WORDS : 6 * WORDS] = np.arange(5 * WORDS, 6 * WORDS)

    def child():
        np.testing.assert_array_equal(np.asarray(a), want)
        a[:] = -2

    assert child_of(child) == 0
    np.testing.assert_array_equal(np.asarray(a), want)
    assert kit.calls == 17


# What else is tested of private memory, with the same words.
ALIKE = [
    ("test_fork", "a_child_reads_right_values", "r"),
    ("test_fork", "a_child_reads_right_values", "c"),
    ("test_fork", "being_written_back"),
    ("test_fork", "what_had_failed"),
    ("test_guard", "a_guard"),
    ("test_guard", "private_writes_beside_a_failure"),
]
ALIKE_TOO = [
    ("test_fork", "a_block_on_its_way"),
    ("test_fork", "no_userfaultfd", "c"),
    ("test_fork", "fork_while_faults_are_in_flight"),
    ("test_traps_fill", "user_calls_split_the_mapping_while_faulting"),
    ("test_traps_memory", "populate_says_that_the_mapping_is_gone", "munmap"),
    ("test_traps_memory", "protection_that_is_given_back"),
    ("test_traps_zeros", "the_number_is_taken", "file"),
    ("test_traps_zeros", "moved_away_and_left_its_place", "r"),
    ("test_traps_zeros", "only_split"),
    ("test_guard", "failures_before_and_after"),
    ("test_threads", "c_threads", 4, "populate"),
    ("test_traps_life", "a_new_array_at_an_old_address"),
]


def as_private_memory(what):
    return pytest.mark.parametrize("what", what, ids=["-".join(map(str, what[1:])) for what in what])


@pytest.mark.thin
@one_fill
@as_private_memory(ALIKE)
def test_as_private_memory(delivery, fill, what):
    module, name, *args = what
    in_child(in_shared_memory, fill, module, name, delivery, *args, user="nobody" if fill == "continue" else None)


@pytest.mark.slow
@fills
@as_private_memory(ALIKE_TOO)
def test_as_private_memory_too(delivery, fill, what):
    test_as_private_memory(delivery, fill, what)


# ---------------------------------------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"memory": "common"}, "memory='common': give one of 'private', 'shared'"),
        ({"fill": "continue"}, "fill='continue' with memory='private': give one of 'auto', 'copy', 'move', 'zero'"),
        ({"fill": "move", "memory": "shared"}, "fill='move' .*'shared': give one of 'auto', 'copy', 'continue', 'zero'"),
        ({"fill": "paste"}, "fill='paste' with memory='private'"),
        ({"fill": "continue", "memory": "shared", "delivery": "mprotect"}, "fill='continue' .*no userfaultfd"),
    ],
    ids=["memory", "continue", "move", "fill", "mprotect"],
)
def test_options_that_do_not_fit(options, what):
    with pytest.raises(ValueError, match=what):
        lm.from_provider(bytes(100), **options)


def test_without_a_userfaultfd_it_lies_in_a_file_anyway():
    a = lm.from_provider(bytes(range(100)), delivery="mprotect", memory="shared")
    assert a.tobytes() == bytes(range(100))


def test_the_name_of_the_memory():
    assert lm.region(lm.from_provider(b"abc")).memory == "private"
    assert lm.region(lm.from_provider(b"abc", memory="shared", fill="auto", delivery="inline")).memory == "shared"
