"""Does a lazy array travel as a recipe, and refuse where a recipe would lose something?"""

import copy
import multiprocessing
import os
import pickle

import cloudpickle
import numpy as np
import pytest
from support import PAGE, check_child, settled

import lazymem as lm

N = 100_000


@pytest.fixture
def plain():
    return np.arange(N, dtype="f8").reshape(100, 1000)


@pytest.fixture
def path(folder, plain):
    np.save(folder / "a.npy", plain)
    return folder / "a.npy"


VIEWS = (
    """
a; a[3]; a[3:9]; a[:, 5]; a[::-1]; a[::7, ::-3]; a.T; a[5:50, 3:20].T; a[None, 2]; a.reshape(10, -1); a[3, 4:5].reshape(())
a[50:50]; a.view("i8"); a.view("u1")[3:, 1::2]
a[:, ::-1].T[::-1]; a.ravel()[17::1001]; np.broadcast_to(a[3], (4, 1000), subok=True)
""".strip()
    .replace("\n", "; ")
    .split("; ")
)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("view", VIEWS)
def test_views(path, plain, delivery, view, protocol):
    a = lm.open(path, delivery=delivery, block_nbytes=PAGE)
    v = eval(view)
    text = pickle.dumps(v, protocol)
    assert len(text) < 2048
    assert settled(a).blocks == 0  # nothing was read for it
    b = pickle.loads(text)
    a = plain
    want = eval(view)
    assert type(b) is lm.LazyArray
    assert (b.shape, b.strides, b.dtype) == (want.shape, v.strides, want.dtype)
    assert settled(b).blocks == 0
    s = lm.stats(b)
    assert (s.delivery, s.block_nbytes) == (delivery, PAGE)  # the options travel too
    assert np.array_equal(b, want)
    assert not b.flags.writeable


def test_each_of_many_views_stays_small(path):
    a = lm.open(path)
    assert all(len(pickle.dumps(row)) < 2048 for row in a)
    assert len(pickle.dumps(list(a))) < 100 * 2048


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_in_another_process(path, plain, delivery, pickler, folder):
    (folder / "recipe").write_bytes(pickler.dumps(lm.open(path, delivery=delivery)[10:20, ::2]))
    check_child(f"""
    import pickle, numpy as np, lazymem as lm
    b = pickle.load(open({str(folder / "recipe")!r}, "rb"))
    assert type(b) is lm.LazyArray and lm.stats(b).blocks == 0
    assert np.array_equal(b, np.load({str(path)!r})[10:20, ::2])
    """)


def _total(part):
    return type(part).__name__, lm.is_lazy(part), float(part.sum())


def test_pool_over_slices(path, plain, delivery):
    a = lm.open(path, delivery=delivery)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        got = pool.map(_total, [a[i : i + 25] for i in range(0, 100, 25)])
        pool.close()
        pool.join()
    assert got == [("LazyArray", True, float(plain[i : i + 25].sum())) for i in range(0, 100, 25)]
    assert settled(a).blocks == 0


def test_a_relative_path_becomes_absolute(path, plain, monkeypatch):
    monkeypatch.chdir(path.parent)
    a = lm.open("a.npy")
    monkeypatch.chdir("/")
    text = pickle.dumps(a)
    assert np.array_equal(pickle.loads(text), plain)


def test_an_open_file_travels_by_its_path(path, plain):
    with open(path, "rb") as f:
        a = lm.open(f)
    assert np.array_equal(pickle.loads(pickle.dumps(a)), plain)


def test_a_file_without_a_name(path):
    fd = os.open(path, os.O_RDONLY)
    with os.fdopen(fd, "rb") as f:
        a = lm.open(f)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(a)


