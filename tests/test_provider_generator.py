"""Does what a generator gives stay what it is: read backwards, by several threads, after a killed process, and to the byte?"""

import array
import ctypes
import errno
import gc
import itertools
import mmap
import os
import re
import signal
import tempfile
import threading
import time

import cloudpickle
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from provider_kit import elements, read_all, read_block
from support import PAGE, check_child, needs_root, run_child, wait_until

from lazymem.providers import generator, spool
from lazymem.providers.base import Traits, check_provider
from lazymem.providers.generator import GeneratorError, GeneratorProvider
from lazymem.providers.pickled import pickle_provider
from lazymem.providers.spool import Spool, reserve

RELAXED = settings(max_examples=100, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))
MEMORY = np.random.default_rng(11).integers(0, 256, 300_000, "u1")
PADDED = np.dtype([("a", "u1"), ("b", "f8")], align=True)


@pytest.fixture(autouse=True)
def _short_steps(monkeypatch):
    """Short ones, so that a test's few bytes are many steps."""
    monkeypatch.setattr(generator, "_STEP_NBYTES", 3000)
    monkeypatch.setattr(spool, "_COPY_NBYTES", 1000)
    monkeypatch.setattr(spool, "_PATIENCE_SECONDS", 0.05)


@pytest.fixture
def opened():
    """Open a provider, and close it when the test ends."""
    made = []

    def opening(make, shape, dtype="u1"):
        provider = make if isinstance(make, GeneratorProvider) else GeneratorProvider(make, shape, dtype)
        made.append(provider)
        provider.open()
        return provider

    yield opening
    for provider in made:
        provider.close()


def again(provider):
    """What the next process gets."""
    return cloudpickle.loads(pickle_provider(provider))


def counting(pieces):
    """A function that gives these pieces, and lists of what was asked of it."""
    taken = []

    def make():
        taken.append(0)
        for piece in pieces:
            yield piece
            taken[-1] += 1

    return make, taken


