"""When the kernel will not move, protect or scan pages, or does and denies it: is all there, are those told who must know?"""

import contextlib
import errno
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
from injection_kit import HALF, MOVED, MOVED_FIRST, MOVED_MORE, SHORT, Injector, name_of
from memory_kit import EVERYBODY, LEAST, WORDS, each_way, file_of, run
from native_kit import PAGE, end_of_child, library
from support import IS_ROOT, needs_compiler, wait_until

import lazymem as lm

pytestmark = needs_compiler

ALL_THE_SAME = (MOVED, MOVED_FIRST, MOVED_MORE)     # the pages are moved, and the kernel says that they are not
GONE_ON_WITH = (*ALL_THE_SAME, SHORT, errno.EINTR)  # so nothing is refused
REFUSALS = (errno.EBUSY, errno.ENOMEM, errno.EINVAL, errno.EAGAIN, errno.ENOENT, HALF)
PAGES = 2 * LEAST // PAGE
TOUCHES = 2 * PAGES


def made(folder, mode, delivery, pages, **options):
    """An array of blocks of so many pages, and what it holds."""
    path = file_of(Path(folder), PAGES * pages)
    a = lm.memmap(path, "i8", mode, delivery=delivery, block_nbytes=PAGE * pages, timeout=10, **options)
    return a, np.arange(a.size), path


# ---------------------------------------------------------------------------------------------------------------------------
# MOVE

@pytest.mark.parametrize(("user", "delivery", "mode", "pages"), [
    ("root" if IS_ROOT else "nobody", "threads", "r+", 4), ("nobody", "inline", "c", 1), ("nobody", "threads", "r", 4),
])
def test_pages_that_are_not_moved_or_only_said_not_to_be(folder, user, delivery, mode, pages):
    library("inject.c")
    run(pages_that_are_not_moved, str(folder), delivery, mode, pages, 1, user=user)


@pytest.mark.slow
@pytest.mark.parametrize("pages", [1, 4])
@pytest.mark.parametrize("mode", ["r", "c", "r+"])
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
def test_more_pages_that_are_not_moved(folder, user, delivery, mode, pages):
    library("inject.c")
    run(pages_that_are_not_moved, str(folder), delivery, mode, pages, 4, user=user)


