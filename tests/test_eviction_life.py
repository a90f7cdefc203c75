"""Do forks, closing, and the end of the process meet arrays whose memory is just being taken away, and lose nothing?"""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from memory_kit import EVERYBODY, LEAST, WORDS, crowd, each_way, file_of, over_and_over, run, together
from native_kit import PAGE, address_of, counted
from support import needs_compiler, run_child

import lazymem as lm

pytestmark = needs_compiler

BLOCKS = LEAST // PAGE
USUAL = [each for each in EVERYBODY if each in (("root", "threads"), ("nobody", "inline"))]


# ---------------------------------------------------------------------------------------------------------------------------
# Forks

@pytest.mark.thin
@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.parametrize(("user", "delivery"), USUAL)
@each_way
def test_a_child_has_what_was_counted_before_it(folder, user, delivery, way, mode):
    run(a_child_has_what_was_counted, str(folder), delivery, mode, 5, way=way, user=user)


def a_child_has_what_was_counted(folder, delivery, mode, forks, npages=3 * BLOCKS, nthreads=2):
    """No less than what had been counted before the fork, and of what is private no more than what had been after it.

    (What is not, a child fetches from the file when it comes by: the parent has gone on writing to that.)
    """
    path = file_of(folder, npages)
    a = lm.memmap(path, "i8", mode, delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST)
    pages = np.asarray(a).reshape(npages, WORDS)
    was = np.arange(npages * WORDS).reshape(npages, WORDS)
    mine = np.zeros((nthreads, npages), "i8")
    over = threading.Event()

    def count(slot):
        while not over.is_set():
            crowd().count_up(address_of(a), npages, PAGE, slot, 20_000_000, mine[slot].ctypes.data)

    threads = [threading.Thread(target=count, args=(slot,)) for slot in range(nthreads)]
    with over_and_over(lambda: lm.evict(a), lambda: a.flush()):
        for thread in threads:
            thread.start()
        try:
            for _ in range(forks):
                least = mine.copy()
                hear, say = os.pipe()
                child = os.fork()
                if child == 0:
                    ends = 1
                    try:
                        most = np.frombuffer(_all_of(hear, mine.nbytes), "i8").reshape(mine.shape) + 1
                        counts = (pages - was)[:, :nthreads].T
                        right = (least <= counts) & ((counts <= most) | (mode == "r+"))
                        if right.all() and np.array_equal(pages[:, nthreads:], was[:, nthreads:]):
                            pages[:, 0] = 7
                            ends = 0 if (pages[:, 0] == 7).all() else 4
                        else:
                            fewer, more = int((counts < least).sum()), int((counts > most).sum())
                            others = int((pages[:, nthreads:] != was[:, nthreads:]).sum())
                            print(f"{fewer} are less, {more} are more, {others} others are wrong", file=sys.stderr)
                            ends = 3
                    except BaseException:
                        import traceback

                        traceback.print_exc()
                    finally:
                        os._exit(ends)
                os.write(say, mine.tobytes())
                os.close(say)
                os.close(hear)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                time.sleep(0.005)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert np.array_equal((pages - was)[:, :nthreads].T, mine), "nor has the parent lost anything"
    assert np.array_equal(pages[:, nthreads:], was[:, nthreads:])
    del pages
    lm.close(a)


def _all_of(number, nbytes):
    data = b""
    while len(data) < nbytes:
        data += os.read(number, nbytes - len(data))
    return data


# ---------------------------------------------------------------------------------------------------------------------------
# Closing

@pytest.mark.thin
@pytest.mark.parametrize(("user", "delivery"), USUAL)
@each_way
def test_arrays_come_and_go_while_others_take_their_memory(folder, user, delivery, way):
    run(arrays_come_and_go, str(folder), delivery, way=way, user=user)


def arrays_come_and_go(folder, delivery, seconds=0.7):
    """The budget is the process's: whoever needs memory takes it from an array that may be closed just then."""
    lm.set_budget("4 MiB")
    expected = np.arange(3 * WORDS << 8)
    paths = {mode: file_of(folder, 3 << 8, f"for {mode}") for mode in ("r", "r+")}
    given = {"delivery": delivery, "block_nbytes": PAGE}

    def come_and_go(mode):
        a = lm.memmap(paths[mode], "i8", mode, **given)
        assert np.array_equal(a, expected)
        if mode == "r+":
            np.add(a, 0, out=a)
        lm.close(a)

    with over_and_over(*(lambda mode=mode: come_and_go(mode) for mode in ("r", "r+", "r"))) as turns:
        stays, _ = counted(8 << 20, **given)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert np.array_equal(stays, np.arange(stays.size))
    assert min(turns) > 0, turns
    from lazymem.core.memory import budget

    lm.close(stays)
    assert budget() == (4 << 20, 0)


def test_close_while_it_is_evicted_and_written(folder, delivery):
    run(close_while_it_is_evicted, str(folder), delivery)


def close_while_it_is_evicted(folder, delivery):
    for turn in range(15):
        path = file_of(folder, 3 * BLOCKS, f"counts-{turn}")
        a = lm.memmap(path, "i8", "r+", delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST)
        a += 1
        ready = threading.Barrier(3)

        def in_the_way(call, ready=ready):
            ready.wait()
            try:
                while True:
                    call()
            except ValueError as error:
                assert "closed" in str(error), error  # noqa: PT017

        def close(a=a, ready=ready):
            ready.wait()
            time.sleep(0.003)
            lm.close(a)

        together(close, lambda a=a: in_the_way(lambda: lm.evict(a)), lambda a=a: in_the_way(a.flush))
        assert np.array_equal(np.fromfile(path, "i8"), np.arange(3 * BLOCKS * WORDS) + 1)


# ---------------------------------------------------------------------------------------------------------------------------
# 42. The end of the process

ENDS = {
    "it runs out": ("", 0, True),
    "sys.exit": ("import sys; sys.exit(3)", 3, True),
    "an exception": ("raise SystemError('on purpose')", 1, True),
    "daemon threads": (
        "import threading\n"
        "def go_on():\n"
        "    while True: a[::512].sum(); lm.evict(a)\n"
        "for _ in range(3): threading.Thread(target=go_on, daemon=True).start()\n", 0, True,
    ),
    "SIGTERM": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, False),
    "os._exit": ("import os; os._exit(5)", 5, False),
}  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize(("user", "delivery"), USUAL)
def test_trap_42_dirty_arrays_at_the_end(folder, user, delivery, how):
    """An end that Python sees writes back what is dirty, in memory or waiting; any other keeps what was stored before."""
    code, status, whole = ENDS[how]
    path = file_of(folder, 2 * BLOCKS)
    start = (f"import numpy as np, lazymem as lm\n"
             f"a = lm.memmap({str(path)!r}, 'i8', 'r+', delivery={delivery!r}, block_nbytes={PAGE}, budget_nbytes={LEAST})\n"
             f"a[:{WORDS}] += 1; a.flush()\na[{WORDS}:] += 1\n")  # fmt: skip
    got, out, err = run_child(start + code, user=user, fresh=True)
    assert got == status, (out, err)
    found, old = np.fromfile(path, "i8"), np.arange(2 * BLOCKS * WORDS)
    assert np.array_equal(found[:WORDS], old[:WORDS] + 1), "what was flushed is there"
    changed = (found - old).reshape(-1, WORDS)
    if whole:
        assert (changed == 1).all(), np.unique(changed.sum(axis=1))
    else:
        assert set(np.unique(changed.sum(axis=1))) <= {0, WORDS}, "each page is wholly old or new"
