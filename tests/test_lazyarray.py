"""Does a LazyArray behave as an ndarray does, read no more than it must, and answer questions about itself?"""

import copy
import dataclasses

import numpy as np
import pytest
from support import PAGE, settled, wait_until

import lazymem as lm

PER = PAGE // 8  # f8 elements of a block
BLOCKS = 32
N = BLOCKS * PER


@pytest.fixture
def plain():
    return np.arange(N, dtype="f8") * 0.5


@pytest.fixture
def lazy(plain, delivery):
    def make(mode="r", shape=None, dtype="f8", order="C", **options):
        options.setdefault("block_nbytes", PAGE)
        return lm.from_provider(plain, shape, dtype, mode=mode, order=order, delivery=delivery, **options)

    return make


def _fetched(array):
    return settled(array).blocks


def _expressions(text):
    """Functions of `a`, named as they are written."""
    names = {"np": np, "copy": copy, "N": N}
    return [pytest.param(eval(f"lambda a: {x}", names), id=x) for x in (" ".join(x.split()) for x in text.split(";"))]


# --- what comes back


VIEWS_STAY_LAZY = """
a[3:9]; a[::2]; a[::-1]; a[...]; a[None]; a[1:, None]; a.reshape(4, -1); a.reshape(4, -1).T; a.reshape(4, -1)[2];
a.view("i8"); a.ravel(); a.squeeze(); a.swapaxes(0, 0); a.transpose(); a.real; np.reshape(a, (4, -1));
np.transpose(a.reshape(4, -1)); np.expand_dims(a, 0); np.moveaxis(a.reshape(4, 2, -1), 0, 1); np.flip(a);
np.squeeze(a[None]); a.reshape(4, -1).diagonal(); a[()]; np.broadcast_to(a, (2, N), subok=True); a.flat.base;
memoryview(a).obj is not None and a[:]
"""


@pytest.mark.parametrize("view", _expressions(VIEWS_STAY_LAZY))
def test_views_stay_lazy(lazy, plain, view):
    a = lazy()
    v = view(a)
    assert type(v) is lm.LazyArray
    assert lm.is_lazy(v)
    assert _fetched(a) == 0
    assert lm.region(v) is lm.region(a)
    want = view(plain)
    assert v.shape == want.shape
    assert v.strides == want.strides
    assert np.array_equal(v, want)


COPIES_ARE_PLAIN = """
a.copy(); a.astype("f4"); a + 1; a[[1, 2]]; a[a > 3]; -a; a.flatten(); np.sort(a); np.concatenate([a, a]);
np.cumsum(a); a == 1; np.where(a > 1, a, 0); a.reshape(4, -1).T.reshape(-1); a.reshape(4, -1).T.ravel(); np.sin(a);
np.add.outer(a[:3], a[:3]); a.reshape(4, -1).sum(axis=0); a.clip(1, 5); np.array(a); a.take([1, 2]); a.repeat(2);
np.vstack([a, a]); a.round(); np.split(a.copy(), 2)[0]; np.unique(a); np.diff(a); np.roll(a, 1); a @ np.eye(N, 2);
copy.copy(a); copy.deepcopy(a); np.copy(a); np.zeros_like(a); np.empty_like(a) * 0; np.tile(a, 2); np.pad(a, 1);
divmod(a, 2)[0]; np.linalg.norm(a.reshape(4, -1), axis=0); np.stack([a, a]); np.full_like(a, 3);
np.ascontiguousarray(a[::2]); a // 3 ** 2 % 7; np.array(a, subok=True, copy=True) + 0; a.nonzero()[0]; a.argsort();
~a.view("i8"); np.linalg.svd(a[:9].reshape(3, 3))[0]; np.linalg.qr(a[:9].reshape(3, 3))[1];
np.apply_along_axis(lambda row: row[:3], 1, a.reshape(128, -1))
"""


@pytest.mark.parametrize("made", _expressions(COPIES_ARE_PLAIN))
def test_copies_are_plain(lazy, plain, made):
    got, want = made(lazy()), made(plain)
    assert type(got) is np.ndarray
    assert not lm.is_lazy(got)
    assert got.dtype == want.dtype
    assert np.array_equal(got, want)
    assert got.flags.writeable