def pages_that_are_not_moved(folder, delivery, mode, pages, each):
    """One MOVE after another, out of the region and back, of single pages and of several: the array is right afterwards."""
    options = {"budget_nbytes": LEAST * pages, "fill": "move" if mode == "r" else "auto"}
    a, expected, path = made(folder, mode, delivery, pages, **options)
    injector = Injector()
    words = WORDS * pages
    chance, ends = random.Random(3), (0, words - 1)

    def add(at):
        value = int(a[at])
        assert value == expected[at]
        expected[at] = value + 1
        a[at] = value + 1

    def touch(at):
        """A step of the work; where there is no memory, it says so, and has written the word or not."""
        try:
            if mode == "r":
                assert a[at] == expected[at]
            else:
                add(at)
        except lm.PageError as error:
            if error.errno == errno.EDQUOT:
                return False
            raise
        return True

    def work():
        """Blocks here and there: some of them wait just then, and are put back. Return: how many touches were told."""
        told = [at for at in (chance.randrange(PAGES) * words + chance.choice(ends) for _ in range(TOUCHES)) if not touch(at)]
        injector.disarm()
        for at in told:
            assert a[at] in (expected[at], expected[at] - (mode != "r"))
            expected[at] = a[at]
        return len(told)

    injector.count_only()
    assert work() == 0
    calls, before = injector.counts()["MOVE"], lm.stats(a)
    assert before.evicted > PAGES // 2, before
    assert before.rescued > 4, before
    assert calls > PAGES // 2, "nothing is moved"
    assert before.refused == 0
    for error in (*GONE_ON_WITH, *REFUSALS):
        for on in (False, True):
            if on and error in (SHORT, errno.EINTR, errno.EAGAIN):
                continue
            for nth in chance.sample(range(1, calls // 2), each):
                what = f"MOVE {name_of(error)} at {nth}{' and on' if on else ''}"
                refused = lm.stats(a).refused
                injector.arm("MOVE", error, nth, on)
                told = work()
                assert injector.state.struck or error == HALF, what
                refused = lm.stats(a).refused - refused
                if error in GONE_ON_WITH:
                    assert (told, refused) == (0, 0), what
                elif on:
                    assert refused > 0, what
                else:
                    assert told == 0, what
                    assert refused <= 1 + (error == HALF), what
                assert np.array_equal(a, expected), what
                assert lm.stats(a).held_nbytes <= LEAST * pages, what
    if mode != "r":
        lm.flush(a)
        assert np.array_equal(np.fromfile(path, "i8"), expected if mode == "r+" else np.arange(a.size))
    lm.close(a)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_what_is_refused_stays_and_is_counted(folder, delivery, mode):
    library("inject.c")
    run(what_is_refused_stays, str(folder), delivery, mode)


def what_is_refused_stays(folder, delivery, mode, n=12, pages=3):
    """Each refused eviction is one, whatever it had moved; and neither bytes nor what is known of writes is lost by it."""
    a, expected, path = made(folder, mode, delivery, pages, fill="move" if mode == "r" else "auto")
    part, words = slice(0, n * pages * WORDS), pages * WORDS
    injector = Injector()
    for error in REFUSALS:
        lm.populate(a[part])
        if mode == "r+":
            a[0 : part.stop : words] += 1
            expected[0 : part.stop : words] += 1
        before = lm.stats(a)
        injector.arm("MOVE", error, 1, True)
        left = lm.evict(a[part])
        injector.disarm()
        after, goes = lm.stats(a), error == errno.ENOENT and mode == "r"     # it looks as if somebody had dropped it
        assert left == (0 if goes else n), name_of(error)
        assert after.refused - before.refused == n, name_of(error)
        assert after.pinned_skips - before.pinned_skips == (0 if goes else n), name_of(error)
        assert sum(lm.residency(a)) == left
        assert np.array_equal(a[part], expected[part]), name_of(error)
        if mode == "r+":
            a[words - 1 : part.stop : words] += 1
            expected[words - 1 : part.stop : words] += 1
        assert lm.evict(a) == 0, name_of(error)
        assert np.array_equal(a[part], expected[part]), name_of(error)
        assert lm.evict(a) == 0
        if mode == "r+":
            assert np.array_equal(np.fromfile(path, "i8"), expected), name_of(error)
    lm.close(a)


# ---------------------------------------------------------------------------------------------------------------------------
# The way back

@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
def test_what_cannot_be_put_back(folder, user, delivery):
    library("inject.c")
    run(what_cannot_be_put_back, str(folder), delivery, way="no-move", user=user)


def what_cannot_be_put_back(folder, delivery, block=6):
    """A clean block that the kernel does not let back is fetched; of one that was written its user is told, if trying again
    does not help. Neither is lost."""
    at = block * WORDS
    injector = Injector()
    for dirty, lasting in ((False, False), (True, False), (False, True), (True, True)):
        a, expected, _ = made(folder, "c", delivery, 1, budget_nbytes=LEAST)
        for some in range(LEAST // PAGE + 1):       # one more than there is room for: the first are evicted
            assert a[some * WORDS + 9] == expected[some * WORDS + 9]
            if dirty and some == block:
                a[at] = expected[at] = -5
        before = lm.stats(a)
        assert before.waiting_nbytes > block * PAGE
        injector.arm("COPY", errno.EFAULT, 1, lasting)
        if lasting:
            assert told_of(a, at) == (errno.ENOTRECOVERABLE if dirty else errno.EFAULT)
            if dirty:
                ends_by_sigbus(lambda a=a: a[at])
        else:
            assert a[at] == expected[at]
        injector.disarm()
        assert np.array_equal(a[at : at + WORDS], expected[at : at + WORDS])
        # (a handler counts after the touch goes on)
        assert wait_until(lambda a=a, n=before.rescued + dirty: lm.stats(a).rescued == n), (dirty, lasting)
        assert np.array_equal(a, expected)
        lm.close(a)


@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
def test_an_operation_meets_what_cannot_be_put_back(folder, user, delivery):
    """No stand-in can be made for it, so nobody can be told: the process ends, and says why."""
    library("inject.c")
    status, _, said = end_of_child(an_operation_meets_it, str(folder), delivery, user=user, env={"LAZYMEM_NO_MOVE": "1"})
    assert status == -signal.SIGBUS, (status, said)
    assert "block 6" in said
    assert f"errno {errno.ENOTRECOVERABLE}" in said


def an_operation_meets_it(folder, delivery, block=6):
    a, _, _ = made(folder, "c", delivery, 1, budget_nbytes=LEAST)
    for some in range(LEAST // PAGE + 1):
        assert a[some * WORDS + 9] == some * WORDS + 9
        if some == block:
            a[block * WORDS] = -5
    Injector().arm("COPY", errno.EFAULT, 1, True)
    np.add(a[block * WORDS : block * WORDS + 9], 1)


def told_of(a, at):
    try:
        lm.populate(a[at : at + WORDS])
    except lm.PageError as error:
        return error.errno


def ends_by_sigbus(touch):
    """Nothing can tell a touch of what is nowhere else and cannot be had: it must not come back for ever."""
    pid = os.fork()
    if pid == 0:
        touch()
        os._exit(0)
    assert wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)), "the child hangs"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGBUS


# ---------------------------------------------------------------------------------------------------------------------------
# WRITEPROTECT, and what the kernel says of writes

@each_way
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
def test_what_cannot_be_protected_stays_dirty(folder, user, delivery, way):
    library("inject.c")
    run(what_cannot_be_protected_stays_dirty, str(folder), delivery, way, way=way, user=user)


def what_cannot_be_protected_stays_dirty(folder, delivery, way, n=6):
    a, expected, path = made(folder, "r+", delivery, 2)
    words, some = 2 * WORDS, slice(0, 2 * n * WORDS)
    asks = lm.region(a).kernel_faults or way == "no-move"     # else the kernel notes writes by itself
    injector = Injector()

    def write():
        a[0 : some.stop : words] += 1
        expected[0 : some.stop : words] += 1

    def stored():
        return [bool(same) for same in np.fromfile(path, "i8")[0 : some.stop : words] == expected[0 : some.stop : words]]

    for nth in range(1, n + 1):
        # 1. A flush: it tells of the first that is refused, and what came before is where it belongs.
        for error in (errno.ENOMEM, errno.EAGAIN, errno.EINTR):
            write()
            injector.arm("WRITEPROTECT", error, nth, False)
            try:
                lm.flush(a)
                told = None
            except lm.PageError as raised:
                told = raised
            injector.disarm()
            refused = bool(injector.state.struck) and error != errno.EAGAIN    # (which is asked again)
            assert injector.state.struck == asks
            assert (told is not None) == refused, (name_of(error), told)
            if told is not None:
                assert told.errno == error
                assert not stored()[told.block]
            assert sum(stored()) == (nth - 1 if refused else n), (name_of(error), nth, stored())
            assert np.array_equal(a[some], expected[some])
            before = lm.stats(a).stored
            lm.flush(a)
            assert lm.stats(a).stored - before == (n - nth + 1 if refused else 0)
            assert all(stored())
        # 2. A write: it is told, or goes on; a second one does not notice.
        at = (nth - 1) * words
        injector.arm("WRITEPROTECT", errno.ENOMEM, 1, False)
        with contextlib.suppress(lm.PageError):
            a[at] = 7
        a[at] = 7
        injector.disarm()
        expected[at] = 7
        lm.flush(a)
        assert all(stored())
        # 3. An eviction: by COPY the block stays, and is as dirty as it was.
        write()
        before = lm.stats(a)
        injector.arm("WRITEPROTECT", errno.ENOMEM, nth, False)
        left = lm.evict(a)
        injector.disarm()
        assert left == injector.state.struck == (way == "no-move")
        assert lm.stats(a).pinned_skips - before.pinned_skips == left
        assert sum(stored()) == n - left
        assert np.array_equal(a[some], expected[some])
        assert lm.evict(a) == 0
        assert all(stored())
        lm.populate(a[some])
    lm.close(a)
    assert np.array_equal(np.fromfile(path, "i8"), expected)


@pytest.mark.parametrize("kind", ["SCAN", "open_pagemap"])
def test_where_nobody_says_what_was_written_all_is(folder, delivery, kind):
    library("inject.c")
    run(nobody_says_what_was_written, str(folder), delivery, kind, user="nobody")


def nobody_says_what_was_written(folder, delivery, kind, n=6):
    a, expected, path = made(folder, "r+", delivery, 2)
    injector = Injector()
    for on in (False, True):
        for nth in range(1, n + 1):
            for save in (lm.flush, lm.evict):
                lm.populate(a[: 2 * n * WORDS])
                a[nth] = expected[nth] = expected[nth] + 1
                injector.arm(kind, errno.ENOMEM, nth, on)
                assert not save(a)
                injector.disarm()
                assert injector.state.struck or kind != "SCAN"
                assert np.array_equal(np.fromfile(path, "i8"), expected), (save, nth, on)
                assert np.array_equal(a[: 2 * n * WORDS], expected[: 2 * n * WORDS])
    lm.close(a)
