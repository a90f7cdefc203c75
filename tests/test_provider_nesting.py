"""Does a lazy array work inside another one's provider, whatever either is made of?

Cycles are for test_provider_cycles.py.
"""

import errno
import importlib.util
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, in_child
from nested_providers import Over, OverC, OverCOver, Reporting, fails, family, text_of
from support import each_user, run_child, settled, wait_until

import lazymem as lm
from lazymem.testing import ServerApart

WORDS = PAGE // 8
N = 16
IOTA = np.arange(N * WORDS)


# ---------------------------------------------------------------------------------------------------------------------------
# Pairings


def inner_of(kind, path, server, **options):
    if kind == "file":
        return lm.memmap(path, "i8", **options)
    if kind == "npy":
        return lm.open(path + ".npy", **options)
    if kind == "http":
        return lm.memmap(server.url_of("f"), "i8", **options)
    if kind == "function":
        return lm.from_function(lambda i: i, IOTA.shape, "i8", **options)
    if kind == "fill":
        return lm.from_fill(lambda out, start: np.copyto(out, np.arange(start, start + out.size)), IOTA.shape, "i8", **options)
    if kind == "generator":
        return lm.from_generator(
            lambda: (np.arange(i, i + 128) for i in range(0, N * WORDS, 128)), IOTA.shape, "i8", **options
        )
    assert kind == "provider"

    class Iota:
        nbytes = IOTA.nbytes

        def read_into(self, buffer, offset):
            out = np.frombuffer(buffer, "i8")
            out[:] = np.arange(offset // 8, offset // 8 + out.size)

    return lm.from_provider(Iota(), dtype="i8", **options)


def outer_of(kind, inner, **options):
    if kind == "function":
        return lm.from_function(lambda i: inner[i] * 2 + 1, inner.shape, "i8", **options)
    if kind == "fill":
        return lm.from_fill(
            lambda out, start: np.copyto(out, inner[start : start + out.size] * 2 + 1), inner.shape, "i8", **options
        )
    if kind == "generator":
        return lm.from_generator(
            lambda: (inner[i : i + 512] * 2 + 1 for i in range(0, inner.size, 512)), inner.shape, "i8", **options
        )
    assert kind == "provider"
    return lm.from_provider(Over(inner), dtype="i8", **options)


@each_user
def test_pairings(delivery, user, folder):
    path = str(folder / "f")
    IOTA.tofile(path)
    np.save(path + ".npy", IOTA)
    in_child(pairings, delivery, path, user=user)


def pairings(delivery, path):
    options = {"delivery": delivery, "block_nbytes": PAGE}
    server = ServerApart({"f": path})
    kinds = ["file", "npy", "function", "fill", "generator", "provider"]
    if importlib.util.find_spec("urllib3") is not None:
        kinds.append("http")
    for outer in ("function", "fill", "provider", "generator"):
        for kind in kinds:
            print("at", kind, "in", outer, flush=True)
            inner = inner_of(kind, path, server, **options)
            a = outer_of(outer, inner, **options)
            assert a[-1] == 2 * IOTA[-1] + 1
            assert np.array_equal(a, 2 * IOTA + 1)
            s = settled(a)
            assert (s.blocks, s.failed, s.nbytes_asked) == (N, 0, a.nbytes)
            assert settled(inner).faults == 0  # this process's own was never touched
            assert sorted(family().values())[-1:] == [1 if kind in ("file", "npy") and outer == "function" else 2]
            assert len(family()) == len(set(family().values()))


def test_ways_to_touch_inside(delivery):
    in_child(ways_to_touch_inside, delivery)


def ways_to_touch_inside(delivery):
    options = {"delivery": delivery, "block_nbytes": PAGE}
    for touch in ("bare", "populate", "elements", "all", "half", "thread", "bare thread"):
        print("at", touch, flush=True)
        inner = lm.from_function(lambda i: i, IOTA.shape, "i8", **options)
        a = lm.from_provider(Over(inner, touch), dtype="i8", **options)
        assert np.array_equal(np.asarray(a), 2 * IOTA + 1)
        assert settled(a).blocks == N


def test_c_functions_and_providers(delivery):
    in_child(c_functions_and_providers, delivery)


def c_functions_and_providers(delivery):
    options = {"delivery": delivery, "block_nbytes": PAGE}
    a = lm.from_provider(OverC(IOTA.nbytes, **options), dtype="i8", **options)
    assert np.array_equal(a, 2 * IOTA + 1)

    # A C source that touches an array of a provider, in this process.
    base = lm.from_function(lambda i: i, IOTA.shape, "i8", **options)
    b, kit = counted(IOTA.nbytes, touch=address_of(base), touch_step=1, **options)
    assert np.array_equal(b, IOTA)
    assert (kit.calls, kit.touched, settled(base).blocks) == (N, N, N)

    # A provider that touches an array whose C source touches an array of a provider.
    base = lm.from_function(lambda i: i, IOTA.shape, "i8", **options)
    c = lm.from_provider(OverCOver(base, **options), dtype="i8", **options)
    assert np.array_equal(c, 2 * IOTA + 1)

    # What fails at the end of such a row fails all the way up, and is no zeros.
    def broken(i):
        raise ValueError("at the very bottom")

    base = lm.from_function(broken, IOTA.shape, "i8", **options)
    c = lm.from_provider(OverCOver(base, **options), dtype="i8", **options)
    assert fails(lambda: c[0]).errno == errno.EREMOTEIO
    b, kit = counted(IOTA.nbytes, touch=address_of(base), touch_step=1, **options)
    assert fails(lambda: b[0]).errno == errno.EREMOTEIO


def test_what_cannot_travel_is_named():
    closed = lm.from_function(lambda i: i, 100)
    closed.close()
    for inner, why in [
        (lm.from_provider(bytes(100)), "memory of this process"),
        (counted(100 * PAGE, block_nbytes=PAGE)[0], "a C function of this process"),
        (closed, "is closed"),
    ]:
        provider = Over(IOTA)
        provider.inner = inner
        with pytest.raises(TypeError, match=r"provider\.inner is a .*LazyArray") as caught:
            lm.from_provider(provider)
        assert why in str(caught.value.__cause__)


# ---------------------------------------------------------------------------------------------------------------------------
# Failures inside


@each_user
def test_what_fails_inside_is_no_zeros(delivery, user, folder):
    in_child(what_fails_inside, delivery, str(folder), user=user)


def what_fails_inside(delivery, folder):
    """However it is touched, memory included: the outer block fails, and the process goes on."""
    options = {"delivery": delivery, "block_nbytes": PAGE, "retries": 0}

    def broken_in_the_middle(i):
        if 5 * WORDS <= i[0] < 7 * WORDS and not os.path.exists(f"{folder}/mended"):
            raise ValueError("in the middle")
        return i

    class Noting(Over):
        def open(self):
            with open(f"{folder}/opened", "a") as f:
                f.write(f"{self.touch} {os.getpid()}\n")

    waiting = []
    for touch in ("slice", "bare", "populate", "elements", "all", "thread"):
        print("at", touch, flush=True)
        inner = lm.from_function(broken_in_the_middle, IOTA.shape, "i8", **options)
        a = lm.from_provider(Noting(inner, touch), dtype="i8", **options)
        for block in range(N):
            if touch == "all" or 5 <= block < 7:
                for at in (a, np.asarray(a)):
                    error = fails(lambda at=at, block=block: lm.populate(at[block * WORDS : (block + 1) * WORDS]))
                    assert "in the middle" in text_of(error)
                error = fails(lambda a=a, block=block: a[block * WORDS + 3])
                assert (error.errno, error.block) == (errno.EREMOTEIO, block)
            else:
                assert np.array_equal(
                    a[block * WORDS : (block + 1) * WORDS], 2 * IOTA[block * WORDS : (block + 1) * WORDS] + 1
                )
        waiting.append(a)
    Path(folder, "mended").touch()
    for a in waiting:
        assert np.array_equal(a, 2 * IOTA + 1)
    opened = [line.rpartition(" ") for line in Path(folder, "opened").read_text().splitlines()]
    assert len(opened) == len(waiting), "a process has died"
    assert len({pid for _, _, pid in opened}) == 1

    # Memory touched on a thread of the provider's own: it goes on over what is no data, and the request fails. No zeros.
    Path(folder, "mended").unlink()
    inner = lm.from_function(broken_in_the_middle, IOTA.shape, "i8", **options)
    a = lm.from_provider(Over(inner, "bare thread"), dtype="i8", **options)
    assert a[0] == 1
    for _ in range(20):
        assert fails(lambda: a[5 * WORDS]).errno == errno.EREMOTEIO
    assert a[WORDS] == 2 * WORDS + 1
    Path(folder, "mended").touch()
    assert np.array_equal(a, 2 * IOTA + 1)
    assert lm.stats(a).errors == 20


def test_a_file_that_changes_under_a_provider(delivery, folder):
    IOTA.tofile(folder / "f")
    in_child(a_file_that_changes_under_a_provider, delivery, str(folder / "f"))


def a_file_that_changes_under_a_provider(delivery, path):
    options = {"delivery": delivery, "block_nbytes": PAGE}
    a, b = (
        lm.from_provider(Over(lm.memmap(path, "i8", **options), touch), dtype="i8", **options) for touch in ("slice", "bare")
    )
    assert a[0] == b[0] == 1
    IOTA.tofile(path)  # the same bytes, but who knows that?
    for x in (a, b):
        assert "changed" in text_of(fails(lambda x=x: x[WORDS]))
        assert x[1] == 3


# ---------------------------------------------------------------------------------------------------------------------------
# At the same time


@each_user
def test_an_array_and_one_over_it_at_the_same_time(delivery, user, folder):
    """One process serves both: that somebody waits for the inner one makes it no part of the other's chain."""
    in_child(an_array_and_one_over_it, delivery, str(folder), user=user)


def an_array_and_one_over_it(delivery, folder):
    options = {"delivery": delivery, "block_nbytes": PAGE}
    for touch in ("slice", "bare", "half", "thread", "bare thread"):
        print("at", touch, flush=True)
        place = Path(folder, touch)
        place.mkdir()

        def halting(i, place=place):
            if i[0] == 0:
                (place / "inner").touch()
                wait_until((place / "go").exists)
            return i

        class Late(Over):
            def read_into(self, buffer, offset, place=place):
                wait_until((place / "inner").exists)
                super().read_into(buffer, offset)
                (place / "go").touch()

        inner = lm.from_function(halting, IOTA.shape, "i8", **options)
        a = lm.from_provider(Late(inner, touch), dtype="i8", **options)
        got = []
        other = threading.Thread(target=lambda inner=inner, got=got: got.append(int(inner[1])))
        other.start()
        assert a[3 * WORDS + 1] == 2 * (3 * WORDS + 1) + 1
        other.join()
        assert got == [1]
        assert np.array_equal(a, 2 * IOTA + 1)


def test_many_at_the_same_time(delivery):
    in_child(many_at_the_same_time, delivery)


def many_at_the_same_time(delivery):
    options = {"delivery": delivery, "block_nbytes": PAGE, "processes": 2}
    arrays = [lm.from_function(lambda i: i, IOTA.shape, "i8", **options)]
    wants = [IOTA]
    for touch in ("slice", "bare", "all"):
        arrays.append(lm.from_provider(Over(arrays[-1], touch), dtype="i8", **options))
        wants.append(2 * wants[-1] + 1)
    wrong = []

    def touch(seed):
        choice = np.random.default_rng(seed)
        for _ in range(12):
            which, block = choice.integers(4), choice.integers(N)
            part = slice(block * WORDS, (block + 1) * WORDS)
            try:
                if not np.array_equal(arrays[which][part], wants[which][part]):
                    wrong.append((which, block))
            except lm.PageError as error:
                wrong.append((which, block, text_of(error)))

    threads = [threading.Thread(target=touch, args=(seed,)) for seed in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    for a, want in zip(arrays, wants, strict=True):
        assert np.array_equal(a, want)


# ---------------------------------------------------------------------------------------------------------------------------
# Views, other processes, private writes, closing

VIEWS = (
    lambda x: x,
    lambda x: x[3:-5],
    lambda x: x[::-1],
    lambda x: x[5::7],
    lambda x: x.reshape(128, -1).T,
    lambda x: x.reshape(64, -1)[::3, 100:2:-5],
    lambda x: x.view("u1")[3 * PAGE + 5 :],
    lambda x: x[7:8].reshape(()),
    lambda x: x[9:9],
)


def test_views_travel_with_providers(delivery):
    in_child(views_travel_with_providers, delivery)


def views_travel_with_providers(delivery):
    options = {"delivery": delivery, "block_nbytes": PAGE}
    inner = lm.from_function(lambda i: i * 3, IOTA.shape, "i8", **options)
    for view in VIEWS:
        given, plain = view(inner), view(IOTA * 3)
        nbytes = plain.nbytes

        class Copy:
            def __init__(self, given, nbytes):
                self.given, self.nbytes = given, nbytes

            def open(self):
                if type(self.given) is not lm.LazyArray:
                    raise TypeError(type(self.given))

            def read_into(self, buffer, offset):
                buffer[:] = self.given.tobytes()[offset : offset + len(buffer)]

        a = lm.from_provider(Copy(given, nbytes), plain.shape, plain.dtype, **options)
        assert np.array_equal(a, plain)
        if plain.size:
            b = lm.from_function(lambda *i, given=given: given[i], plain.shape, plain.dtype, **options)
            assert np.array_equal(b, plain)
    # A plain view pickles as its bytes, as it does everywhere.
    plain = np.asarray(inner[:10])
    assert np.array_equal(lm.from_function(lambda i: plain[i], 10, "i8"), IOTA[:10] * 3)


def rows_of(a, first, stop):
    """In another process: what it finds there."""
    s = lm.stats(a)
    return s.delivery, s.block_nbytes, s.blocks, np.array(a[first:stop]), sorted(family().values())


def test_travels_to_other_processes(delivery, folder):
    in_child(travels_to_other_processes, delivery, str(folder / "a"), timeout=100)


def travels_to_other_processes(delivery, path):
    options = {"delivery": delivery, "block_nbytes": 2 * PAGE}
    inner = lm.from_function(lambda i: i, IOTA.shape, "i8", **options)
    a = lm.from_provider(Over(inner), dtype="i8", **options)
    view, want = a.reshape(64, -1)[::2, 1:], (2 * IOTA + 1).reshape(64, -1)[::2, 1:]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        done = [pool.submit(rows_of, view, i, i + 8) for i in range(0, 32, 8)]
        for i, task in enumerate(done):
            way, block_nbytes, blocks, got, processes = task.result()
            assert (way, block_nbytes) == (delivery, 2 * PAGE)
            assert blocks == 0
            assert np.array_equal(got, want[8 * i : 8 * i + 8])
            assert processes == [1, 2]  # its own
    assert settled(a).blocks == 0
    Path(path).write_bytes(pickle.dumps((view, [inner[4:8], a])))
    text = f"""
        import pickle, numpy as np, lazymem as lm
        view, (part, a) = pickle.load(open({path!r}, "rb"))
        print(view.sum(), part.tolist(), a[-1], type(view) is lm.LazyArray)
        """
    status, out, err = run_child(text, fresh=True)
    assert (status, out.split("\n")[0]) == (0, f"{want.sum()} [4, 5, 6, 7] {2 * IOTA[-1] + 1} True"), err


def test_private_writes(delivery):
    in_child(private_writes, delivery)


def private_writes(delivery):
    """They stay here: what a provider was given before does not see them, and afterwards the array does not travel."""
    options = {"delivery": delivery, "block_nbytes": PAGE}
    inner = lm.from_function(lambda i: i, IOTA.shape, "i8", mode="c", **options)
    before = lm.from_provider(Over(inner), dtype="i8", mode="c", **options)
    assert inner[5] == 5
    assert pickle.loads(pickle.dumps(inner))[5] == 5  # touched, but not written to
    inner[5] = -1
    before[0] = -7
    for x in (inner, before, before[10:], {"a": inner}):
        with pytest.raises(ValueError, match="private writes"):
            pickle.dumps(x)
    with pytest.raises(TypeError, match=r"provider\.inner is a .*LazyArray"):
        lm.from_provider(Over(inner))
    want = 2 * IOTA + 1
    want[0] = -7
    assert np.array_equal(before, want)
    before[:] = 3
    assert (before == 3).all()
    assert (settled(before).blocks, settled(inner).blocks) == (N, 1)
    inner[5] = 5
    assert pickle.loads(pickle.dumps(inner))[6] == 6


def test_closing(delivery, folder):
    in_child(closing, delivery, str(folder / "log"))


def closing(delivery, log):
    """An inner array is closed here, and in the provider's process, without harm to the others."""
    options = {"delivery": delivery, "block_nbytes": PAGE}
    inner = lm.from_function(lambda i: i, IOTA.shape, "i8", **options)

    class Closing(Reporting):
        def read_into(self, buffer, offset):
            super().read_into(buffer, offset)
            if offset == 5 * PAGE:
                self.inner.close()

    a = lm.from_provider(Reporting(inner, log), dtype="i8", **options)
    b = lm.from_provider(Closing(inner, log + "2"), dtype="i8", **options)
    assert a[0] == b[0] == 1
    inner.close()
    with pytest.raises(ValueError, match="closed"):
        inner[0]
    assert np.array_equal(a, 2 * IOTA + 1)
    assert b[5 * WORDS] == 10 * WORDS + 1
    assert "is closed" in text_of(fails(lambda: b[6 * WORDS]))
    assert b[5 * WORDS + 1] == 10 * WORDS + 3
    a.close()
    assert wait_until(lambda: "close" in Path(log).read_text())
    b.close()
    assert wait_until(lambda: "close" in Path(log + "2").read_text())
    assert [Path(p).read_text().count(word) for p in (log, log + "2") for word in ("open", "close")] == [1, 1, 1, 1]
    c = lm.from_function(lambda i: i + 1, IOTA.shape, "i8", **options)
    assert c[1] == 2