@pytest.mark.parametrize("change", ["rewritten", "appended", "truncated", "gone", "replaced"])
def test_a_file_that_changed(path, change):
    text = pickle.dumps(lm.open(path))
    stamp = os.stat(path)
    if change == "rewritten":
        with open(path, "r+b") as f:
            f.seek(1000)
            f.write(b"x")
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    elif change == "appended":
        with open(path, "ab") as f:
            f.write(b"x")
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    elif change == "truncated":
        os.truncate(path, 1000)
    elif change == "replaced":
        np.save(path.parent / "b.npy", np.zeros((100, 1000)))
        os.utime(path.parent / "b.npy", ns=(0, 0))
        os.replace(path.parent / "b.npy", path)
    else:
        os.unlink(path)
    with pytest.raises(FileNotFoundError if change == "gone" else lm.PageError) as caught:
        pickle.loads(text)
    assert "a.npy" in str(caught.value)
    if change != "gone":
        assert "changed" in str(caught.value)


def test_private_writes_are_never_lost(path, plain, delivery):
    a = lm.open(path, "c", delivery=delivery, block_nbytes=PAGE)
    a.sum()
    b = pickle.loads(pickle.dumps(a))  # none yet
    assert b.flags.writeable
    assert np.array_equal(b, plain)
    a[50, 500] += 1
    for part in (a, a[3:], a[50, 500:501]):
        with pytest.raises(ValueError, match=r"private writes.*numpy\.array"):
            pickle.dumps(part)
    a[50, 500] -= 1
    assert np.array_equal(pickle.loads(pickle.dumps(a)), plain)  # what is equal is not lost
    assert np.array_equal(pickle.loads(pickle.dumps(np.array(a))), plain)


def test_a_plain_touch_that_writes_is_found_too(path, delivery):
    """At once, again and again: a handler thread may not have published the block yet when the writer goes on."""
    for i in range(300):
        a = lm.open(path, "c", delivery=delivery)
        np.asarray(a)[i % 100, i] = -1
        with pytest.raises(ValueError, match="private writes"):
            pickle.dumps(a)


@pytest.mark.parametrize("memory", [np.arange(100), b"abc" * 100, bytearray(1000)])
def test_memory_does_not_travel(memory):
    with pytest.raises(TypeError, match=r"cannot be pickled.*memory of this process.*numpy\.array"):
        pickle.dumps(lm.from_provider(memory))


def test_what_owns_ordinary_memory_pickles_its_bytes():
    owned = lm.LazyArray((3, 4), "f8")
    owned[:] = 7
    b = pickle.loads(pickle.dumps(owned))
    assert not lm.is_lazy(b)
    assert np.array_equal(b, np.full((3, 4), 7.0))


def test_a_plain_view_pickles_its_bytes(path, plain):
    text = pickle.dumps(np.asarray(lm.open(path)))
    assert len(text) > plain.nbytes
    b = pickle.loads(text)
    assert type(b) is np.ndarray
    assert not lm.is_lazy(b)
    assert np.array_equal(b, plain)


def test_a_closed_array_does_not_travel(path):
    a = lm.open(path)
    lm.close(a)
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(a)


def test_copies_are_no_recipes(path, plain):
    a = lm.open(path, "c")
    for made in (copy.copy(a), copy.deepcopy(a), copy.deepcopy([a])[0]):
        assert type(made) is np.ndarray
        assert np.array_equal(made, plain)


def test_what_was_loaded_can_be_closed_and_pickled_again(path, plain, delivery):
    b = pickle.loads(pickle.dumps(lm.open(path, delivery=delivery)[5:]))
    c = pickle.loads(pickle.dumps(b[5:]))
    assert np.array_equal(c, plain[10:])
    assert c.filename == str(path)
    view = c[1:]
    with pytest.raises(BufferError, match="1 view"):
        lm.close(c)
    del view
    lm.close(c)
    with b:
        assert b[0, 0] == plain[5, 0]


def test_raw_files_and_options(folder):
    want = np.arange(5000, dtype=">u2")
    want.tofile(folder / "raw.bin")
    a = lm.memmap(folder / "raw.bin", ">u2", offset=4, shape=(-1, 3), order="F", block_nbytes="4 KiB", timeout=5, retries=1)
    b = pickle.loads(pickle.dumps(a))
    assert b.dtype == a.dtype
    assert b.strides == a.strides
    assert np.array_equal(a, b)
    assert b.filename == a.filename
