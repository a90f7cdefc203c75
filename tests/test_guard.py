"""Does leaving a guard without an exception prove that nothing read inside was wrong?"""

import ctypes
import errno
import os
import re
import threading
import time

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, end_of_child, in_child, pest
from support import DELIVERIES, EVERY_DELIVERY, each_user, needs_compiler, over_deliveries, stop_of

import lazymem as lm

pytestmark = needs_compiler
delivery = over_deliveries(EVERY_DELIVERY)

WORDS = PAGE // 8
NO_DATA = {"f8": np.nan, ">f4": np.nan, "f2": np.nan, ">c16": complex(np.nan, np.nan), "c8": complex(np.nan, np.nan),
           "M8[s]": "NaT", ">m8[ns]": "NaT", "i8": 0, "u1": 0, "?": 0}  # fmt: skip


def array(delivery, mode="r", npages=16, **options):
    return counted(npages * PAGE, mode=mode, delivery=delivery, block_nbytes=PAGE, **options)


def failing(delivery, mode="r", npages=16, **options):
    return array(delivery, mode, npages, error=-errno.EIO, **options)


def lost(text):
    """How many blocks does a message say were stored into in vain?"""
    found = re.findall(r"stored into block \d+(?: and (\d+) more)? of array", str(text))
    return sum(1 + int(more or 0) for more in found)


# --- stores


@each_user
def test_a_store_into_what_is_not_there_is_named(delivery, user):
    in_child(a_store_is_named, delivery, user=user)


def a_store_is_named(delivery):
    a, kit = failing(delivery, mode="c")
    plain = np.asarray(a)

    def store():
        plain[2 * WORDS] = 7
        plain[9 * WORDS : 11 * WORDS] = 8

    for _ in range(20):
        with pytest.raises(lm.PageError) as caught, lm.guard():
            store()
        assert lost(caught.value) == 3, "each block, each time, none of another time"
        assert caught.value.block == 2
        assert caught.value.elements == (2 * WORDS, 3 * WORDS)
    with pytest.raises(lm.PageError) as caught, lm.guard():
        plain.sum()
    assert lost(caught.value) == 0
    with pytest.raises(lm.PageError) as caught:
        a[5] = 1
    assert lost(caught.value) == 1
    assert caught.value.attempts == 1, (caught.value, caught.value.attempts, lm.stats(a))
    with pytest.raises(lm.PageError) as caught:
        a += 1
    assert lost(caught.value) >= 1
    with pytest.raises(lm.TouchError) as told:
        store()
        for _ in range(10_000):
            pass
    assert lost(told.value) == 3
    kit.error = 0
    with lm.guard():
        assert np.array_equal(plain, np.arange(16 * WORDS)), "nothing of the stores is left"
        plain[5] = 1
        assert plain[5] == 1


# --- what it proves


@each_user
def test_a_guard(delivery, user):
    in_child(a_guard, delivery, user=user)


def a_guard(delivery):
    a, kit = failing(delivery)
    plain = np.asarray(a)
    for touch in (lambda: plain[5], lambda: plain.sum(), lambda: plain + 1, lambda: pest().touch_one(address_of(a))):
        with pytest.raises(lm.PageError, match="fetch") as caught, lm.guard():
            touch()
        assert caught.value.errno == errno.EIO
    kit.error = 0
    with lm.guard():
        assert np.array_equal(plain, np.arange(16 * WORDS)), "nothing of the failures is left"
    with lm.guard():
        pass


@each_user
def test_touches_of_c_threads_under_a_guard(delivery, user):
    in_child(touches_of_c_threads_under_a_guard, delivery, user=user)


def touches_of_c_threads_under_a_guard(delivery):
    a, kit = failing(delivery)
    with pytest.raises(lm.PageError), lm.guard():
        assert pest().touch_apart(address_of(a), 4, 4, PAGE, 0) > 0, "no thread stopped, and what they read was no data"
    kit.error = 0
    with lm.guard():
        assert pest().touch_apart(address_of(a), 4, 4, PAGE, 0) == 0


