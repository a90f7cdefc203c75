"""What happens when somebody meets a block at each step of its eviction, its way back, its first write and its flush?

Every meeting is arranged, none is hoped for. Only in a debug build: tests/lanes.sh makes one and runs this file with it.
"""

import ctypes
import os

import numpy as np
import pytest
from memory_kit import LEAST, WORDS, each_way, file_of, run
from native_kit import PAGE, address_of, libc
from parking_kit import Async, Spot, needs_debug_build, ready
from support import needs_compiler, wait_until

import lazymem as lm

pytestmark = [needs_compiler, needs_debug_build]

BLOCKS = 2 * LEAST // PAGE
BLOCK = 6                                       # the one that they meet at
AT = BLOCK * WORDS
PART = slice(AT, AT + WORDS)
POINTS = ("evicting", "evicted", "rescuing", "written", "flushing")
MEETINGS = ("read", "write", "flush", "evict", "pin", "populate", "fork", "close")
# Who need not wait for one that is parked there. All others do; but nobody sees a write to a block that is not protected.
AT_ONCE = {
    "evicting": {"read"}, "evicted": {"read", "write", "flush", "evict", "pin", "populate"}, "rescuing": set(),
    "written": {"read"}, "flushing": {"read", "fork"},
}  # fmt: skip


def store(a, at, value):
    """By a plain store, which holds nothing."""
    ctypes.memmove(address_of(a) + 8 * at, ctypes.byref(ctypes.c_int64(value)), 8)


def load(a, at):
    got = ctypes.c_int64()
    ctypes.memmove(ctypes.byref(got), address_of(a) + 8 * at, 8)
    return got.value


class Meeting:
    """An array, what it holds, and a thread that is parked at a point, at work on one block of it."""

    def __init__(self, folder, delivery, name, nblocks):
        self.path = file_of(folder, nblocks, name)
        self.out = os.open(folder + "/out", os.O_RDWR | os.O_CREAT)
        self.a = lm.memmap(self.path, "i8", "r+", delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST, timeout=5)
        self.expected = np.arange(self.a.size)

    def write(self, at, value):
        store(self.a, at, value)
        self.expected[at] = value

    def prepare(self, point, dirty, part):
        """The block is as the point needs it: resident or waiting, clean or changed. Return: who comes by the point, at work
        on the block, or on all of the array: a view of it would keep it open."""
        a = self.a
        if point == "rescuing":
            for block in range(LEAST // PAGE + 1):      # one more than there is room for: the first are evicted
                if dirty and block == BLOCK:
                    self.write(AT, -1)
                load(a, block * WORDS + 9)
            assert lm.stats(a).waiting_nbytes > BLOCK * PAGE
            if part:
                return lambda: load(a, AT + 9)
            return lambda: libc().pwrite(self.out, address_of(a) + 8 * AT, 8, 0)    # (no touch could go on in a closed array)
        lm.populate(a[: 8 * WORDS])
        if dirty:
            self.write(AT, -1)
        if point == "written":
            return (lambda: store(a, AT + 1, -2)) if part else lambda: lm.pin(a, write=True).release()
        if point == "flushing":
            self.write(AT + 2, -3)
            return lambda: lm.flush(a[PART] if part else a)
        return lambda: lm.evict(a[PART] if part else a)

    def meet(self, how):
        """Return: a call, and what it should come to."""
        a, on_disk = self.a, self.expected.copy()
        if how == "read":
            return lambda: load(a, AT + 9), lambda got: got == AT + 9
        if how == "write":
            self.expected[AT + 5] = -5
            return lambda: store(a, AT + 5, -5), lambda _: load(a, AT + 5) == -5
        if how == "flush":
            return lambda: (lm.flush(a), np.fromfile(self.path, "i8")[PART])[1], lambda got: self.as_before(got, on_disk[PART])
        if how == "evict":
            return lambda: lm.evict(a[PART]), lambda left: left in (0, 1)
        if how == "pin":
            return lambda: lm.pin(a[PART]), self.is_kept
        if how == "populate":
            return lambda: lm.populate(a[PART]), lambda _: True
        if how == "fork":
            return self.fork, lambda status: status == 0
        return lambda: lm.close(a), lambda _: True

    def as_before(self, got, before):
        """What a flush has saved: no less than what was there when it began."""
        wrong = np.flatnonzero(got != before)
        return set(wrong) <= {1} and got[1] in (before[1], -2)

    def is_kept(self, pin):
        assert lm.evict(self.a) == 1
        assert lm.residency(self.a)[BLOCK]
        load(self.a, AT)
        pin.release()
        return lm.evict(self.a) == 0

    def fork(self):
        pid = os.fork()
        if pid == 0:
            status = 3
            try:
                got = np.asarray(self.a)
                wrong = np.flatnonzero(got != self.expected)
                assert set(wrong) <= {AT + 1}, wrong        # (it was just being written)
                assert np.array_equal(self.a[PART], got[PART])
                store(self.a, AT + 6, -6)
                assert load(self.a, AT + 6) == -6
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        assert wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)), "the child hangs"
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("point", POINTS)
@each_way
def test_somebody_meets_a_block(folder, delivery, way, point):
    ready()
    print(run(somebody_meets_a_block, str(folder), delivery, way, point, way=way, timeout=100))


