"""Does an array do without userfaultfd: mappings, signals, descriptors, forks, and a program's own mistakes?

What every delivery must do is tested where it is for the others (operations, guards, forks, failures); here is what only this
one can do wrong.
"""

import ctypes
import errno
import os
import resource
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from filter_kit import refusing
from native_kit import PAGE, PROT_NONE, address_of, counted, drop, end_of_child, in_child, libc, must, pest
from support import check_child, each_user, needs_compiler, needs_root, wait_until
from test_fork import child_of
from test_operations import CHILD, OPERATIONS, SOME, prelude

import lazymem as lm

pytestmark = needs_compiler

WORDS = PAGE // 8


def array(npages=64, mode="r", **options):
    return counted(npages * PAGE, mode=mode, delivery="mprotect", block_nbytes=PAGE, **options)


def mappings():
    """How many this process has."""
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)


def quarter():
    with open("/proc/sys/vm/max_map_count") as file:
        return int(file.read()) // 4


def balanced(a):
    s = lm.stats(a)
    return s.faults == s.filled + s.joins + s.failed


# --- mappings


def test_every_second_block_of_many():
    in_child(every_second_block_of_many, timeout=100)


def every_second_block_of_many():
    n = 100_000
    if quarter() >= n:
        pytest.skip("this kernel allows more mappings than the test makes")
    before = mappings()
    a, kit = array(n)
    plain, want = np.asarray(a), np.arange(0, n * WORDS, WORDS)
    assert np.array_equal(plain[:: 2 * WORDS], want[::2])
    assert mappings() - before <= quarter() + 50, (before, mappings())
    s = lm.stats(a)
    assert (s.blocks, s.reexposed, kit.calls) == (n // 2, 0, n // 2)
    assert np.array_equal(plain[:: 2 * WORDS], want[::2]), "what was protected again has lost nothing"
    s = lm.stats(a)
    assert s.reexposed > n // 4, "and a touch lets it through"
    assert (s.blocks, kit.calls, s.refilled) == (n // 2, n // 2, 0), "without a fetch"
    assert mappings() - before <= quarter() + 50
    assert np.array_equal(plain[WORDS :: 2 * WORDS], want[1::2])
    assert kit.calls == n
    assert np.array_equal(plain, np.arange(n * WORDS))
    assert mappings() - before < 1000, "neighbours' mappings merge"
    assert kit.calls == n
    assert balanced(a)
    del plain
    lm.close(a)
    assert mappings() <= before + 50


def test_threads_that_take_each_others_mappings():
    in_child(take_each_others_mappings, timeout=100)


def take_each_others_mappings():
    """Two arrays, many threads, everywhere: more stretches than there may be; private writes stay what they are."""
    n = 20_000
    before = mappings()
    pairs = [array(n), array(n, "c")]
    wrong = []
    end = time.monotonic() + 1.5

    def run(seed):
        rng = np.random.default_rng(seed)
        mine = {}
        while time.monotonic() < end:
            for a, _ in pairs:
                plain = np.asarray(a)
                places = 2 * rng.integers(0, n // 2, 500) * WORDS + 8 + seed
                if not np.array_equal(plain[places], np.where([p in mine for p in places], -places, places) if a is pairs[1][0]
                                      else places):  # fmt: skip
                    wrong.append(places)
            for p in places[:50]:  # of the array that may be written to; every thread has words of its own
                plain[p] = -p
                mine[int(p)] = True

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong
    assert mappings() < before + quarter() + 200
    stats = [lm.stats(a) for a, _ in pairs]
    assert sum(s.reexposed for s in stats) > 100, stats
    assert all(kit.calls == s.blocks for (_, kit), s in zip(pairs, stats, strict=True)), "each was fetched once"
    assert all(balanced(a) for a, _ in pairs)


def test_what_a_system_call_is_about_to_read_is_let_through():
    in_child(about_to_be_read)


def about_to_be_read():
    n = 3 * quarter()
    before = mappings()
    a, _ = array(n)
    plain = np.asarray(a)
    last = plain[-4 * WORDS :]
    plain[:: 2 * WORDS].copy()
    lm.populate(a)  # one stretch
    region = lm.region(a)
    reader, writer = os.pipe()
    assert os.write(writer, last) == 4 * PAGE
    assert np.array_equal(np.frombuffer(os.read(reader, 4 * PAGE), "i8"), last)
    held = memoryview(a[:WORDS])  # while a buffer is out, none of its array is protected again
    b, _ = array(n)
    np.asarray(b)[:: 2 * WORDS].copy()
    np.asarray(b)[:: 2 * WORDS].copy()
    assert lm.stats(b).reexposed > 0
    assert os.write(writer, plain[: 4 * WORDS]) == 4 * PAGE
    assert region.exports == 1
    del region
    other = memoryview(b[:WORDS])
    assert np.array_equal(np.asarray(b)[WORDS :: 2 * WORDS], np.arange(WORDS, n * WORDS, 2 * WORDS)), "both are held now"
    c, _ = array(n)
    third = memoryview(c[:WORDS])
    assert np.array_equal(np.asarray(c)[:: 2 * WORDS], np.arange(0, n * WORDS, 2 * WORDS))
    assert mappings() < before + 2 * quarter() + 200, "no more than that, for whoever holds a buffer for ever"
    held.release(), other.release(), third.release()


def test_blocks_that_nobody_chose_are_coarse_enough():
    a = lm.from_provider(lm.CFunction(pest().fetch_nothing, 1 << 38), delivery="mprotect")
    assert lm.region(a).block_nbytes == 4 << 20
    b = lm.from_provider(lm.CFunction(pest().fetch_nothing, quarter() << 16), delivery="mprotect")
    assert lm.region(b).block_nbytes == 64 << 10
    c = lm.from_provider(lm.CFunction(pest().fetch_nothing, (quarter() << 16) + (1 << 20)), delivery="mprotect")
    assert lm.region(c).block_nbytes == 128 << 10
    d = lm.from_provider(lm.CFunction(pest().fetch_nothing, 1 << 38), delivery="mprotect", block_nbytes=PAGE)
    assert lm.region(d).block_nbytes == PAGE
    e = lm.from_provider(lm.CFunction(pest().fetch_nothing, 1 << 38), delivery="inline")
    assert lm.region(e).block_nbytes == 64 << 10


def test_nothing_is_left_of_many_arrays():
    in_child(nothing_is_left)


def nothing_is_left():
    lm.close(array()[0])
    count, descriptors = mappings(), set(os.listdir("/proc/self/fd"))
    for i in range(1000):
        a, _ = array(mode="rc"[i % 2])
        assert int(np.asarray(a)[::WORDS].sum()) == WORDS * 63 * 32
        if i % 2:
            lm.close(a)
        del a
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert mappings() <= count + 4


def test_a_tebibyte_at_once():
    in_child(a_tebibyte)


def a_tebibyte():
    lm.close(array()[0])  # what the first one loads
    began = time.monotonic()
    a, _ = counted(1 << 40, delivery="mprotect", block_nbytes=1 << 20)
    assert time.monotonic() - began < 0.5
    assert [int(a[i]) for i in (0, 1 << 36, (1 << 37) - 1)] == [0, 1 << 36, (1 << 37) - 1]
    assert lm.stats(a).blocks == 3


# --- where there is none


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("errno_name", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize("source", ["memory", "file", "function", "provider", "http"])
def test_operations_under_a_seccomp_filter(source, errno_name, user):
    """By default, in a process whose filter answers for userfaultfd(2) and for the device: a container."""
    code = refusing(errno_name) + prelude(source, 64, "auto") + CHILD.format(operations=OPERATIONS, some=SOME)
    code += "assert lm.region(fresh()).delivery == 'mprotect'\n"
    assert "wrong: []" in check_child(code, timeout=60, user=user)


@each_user
def test_forks_and_processes_under_a_seccomp_filter(user):
    out = check_child(refusing("EPERM") + """
import multiprocessing, os, subprocess, sys
import numpy as np, lazymem as lm
a = lm.from_fill(lambda out, start: out.__setitem__(slice(None), np.arange(start, start + out.size)), 10**6, "i8", mode="c")
a[5] = -5
pid = os.fork()
if pid == 0:
    right = a[5] == -5 and a[10] == 10 and lm.region(a).delivery == "mprotect" and a.sum() == sum(range(10**6)) - 10
    os._exit(not right)
assert os.waitpid(pid, 0)[1] == 0
assert subprocess.run([sys.executable, "-c", "import lazymem as lm; print(lm.from_provider(bytes([7]))[0])"],
                      capture_output=True, text=True).stdout == "7\\n"
assert a.sum() == sum(range(10**6)) - 10
print("right")
""", user=user)
    assert "right" in out


def test_where_there_are_no_memory_files_either():
    out = check_child(refusing("EPERM", ("userfaultfd", "memfd_create")) + """
import lazymem as lm
try: lm.from_provider(bytes(8))
except OSError as error: print(error.errno, error)
""")
    assert out.startswith("1 ")
    assert "memfd_create" in out


def test_a_small_limit_of_file_sizes_is_named():
    in_child(small_files)


def small_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    with pytest.raises(OSError, match="RLIMIT_FSIZE") as caught:
        array(512)
    assert caught.value.errno == errno.EFBIG
    assert int(array(200)[0][199 * WORDS]) == 199 * WORDS


def test_memory_that_nobody_has_touched_yet_counts():
    in_child(memory_counts)


def memory_counts():
    """Pages of a file are nobody's until they are mapped: a budget must hold them all the same."""
    a, _ = counted(256 << 20, delivery="mprotect", block_nbytes=1 << 20)
    lm.set_budget(96 << 20)
    with pytest.raises(ValueError, match="cannot be in memory at once"):
        lm.populate(a)
    for i in range(256):
        assert int(a[i << 17]) == i << 17
    assert 64 <= lm.stats(a).resident_blocks <= 96
    lm.close(a)
    b, _ = counted(64 << 20, mode="c", delivery="mprotect", block_nbytes=1 << 20)
    b[:] = -1
    assert child_of(lambda: np.testing.assert_array_equal(b, np.full(b.size, -1))) == 0, "what is a child's is no part of it"


# --- whose fault it is


@pytest.mark.parametrize("where", ["absent", "resident"])
def test_a_write_to_a_read_only_array_ends_the_process(where):
    status, out, err = end_of_child(write_to_a_read_only_array, where)
    assert status == -signal.SIGSEGV
    assert out.split() == ["before"]
    assert "lazymem:" not in err, "the mistake is the program's, not ours"


def write_to_a_read_only_array(where):
    a, _ = array()
    if where == "resident":
        assert int(a[3 * WORDS]) == 3 * WORDS
    print("before", flush=True)
    pest().poke(ctypes.c_void_p(address_of(a) + 3 * PAGE), 7)
    print("after")


def test_the_owner_before_us_gets_what_is_not_ours():
    status, _, err = end_of_child(foreign_fault)
    assert status == 77, err
    assert "the owner before was called" in err


def foreign_fault():
    pest().own_signal(signal.SIGSEGV)
    a, _ = array()
    assert int(a[WORDS]) == WORDS
    pest().touch_one(ctypes.c_void_p(8))


@pytest.mark.parametrize("when", ["before", "after"])
def test_faulthandler_tells_of_other_peoples_faults(when):
    status, _, err = end_of_child(with_faulthandler, when)
    assert status == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in err
    assert "with_faulthandler" in err
    assert "lazymem:" not in err


def with_faulthandler(when):
    import faulthandler

    if when == "before":
        faulthandler.enable()
    a, _ = array()
    assert int(a[WORDS]) == WORDS
    if when == "after":
        faulthandler.enable()
    assert int(a[2 * WORDS]) == 2 * WORDS, "it would call this touch fatal"
    pest().touch_one(ctypes.c_void_p(8))


def test_making_an_array_where_sigsegv_is_blocked():
    in_child(make_where_sigsegv_is_blocked)


def make_where_sigsegv_is_blocked():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGSEGV])
    with pytest.raises(RuntimeError, match="blocks SIGSEGV"):
        array()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGSEGV])
    assert int(array()[0][5]) == 5


