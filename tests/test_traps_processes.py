"""Do the traps of other processes, of what comes and goes, and of sizes show? 34, 35, 36, 41, 42, 54 of the trap list."""

import contextlib
import ctypes
import functools
import gc
import itertools
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from native_kit import address_of, counted, in_child, ours, pest
from odd_providers import PAGE, WORDS, Counting
from somebody import as_somebody
from support import each_user, wait_until
from test_fork import child_of
from test_provider_life import is_zombie

import lazymem as lm
from lazymem.core.provider import process_ids

NBLOCKS = 64


@contextlib.contextmanager
def load(delivery):
    """Threads that fault all the time, and read right values."""
    a = counted(NBLOCKS * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    stop, wrong = threading.Event(), []

    def touch():
        while not stop.is_set():
            wrong.append(pest().touch_rounds(address_of(a), NBLOCKS, PAGE, 5))

    threads = [threading.Thread(target=touch, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()
    assert set(wrong) == {0}


# ---------------------------------------------------------------------------------------------------------------------------
# 34. Forks by C code


@pytest.mark.thin
@each_user
def test_trap_34_forks_by_c_code_while_others_fault(delivery, user):
    in_child(forks_by_c_code, delivery, user=user)


def forks_by_c_code(delivery):
    with load(delivery):
        for turn, mode in itertools.product(range(4), "rc"):
            a = counted(NBLOCKS * PAGE, mode=mode, delivery=delivery, block_nbytes=PAGE)[0]
            assert a[(turn * 7 % NBLOCKS) * WORDS] == (turn * 7 % NBLOCKS) * WORDS
            assert pest().fork_twice_and_touch(ctypes.c_void_p(address_of(a)), NBLOCKS, PAGE) == 0
            if mode == "c":
                a[WORDS] = 77
                status = pest().fork_and_touch(ctypes.c_void_p(address_of(a) + PAGE))
                assert os.waitstatus_to_exitcode(status) == 77, "the child sees what was written"


# ---------------------------------------------------------------------------------------------------------------------------
# 35. vfork, posix_spawn, exec

SAYS_ITS_FILES = """import os
files = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
print([os.readlink(file) for file in files if os.path.exists(file)])
"""


@pytest.mark.thin
@each_user
def test_trap_35_programs_are_started_under_load(delivery, user):
    in_child(programs_are_started, delivery, 40, user=user)


@pytest.mark.slow
@each_user
def test_trap_35_a_thousand_programs_are_started_under_load(delivery, user):
    in_child(programs_are_started, delivery, 1000, user=user)


def programs_are_started(delivery, times):
    served = lm.from_provider(Counting(), dtype="i8", delivery=delivery, block_nbytes=PAGE)
    assert served[0] == 0
    before = len(os.listdir("/proc/self/fd"))
    with load(delivery):
        for i in range(times):
            if i % 2:
                pid = os.posix_spawn("/bin/true", ["true"], os.environ)
                assert os.waitpid(pid, 0)[1] == 0
            else:
                said = subprocess.run(["/bin/echo", str(i)], capture_output=True, text=True, check=True)
                assert said.stdout == f"{i}\n"
        said = subprocess.run(
            [sys.executable, "-SE", "-c", SAYS_ITS_FILES], capture_output=True, text=True, close_fds=False, check=True
        )
    for ours_alone in ("userfaultfd", "memfd", "pidfd"):
        assert ours_alone not in said.stdout, "exec closes it"
    assert len(os.listdir("/proc/self/fd")) == before
    assert np.array_equal(served, Counting().right())


@each_user
def test_trap_35_a_vforked_child_touches(delivery, user):
    in_child(a_vforked_child_touches, delivery, user=user)


def a_vforked_child_touches(delivery):
    """It runs in our memory, so what it touches is fetched by us, for us."""
    a, kit = counted(NBLOCKS * PAGE, delivery=delivery, block_nbytes=PAGE, pattern=1)
    for block in range(NBLOCKS):
        status = pest().vfork_and_touch(ctypes.c_void_p(address_of(a) + block * PAGE))
        assert os.waitstatus_to_exitcode(status) == block + 1
    asked = kit.calls
    assert asked == NBLOCKS
    assert np.array_equal(np.asarray(a).view("u1")[::PAGE], np.arange(1, NBLOCKS + 1))
    assert kit.calls == asked


@as_somebody
def test_trap_35_exec_under_load_and_what_it_leaves(user, delivery, folder):
    in_child(exec_under_load, delivery, str(folder / "pids"), user=user)


def exec_under_load(delivery, path):
    """A program that becomes another: no descriptor, and no provider process stays with that."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        load(delivery).__enter__()
        assert lm.from_provider(Counting(), dtype="i8", delivery=delivery, block_nbytes=PAGE)[0] == 0
        Path(path).write_text(" ".join(map(str, process_ids())))
        os.execv(sys.executable, [sys.executable, "-uSE", "-c", SAYS_ITS_FILES + "import time; time.sleep(60)"])
    os.close(write)
    said = os.read(read, 10_000).decode()
    for ours_alone in ("userfaultfd", "memfd", "pidfd"):
        assert ours_alone not in said, "exec closes it"
    pids = [int(word) for word in Path(path).read_text().split()]
    assert len(pids) == 1
    assert wait_until(lambda: not os.path.exists(f"/proc/{pids[0]}") or is_zombie(pids[0]), 5), "nobody asks it any more"
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# ---------------------------------------------------------------------------------------------------------------------------
# 36. Events of userfaultfd that are answered late, or need a privilege


def test_trap_36_no_events_are_asked_for(delivery):
    in_child(no_events, delivery)


def no_events(delivery):
    """FORK, REMAP, REMOVE, UNMAP: forks, munmap and madvise would wait for us; ioctls would say EAGAIN meanwhile."""
    a = counted(NBLOCKS * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    assert a[5] == 5
    features = ours()
    assert features
    for mask in features.values():
        assert mask & (1 << 1 | 1 << 2 | 1 << 3 | 1 << 6) == 0, hex(mask)


# ---------------------------------------------------------------------------------------------------------------------------
# 41. Garbage: what is left when all has come and gone


def facts():
    """Descriptors, threads, mappings, resident bytes."""
    with open("/proc/self/maps") as f:
        mappings = len(f.readlines())
    with open("/proc/self/statm") as f:
        resident = int(f.read().split()[1]) * mmap.PAGESIZE
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), mappings, resident


def come_and_go(delivery, seed, times):
    """Arrays with views and exports that are let go of in any order; close() is refused as long as there are any."""
    rng = random.Random(seed)
    for _ in range(times):
        n = rng.randint(1, 40)
        a = counted(n * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
        i = rng.randrange(n * WORDS - 1)
        held = [a[1:], np.asarray(a), memoryview(a), memoryview(np.asarray(a)[1:])]
        if rng.random() < 0.5:
            lm.prefetch(a)
        assert held[0][i] == i + 1
        assert held[2][i] == i
        rng.shuffle(held)
        while held:
            try:
                lm.close(a)
                raise AssertionError("closed under a view")
            except BufferError:
                held.pop()
        if rng.random() < 0.5:
            lm.close(a)


@each_user
def test_trap_41_nothing_is_left(delivery, user):
    in_child(nothing_is_left, delivery, user=user)


def nothing_is_left(delivery):
    def all_of_it():
        threads = [threading.Thread(target=come_and_go, args=(delivery, seed, 40)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_of_it()
    before = facts()
    for _ in range(3):
        all_of_it()
    assert wait_until(lambda: facts()[1] <= before[1]), "threads"
    after = facts()
    assert after[0] <= before[0], "descriptors"
    assert after[2] <= before[2] + 40, (before, after)
    assert after[3] < before[3] + (32 << 20), (before, after)


@each_user
def test_trap_41_children_leave_nothing_in_their_parent(delivery, user):
    in_child(children_leave_nothing, delivery, 6, user=user)


@pytest.mark.slow
@each_user
def test_trap_41_many_children_leave_nothing_in_their_parent(delivery, user):
    in_child(children_leave_nothing, delivery, 400, user=user)


def children_leave_nothing(delivery, times):
    """Nor in themselves: each comes back to what it found, too."""
    array = counted(NBLOCKS * PAGE, delivery=delivery, block_nbytes=PAGE)[0]

    def turn(seed):
        def child():
            lm.prefetch(array)  # the first starts threads that stay
            come_and_go(delivery, seed, 2)
            before = facts()
            come_and_go(delivery, seed + 1, 2)
            assert wait_until(lambda: facts()[:2] <= before[:2]), (before, facts())
            assert array[WORDS * 3] == WORDS * 3

        assert child_of(child) == 0

    for seed in range(2):
        turn(seed)
    before = facts()
    for seed in range(times):
        turn(seed)
    after = facts()
    assert after[0] <= before[0]
    assert after[1] <= before[1]
    assert after[2] <= before[2] + 2
    assert after[3] < before[3] + (4 << 20), (before, after)


# ---------------------------------------------------------------------------------------------------------------------------
# 42. What dies while a fetch is still running in it (leaving as such: test_leaving.py)


def address_space():
    """Of this process, bytes."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[0]) * mmap.PAGESIZE


def reapers():
    found = 0
    for task in Path("/proc/self/task").glob("*/comm"):
        try:
            found += task.read_text() == "lazymem-reaper\n"
        except OSError:  # it has just ended
            continue
    return found


@each_user
def test_trap_42_memory_goes_though_lazymem_is_never_called_again(delivery, user):
    in_child(memory_goes, delivery, user=user)


def memory_goes(delivery):
    """Two of 1 TiB die, each in a fetch; the second one's goes on."""
    keep = [counted(1 << 40, delivery=delivery, block_nbytes=PAGE, gate=1) for _ in range(2)]
    kits = [kit for _, kit in keep]
    for a, _ in keep:
        lm.prefetch(a[:WORDS])
    assert wait_until(lambda: all(kit.calls for kit in kits))
    full, holders = address_space(), [len(gc.get_referrers(kit)) for kit in kits]
    del a, keep, _
    time.sleep(0.1)
    assert full - address_space() < 1 << 40
    assert reapers() == 1
    kits[0].gate = 0
    assert wait_until(lambda: full - address_space() > 1 << 39, 1), "its memory"
    assert wait_until(lambda: len(gc.get_referrers(kits[0])) < holders[0], 1), "its source"
    assert full - address_space() < 3 << 39, "somebody is in the other"
    assert reapers() == 1
    kits[1].gate = 0
    assert wait_until(lambda: full - address_space() > 3 << 39, 1)
    assert wait_until(lambda: not reapers(), 1), "it ends with the last"
    assert np.array_equal(counted(PAGE, delivery=delivery, block_nbytes=PAGE)[0], np.arange(WORDS))


def test_trap_42_a_child_is_forked_while_memory_dies(delivery):
    in_child(a_child_is_forked, delivery)


def a_child_is_forked(delivery):
    a, kit = counted(1 << 30, delivery=delivery, block_nbytes=PAGE, gate=1)
    lm.prefetch(a[:WORDS])
    assert wait_until(lambda: kit.calls)
    address = address_of(a)
    del a

    def mapped():
        with open("/proc/self/maps") as f:
            for line in f:
                low, high = (int(end, 16) for end in line.split()[0].split("-"))
                if low <= address < high:
                    return line
        return ""

    def child():
        assert " ---p " in mapped(), "its addresses are taken as long as the region is there"
        come_and_go(delivery, 1, 3)
        assert " ---p " not in mapped(), "and given back with the next that comes"

    assert child_of(child) == 0
    kit.gate = 0
    assert wait_until(lambda: not reapers(), 1)


# ---------------------------------------------------------------------------------------------------------------------------
# 54. Sizes that nobody has in mind

AROUND = [2**k + d for k in (31, 32, 40, 47, 48, 62, 63, 64) for d in (-PAGE, -8, -1, 0, 1, 8, PAGE)]
REFUSALS = (ValueError, TypeError, MemoryError, OverflowError, OSError, lm.PageError)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(st.sampled_from(AROUND), st.sampled_from([PAGE, 65536]), st.sampled_from(["i8", "u1", "S24"]))
@example(2**46, 65536, "u1")
def test_trap_54_sizes_around_powers_of_two(nbytes, block_nbytes, dtype):
    """An array of which the ends and the middle are right, or a refusal that says why."""
    size = np.dtype(dtype).itemsize
    block_nbytes = max(block_nbytes, 1 << max(0, nbytes.bit_length() - 32))
    try:
        a = counted(nbytes // size * size, dtype=dtype, block_nbytes=block_nbytes)[0]
    except REFUSALS:
        return
    flat = a.view("u1")
    assert flat.size == nbytes // size * size
    ends = {0, flat.size - 1, flat.size // 2 // 8 * 8, (2**31 - 8) % flat.size, (2**32) % flat.size}
    for at in ends:
        assert flat[at] == at // 8 >> 8 * (at % 8) & 0xFF, at
    lm.populate(flat[-1:])
    for at, length in itertools.product(AROUND, (1, PAGE, 2**31, 2**63 - 1)):
        assert flat[at : at + length : 2**31].size == len(range(*slice(at, at + length, 2**31).indices(flat.size)))


@pytest.mark.parametrize("what", ["offset", "shape", "block_nbytes", "index"])
def test_trap_54_numbers_that_fit_nowhere(what, folder):
    """As they come from a header or a user: none is cut to 64 bits somewhere on the way."""
    path = folder / "small"
    path.write_bytes(bytes(3 * PAGE))
    a = lm.memmap(path)
    for huge in sorted({*AROUND, -1 - 3 * PAGE, -(2**63), -(2**63) - 1}):
        if what == "index":
            uses = [(a.__getitem__, huge), (a[:2].__getitem__, [0, huge]), (a.reshape, (huge, -1))]
        else:
            given = [huge, (huge,), (2, huge), (huge, huge), (-1, huge)] if what == "shape" else [huge]
            uses = [(functools.partial(lm.memmap, path), {what: value}) for value in given]
        for use, argument in uses:
            with pytest.raises((*REFUSALS, IndexError), match=r"\w"):
                print(argument, use(**argument) if isinstance(argument, dict) else use(argument))


def test_a_subinterpreter_is_told_no():
    in_child(a_subinterpreter)


def a_subinterpreter():
    """lazymem's state is the process's: a second interpreter would share regions whose owners it cannot see."""
    interpreters = pytest.importorskip("_xxsubinterpreters")

    a = counted(NBLOCKS * PAGE, block_nbytes=PAGE)[0]
    assert a[5] == 5
    other = interpreters.create()
    with pytest.raises(interpreters.RunFailedError, match=r"per process|[Ii]nterpreter"):
        interpreters.run_string(other, "import lazymem; lazymem.from_provider(b'x')")
    interpreters.destroy(other)
    assert np.array_equal(a, np.arange(NBLOCKS * WORDS))