REDUCTIONS_ARE_SCALARS = """
a.sum(); a.mean(); a.max(); a.min(); a.std(); a.prod(); a.all(); a.any(); np.sum(a); np.add.reduce(a); a @ a;
np.dot(a, a); a.argmax(); np.median(a); np.ptp(a); a[5]; a[-1]; a[np.int64(3)]; np.percentile(a, 3);
np.linalg.norm(a); np.vdot(a, a); np.trapezoid(a) if hasattr(np, "trapezoid") else a.sum()
"""


@pytest.mark.parametrize("reduce", _expressions(REDUCTIONS_ARE_SCALARS))
def test_reductions_are_scalars(lazy, plain, reduce):
    got, want = reduce(lazy()), reduce(plain)
    assert type(got) is type(want)
    assert isinstance(got, np.generic)
    assert got == want


def test_asarray_is_plain_instant_and_lazy(lazy, plain):
    a = lazy()
    b = np.asarray(a)
    assert type(b) is np.ndarray
    assert b.ctypes.data == a.ctypes.data
    assert lm.is_lazy(b)
    assert lm.region(b) is lm.region(a)
    assert _fetched(a) == 0
    assert b[PER] == plain[PER]
    assert _fetched(a) == 1
    assert type(np.asanyarray(a)) is lm.LazyArray


def test_repr_reads_what_it_prints(lazy, plain):
    a = lazy()
    text = repr(a)
    assert text.startswith("LazyArray([")
    assert text.replace("LazyArray(", "array(").split() == repr(plain).split()
    assert _fetched(a) == 2  # the first and the last three elements
    b = lazy(shape=(BLOCKS, PER))
    assert str(b) == str(plain.reshape(BLOCKS, PER))
    assert _fetched(b) == 6


@pytest.mark.parametrize(
    "ask", ["shape", "dtype", "strides", "flags", "nbytes", "size", "ndim", "T", "base", "ctypes", "mode", "offset"]
)
def test_attributes_fetch_nothing(lazy, ask):
    a = lazy()
    getattr(a, ask)
    len(a), id(a), type(a)
    assert _fetched(a) == 0


# --- subscripts


ODD_KEYS = """
0; 5; -1; np.int64(7); np.uint8(7); np.int8(-3); (5,); (np.int64(5),); (Ellipsis,); (Ellipsis, 5); (5, Ellipsis); (None, 5)
(5, None); slice(None); slice(3, 900, 7); slice(None, None, -3); [1, 2, 3]; []; np.array([5, 6]); np.array([[5, 6], [7, 8]])
[True] * 3 + [False] * (N - 3); np.arange(N) % 5 == 0; (slice(3, 9),); ([1, 2],); (np.array(3),); True; False; None; Ellipsis
(); slice(np.int64(3), np.int32(8)); np.array(4)
"""


@pytest.mark.parametrize("expression", ODD_KEYS.strip().replace("\n", "; ").split("; "))
def test_odd_keys(lazy, plain, expression):
    key = eval(expression)
    got, want = lazy()[key], plain[key]
    assert np.array_equal(got, want)
    assert got.shape == want.shape
    if isinstance(want, np.generic):
        assert type(got) is type(want)
    else:
        assert type(got) is (lm.LazyArray if want.base is not None else np.ndarray)


@pytest.mark.parametrize(
    "key",
    [N, -N - 1, (0, 0), "field", 1.5, [N], np.array([True]), slice(0, 1, 0), object()],
    ids=lambda key: repr(key).partition(" at ")[0],
)
def test_wrong_keys_raise_as_numpy_does(lazy, plain, key):
    with pytest.raises(Exception) as want:
        plain[key]
    with pytest.raises(want.type) as got:
        lazy()[key]
    assert str(got.value) == str(want.value)


