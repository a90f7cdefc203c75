"""Many arrays, threads and signals around few processes: is everybody served, and does nobody pay for another's death?"""

import ctypes
import errno
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from native_kit import PAGE, address_of, in_child
from odd_providers import WORDS, Counting, Dying, Logging, Odd
from somebody import as_somebody
from support import PATIENCE, compile_library, needs_compiler, wait_until

import lazymem as lm
from lazymem.core.provider import process_ids


def array_of(provider, delivery, **options):
    return lm.from_provider(provider, dtype="i8", **{"block_nbytes": PAGE, "delivery": delivery, **options})


def source(a):
    return lm.region(a).source


def run_together(functions):
    """Each on a thread of its own; what they return. What one raises, this raises."""
    answers, errors = {}, []

    def run(i, function):
        try:
            answers[i] = function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(functions)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return [answers[i] for i in range(len(functions))]


# ---------------------------------------------------------------------------------------------------------------------------
# Whose fault it is


@pytest.mark.thin
@as_somebody
@pytest.mark.parametrize("act", ["exits", "segfaults", "keeps_array", "sleeps", "sleeps_in_c", "stops"])
def test_who_shares_a_process_with_one_that_dies_gets_on(act, user, delivery):
    in_child(share, act, delivery, user=user)


def share(act, delivery):
    """All of them are under way when it happens, and none may fail even once."""
    odd = Odd(act, seconds=0.1)
    innocent = [Counting(4, shift=i, seconds=0.25) for i in range(4)]
    arrays = [array_of(p, delivery, retries=0) for p in innocent]
    patient = array_of(Counting(4, seconds=0.25), delivery, retries=0, timeout=20)
    hangs = act.startswith("s") and act != "segfaults"
    culprit = array_of(odd, delivery, retries=0, timeout=1 if hangs else 20)
    assert culprit[WORDS] == WORDS
    [shared] = process_ids()

    def fail():
        with pytest.raises(lm.PageError):
            culprit[0]

    began = time.monotonic()
    everybody = [*zip(arrays, innocent, strict=True), (patient, Counting(4))]
    run_together([fail, *(lambda a=a, p=p: np.testing.assert_array_equal(a, p.right()) for a, p in everybody)])
    took = time.monotonic() - began
    assert took < 10 * PATIENCE, took  # no timeout but the culprit's was waited for
    assert shared not in process_ids()
    assert source(culprit).has_own
    if act in ("keeps_array", "sleeps"):  # it is known whose fault it was
        assert not any(source(a).has_own for a in arrays)
    # From now on it does it alone.
    assert array_of(Counting(), delivery, retries=0)[0] == 0
    before = set(process_ids())
    if not hangs:
        fail()
    assert np.array_equal(culprit[WORDS:], odd.right()[WORDS:])
    assert len(before & set(process_ids())) >= 1, "the shared one lives on"


@as_somebody
def test_who_is_impatient_is_not_to_blame_for_who_holds_the_gil(user, delivery):
    in_child(impatient, delivery, user=user)


def impatient(delivery):
    holder = array_of(Odd("sleeps_in_c"), delivery, timeout=30, retries=0)
    quick = array_of(Counting(), delivery, timeout=1, retries=0)
    assert quick[0] == 0
    lm.prefetch(holder[:1])
    assert wait_until(lambda: source(holder).attempts == 1)
    time.sleep(0.1)
    began = time.monotonic()
    assert np.array_equal(quick, Counting().right())
    assert time.monotonic() - began < 10
    assert not source(quick).has_own
    assert wait_until(lambda: source(holder).has_own)


@as_somebody
def test_waiting_for_ones_turn_is_not_hanging(user, delivery):
    in_child(take_turns, delivery, user=user)


def take_turns(delivery):
    """3.2 s of work for one thread; nobody's own block takes longer than its timeout of 2 s."""
    provider = Counting(64, seconds=0.05, concurrent=False)
    a = array_of(provider, delivery, timeout=2, retries=0)
    assert a[0] == 0
    pids = process_ids()
    plain = np.asarray(a)
    touched = touch_apart(plain, 64)
    assert touched == [i * WORDS for i in range(64)]
    assert process_ids() == pids
    assert not source(a).has_own


