"""What happens when a block cannot be fetched: by an operation, by a plain touch, and on the next attempt?"""

import errno
import io
import os
import pickle
import random
import signal
import threading
import time
import tracemalloc

import numpy as np
import pytest
from native_kit import counted, in_child
from support import (
    EVERY_DELIVERY,
    PAGE,
    check_child,
    compile_library,
    each_user,
    needs_compiler,
    over_deliveries,
    run_child,
    settled,
    stop_of,
)  # fmt: skip

import lazymem as lm

delivery = over_deliveries(EVERY_DELIVERY)

N = 16 * PAGE // 8

# What must end as a PageError, each on a fresh array whose source fails.
TOUCHES = {
    "populate": lambda a: lm.populate(a),
    "populate view": lambda a: lm.populate(a[::3]),
    "populate plain": lambda a: lm.populate(np.asarray(a)),
    "a[i]": lambda a: a[N - 1],
    "a[-1]": lambda a: a[-1],
    "a[np.int64]": lambda a: a[np.int64(N - 1)],
    "a[i,]": lambda a: a[(N - 1,)],
    "slice + 1": lambda a: a[N - 100 :] + 1,
    "1 + slice": lambda a: 1 + a[N - 100 :],
    "ordinary + lazy": lambda a: np.zeros(N) + a,
    "sum": lambda a: a.sum(),
    "np.sum": lambda a: np.sum(a),
    "mean": lambda a: a.mean(),
    "max": lambda a: a.max(),
    "np.sort": lambda a: np.sort(a),
    "sort a copy": lambda a: a.copy().sort(),
    "concatenate": lambda a: np.concatenate([a, a]),
    "concatenate tuple": lambda a: np.concatenate((np.zeros(2), a)),
    "stack": lambda a: np.stack([a, a]),
    "float": lambda a: float(a[N - 1 :].reshape(())),
    "int": lambda a: int(a[N - 1 :].reshape(())),
    "bool": lambda a: bool(a[N - 1 :]),
    "iterate": lambda a: list(a),
    "iterate rows": lambda a: [r.sum() for r in a.reshape(16, -1)],
    "fancy": lambda a: a[[0, N - 1]],
    "mask": lambda a: a[np.arange(N) == N - 1],
    "take": lambda a: a.take([N - 1]),
    "a == 1": lambda a: a == 1,
    "in": lambda a: 1e99 in a,
    "-a": lambda a: -a,
    "abs": lambda a: abs(a),
    "a ** 2": lambda a: a**2,
    "a @ a": lambda a: a @ a,
    "np.dot": lambda a: np.dot(a, a),
    "np.where": lambda a: np.where(a > 1, a, 0),
    "np.add": lambda a: np.add(a, 1),
    "np.add.reduce": lambda a: np.add.reduce(a),
    "np.add.accumulate": lambda a: np.add.accumulate(a),
    "out=": lambda a: np.add(a, 1, out=np.empty(N)),
    "einsum": lambda a: np.einsum("i,i->", a, a),
    "copy": lambda a: a.copy(),
    "np.array": lambda a: np.copy(a, subok=True),
    "astype": lambda a: a.astype("f4"),
    "tolist": lambda a: a.tolist(),
    "tobytes": lambda a: a.tobytes(),
    "tofile": lambda a: a.tofile(os.devnull),
    "np.save": lambda a: np.save(io.BytesIO(), a),
    "item": lambda a: a.item(N - 1),
    "reshape that copies": lambda a: a.reshape(2, -1).T.reshape(-1),
    "ravel that copies": lambda a: a.reshape(2, -1).T.ravel(),
    "flatten": lambda a: a.flatten(),
    "repr": lambda a: repr(a),
    "str": lambda a: str(a[N - 2 :]),
    "format": lambda a: f"{a[N - 1 :].reshape(())}",
    "array_equal": lambda a: np.array_equal(a, np.zeros(N)),
    "unique": lambda a: np.unique(a),
    "argmax": lambda a: a.argmax(),
    "any": lambda a: a.any(),
    "nonzero": lambda a: a.nonzero(),
    "searchsorted": lambda a: a.searchsorted(3.0),
    "linalg.norm": lambda a: np.linalg.norm(a),
    "fft": lambda a: np.fft.fft(a),
    "assign from": lambda a: np.copyto(np.zeros(N), a),
}
WRITES = {
    "store": lambda a: a.__setitem__(N - 1, 1.0),
    "+=": lambda a: a.__iadd__(1),
    "fill": lambda a: a.fill(3),
    "sort in place": lambda a: a.sort(),
    "partition": lambda a: a.partition(5),
    "add.at": lambda a: np.add.at(a, [N - 1], 1),
    "out=lazy": lambda a: np.add(a, 1, out=a),
    "put": lambda a: a.put([N - 1], 1),
    "copyto": lambda a: np.copyto(a, 1),
    "real =": lambda a: setattr(a, "real", 1),
}