def somebody_meets_a_block(folder, delivery, way, point):
    for dirty in (False, True):
        for how in MEETINGS:
            told = f"{point}, {'dirty' if dirty else 'clean'}, {how}"
            try:
                met = one_meeting(folder, delivery, way, point, dirty, how)
            except BaseException as error:
                raise AssertionError(told) from error
            print(f"{told}: {met}", flush=True)


def one_meeting(folder, delivery, way, point, dirty, how):
    """Return: what came of it, in words."""
    m = Meeting(folder, delivery, f"{dirty}-{how}", 16 if (point, how) == ("written", "close") else BLOCKS)
    a, waits = m.a, how not in AT_ONCE[point]
    asks = way == "no-move" or lm.region(a).kernel_faults       # else the kernel notes writes by itself
    calls_wait = lm.region(a).kernel_faults
    if (point == "written" and (dirty or not asks)) or ((point, how) == ("rescuing", "close") and not calls_wait):
        lm.close(a)
        return "no such thing"
    if how == "write" and (not asks or (point == "evicting" and dirty)) and point != "rescuing":
        waits = False
    comes_by = m.prepare(point, dirty, how != "close")
    # (a fork that waits holds the GIL: nobody can release who is parked)
    spot = Spot(point, seconds=0.15 if how in ("fork", "close") and waits else 20)
    first = Async(comes_by)
    spot.wait_parked()
    call, right = m.meet(how)
    second = Async(call)
    if waits:
        assert not wait_until(lambda: second.done and spot.parked, 0.04), "it has not waited"
    else:
        assert wait_until(lambda: second.done), "it waits"
    spot.release()
    first.end()
    second.end()
    if how == "close":
        assert second.error is None, second.error
        assert first.error is None or "closed" in str(first.error), first.error
    else:
        assert first.error is None, first.error
        assert second.error is None, second.error
        assert right(second.value), second.value
    if point == "written" and how != "close":
        m.expected[AT + 1] = -2
    if how != "close":
        assert np.array_equal(a, m.expected), np.flatnonzero(np.asarray(a) != m.expected)
        m.write(AT + 7, -8)                             # it is noticed still
        assert lm.evict(a) == 0
        assert np.array_equal(np.fromfile(m.path, "i8"), m.expected)
        assert np.array_equal(a, m.expected)
        stats = lm.stats(a)
        assert stats.held_nbytes <= LEAST
        m.write(AT + 8, -9)
        lm.close(a)
    assert np.array_equal(np.fromfile(m.path, "i8"), m.expected), np.flatnonzero(np.fromfile(m.path, "i8") != m.expected)
    return "waits" if waits else "at once"


def test_slots_are_made_once(folder):
    ready()
    run(slots_are_made_once, str(folder))


def slots_are_made_once(folder):
    """A thread has seen that there are no slots, and goes on after another has made them: what waits there is not lost."""
    path = file_of(folder, 2 * BLOCKS)
    a = lm.memmap(path, "i8", "c", delivery="inline", block_nbytes=PAGE, budget_nbytes=LEAST)
    half = a.size // 2
    spot = Spot("slots")

    def write(first):
        for at in range(first, first + half, WORDS):
            store(a, at, -at - 1)

    first = Async(lambda: write(0))
    spot.wait_parked()
    second = Async(lambda: write(half))
    assert wait_until(lambda: lm.stats(a).waiting_nbytes > 0)
    spot.release()
    assert first.end().error is None
    assert second.end().error is None
    expected = np.arange(a.size)
    expected[::WORDS] = -expected[::WORDS] - 1
    assert np.array_equal(a, expected)
    lm.close(a)


def test_a_block_is_evicted_just_as_it_is_pinned(folder, delivery):
    ready()
    run(a_block_is_evicted_just_as_it_is_pinned, str(folder), delivery)


def a_block_is_evicted_just_as_it_is_pinned(folder, delivery):
    """Then it waits, in the frame that was to be pinned: it is fetched back before anybody is told that it stays."""
    path = file_of(folder, BLOCKS)
    a = lm.memmap(path, "i8", "r+", delivery=delivery, block_nbytes=PAGE, budget_nbytes=LEAST)
    for block in range(LEAST // PAGE):
        load(a, block * WORDS)
    spot = Spot("pinning")
    pinning = Async(lambda: lm.pin(a[PART]))
    spot.wait_parked()
    load(a, (LEAST // PAGE) * WORDS)                # the first are evicted, and wait
    assert not lm.residency(a)[BLOCK]
    spot.release()
    pin = pinning.end().value
    for block in range(BLOCKS):
        load(a, block * WORDS)
    assert lm.residency(a)[BLOCK]
    pin.release()
    assert lm.evict(a) == 0
    assert lm.stats(a).held_nbytes == 0
    assert np.array_equal(a, np.arange(a.size))
    pinning = pin = None
    lm.close(a)