def test_protections_that_somebody_changed():
    in_child(somebody_changed_protections)


def somebody_changed_protections():
    a, kit = array(mode="c")
    a[3 * WORDS] = -3
    lm.populate(a)
    must(libc().mprotect(address_of(a), 16 * PAGE, PROT_NONE))
    drop(address_of(a), 64 * PAGE)  # of shared memory: nothing is lost
    want = np.arange(64 * WORDS)
    want[3 * WORDS] = -3
    assert np.array_equal(np.asarray(a), want)
    assert kit.calls == 64
    assert lm.stats(a).refilled == 0
    assert balanced(a)


def test_memory_that_somebody_took_away_stops_loudly():
    status, _, err = end_of_child(somebody_unmapped)
    assert status == -signal.SIGSEGV
    assert "no longer mapped" in err


def somebody_unmapped():
    a, _ = array()
    must(libc().munmap(address_of(a) + 8 * PAGE, 8 * PAGE))
    with pytest.raises(lm.PageError, match="no longer mapped"):
        lm.populate(a)
    pest().start_toucher(ctypes.c_void_p(address_of(a) + 9 * PAGE))  # a thread that nobody can tell
    time.sleep(5)


@pytest.mark.parametrize("reused", [False, True])
def test_a_descriptor_that_somebody_closed(reused, folder):
    in_child(somebody_closed_it, reused, str(folder / "own"))