@pytest.fixture
def truncated(folder, delivery):
    """Makes arrays over a file that has lost its second half since it was opened."""
    paths = []

    def make(mode="r"):
        path = folder / f"{len(paths)}.raw"
        paths.append(path)
        np.arange(1.0, N + 1).tofile(path)
        array = lm.memmap(path, "f8", mode, block_nbytes=PAGE, delivery=delivery)
        os.truncate(path, N * 4)
        return array

    return make


def _is_page_error(error, block=None):
    assert isinstance(error, lm.PageError)
    assert isinstance(error, OSError)
    assert error.source == "file"
    assert error.errno in (errno.ENODATA, errno.ESTALE)
    assert error.name.endswith(".raw")
    assert error.name in str(error)
    assert f"block {error.block}" in str(error)
    assert (error.start, error.stop) == (error.block * PAGE, error.block * PAGE + PAGE)
    assert block is None or error.block == block


@pytest.mark.parametrize("name", TOUCHES)
def test_a_failed_fetch_is_a_page_error(truncated, name):
    a = truncated()
    with pytest.raises(lm.PageError) as caught:
        TOUCHES[name](a)
    _is_page_error(caught.value)
    with pytest.raises(lm.PageError):  # nothing was left behind that would be taken for data
        a[N - 1]


@pytest.mark.parametrize("name", WRITES)
def test_a_failed_fetch_before_a_write_is_a_page_error(truncated, name):
    a = truncated("c")
    with pytest.raises(lm.PageError) as caught:
        WRITES[name](a)
    _is_page_error(caught.value)
    with pytest.raises(lm.PageError):
        a[N - 1]


def test_the_error_names_the_first_block_that_is_gone(truncated):
    a = truncated()
    with pytest.raises(lm.PageError) as caught:
        a[N - 1]
    _is_page_error(caught.value, 15)


def test_pickling_a_file_that_has_changed(truncated):
    text = pickle.dumps(truncated())
    with pytest.raises(lm.PageError) as caught:
        pickle.loads(text)
    assert caught.value.errno == errno.ESTALE


def test_rewritten_file_stays_stale(folder, delivery):
    path = folder / "a.raw"
    np.arange(N, dtype="f8").tofile(path)
    a = lm.memmap(path, "f8", block_nbytes=PAGE, delivery=delivery)
    stamp = os.stat(path)
    with open(path, "r+b") as f:
        f.write(b"\xff" * N * 8)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))
    with pytest.raises(lm.PageError) as caught:
        a[0]
    assert caught.value.errno == errno.ESTALE
    assert "open it again" in str(caught.value)
    np.arange(N, dtype="f8").tofile(path)  # the same bytes, but who can know
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 2 * 10**9))
    with pytest.raises(lm.PageError):
        a.sum()


def test_replaced_file_goes_on_from_the_one_that_was_opened(folder, delivery):
    path = folder / "a.raw"
    want = np.arange(N, dtype="f8")
    want.tofile(path)
    a = lm.memmap(path, "f8", block_nbytes=PAGE, delivery=delivery)
    other = folder / "b.raw"
    np.zeros(N).tofile(other)
    os.replace(other, path)
    assert np.array_equal(a, want)