def test_a_lazy_array_as_index_and_mask(lazy, plain, delivery):
    index = lm.from_provider(np.array([5, 1, 7]), dtype="i8", delivery=delivery)
    mask = lm.from_provider(np.arange(N) % 3 == 0, dtype="?", delivery=delivery)
    a = lazy("c")
    assert np.array_equal(a[index], plain[[5, 1, 7]])
    assert np.array_equal(plain[index], plain[[5, 1, 7]])
    assert np.array_equal(a[mask], plain[::3])
    assert plain[index[0]] == plain[5]
    assert [10, 20][index[1:2].reshape(())] == 20  # __index__
    a[index] = 3
    a[mask] = lm.from_provider(np.zeros((N + 2) // 3), dtype="f8", delivery=delivery)
    want = plain.copy()
    want[[5, 1, 7]] = 3
    want[::3] = 0
    assert np.array_equal(a, want)


def test_iteration_and_conversion(lazy, plain):
    a = lazy()
    assert list(a[: 2 * PER]) == list(plain[: 2 * PER])
    assert [type(x) for x in a[:2]] == [np.float64] * 2
    rows = list(lazy(shape=(BLOCKS, PER)))
    assert all(type(r) is lm.LazyArray for r in rows)
    assert np.array_equal(rows, plain.reshape(BLOCKS, PER))
    assert list(reversed(a[:5])) == list(plain[:5])[::-1]
    one = a[PER : PER + 1].reshape(())
    assert float(one) == plain[PER]
    assert int(one) == int(plain[PER])
    assert complex(one) == plain[PER]
    assert bool(one) is True
    assert f"{one:.2f}" == f"{plain[PER]:.2f}"
    assert plain[7] in a
    assert -1.0 not in a
    assert a.tolist() == plain.tolist()
    assert a.item(9) == plain[9]
    assert type(a.item(9)) is float
    with pytest.raises(ValueError):
        bool(a)
    with pytest.raises(TypeError):
        hash(a)
    first, *_, last = a
    assert (first, last) == (plain[0], plain[-1])
    assert max(a) == plain[-1]
    assert sum(a[:4]) == 3.0
    assert sorted(a[:4], reverse=True) == [1.5, 1.0, 0.5, 0.0]


# --- arithmetic with ufuncs


def test_ufunc_keywords(lazy, plain, delivery):
    a, mask = lazy("c"), lm.from_provider(np.arange(N) % 2 == 0, dtype="?", delivery=delivery)
    assert np.add(a, 1, out=a) is a
    assert np.array_equal(a, plain + 1)
    assert np.multiply(plain, 2, out=a, where=mask) is a
    want = plain + 1
    want[::2] = plain[::2] * 2
    assert np.array_equal(a, want)
    assert np.add.reduce(a, where=mask) == want[::2].sum()
    out = np.zeros(N)
    assert np.add(a, a, out=out) is out
    assert np.array_equal(out, want * 2)
    b, c = lazy("c"), np.zeros(N)
    parts = np.divmod(plain, 3, out=(b, c))
    assert parts[0] is b
    assert parts[1] is c
    assert np.array_equal(b, plain // 3)
    np.add.at(a, [5, 5, N - 1], 10.0)
    np.add.at(want, [5, 5, N - 1], 10.0)
    assert np.array_equal(a, want)
    assert a.sum(out=np.zeros(())) == want.sum()
    assert np.array_equal(np.add.accumulate(a), np.add.accumulate(want))
    assert np.array_equal(np.add.reduceat(a, [0, 5]), np.add.reduceat(want, [0, 5]))
    assert np.clip(a, 1, 2, out=a) is a
    assert a.cumsum(out=c) is c
    assert a.__array_ufunc__(np.add, "__call__", a, 1, out=a) is a  # as numba calls it, not numpy
    assert np.array_equal(a, np.clip(want, 1, 2) + 1)


@pytest.mark.parametrize("op", ["__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__"])
def test_in_place(lazy, plain, op):
    a = lazy("c")
    want = plain.copy()
    getattr(want, op)(2)
    assert getattr(a, op)(2) is a
    assert np.array_equal(a, want)
    a = lazy()
    with pytest.raises(ValueError, match="read-only"):
        getattr(a, op)(2)


def test_augmented_assignment_of_parts(lazy, plain):
    a, want = lazy("c"), plain.copy()
    for x in (a, want):
        x[3:PER] += 1
        x[::7] *= 2
        x[[1, 2]] -= 5
        x -= x[::-1].copy()
    assert type(a) is lm.LazyArray
    assert np.array_equal(a, want)


def test_both_operands_lazy(lazy, plain):
    a, b = lazy(), lazy("c")
    assert np.array_equal(a + b, plain + plain)
    assert np.array_equal(plain - a, plain * 0)
    assert np.array_equal(a == b, np.ones(N, bool))
    assert (a @ b) == plain @ plain
    assert np.array_equal(2 ** a[:9], 2 ** plain[:9])
    assert np.array_equal(a < [1.0] * N, plain < 1)
    assert (a == "text") is False or not np.any(a == "text")


# --- modes


def test_read_only(lazy):
    a = lazy()
    assert not a.flags.writeable
    with pytest.raises(ValueError):
        a.flags.writeable = True
    with pytest.raises(ValueError):
        a[3:9].flags.writeable = True
    with pytest.raises(ValueError):
        np.asarray(a).flags.writeable = True
    with pytest.raises(ValueError):
        a.setflags(write=True)
    for store in (
        lambda: a.__setitem__(0, 1),
        lambda: a.fill(0),
        lambda: a.sort(),
        lambda: np.add(a, 1, out=a),
        lambda: a.put([0], 1),
        lambda: np.add.at(a, [0], 1),
    ):
        with pytest.raises(ValueError):
            store()
    assert memoryview(a).readonly
    assert a[0] == 0


def test_private_writes(folder, delivery, plain):
    path = folder / "a.raw"
    plain.tofile(path)
    a = lm.memmap(path, "f8", "c", block_nbytes=PAGE, delivery=delivery)
    b = lm.memmap(path, "f8", "c", block_nbytes=PAGE, delivery=delivery)
    a[PER - 1 : PER + 1] = -1
    assert _fetched(a) == 2
    want = plain.copy()
    want[PER - 1 : PER + 1] = -1
    assert np.array_equal(a, want)  # the other pages arrive
    assert _fetched(a) == BLOCKS
    assert np.array_equal(b, plain)
    del a, b
    assert np.array_equal(np.fromfile(path, "f8"), plain)


@pytest.mark.parametrize("itemsize", [1, 3, 12, 24, 80])
@pytest.mark.parametrize("offset", [0, 1, 7])
def test_any_itemsize_at_any_boundary(delivery, itemsize, offset):
    """Elements that lie across a block boundary: touched, copied, stored, each the first touch of both blocks."""
    memory = np.random.default_rng(itemsize).integers(0, 256, 6 * PAGE, dtype="u1")
    dtypes = [
        np.dtype(("V", itemsize)),
        np.dtype([("a", "u1"), ("rest", "u1", (itemsize - 1,))]) if itemsize > 1 else np.dtype("u1"),
    ]
    count = (memory.size - offset) // itemsize
    for dtype in dtypes:
        want = np.ndarray(count, dtype, memory, offset)
        for boundary in range(1, 6):
            i = (boundary * PAGE - offset) // itemsize
            a = lm.from_provider(memory, count, dtype, offset=offset, block_nbytes=PAGE, delivery=delivery, mode="c")
            assert a[i].tobytes() == want[i].tobytes()
            assert a[i - 1 : i + 2].copy().tobytes() == want[i - 1 : i + 2].tobytes()
            a = lm.from_provider(memory, count, dtype, offset=offset, block_nbytes=PAGE, delivery=delivery, mode="c")
            assert bytes(memoryview(a[i : i + 1])) == want[i : i + 1].tobytes()
            a = lm.from_provider(memory, count, dtype, offset=offset, block_nbytes=PAGE, delivery=delivery, mode="c")
            a[i] = want[0]
            changed = want.copy()
            changed[i] = want[0]
            assert a.tobytes() == changed.tobytes()


# --- questions


def test_residency(lazy):
    a = lazy()
    assert lm.residency(a).dtype == bool
    assert lm.residency(a).shape == (BLOCKS,)
    assert not lm.residency(a).any()
    lm.populate(a[3 * PER : 5 * PER])
    assert np.flatnonzero(lm.residency(a)).tolist() == [3, 4]
    assert lm.residency(a[4 * PER - 1 : 6 * PER]).tolist() == [True, True, False]
    assert lm.residency(a[4 * PER :: PER]).shape == (BLOCKS - 4,)
    assert lm.residency(np.asarray(a)).sum() == 2
    assert lm.residency(a[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("view", "blocks"),
    [
        (lambda a: a[: 2 * PER], [0, 1]),
        (lambda a: a[5 * PER - 1 : 5 * PER + 1], [4, 5]),
        (lambda a: a[:: 4 * PER], range(0, BLOCKS, 4)),
        (lambda a: a[:: -4 * PER], range(3, BLOCKS, 4)),
        (lambda a: a.reshape(BLOCKS, PER)[::2, :5], range(0, BLOCKS, 2)),
        (lambda a: a.reshape(BLOCKS, PER)[1::3].T, range(1, BLOCKS, 3)),
        (lambda a: a.reshape(4, 8, PER)[:, 3], range(3, BLOCKS, 8)),
        (lambda a: a.reshape(4, 8, PER)[::-1, 1:3, 4], [1, 2, 9, 10, 17, 18, 25, 26]),
        (lambda a: a[7 * PER : 7 * PER + 1].reshape(()), [7]),
        (lambda a: np.broadcast_to(a[9 * PER : 9 * PER + 2], (50, 2)), [9]),
        (lambda a: a[:0], []),
        (lambda a: np.asarray(a)[3 * PER : 4 * PER], [3]),
        (lambda a: memoryview(a)[3 * PER : 4 * PER], [3]),
        (lambda a: a, range(BLOCKS)),
    ],
)
def test_populate_and_prefetch_fetch_what_a_view_needs(lazy, view, blocks):
    a = lazy()
    lm.populate(view(a))
    assert np.flatnonzero(lm.residency(a)).tolist() == list(blocks)
    assert lm.stats(a).faults == 0
    a = lazy()
    assert lm.prefetch(view(a)) in (True, False)
    wait_until(lambda: lm.residency(a).sum() >= len(blocks))
    assert np.flatnonzero(lm.residency(a)).tolist() == list(blocks)


def test_stats(lazy, plain):
    a = lazy()
    before = lm.stats(a)
    assert a.sum() == plain.sum()
    s = settled(a)
    assert before.blocks == before.faults == 0  # as it stood
    assert s.faults == s.filled + s.joins + s.failed
    assert (s.blocks, s.nblocks, s.resident_blocks, s.block_nbytes, s.nbytes) == (BLOCKS, BLOCKS, BLOCKS, PAGE, N * 8)
    assert s.nbytes_asked == s.nbytes_used == N * 8
    assert s.filled == BLOCKS
    assert sum(n for _, _, n in s.latency_ns) == s.filled + s.joins
    assert 0 < s.quantile_ns(0.5) <= s.quantile_ns(0.99)
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.faults = 3
    text = repr(s)
    assert len(text.splitlines()) >= 4
    assert "latency" in text
    assert s.delivery in text
    assert "32 of 32 resident" in text


def test_region_and_is_lazy(lazy):
    a = lazy()
    r = lm.region(a)
    assert isinstance(r, lm.Region)
    assert r.nbytes == N * 8
    assert r.nblocks == BLOCKS
    assert not r.closed
    assert "memory" in repr(r)
    for x in (a, a[3:], a[::-1], np.asarray(a), np.asarray(a)[5:7], memoryview(a), a.reshape(4, -1).T):
        assert lm.is_lazy(x)
        assert lm.region(x) is r
    assert _fetched(a) == 0
    for x in (np.zeros(3), a.copy(), a + 1, b"bytes", 3, None, "text", [a]):
        assert not lm.is_lazy(x)
        with pytest.raises((ValueError, TypeError)):
            lm.region(x)
        with pytest.raises((ValueError, TypeError)):
            lm.populate(x)
    b = lazy()
    assert lm.region(b) is not r
    assert lm.region(r) is r


def test_torch(lazy, plain):
    torch = pytest.importorskip("torch")
    a = lazy("c")
    t = torch.from_numpy(np.asarray(a))
    assert lm.is_lazy(t)
    assert lm.is_lazy(t[3:9])
    assert lm.region(t) is lm.region(a)
    assert _fetched(a) == 0
    lm.populate(t[PER : 2 * PER])
    assert _fetched(a) == 1
    assert float(t.sum()) == plain.sum()


def test_a_subclass_of_nothing_odd(lazy):
    a = lazy()
    assert isinstance(a, np.ndarray)
    assert a.__array_priority__ == 0
    assert a.filename is None
    assert a.mode == "r"
    a.flush()
    owned = lm.LazyArray((3,), "f8")
    owned[:] = 1
    assert not lm.is_lazy(owned)
    assert owned.sum() == 3
    assert type(owned[:2]) is np.ndarray