def touch_apart(plain, nblocks):
    """One thread for each block; the GIL is not held while they wait."""
    read = ctypes.CDLL(None).memcpy
    read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    at = address_of(plain)

    def touch(i):
        value = ctypes.c_int64(-1)
        read(ctypes.byref(value), at + i * PAGE, 8)
        return value.value

    return run_together([lambda i=i: touch(i) for i in range(nblocks)])


@as_somebody
def test_more_threads_than_slots(user, delivery):
    in_child(eighty, delivery, user=user)


def eighty(delivery):
    a = array_of(Counting(80, seconds=0.1), delivery, timeout=10)
    assert touch_apart(np.asarray(a), 80) == [i * WORDS for i in range(80)]
    assert source(a).attempts == 80
    assert len(process_ids()) == 1


# ---------------------------------------------------------------------------------------------------------------------------
# Signals at random


@pytest.mark.slow
@as_somebody
@pytest.mark.parametrize(("number", "processes"), [(signal.SIGKILL, 1), (signal.SIGKILL, 3), (signal.SIGSTOP, 2)])
def test_signals_at_random_under_load(number, processes, user, delivery):
    print(in_child(random_signals, int(number), processes, delivery, user=user, timeout=100))


def random_signals(number, processes, delivery):
    rng = random.Random(number)
    stop = threading.Event()
    options = {"timeout": 1 if number == signal.SIGSTOP else 5, "retries": 6, "processes": processes}
    right, failed, moved, sent = [], [], [0] * 4, 0

    def touch(k):
        for i in range(10**6):
            if stop.is_set():
                return
            provider = Counting(8, shift=k * 1000 + i, seconds=0.002 * (k % 2))
            a = array_of(provider, delivery, **options)
            try:
                want = provider.right()
                if k == 0:
                    assert np.array_equal(a, want)
                elif k == 1:
                    lm.populate(a)
                    assert np.asarray(a).tolist() == want.tolist()
                else:
                    for j in rng.sample(range(8), 8):
                        assert a[j * WORDS + 5] == want[j * WORDS + 5]
                right.append(k)
            except lm.PageError as error:
                failed.append(error)
            moved[k] += 1

    threads = [threading.Thread(target=touch, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for _ in range(5 if number == signal.SIGKILL else 3):  # as soon as they have got somewhere, whatever the machine can
        before = list(moved)
        assert wait_until(lambda before=before: all(moved[k] > before[k] for k in range(4)), 30)
        time.sleep(rng.random() * 0.02)
        for pid in rng.sample(process_ids(), rng.randint(1, processes)):
            os.kill(pid, number)
            sent += 1
    stop.set()
    for t in threads:
        t.join()
    print(f"{sent} signals, {len(right)} arrays right, {len(failed)} failed: {[str(e.__cause__) for e in failed]}")
    assert sent >= 3
    assert all(error.errno in (errno.ETIMEDOUT, errno.EPIPE) for error in failed), failed
    # Who was killed is asked again at once. Who was stopped has lost half its time before, or all where it was just starting.
    assert number == signal.SIGSTOP or len(failed) <= 2
    assert len(right) >= 20
    for pid in process_ids():  # whom nobody has waited for yet
        os.kill(pid, signal.SIGCONT)
    assert np.array_equal(array_of(Counting(), delivery), Counting().right())


@as_somebody
def test_a_process_that_dies_during_a_product(user, delivery, folder):
    in_child(product, str(folder), delivery, user=user)


def product(folder, delivery):
    n = 128
    provider = Dying(folder, n * n * 8 // PAGE, blocks=(5, 17))
    a = lm.from_provider(provider, (n, n), "i8", block_nbytes=PAGE, delivery=delivery)
    want = provider.right().reshape(n, n)
    assert np.array_equal(np.asarray(a) @ np.asarray(a), want @ want)
    assert len(os.listdir(folder)) == 2, "it died twice"
    b = lm.from_function(lambda i, j: (i * n + j) % 7, (n, n), "f8", block_nbytes=PAGE, delivery=delivery)
    for pid in process_ids():
        os.kill(pid, signal.SIGKILL)
    assert np.array_equal(np.asarray(b) @ np.asarray(b), np.linalg.matrix_power(provider.right().reshape(n, n) % 7, 2))


# ---------------------------------------------------------------------------------------------------------------------------
# Threads that do not come back

LEAVERS = """
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
static __thread sigjmp_buf back;
static __thread volatile int leaves_by_exit;
static void leave(int sig)
{
    if (leaves_by_exit)
        pthread_exit(NULL);
    siglongjmp(back, 1);
}
void prepare(void)
{
    struct sigaction s = {0};
    s.sa_handler = leave;
    sigaction(SIGUSR1, &s, NULL);
}
/* Touch, and jump out of it when SIGUSR1 comes; n times, on this thread. Return: how often it was left. */
int touch_and_jump(volatile char *at, uint64_t step, int n)
{
    volatile int i, left = 0;
    leaves_by_exit = 0;
    for (i = 0; i < n; i++)
        if (sigsetjmp(back, 1))
            left++;
        else
            (void)at[i * step];
    return left;
}
static void *touch_and_exit(void *at) { leaves_by_exit = 1; (void)*(volatile char *)at; return (void *)1; }
/* One thread for each of n places, each of which is told to end itself while it waits. Return: how many did. */
int exit_all(char *at, uint64_t step, int n)
{
    pthread_t threads[256];
    void *result;
    int i, left = 0;
    for (i = 0; i < n; i++)
        if (pthread_create(&threads[i], NULL, touch_and_exit, at + i * step))
            abort();
    nanosleep(&(struct timespec){0, 500000000}, NULL);
    for (i = 0; i < n; i++)
        pthread_kill(threads[i], SIGUSR1);
    for (i = 0; i < n; i++) {
        pthread_join(threads[i], &result);
        left += result == NULL;
    }
    return left;
}
"""


@pytest.mark.slow
@needs_compiler
@as_somebody
@pytest.mark.parametrize("how", ["jump", "exit"])
def test_threads_that_leave_their_wait_hold_no_slot_for_ever(how, user, delivery, folder):
    library = compile_library(LEAVERS, folder, flags=("-pthread", "-Wno-clobbered"))
    in_child(leave, how, str(library), delivery, user=user, timeout=40)


def leave(how, path, delivery):
    lib = ctypes.CDLL(path)
    lib.touch_and_jump.argtypes = lib.exit_all.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
    lib.prepare()
    timeout = 3.0
    slow = Counting(100, seconds=60, concurrent=False)
    quick = array_of(Counting(100), delivery, timeout=timeout, retries=0)
    assert quick[0] == 0
    # Inline, the thread that leaves is the one that asks. A handler thread asks on, until the time is up.
    a = array_of(slow, delivery, timeout=30 if delivery == "inline" else 1)
    if how == "exit":
        assert lib.exit_all(address_of(a), PAGE, 70) == 70
    else:
        main, stop = threading.get_native_id(), threading.Event()

        def send():
            while not stop.wait(0.01):
                ctypes.CDLL(None).tgkill(os.getpid(), main, int(signal.SIGUSR1))

        sending = threading.Thread(target=send)
        sending.start()
        left = lib.touch_and_jump(address_of(a), PAGE, 70)
        stop.set()
        sending.join()
        assert left == 70
    began = time.monotonic()
    assert np.array_equal(quick, Counting(100).right())
    took = time.monotonic() - began
    print(f"right after {took:.2f} s")
    assert took < 2 * timeout * PATIENCE


# ---------------------------------------------------------------------------------------------------------------------------
# How many


@as_somebody
def test_two_hundred_arrays_share_one_process(user, delivery):
    in_child(two_hundred, delivery, user=user)


def two_hundred(delivery):
    arrays = [array_of(Counting(4, shift=i), delivery) for i in range(200)]
    assert len(process_ids()) == 1
    assert all(run_together([lambda k=k: all(np.array_equal(a, Counting(4, shift=i).right())
                                             for i, a in list(enumerate(arrays))[k::8]) for k in range(8)]))  # fmt: skip
    assert len(process_ids()) == 1
    assert [source(a).attempts for a in arrays] == [4] * 200


@as_somebody
def test_as_many_processes_as_asked_for(user, delivery):
    in_child(several, delivery, user=user)


def several(delivery):
    for processes in (2, 3, 4):
        a = array_of(Counting(24, seconds=0.05, concurrent=False), delivery, processes=processes)
        assert wait_until(lambda n=processes: len(process_ids()) == n)
        assert touch_apart(np.asarray(a), 24) == [i * WORDS for i in range(24)]
        assert len(process_ids()) == processes, "the set is shared: those of before are among them"
    os.kill(process_ids()[1], signal.SIGKILL)
    b = array_of(Counting(24, shift=1, seconds=0.05, concurrent=False), delivery, processes=4)
    assert touch_apart(np.asarray(b), 24) == [i * WORDS + 1 for i in range(24)]
    assert len(process_ids()) == 4


def memory_of(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) << 10


def possessions(pid):
    return {"descriptors": len(os.listdir(f"/proc/{pid}/fd")), "threads": len(os.listdir(f"/proc/{pid}/task"))}


@pytest.mark.slow
@as_somebody
def test_a_thousand_arrays_leave_nothing_behind(user, delivery, folder):
    print(in_child(a_thousand, str(folder / "log"), delivery, user=user))


def a_thousand(path, delivery):
    def some(n):
        for i in range(n):
            a = array_of(Counting(2, shift=i), delivery)
            assert a[WORDS + 1] == WORDS + 1 + i
            if i % 2:
                lm.close(a)
            if i % 50 == 0:
                assert array_of(Logging(path, shift=i), delivery)[0] == i

    some(200)
    [pid] = process_ids()
    both = (os.getpid(), pid)
    time.sleep(0.3)
    before, resident = [possessions(p) for p in both], [memory_of(p) for p in both]
    some(1000)
    time.sleep(0.3)
    assert process_ids() == [pid]
    for pid, was in zip(both, before, strict=True):
        assert possessions(pid)["descriptors"] == was["descriptors"]
        assert possessions(pid)["threads"] <= was["threads"] + 8  # as many as may answer faults, whenever they are needed
    growth = [memory_of(p) - was for p, was in zip(both, resident, strict=True)]
    print(f"growth: {growth[0] >> 10} KiB here, {growth[1] >> 10} KiB there, of {resident[0] >> 10} and {resident[1] >> 10}")
    assert max(growth) < 4 << 20
    wanted = [word for word in ("close", "open", "read") for _ in range(24)]
    assert wait_until(lambda: sorted(Path(path).read_text().split()[::2]) == wanted)


@pytest.mark.slow
@as_somebody
def test_processes_that_come_and_go_leave_nothing_behind(user, delivery):
    print(in_child(come_and_go, delivery, user=user))


def come_and_go(delivery):
    def some(n):
        for i in range(n):
            a = array_of(Counting(2, shift=i), delivery)
            assert a[1] == 1 + i
            for pid in process_ids():
                os.kill(pid, signal.SIGKILL)
            assert a[WORDS] == WORDS + i

    some(4)
    time.sleep(0.3)
    before, resident = possessions(os.getpid()), memory_of(os.getpid())
    some(10)
    assert wait_until(lambda: possessions(os.getpid())["descriptors"] == before["descriptors"])
    assert memory_of(os.getpid()) - resident < 4 << 20
    assert wait_until(lambda: Path("/proc/self/maps").read_text().count("memfd:lazymem-ring") <= 1)