FAILING = """
#include "lazymem.h"
#include <string.h>
#include <errno.h>
/* ctx: how often to fail yet, and with what; counts itself down. */
struct plan { int64_t failures; int64_t error; int64_t calls; };
int fetch(void *ctx, void *dst, uint64_t offset, uint64_t nbytes)
{
    struct plan *plan = ctx;
    int64_t *out = dst;
    __atomic_add_fetch(&plan->calls, 1, __ATOMIC_SEQ_CST);
    if (plan->failures && __atomic_fetch_sub(&plan->failures, 1, __ATOMIC_SEQ_CST) > 0) {
        memset(dst, 0x55, nbytes / 2);  /* half of it: must never be seen */
        return -plan->error;
    }
    for (uint64_t i = 0; i < nbytes / 8; i++)
        out[i] = (int64_t)(offset / 8 + i) + 1;
    return 0;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    import ctypes

    made = ctypes.CDLL(str(compile_library(FAILING, tmp_path_factory.mktemp("failing"))))
    made.fetch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
    return made


def _array(library, plan, delivery, **options):
    return lm.from_provider(
        lm.CFunction(library.fetch, N * 8, plan), dtype="i8", block_nbytes=PAGE, delivery=delivery, **options
    )


@needs_compiler
@pytest.mark.parametrize("touch", [lm.populate, lambda a: a[3], lambda a: a.sum(), lambda a: a + 1, lambda a: list(a)])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_what_a_c_function_answers_is_the_errno(library, delivery, touch, code):
    plan = np.array([10**9, code, 0], "i8")
    with pytest.raises(lm.PageError) as caught:
        touch(_array(library, plan, delivery))
    error = caught.value
    assert error.errno == code
    assert error.source == "function"
    assert errno.errorcode[code] in str(error)
    assert plan[2] >= 1


@needs_compiler
@pytest.mark.parametrize("touch", [lm.populate, lambda a: a[3], lambda a: a[:4].sum(), lambda a: a[:4] + 1, lambda a: repr(a)])
def test_the_second_attempt_is_right(library, delivery, touch):
    plan = np.array([1, errno.EIO, 0], "i8")
    a = _array(library, plan, delivery)
    with pytest.raises(lm.PageError):
        touch(a)
    assert np.array_equal(np.array(a), np.arange(1, N + 1))  # nothing of the failure is left
    stats = settled(a)
    assert stats.resident_blocks == 16
    assert plan[2] == 17  # 16 blocks, one of them twice


@needs_compiler
def test_a_source_that_says_again_is_asked_again(library, delivery):
    plan = np.array([2, errno.EAGAIN, 0], "i8")
    a = _array(library, plan, delivery, retries=3)
    assert a[0] == 1
    assert plan[2] == 3
    plan = np.array([100, errno.EAGAIN, 0], "i8")
    a = _array(library, plan, delivery, retries=3)
    with pytest.raises(lm.PageError):
        a[0]
    assert plan[2] == 4


@needs_compiler
def test_an_error_is_never_another_arrays(library, delivery):
    """B fails on one thread, again and again, while operations on A run on another: none of A's may raise."""
    import threading

    good = np.array([0, 0, 0], "i8")
    wrong, failures, stop = [], [0], threading.Event()

    def fail():
        while not stop.is_set():
            b = _array(library, np.array([1, errno.EIO, 0], "i8"), delivery)
            try:
                b.sum()
                wrong.append("B did not raise")
            except lm.PageError:
                failures[0] += 1

    thread = threading.Thread(target=fail)
    thread.start()
    want = np.arange(1, N + 1).sum()
    try:
        for _ in range(200):
            a = _array(library, good, delivery)
            if (a[0], a.sum(), np.sum(a[5:] + 1)) != (1, want, want - 15 + N - 5):
                wrong.append("A is wrong")
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert failures[0] > 5


TOUCHER = """
#include <stdint.h>
#include <pthread.h>
static void *run(void *p) { return (void *)(uintptr_t)*(volatile unsigned char *)p; }
int touch_on_a_thread(void *p)
{
    pthread_t thread;
    void *read;
    pthread_create(&thread, 0, run, p);
    pthread_join(thread, &read);
    return (int)(uintptr_t)read;
}
"""
PLAIN = """
import ctypes, os, sys
import numpy as np, lazymem as lm
from support import PAGE
path = os.path.join({folder!r}, "gone-away.raw")
np.arange(16 * PAGE, dtype="u1").tofile(path)
a = lm.memmap(path, block_nbytes=PAGE, delivery={delivery!r})
os.truncate(path, 8 * PAGE)
b = np.asarray(a)
print("before", flush=True)
{touch}
for _ in range(2):
    pass  # Python looks for such exceptions as it jumps back, and after a call
print("survived", flush=True)
"""


@each_user
@pytest.mark.parametrize("touch", ["b[12 * PAGE]", "b.sum()", "ctypes.string_at(a.ctypes.data + 12 * PAGE, 10)"])
def test_a_plain_touch_is_told(folder, delivery, touch, user):
    status, out, err = run_child(PLAIN.format(folder=str(folder), delivery=delivery, touch=touch), user=user)
    assert (status, out) == (1, "before\n"), (status, out, err)
    assert "lazymem.errors.TouchError" in err
    assert "gone-away.raw" in err
    assert "block 0" in err if touch == "b.sum()" else "block 12" in err  # a changed file is stale from its first block on
    assert "truncated" in err or "changed" in err


