"""Does lazymem.memmap take what numpy.memmap takes, and give the same?"""

import os

import numpy as np
import pytest
from support import PAGE

import lazymem as lm

SIZE = 5 * PAGE + 24


@pytest.fixture
def path(folder):
    path = folder / "raw.bin"
    np.random.default_rng(1).integers(0, 2, SIZE, "u1").tofile(path)
    return path


def _compare(path, delivery=None, **given):
    """Both, and everything that both have."""
    # numpy 1 wants a tuple where we, like numpy 2, take any sequence.
    shape = {"shape": tuple(given["shape"])} if isinstance(given.get("shape"), list) else {}
    want = np.memmap(path, **{"mode": "r", **given, **shape})
    a = lm.memmap(path, **given, **({"delivery": delivery} if delivery else {}))
    assert a.dtype == want.dtype
    assert a.shape == want.shape
    assert a.strides == want.strides
    assert a.flags.writeable == want.flags.writeable
    assert a.flags.c_contiguous == want.flags.c_contiguous
    assert a.flags.f_contiguous == want.flags.f_contiguous
    assert str(a.filename) == str(want.filename)
    assert a.offset == want.offset
    assert a.mode == want.mode
    assert a.tobytes() == want.tobytes()
    return a


@pytest.mark.parametrize("offset", [0, 1, 3, 8, PAGE - 1, PAGE, PAGE + 1, SIZE - 24])
@pytest.mark.parametrize("order", ["C", "F"])
def test_offsets(path, delivery, offset, order):
    _compare(path, delivery, dtype="u1", offset=offset)
    _compare(path, delivery, dtype="u1", offset=offset, shape=(4, 5), order=order)
    _compare(path, delivery, dtype="f8", offset=offset, shape=(1, 3), order=order)
    _compare(path, delivery, dtype=">i2", offset=offset, shape=12, order=order)
    _compare(path, delivery, dtype=[("a", "u1"), ("b", "f4")], offset=offset, shape=(2, 2), order=order)


@pytest.mark.parametrize("shape", [None, 7, (7,), (2, 3), [2, 3], (0,), (3, 0), (), np.int64(5), (np.int32(2), 2), (SIZE,)])
def test_shapes(path, shape):
    _compare(path, shape=shape)


@pytest.mark.parametrize("shape", [-1, (-1,), (-1, 8), (4, -1), (2, -1, 2)])
def test_one_length_that_follows(path, shape):
    a = lm.memmap(path, "u1", shape=shape)
    want = np.fromfile(path, "u1").reshape(shape)
    assert a.shape == want.shape
    assert np.array_equal(a, want)


@pytest.mark.parametrize(("mode", "short"), [("readonly", "r"), ("copyonwrite", "c"), ("r", "r"), ("c", "c")])
def test_modes(path, mode, short):
    a = _compare(path, mode=mode)
    assert a.mode == short


def test_defaults(path):
    a = lm.memmap(path)
    assert (a.dtype, a.mode, a.offset, a.shape) == (np.dtype("u1"), "r", 0, (SIZE,))
    assert np.array_equal(a, np.fromfile(path, "u1"))


def test_by_position(path):
    a = lm.memmap(path, "u2", "c", 8, (3, 4), "F")
    want = np.memmap(path, "u2", "c", 8, (3, 4), "F")
    assert a.strides == want.strides
    assert np.array_equal(a, want)


def test_open_file(path):
    with open(path, "rb") as f:
        want = np.memmap(f, mode="r", dtype="u2", offset=2, shape=40)
        a = lm.memmap(f, dtype="u2", offset=2, shape=40)
    assert a.filename == str(path)
    assert want.offset == a.offset
    assert np.array_equal(a, want)


@pytest.mark.parametrize("form", [str, os.fsencode, lambda p: p], ids=["str", "bytes", "Path"])
def test_forms_of_a_path(path, form):
    assert lm.memmap(form(path)).sum() == np.fromfile(path, "u1").sum()


def test_copy_on_write(path):
    a, want = lm.memmap(path, "u1", "c"), np.memmap(path, "u1", "c")
    for x in (a, want):
        x[PAGE - 3 : PAGE + 3] = 7
        x[5] += 1
        x.flush()
    assert np.array_equal(a, want)
    assert np.fromfile(path, "u1").max() == 1


@pytest.mark.parametrize(
    "given",
    [
        {"dtype": "f8", "offset": SIZE + 1}, {"shape": SIZE + 1}, {"offset": 1, "shape": SIZE}, {"mode": "rw"}, {"order": "K"},
        {"dtype": "f8", "offset": 1}, {"dtype": "u2", "shape": (-1, 7, 1000)}, {"offset": -1}, {"shape": (2, -3)},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused(path, given):
    with pytest.raises(ValueError) as caught:
        lm.memmap(path, **given)
    assert any(str(v) in str(caught.value) or "raw.bin" in str(caught.value) for v in given.values())


def test_an_empty_file(folder):
    """numpy.memmap refuses it; an array of nothing is none the less one."""
    (folder / "empty").touch()
    a = lm.memmap(folder / "empty")
    assert a.shape == (0,)
    assert a.sum() == 0
    lm.populate(a)
    lm.close(a)