@RELAXED
@given(
    cuts=st.lists(st.integers(0, 40_000), max_size=40),
    nbytes=st.integers(0, 40_000),
    pages=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 9),
    kind=st.sampled_from([bytes, bytearray, memoryview, np.array]),
)
def test_pieces_of_any_length_in_any_order_of_blocks(cuts, nbytes, pages, seed, kind):
    memory = MEMORY[:nbytes].tobytes()
    edges = [0, *sorted(min(c, nbytes) for c in cuts), nbytes]
    parts = [memory[a:b] for a, b in itertools.pairwise(edges)]
    pieces = [np.frombuffer(p, "u1") if kind is np.array else kind(p) for p in parts]
    provider = GeneratorProvider(lambda: iter(pieces), nbytes, "u1")
    provider.open()
    try:
        order = np.random.default_rng(seed).permutation(-(-nbytes // (pages * PAGE)))
        assert read_all(provider, pages * PAGE, order.tolist()).tobytes() == memory
    finally:
        provider.close()


def test_it_goes_no_further_than_the_block(opened):
    make, taken = counting([bytes([k % 256]) * 1000 for k in range(50)])
    provider = opened(make, 50_000)
    assert taken == []
    read_block(provider, 0, PAGE)
    assert taken == [PAGE // 1000]  # the last piece it took, it still holds
    read_block(provider, 8 * PAGE, PAGE)
    assert taken == [9 * PAGE // 1000]
    assert read_block(provider, 0, 1000) == bytes(1000)  # back is a read
    assert taken == [9 * PAGE // 1000]
    read_all(provider)
    assert len(taken) == 1


def test_a_generator_that_is_done_is_let_go(opened):
    ended = []

    def make():
        try:
            yield bytes(100)
            yield bytes(100)
        finally:
            ended.append(True)

    provider = opened(make, 200)
    read_block(provider, 0, 100)
    assert not ended
    read_block(provider, 100, 100)
    assert ended


def test_closing_ends_the_generator(opened):
    ended = []

    def make():
        try:
            while True:
                yield bytes(100)
        finally:
            ended.append(True)

    provider = opened(make, 20_000)
    read_block(provider, 0, 100)
    provider.close()
    assert ended
    with pytest.raises(RuntimeError, match="open"):
        read_block(provider, 0, 100)


def test_one_piece_of_memory_that_is_used_again(opened):
    def make():
        piece = np.empty(700, "i8")
        for k in range(10):
            piece[:] = k
            yield piece

    assert np.array_equal(elements(opened(make, (10, 700), "i8")), np.repeat(np.arange(10), 700).reshape(10, 700))


PIECES = [
    ("list", lambda: [bytes(16), b"\1" * 8], "i8"),
    ("iterator", lambda: map(np.arange, [1, 2]), "i8"),
    ("scalars", lambda: (np.int64(k) for k in range(3)), "i8"),
    ("smaller scalars", lambda: (np.int8(k) for k in range(3)), "i8"),
    ("0-d", lambda: (np.array(k) for k in range(3)), "i8"),
    ("2-D", lambda: [np.arange(3)[:, None]], "i8"),
    ("fortran", lambda: [np.arange(6, dtype="i4").reshape(2, 3, order="F")], "i4"),
    ("reversed", lambda: [np.arange(3)[::-1]], "i8"),
    ("other byte order", lambda: [np.arange(3, dtype=">i8")], "<i8"),
    ("safe cast", lambda: [np.arange(3, dtype="i4")], "f8"),
    ("u1 are numbers", lambda: [np.arange(3, dtype="u1")], "f8"),
    ("array.array", lambda: [array.array("i", [1, 2, 3])], "f8"),
    ("signed bytes are numbers", lambda: [array.array("b", [1, 2, 3])], "i2"),
    ("ctypes", lambda: [(ctypes.c_double * 3)(1, 2, 3)], "f8"),
    ("ctypes bytes", lambda: [(ctypes.c_char * 24)(*b"abcdefghijklmnopqrstuvwx")], "f8"),
    ("mmap", lambda: [mmap.mmap(-1, 24)], "f8"),
    ("bytes in two dimensions", lambda: [memoryview(bytes(range(24))).cast("B", (2, 12))], "f8"),
    ("every other byte", lambda: [memoryview(bytes(range(48)))[::2]], "f8"),
    ("nothing in between", lambda: [b"", np.zeros(0), bytes(24), b""], "f8"),
    ("half elements", lambda: [b"\1" * 5, b"\2" * 12, b"\3" * 7], "f8"),
    ("text", lambda: [np.array(["a", "bc", "def"])], "U5"),
    ("days are seconds", lambda: [np.array(["2020-01-01"] * 3, "M8[D]")], "M8[s]"),
    ("structure", lambda: [np.ones(3, PADDED)], PADDED),
    ("masked", lambda: [np.ma.arange(3.0)], "f8"),
]


@pytest.mark.parametrize(("make", "dtype"), [p[1:] for p in PIECES], ids=[p[0] for p in PIECES])
def test_what_pieces_may_be(opened, make, dtype):
    dtype = np.dtype(dtype)
    n = 6 if dtype == "i4" else 3
    flat = []
    for piece in make():
        if isinstance(piece, (np.ndarray, np.generic)):
            flat.append(np.asarray(piece).ravel().astype(dtype))
        else:
            view = memoryview(piece)
            values = view.format not in ("B", "c", "<c", "<B")
            flat.append(np.array(view).astype(dtype) if values else np.frombuffer(view.tobytes(), "u1"))
    want = np.concatenate([f.view("u1") for f in flat]).view(dtype)
    assert np.array_equal(elements(opened(make, n, dtype)), want)


@pytest.mark.parametrize(
    ("piece", "dtype", "error", "message"),
    [
        (np.arange(3.0), "f4", TypeError, r"float64.*does not cast to float32 safely: give array\.astype\('<f4'\)"),
        (np.arange(3.0), "i8", TypeError, "safely"),
        (np.arange(3) * 1j, "f8", TypeError, "safely"),
        (np.array([1, 2, 3], object), "f8", TypeError, "safely"),
        (np.float64(1), "f4", TypeError, "safely"),
        ("text", "f8", TypeError, "a piece is a str: give bytes or arrays, many elements at a time"),
        (1.5, "f8", TypeError, "a piece is a float"),
        ([1.5], "f8", TypeError, "a piece is a list"),
        (None, "f8", TypeError, "a piece is a NoneType"),
    ],
)
def test_what_pieces_may_not_be(opened, piece, dtype, error, message):
    with pytest.raises(error, match=message):
        read_all(opened(lambda: [piece], 3, dtype))


def test_an_array_begins_where_an_element_does(opened):
    with pytest.raises(GeneratorError, match="came after 5 bytes, in the middle of an element"):
        read_all(opened(lambda: [b"12345", np.zeros(2)], 3, "f8"))


def test_it_ends_too_early(opened):
    make, taken = counting([np.arange(100), np.arange(50)])
    provider = opened(make, (10, 20), "i8")
    assert read_block(provider, 0, 1200) == np.r_[np.arange(100), np.arange(50)].tobytes()
    for _ in range(3):
        with pytest.raises(GeneratorError, match=r"ended after 1200 of 1600 bytes \(150 of 200 elements\)"):
            read_block(provider, 0, 1600)
    assert len(taken) == 1  # it is not run again to end the same way
    assert read_block(provider, 400, 800) == np.r_[np.arange(50, 100), np.arange(50)].tobytes()


def test_a_piece_reaches_past_the_end(opened):
    provider = opened(lambda: [np.arange(100), np.arange(50)], 120, "i8")
    read_block(provider, 0, 800)
    for _ in range(2):
        with pytest.raises(GeneratorError, match="a piece of 400 bytes came after 800 of 960 bytes: 240 too many"):
            read_block(provider, 800, 160)
    read_block(provider, 0, 800)


def test_what_comes_after_the_last_element_is_not_asked_for(opened):
    def make():
        k = 0
        while True:
            yield np.full(10, k)
            k += 1
            assert k < 12, "asked for more"

    got = elements(opened(make, 120, "i8"))
    assert np.array_equal(got, np.repeat(np.arange(12), 10))


def test_an_exception_begins_it_again(opened):
    """What it raised is its own; the next request runs it again, and what it gave before is compared."""
    runs = []

    def make():
        runs.append(0)
        for k in range(10):
            if k == 5 and len(runs) < 3:
                raise ConnectionError("gone")
            runs[-1] += 1
            yield bytes([k]) * 1000

    provider = opened(make, 10_000)
    for _ in range(2):
        with pytest.raises(ConnectionError, match="gone"):
            read_block(provider, 5000, 1000)
    assert read_block(provider, 4000, 1000) == b"\4" * 1000
    assert runs == [5, 5]
    assert read_all(provider).tobytes() == b"".join(bytes([k]) * 1000 for k in range(10))
    assert runs == [5, 5, 10]


def test_it_must_give_the_same_again(opened):
    runs = []

    def make():
        runs.append(0)
        yield bytes(1500)
        if len(runs) == 1:
            yield bytes(1500)
            raise LookupError
        yield bytes(700) + b"x" + bytes(799)
        yield bytes(7000)

    provider = opened(make, 10_000)
    with pytest.raises(LookupError):
        read_block(provider, 3000, 1000)
    for _ in range(3):
        with pytest.raises(GeneratorError, match="gave other bytes than before, at byte 2200 of 10000 first"):
            read_block(provider, 3000, 1000)
    assert len(runs) == 2
    assert read_block(provider, 0, 3000) == bytes(3000)  # those that count are the first


def test_shorter_when_it_is_run_again(opened):
    runs = []

    def make():
        runs.append(0)
        yield bytes(1500)
        if len(runs) == 1:
            yield bytes(1500)
            raise LookupError

    provider = opened(make, 10_000)
    with pytest.raises(LookupError):
        read_block(provider, 0, 10_000)
    with pytest.raises(GeneratorError, match="ended after 1500 of 10000"):
        read_block(provider, 0, 10_000)


def test_bytes_that_hold_nothing_are_not_compared(opened):
    runs = []

    def make():
        runs.append(0)
        piece = np.full(10 * PADDED.itemsize, len(runs), "u1").view(PADDED)
        piece["a"], piece["b"] = 1, 2
        yield piece
        if len(runs) == 1:
            raise LookupError
        yield piece

    provider = opened(make, 20, PADDED)
    with pytest.raises(LookupError):
        read_all(provider)
    got = elements(provider)
    assert (got["a"] == 1).all()
    assert not got.view("u1").reshape(20, -1)[:, 1:8].any()


def test_what_make_returns(opened):
    with pytest.raises(TypeError, match="it returned a NoneType, which is no iterator"):
        read_all(opened(lambda: None, 3))
    with pytest.raises(TypeError, match="it returned a int"):
        read_all(opened(lambda: 5, 3))


async def asynchronous():
    yield b""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ((x for x in "ab"), r"an iterator, which runs only once, and here: pass a function that returns it: lambda:"),
        (iter([b"a"]), "pass a function that returns it"),
        (map(bytes, [1]), "pass a function that returns it"),
        ([b"a"], "no function: pass a function that returns it"),
        (np.zeros(3), "no function"),
        (None, "no function"),
        (lambda n: [b"a"], r"cannot be called as <lambda>\(\)"),
        (asynchronous, "async"),
    ],
    ids=lambda value: re.sub(r" at 0x[0-9a-f]+", "", str(value)),  # the same in every process
)
def test_make_is_a_function(make, message):
    with pytest.raises(TypeError, match=message):
        GeneratorProvider(make, 3)


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [(3, object, TypeError), (None, "u1", TypeError), (-1, "u1", ValueError), ((1 << 40, 1 << 23), "u1", ValueError)],
)
def test_shapes_and_dtypes_are_checked(shape, dtype, error):
    with pytest.raises(error):
        GeneratorProvider(lambda: [], shape, dtype)


def test_it_is_a_provider_of_one_process():
    provider = GeneratorProvider(lambda: [], (4, 5), "f4")
    assert check_provider(provider) == Traits(80, None, True, 1)
    assert repr(provider) == "GeneratorProvider(from_generator(<lambda>), shape=(4, 5), dtype=float32)"


def test_threads_wait_for_the_one_that_advances(opened):
    """Those whose block has come go on, while another is still under way; the generator is in nobody's hands twice."""
    steps = threading.Semaphore(0)
    inside = threading.Lock()

    def make():
        for k in range(8):
            assert inside.acquire(blocking=False), "two threads in the generator"
            assert steps.acquire(timeout=20)
            inside.release()
            yield bytes([k]) * PAGE

    provider = opened(make, 8 * PAGE)
    got = {}

    def ask(block):
        got[block] = read_block(provider, block * PAGE, PAGE)

    threads = [threading.Thread(target=ask, args=(block,), daemon=True) for block in (7, 0, 3, 3, 5)]
    for thread in threads:
        thread.start()
    for k in range(8):
        assert set(got) == {b for b in (0, 3, 5, 7) if b < k}
        steps.release()
        assert wait_until(lambda k=k: set(got) >= {b for b in (0, 3, 5, 7) if b <= k})
    for thread in threads:
        thread.join(10)
    assert {k: set(v) for k, v in got.items()} == {k: {k} for k in (0, 3, 5, 7)}


def test_what_is_there_is_read_while_another_thread_advances(opened):
    go, come = threading.Event(), threading.Event()

    def make():
        yield bytes(PAGE)
        come.set()
        assert go.wait(20)
        yield bytes(PAGE)

    provider = opened(make, 2 * PAGE)
    read_block(provider, 0, PAGE)
    thread = threading.Thread(target=read_block, args=(provider, PAGE, PAGE), daemon=True)
    thread.start()
    assert come.wait(10)
    assert read_block(provider, 0, PAGE) == bytes(PAGE)
    go.set()
    thread.join(10)
    assert not thread.is_alive()


def test_an_exception_wakes_those_who_wait(opened):
    go = threading.Event()

    def make():
        assert go.wait(20)
        raise LookupError("all of them")
        yield b""

    provider = opened(make, 10 * PAGE)
    errors = []

    def ask(block):
        try:
            read_block(provider, block * PAGE, PAGE)
        except LookupError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask, args=(block,), daemon=True) for block in range(4)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert errors == ["all of them"] * 4


def test_slow_pieces_are_there_when_they_have_come(opened):
    """Small ones do not wait until there are many."""

    def make():
        for k in range(20):
            time.sleep(generator._STEP_SECONDS / 4)
            yield bytes([k]) * 10

    provider = opened(make, 200)
    kept = []
    append = provider._spool.append
    provider._spool.append = lambda piece: kept.append(len(piece)) or append(piece)
    read_all(provider)
    assert sum(kept) == 200
    assert len(kept) >= 4


# The spool, and the life of processes.


def test_a_successor_goes_on_with_what_is_kept(opened):
    make, taken = counting([bytes([k]) * 1000 for k in range(10)])
    provider = GeneratorProvider(make, 10_000, "u1")
    first = opened(again(provider), None)
    read_block(first, 0, 5000)
    first.close()
    second = opened(again(provider), None)
    runs = len(taken)
    assert read_block(second, 1000, 4000) == b"".join(bytes([k]) * 1000 for k in range(1, 5))
    assert len(taken) == runs  # without running it
    assert read_all(second).tobytes() == b"".join(bytes([k]) * 1000 for k in range(10))


def test_two_at_once_do_not_mix(opened):
    """A copy while another one writes: it has what is kept by then, and its own from there on."""
    provider = GeneratorProvider(lambda: (bytes([k]) * 1000 for k in range(10)), 10_000, "u1")
    first, second = opened(again(provider), None), None
    read_block(first, 0, 4500)
    second = opened(again(provider), None)
    assert second._spool.nbytes == 5000
    assert not os.path.sameopenfile(first._spool._fd, second._spool._fd)
    want = b"".join(bytes([k]) * 1000 for k in range(10))
    assert read_all(second).tobytes() == want
    assert first._spool.nbytes == 5000
    assert read_all(first).tobytes() == want


def test_a_copy_outlives_its_original():
    provider = GeneratorProvider(lambda: [bytes(100)], 100, "u1")
    copy = again(provider)
    fd = provider._place.fd
    os.fstat(fd)
    del provider
    gc.collect()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    copy.open()
    assert read_all(copy).tobytes() == bytes(100)
    copy.close()


def test_nothing_has_a_name(opened, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    provider = opened(lambda: [bytes(9000)], 9000)
    read_all(provider)
    assert os.fstat(provider._spool._fd).st_dev == os.stat(tmp_path).st_dev
    assert list(tmp_path.iterdir()) == []


def test_descriptors_do_not_leak():
    def descriptors():
        gc.collect()
        return sorted(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(20):
        provider = GeneratorProvider(lambda: [bytes(100)], 100, "u1")
        provider.open()
        copy = again_closed(provider)
        copy.open()  # beside the other
        read_all(provider)
        provider.close()
        copy.close()
        del provider, copy
    assert descriptors() == before


def again_closed(provider):
    """A copy of one that is open: what belongs to a process is left out."""
    made = GeneratorProvider.__new__(GeneratorProvider)
    vars(made).update({k: vars(provider)[k] for k in ("make", "shape", "dtype", "nbytes", "name", "_holes", "_place")})
    return made


def test_a_descriptor_that_is_another_files_is_left_alone(tmp_path):
    """All descriptors closed, and the number taken by a file of the user's: not written, and not closed."""
    provider = GeneratorProvider(lambda: [b"x" * 100], 100, "u1")
    fd = provider._place.fd
    mine = tmp_path / "mine"
    mine.write_bytes(b"precious" * 20)
    other = os.open(mine, os.O_RDWR)
    os.dup2(other, fd)
    os.close(other)
    copy = again(provider)
    copy.open()
    assert read_all(copy).tobytes() == b"x" * 100
    copy.close()
    del provider
    gc.collect()
    assert os.path.samestat(os.fstat(fd), os.stat(mine))
    assert mine.read_bytes() == b"precious" * 20
    os.close(fd)


def test_the_mark_tells_a_file_that_got_the_same_number(opened):
    provider = GeneratorProvider(lambda: [b"x" * 100], 100, "u1")
    os.pwrite(provider._place.fd, b"another file....", 0)
    copy = opened(again(provider), None)
    assert read_all(copy).tobytes() == b"x" * 100
    assert os.fstat(provider._place.fd).st_size == 64


@pytest.mark.parametrize("written", [0, 1, 700])
def test_only_what_was_counted_counts(opened, written):
    """Killed between the bytes and their count."""
    provider = GeneratorProvider(lambda: [b"a" * 1000, b"b" * 1000], 2000, "u1")
    first = opened(again(provider), None)
    read_block(first, 0, 1000)
    os.pwrite(first._spool._fd, b"?" * written, 64 + 1000)
    first.close()
    second = opened(again(provider), None)
    assert second._spool.nbytes == 1000
    assert read_all(second).tobytes() == b"a" * 1000 + b"b" * 1000


def test_no_room(opened, monkeypatch):
    """The disk is full: an OSError that names TMPDIR, and it goes on when there is room."""
    make, taken = counting([bytes([k]) * 1000 for k in range(10)])
    provider = opened(make, 10_000)
    read_block(provider, 0, 2000)
    write = os.pwrite

    def full(fd, piece, place):
        if place > 64 + 2500:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, piece[:100], place)  # and by and by before that

    monkeypatch.setattr(spool.os, "pwrite", full)
    for _ in range(2):
        with pytest.raises(OSError, match=r"TMPDIR.*No space left") as caught:
            read_block(provider, 4000, 1000)
        assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(spool.os, "pwrite", write)
    assert read_all(provider).tobytes() == b"".join(bytes([k]) * 1000 for k in range(10))
    assert len(taken) == 3


def test_a_file_cut_short_is_noticed(opened):
    provider = opened(lambda: [bytes(3000)], 3000)
    read_all(provider)
    os.truncate(provider._place.fd, 64 + 1000)
    with pytest.raises(OSError, match="ends at byte 1000 of 3000"):
        read_block(provider, 0, 3000)


def test_the_predecessor_may_be_on_its_way_out(monkeypatch):
    monkeypatch.setattr(spool, "_PATIENCE_SECONDS", 20)

    class Owner:
        pass

    owner = Owner()
    place = reserve(owner)
    first = Spool(place)
    first.append(memoryview(b"abc"))
    asleep = threading.Event()
    sleep = time.sleep

    def sleeping(seconds):
        asleep.set()
        sleep(seconds)

    monkeypatch.setattr(spool.time, "sleep", sleeping)
    made = []
    thread = threading.Thread(target=lambda: made.append(Spool(place)), daemon=True)
    thread.start()
    assert asleep.wait(10)
    first.append(memoryview(b"def"))
    first.close()
    thread.join(10)
    second = made[0]
    assert second.nbytes == 6
    assert os.path.sameopenfile(second._fd, place.fd)
    second.close()


CHILD = """
import os, signal, sys, numpy as np
sys.path[:0] = {path!r}
from provider_kit import read_block
import cloudpickle
provider = cloudpickle.load(open({file!r}, "rb"))
provider.open()
{then}
"""


def in_child(folder, provider, then, **options):
    import sys

    file = folder / "provider.pickle"
    file.write_bytes(pickle_provider(provider))
    return run_child(CHILD.format(path=sys.path, file=str(file), then=then), **options)


def test_killed_processes(folder):
    """Killed in the generator, again and again: the array is of one piece, and what is kept is not computed again."""
    log = folder / "log"

    def make():
        for k in range(40):
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {k}\n")
            if k % 10 == 9 and not (folder / f"killed{k}").exists():
                (folder / f"killed{k}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield np.full(1000, k)

    provider = GeneratorProvider(make, 40_000, "i8")
    statuses = []
    for _ in range(5):
        status, _, err = in_child(
            folder, provider, "for b in range(0, 320_000, 4096): read_block(provider, b, min(4096, 320_000 - b))"
        )
        assert status in (0, -signal.SIGKILL), err
        statuses.append(status)
    assert statuses == [-signal.SIGKILL] * 4 + [0]
    provider.open()
    runs = log.read_text().count("\n")
    assert np.array_equal(elements(provider), np.repeat(np.arange(40), 1000))
    assert log.read_text().count("\n") == runs
    provider.close()


def test_a_successor_notices_other_bytes(folder):
    def make():
        rng = np.random.default_rng()
        while True:
            yield rng.random(500)

    provider = GeneratorProvider(make, 10_000)
    status, first, _ = in_child(
        folder,
        provider,
        "print(read_block(provider, 0, 4000).hex()); os.kill(os.getpid(), 9)".replace("; os", "; sys.stdout.flush(); os"),
    )
    assert status == -signal.SIGKILL
    status, second, err = in_child(
        folder, provider, "print(read_block(provider, 0, 4000).hex())\nread_block(provider, 8000, 4000)"
    )
    assert status == 1
    assert "GeneratorError: from_generator(make): it was run again" in err
    assert "at byte 0 of 80000 first: each run must give the same" in err or "at byte 1 of" in err
    assert first == second


@needs_root
def test_where_the_spool_may_not_be_opened_a_warning_says_so(folder):
    """Another user's process, as with a parent that gave up its privileges."""
    os.chmod(folder, 0o777)
    provider = GeneratorProvider(lambda: [bytes(1000)], 1000, "u1")
    then = "assert read_block(provider, 0, 1000) == bytes(1000)\nprint('right')"
    status, out, err = in_child(folder, provider, then, user="nobody")
    assert (status, out) == (0, "right\n"), err
    out = check_child(
        """
        import os, warnings
        from lazymem.providers import spool
        class Owner: pass
        owner = Owner()
        place = spool.reserve(owner)
        pid = os.fork()
        if not pid:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                mine = spool.Spool(place)
            mine.append(memoryview(b"abc"))
            assert mine.nbytes == 3 and len(caught) == 1, caught
            assert "may not be opened" in str(caught[0].message)
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
        """
    )
    assert out == "0\n"


def test_the_parent_dies(folder):
    """Nothing is left behind, and a process that is still there goes on."""
    out = check_child(
        f"""
        import os, signal, tempfile, sys
        tempfile.tempdir = {str(folder)!r}
        from lazymem.providers.generator import GeneratorProvider
        pid = os.fork()
        if not pid:
            provider = GeneratorProvider(lambda: [bytes(5000)], 5000, "u1")
            provider.open()
            provider.read_into(memoryview(bytearray(5000)), 0)
            os.kill(os.getpid(), signal.SIGKILL)
        print(os.waitpid(pid, 0)[1], os.listdir({str(folder)!r}))
        """
    )
    assert out == "9 []\n"


def test_a_forked_child_leaves_it_alone(folder):
    """It has the descriptor too; ending the ordinary way it closes its own, and the parent's stays."""
    check_child(
        """
        import os, sys
        from lazymem.providers.generator import GeneratorProvider
        provider = GeneratorProvider(lambda: [bytes(5000)], 5000, "u1")
        pid = os.fork()
        if not pid:
            del provider
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        provider.open()
        provider.read_into(memoryview(bytearray(5000)), 0)
        assert os.fstat(provider._place.fd).st_size == 5064
        """
    )