@needs_compiler
def test_a_touch_of_a_c_thread_stops_loudly(folder, delivery):
    library = compile_library(TOUCHER, folder, flags=("-pthread",))
    touch = f"ctypes.CDLL({str(library)!r}).touch_on_a_thread(ctypes.c_void_p(a.ctypes.data + 12 * PAGE))"
    status, out, err = run_child(PLAIN.format(folder=str(folder), delivery=delivery, touch=touch))
    assert (status, out) == (stop_of(delivery), "before\n"), (status, out, err)
    assert "gone-away.raw" in err
    assert "block 12" in err


@pytest.mark.parametrize("touch", ["lm.populate(a[-1:])", "a[-1]", "a[-5:].sum()"])
def test_no_memory_that_could_be_had(delivery, touch):
    """All of the budget is pinned: the fetch fails, at once, and succeeds when it is not any more."""
    out = check_child(f"""
    import errno, time, numpy as np, lazymem as lm
    a = lm.from_provider(np.ones(4 << 20, "u1"), delivery={delivery!r}, block_nbytes="64 KiB", budget_nbytes="1 MiB")
    held = [lm.pin(a[i << 16: (i + 1) << 16]) for i in range(16)]
    began = time.monotonic()
    try:
        {touch}
    except lm.PageError as error:
        assert error.errno == errno.EDQUOT, error
        print(error)
    assert time.monotonic() - began < 5
    for pin in held:
        pin.release()
    assert a.sum() == 4 << 20
    assert lm.stats(a).held_nbytes <= 1 << 20
    """)
    assert "pinned" in out


@needs_compiler
@pytest.mark.slow
def test_a_late_answer_is_nobodys_failure(delivery):
    """A signal takes a touch out of its fault, and it comes again: the first message may be answered in the next operation."""
    in_child(late_answers, delivery)


def late_answers(delivery):
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    options = {"delivery": delivery, "block_nbytes": PAGE}
    bad, _kit = counted(256 * PAGE, error=-errno.EIO, delay_ns=300_000, **options)
    good, _kit = counted(256 * PAGE, **options)
    deadline, wrong, done = time.monotonic() + 4, [], []

    def run(seed):
        at = random.Random(seed)
        while time.monotonic() < deadline:
            block = at.randrange(256)
            try:
                wrong.append(bad[block * PAGE // 8])
            except lm.PageError as error:
                wrong.extend([error] * (error.block != block))
            try:
                done.append((good[block * PAGE // 8 :][:5] + 1)[0])
            except lm.PageError as error:
                wrong.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    run(2)
    for t in threads:
        t.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert not wrong, wrong
    assert len(done) > 1000


# --- what is left of an operation that failed


WITH_RESULTS = {
    "copy": lambda a: a.copy(),
    "add": lambda a: a + 1,
    "invert": lambda a: ~a,
    "compare": lambda a: a < 5,
    "power": lambda a: a**2,
    "ufunc": lambda a: np.multiply(a, 3),
    "fancy": lambda a: a[np.arange(len(a))],
    "mask": lambda a: a[np.ones(len(a), bool)],
    "function": lambda a: np.concatenate([a, a]),
    "sort": np.sort,
    "bytes": lambda a: a.tobytes(),
    "reshape": lambda a: a.reshape(-1, 2).T.reshape(-1),
}


def test_what_an_operation_had_computed_goes_with_its_exception(delivery):
    in_child(goes_with_its_exception, delivery)


def goes_with_its_exception(delivery):
    """A value on its way out of a `try` whose `finally` raises would stay for ever."""
    a, _ = counted(64 * PAGE, delivery=delivery, block_nbytes=PAGE, error=-errno.EIO)
    left = {}
    for name, operation in WITH_RESULTS.items():
        tracemalloc.start()
        for turn in range(12):
            if turn == 2:
                before = tracemalloc.get_traced_memory()[0]
            with pytest.raises(lm.PageError):
                operation(a)
        left[name] = (tracemalloc.get_traced_memory()[0] - before) // 10
        tracemalloc.stop()
    assert max(left.values()) < PAGE, left
    assert lm.region(a).views() == 0