def test_without_a_guard_a_c_thread_stops_the_process(delivery):
    status, out, err = end_of_child(c_thread_after_a_guard, delivery)
    assert status == stop_of(delivery), err
    assert "guarded" in out
    assert "after" not in out
    assert "input/output" in err


def c_thread_after_a_guard(delivery):
    a, _ = failing(delivery)
    with pytest.raises(lm.PageError), lm.guard():
        pest().touch_apart(address_of(a), 2, 1, PAGE, 0)
    print("guarded", flush=True)
    pest().touch_apart(address_of(a), 2, 1, PAGE, 0)
    print("after", flush=True)


def test_what_stands_in(delivery, folder):
    in_child(each_dtype_stands_in, delivery, str(folder / "raw"))


def each_dtype_stands_in(delivery, path):
    for dtype in NO_DATA:
        for offset in (0, 3, 128):
            with open(path, "wb") as file:
                file.truncate(offset + 3 * PAGE // 16 * 16)
            what_stands_in(delivery, dtype, offset, path)


def what_stands_in(delivery, dtype, offset, path):
    a = lm.memmap(path, dtype=dtype, offset=offset, delivery=delivery, block_nbytes=2 * PAGE)
    os.truncate(path, PAGE)
    plain = np.asarray(a)
    seen = None
    with pytest.raises(lm.PageError), lm.guard():
        seen = plain.copy()
    want = np.array(NO_DATA[dtype], dtype)
    whole = seen[1:-1]  # the first and last element may lie across pages
    if want.dtype.kind in "fcmM":
        assert np.isnan(whole).all() if want.dtype.kind in "fc" else np.isnat(whole).all()
    else:
        assert (whole == want).all()


# --- when and where


def test_failures_before_and_after_are_not_its_own(delivery):
    in_child(failures_before_and_after, delivery)


def failures_before_and_after(delivery):
    a, _ = failing(delivery)
    good, _ = array(delivery)
    with pytest.raises(lm.PageError):
        a[0]
    with lm.guard():
        assert np.asarray(good)[5] == 5
    with pytest.raises(lm.PageError):
        a[0]
    with pytest.raises(lm.PageError) as caught, lm.guard():
        np.asarray(a)[0]
        np.asarray(a)[WORDS]
    assert caught.value.block == 0, "the first of them"


def test_exceptions_inside(delivery):
    in_child(exceptions_inside, delivery)


def exceptions_inside(delivery):
    a, _ = failing(delivery)
    plain = np.asarray(a)
    with pytest.raises(lm.PageError) as caught, lm.guard():
        plain[0]
        raise ValueError("what came of it")
    assert isinstance(caught.value.__context__, ValueError)
    with pytest.raises(KeyError), lm.guard():
        raise KeyError
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(kind), lm.guard():
            plain[0]
            raise kind
    with pytest.raises(lm.PageError), lm.guard(), pytest.raises(lm.PageError):
        a[3]  # an operation raises there and then; the guard says so again: it cannot know what was made of it
    with lm.guard():
        pass


def test_guards_in_one_another_and_one_guard_again(delivery):
    in_child(guards_in_one_another, delivery)


def guards_in_one_another(delivery):
    a, kit = failing(delivery)
    plain = np.asarray(a)
    raised = []
    guard = lm.guard()
    try:
        with guard:
            try:
                with guard, lm.guard():
                    plain[0]
            except lm.PageError:
                raised.append("inner")
            kit.error = 0
            with lm.guard():
                assert plain[0] == 0
    except lm.PageError:
        raised.append("outer")
    assert raised == ["inner", "outer"]
    with guard:
        assert plain[WORDS] == WORDS


@pytest.mark.parametrize("delivery", DELIVERIES)  # the third loses nothing by madvise
def test_guards_on_several_threads(delivery):
    in_child(guards_on_several_threads, delivery)


def guards_on_several_threads(delivery):
    """Each reads a dead array now and then. A guard that ends well has read nothing wrong."""
    a, kit = array(delivery, npages=64)
    wrong, raised, fine = [], [], []
    end = time.monotonic() + 1

    def run(i):
        plain = np.asarray(a)
        while time.monotonic() < end:
            try:
                with lm.guard():
                    x = plain[i * WORDS :: 4 * WORDS].copy()
                if not np.array_equal(x, np.arange(i * WORDS, 64 * WORDS, 4 * WORDS)):
                    wrong.append(x)
                fine.append(i)
            except lm.PageError:
                raised.append(i)
            ctypes.CDLL(None).madvise(ctypes.c_void_p(address_of(a)), ctypes.c_size_t(64 * PAGE), 4)

    def pest_of_errors():
        while time.monotonic() < end:
            kit.error = -errno.EIO
            time.sleep(0.003)
            kit.error = 0
            time.sleep(0.003)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)] + [threading.Thread(target=pest_of_errors)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert len(raised) > 3
    assert len(fine) > 3


def test_entering_waits_for_another_threads_failed_operation(delivery):
    in_child(entering_waits, delivery)


def entering_waits(delivery):
    """An operation that has failed, and calls a function that waits."""
    bad, _ = failing(delivery)
    good, _ = array(delivery)
    raised = []
    parked, go_on = threading.Event(), threading.Event()

    def park(x):
        parked.set()
        go_on.wait()
        return x

    def operation():
        try:
            np.frompyfunc(park, 1, 1)(bad[:3])
        except lm.PageError as error:
            raised.append(error)

    thread = threading.Thread(target=operation)
    thread.start()
    assert parked.wait(10)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="1 s"), lm.guard():
        pytest.fail("entered")
    assert 0.9 < time.monotonic() - began < 3
    with pytest.raises(TimeoutError, match="1 s"):
        good[0]
    threading.Timer(0.2, go_on.set).start()
    with lm.guard():
        assert np.asarray(good)[3] == 3
    thread.join()
    assert len(raised) == 1