def somebody_closed_it(reused, path):
    """The array goes on, through its mapping; the number's next owner gets none of our bytes."""
    before = set(os.listdir("/proc/self/fd"))
    a, kit = array(mode="c")
    (number,) = (int(n) for n in set(os.listdir("/proc/self/fd")) - before if os.path.exists(f"/proc/self/fd/{n}"))
    assert "memfd:lazymem" in os.readlink(f"/proc/self/fd/{number}")
    assert number >= 48
    assert not os.get_inheritable(number)
    a[5] = -5
    kit.error = -errno.EIO
    with pytest.raises(lm.PageError):
        a[20 * WORDS]
    kit.error = 0
    os.close(number)
    if reused:
        with open(path, "wb") as file:
            file.write(bytes(64 * PAGE))
        theirs = os.open(path, os.O_RDWR)
        os.dup2(theirs, number)
    want = np.arange(64 * WORDS)
    want[5] = -5
    assert np.array_equal(a, want)
    assert child_of(lambda: lm.populate(a)) == 1, "of private writes there is no copy then: an error, no zeros"
    assert np.array_equal(array()[0], np.arange(64 * WORDS))
    lm.close(a)
    if reused:
        with open(path, "rb") as file:
            assert file.read() == bytes(64 * PAGE)
        assert os.fstat(number).st_size == 64 * PAGE, "and it is still theirs"


# --- races


def test_one_block_touched_by_many_at_once():
    in_child(touched_by_many)


def touched_by_many():
    for _ in range(20):
        a, kit = array(32, delay_ns=300_000)
        assert pest().touch_together(address_of(a), 16, 32, PAGE) == 0
        assert kit.calls == 32
        s = lm.stats(a)
        assert s.filled == 32
        assert balanced(a)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_signal_handlers_that_write_into_the_block_being_filled(kind, folder):
    in_child(write_into_the_block_being_filled, kind, str(folder / "raw"))


def write_into_the_block_being_filled(kind, path):
    """They fill it themselves, since who was interrupted cannot go on; and that one must not write over it afterwards."""
    n = 20_000
    values = np.arange(n * WORDS)
    if kind == "file":
        values.tofile(path)
        a = lm.memmap(path, "i8", mode="c", delivery="mprotect", block_nbytes=PAGE)
    else:
        a = lm.from_provider(values, dtype="i8", mode="c", delivery="mprotect", block_nbytes=PAGE)
    assert pest().touch_and_mark(address_of(a), n, PAGE, 50) == 0
    plain = np.asarray(a)
    assert np.array_equal(plain[::WORDS], values[::WORDS])
    assert balanced(a)


def test_a_close_during_a_touch():
    status, _, err = end_of_child(close_during_a_touch)
    assert status == -signal.SIGSEGV
    assert "the array is closed" in err


def close_during_a_touch():
    a, kit = array(gate=1)
    pest().start_toucher(ctypes.c_void_p(address_of(a) + 5 * PAGE))
    assert wait_until(lambda: kit.calls == 1)
    threading.Timer(0.2, lambda: setattr(kit, "gate", 0)).start()
    lm.close(a)  # waits for the fetch; its bytes must not become memory of a closed array
    time.sleep(5)


# --- forks


def test_a_fork_copies_what_is_there_and_nothing_else():
    in_child(a_fork_copies)


def a_fork_copies():
    n = 3 * quarter()
    a, kit = array(n, "c")
    plain = np.asarray(a)
    plain[:: 4 * WORDS] *= -1
    want = np.arange(n * WORDS)
    want[:: 4 * WORDS] *= -1
    calls = kit.calls
    assert lm.stats(a).blocks == n // 4 + (n % 4 > 0)

    def child():
        assert lm.region(a).delivery == "mprotect"
        assert lm.stats(a).blocks == calls, "what was written before the fork is there"
        plain[4 * WORDS] = 77
        mine = want.copy()
        mine[4 * WORDS] = 77
        assert np.array_equal(plain, mine)
        assert child_of(lambda: np.array_equal(plain, mine) or os._exit(3)) == 0
        assert plain[4 * WORDS] == 77

    descriptors, count = set(os.listdir("/proc/self/fd")), mappings()
    assert child_of(child) == 0
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert mappings() <= count + 2
    plain[8 * WORDS] = 88
    want[8 * WORDS] = 88
    assert np.array_equal(plain, want), "the child's writes are its own"


@needs_root
def test_locked_memory():
    in_child(locked_memory)


def locked_memory():
    """mlockall(MCL_FUTURE): a tebibyte of zeros would be made, and kept."""
    must(libc().mlockall(2))
    a, _ = counted(1 << 40, delivery="mprotect", block_nbytes=1 << 20, mode="c")
    must(libc().mlockall(1))
    assert int(a[12345678]) == 12345678
    assert lm.stats(a).blocks == 1
    assert subprocess.run(["true"], check=True).returncode == 0
    assert child_of(lambda: int(a[1 << 30]) == 1 << 30 or os._exit(3)) == 0