def test_operations_inside(delivery):
    in_child(operations_inside, delivery)


def operations_inside(delivery):
    a, kit = array(delivery)
    with lm.guard():
        assert a.sum() == np.arange(16 * WORDS).sum()
        assert a[5] == 5
        lm.populate(a)
    b, kit = failing(delivery)
    with pytest.raises(lm.PageError), lm.guard():
        lm.prefetch(b)
        np.asarray(b)[0]
        kit.error = 0
        assert b[0] == 0, "an operation drops what stands in, and fetches"


# --- memory


def test_a_scan_over_a_dead_source_costs_one_fetch_and_little_memory(delivery):
    in_child(scan_over_a_dead_source, delivery, timeout=60)


def scan_over_a_dead_source(delivery):
    kit_size = 1 << 40
    a, kit = counted(kit_size, mode="r", dtype="f8", delivery=delivery, block_nbytes=1 << 20, error=-errno.EIO)
    plain = np.asarray(a)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * PAGE

    before = resident()
    with pytest.raises(lm.PageError), lm.guard():
        plain[: (8 << 30) // 8 : PAGE // 8].sum()
    assert kit.calls == 1, "the misses after it failed at once"
    assert resident() - before < 160 << 20
    with pytest.raises(lm.PageError), lm.guard():
        plain[5]
    assert kit.calls == 2, "tried anew under the next"


@each_user
def test_private_writes_beside_a_failure_stay(delivery, user):
    in_child(private_writes_beside_a_failure, delivery, user=user)


def private_writes_beside_a_failure(delivery):
    a, kit = counted(32 * PAGE, mode="c", delivery=delivery, block_nbytes=4 * PAGE)
    plain = np.asarray(a)
    plain[0] = -7
    plain[5 * WORDS] = -8
    kit.error = -errno.EIO
    with pytest.raises(lm.PageError), lm.guard():
        plain[9 * WORDS] = -9  # a store into what stands in
    with pytest.raises(lm.PageError):
        a.sum()
    kit.error = 0
    want = np.arange(32 * WORDS)
    want[0], want[5 * WORDS] = -7, -8
    with lm.guard():
        assert np.array_equal(plain, want), "the store into no data is gone, as the guard said; the others are there"


# --- counts


def test_counts_and_check(delivery):
    in_child(counts_and_check, delivery)


def counts_and_check(delivery):
    a, kit = failing(delivery)
    lm.check(a)
    with pytest.raises(lm.PageError), lm.guard():
        np.asarray(a)[0]
    assert lm.stats(a).errors == 1
    with pytest.raises(lm.PageError, match="block 0"):
        lm.check(np.asarray(a)[5:])
    lm.check(a)
    with pytest.raises(lm.PageError):
        a[WORDS]
    with pytest.raises(lm.PageError, match="block 1"):
        lm.check(a)
    assert lm.stats(a).errors == 2
    assert "2 fetches failed" in str(lm.stats(a))
    kit.error = 0
    lm.populate(a)
    lm.check(a)
    with pytest.raises(ValueError):
        lm.check(np.zeros(3))


# --- the order of steps (core/failure.pyx), every interleaving


def explore(*programs):
    """Run step lists against each other in every order; a step that answers False waits. Orders that lose an error."""
    bad = set()
    seen = set()

    def go(at, state, trace):
        key = (at, tuple(sorted(state.items())))
        if key in seen:
            return
        seen.add(key)
        if all(i == len(p) for i, p in zip(at, programs, strict=True)):
            if state.get("read") == "no data" and not state["raised"]:
                bad.add(trace)
            return
        for n, program in enumerate(programs):
            if at[n] < len(program):
                after = dict(state)
                name, step = program[at[n]]
                if step(after) is not False:
                    go((*at[:n], at[n] + 1, *at[n + 1 :]), after, (*trace, name))

    go((0,) * len(programs), {"failures": 0, "live": 0, "visible": 0, "raised": False}, ())
    return bad, len(seen)


def add(key, change):
    return lambda s: s.__setitem__(key, s[key] + change)


def gone(s):
    return None if s["live"] == 0 else False


FAIL = [("live++", add("live", 1)), ("failures++", add("failures", 1)), ("visible", add("visible", 1))]
DROP = [("gone", add("visible", -1)), ("live--", add("live", -1))]
SNAP = ("failures?", lambda s: s.__setitem__("before", s["failures"]))
WAIT = ("wait", gone)
READ = ("read", lambda s: s.__setitem__("read", "no data" if s["visible"] else "right"))
LEAVE = ("leave", lambda s: s.__setitem__("raised", s["failures"] != s["before"]))


def test_no_interleaving_loses_an_error():
    for failing_ones in ([FAIL + DROP], [FAIL + DROP, FAIL + DROP]):
        bad, states = explore(*failing_ones, [SNAP, WAIT, READ, LEAVE])
        assert not bad
        assert states > 30


def test_other_orders_would():
    fail = [FAIL[1], FAIL[0], FAIL[2]]  # failures before live: who enters between them waits for nothing
    assert explore(fail + DROP, [SNAP, WAIT, READ, LEAVE])[0]
    assert explore([FAIL[2], *FAIL[:2], *DROP], [SNAP, WAIT, READ, LEAVE])[0]
    assert explore([*FAIL, DROP[1], DROP[0]], [SNAP, WAIT, READ, LEAVE])[0]
    assert explore(FAIL + DROP, [SNAP, READ, LEAVE])[0]
    assert explore(FAIL + DROP, [WAIT, SNAP, READ, LEAVE])[0]
