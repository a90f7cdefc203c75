"""Does a lazy array hold what an ordinary one holds, for any dtype, shape, order, offset, block and slice?"""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import PAGE, settled

import lazymem as lm

# Pages of bytes that differ at every place a mistake could confuse: neighbours, pages, blocks.
MEMORY = np.random.default_rng(7).integers(0, 256, 12 * PAGE + 77, "u1")

DTYPES = st.sampled_from(
    [
        "u1",
        "?",
        "<i2",
        ">i4",
        "<u8",
        ">u8",
        "V3",
        "V5",
        "V12",
        "S7",
        "V80",
        "c16",
        "M8[s]",
        [("a", "u1"), ("b", ">u4"), ("c", "V3")],
    ]
).map(np.dtype)
RELAXED = settings(max_examples=150, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))


@st.composite
def arrays(draw):
    """Where in the memory an array lies, and what it is."""
    dtype = draw(DTYPES)
    offset = draw(st.integers(0, 2 * PAGE + 9))
    most = (MEMORY.size - offset) // dtype.itemsize
    shape = []
    for _ in range(draw(st.integers(0, 4))):
        shape.append(draw(st.integers(0, max(1, min(most, draw(st.sampled_from([2, 7, 60, 5000])))))))
        most //= max(1, shape[-1])
    return {"dtype": dtype, "offset": offset, "shape": tuple(shape), "order": draw(st.sampled_from("CF"))}


def _both(layout, delivery, block_nbytes, mode="r", file=None):
    want = np.ndarray(layout["shape"], layout["dtype"], MEMORY.copy(), layout["offset"], order=layout["order"])
    given = {"mode": mode, "block_nbytes": block_nbytes, "delivery": delivery}
    a = lm.memmap(file, **layout, **given) if file else lm.from_provider(MEMORY, **layout, **given)
    return a, want


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("property") / "memory.bin"
    MEMORY.tofile(path)
    return path


BLOCKS = st.sampled_from([1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE, 5 * PAGE, 64 * PAGE])


@pytest.mark.thin
@pytest.mark.parametrize("where", ["memory", "file"])
def test_any_slices(delivery, where, file):
    @RELAXED
    @given(st.data(), arrays(), BLOCKS)
    def check(data, layout, block_nbytes):
        a, want = _both(layout, delivery, block_nbytes, file=file if where == "file" else None)
        assert (a.shape, a.dtype, a.strides) == (want.shape, want.dtype, want.strides)
        need, scalars = set(), 0
        for _ in range(data.draw(st.integers(1, 3))):
            key = data.draw(hnp.basic_indices(want.shape, allow_newaxis=True, allow_ellipsis=True))
            got, expected = a[key], want[key]
            assert np.shape(got) == np.shape(expected)
            assert got.dtype == expected.dtype
            assert got.tobytes() == expected.tobytes()
            # What it needed, and no more.
            if isinstance(got, lm.LazyArray):
                need |= _blocks_of(got, lm.region(a).address, lm.stats(a).block_nbytes)
            else:
                scalars += 1
        settled(a)
        have = set(np.flatnonzero(lm.residency(lm.region(a))).tolist())
        assert need <= have
        assert len(have) <= len(need) + 2 * scalars
        assert a.tobytes() == want.tobytes()
        s = settled(a)
        assert s.blocks <= s.nblocks

    check()


@pytest.mark.thin
@pytest.mark.parametrize("where", ["memory", "file"])
def test_any_writes(delivery, where, file):
    @RELAXED
    @given(st.data(), arrays(), BLOCKS)
    def check(data, layout, block_nbytes):
        a, want = _both(layout, delivery, block_nbytes, "c", file=file if where == "file" else None)
        for _ in range(data.draw(st.integers(1, 4))):
            key = data.draw(hnp.basic_indices(want.shape, allow_ellipsis=True))
            source = np.frombuffer(bytes([data.draw(st.integers(0, 1))]) * want.dtype.itemsize, want.dtype)[0]
            a[key] = source
            want[key] = source
            at = data.draw(hnp.basic_indices(want.shape, allow_ellipsis=True))
            assert a[at].tobytes() == want[at].tobytes()
        assert a.tobytes() == want.tobytes()

    check()
    assert np.array_equal(np.fromfile(file, "u1"), MEMORY)


def test_any_populate(delivery):
    """populate of a part makes just the blocks resident that the part's elements lie in, and those between small steps."""

    @RELAXED
    @given(st.data(), arrays(), BLOCKS)
    @example(None, {"dtype": np.dtype("u1"), "offset": 0, "shape": (3 * PAGE,), "order": "C"}, PAGE)
    def check(data, layout, block_nbytes):
        a, want = _both(layout, delivery, block_nbytes)
        key = data.draw(hnp.basic_indices(want.shape, allow_ellipsis=True)) if data is not None else slice(PAGE, PAGE + 1)
        part = a[key]
        if not isinstance(part, lm.LazyArray):
            return
        lm.populate(part)
        size = lm.stats(a).block_nbytes
        base = lm.region(a).address
        need = _blocks_of(part, base, size)
        have = set(np.flatnonzero(lm.residency(lm.region(a))).tolist())
        assert need <= have
        if need:
            assert have <= set(range(min(need), max(need) + 1))
        faults = lm.stats(a).faults
        assert part.tobytes() == want[key].tobytes()
        assert lm.stats(a).faults == faults  # reading it is no touch any more

    check()


def _blocks_of(part, base, size):
    """By hand: the blocks of every byte of every element."""
    at = np.full(part.shape, part.__array_interface__["data"][0] - base, "i8")
    for axis, (n, stride) in enumerate(zip(part.shape, part.strides, strict=True)):
        at += (np.arange(n) * stride).reshape([-1 if i == axis else 1 for i in range(part.ndim)])
    first, last = at // size, (at + part.itemsize - 1) // size
    return set(first.ravel().tolist()) | set(last.ravel().tolist())


@pytest.mark.thin
def test_any_arithmetic(delivery):
    @RELAXED
    @given(hnp.arrays(st.sampled_from(["i8", "f4", "u2"]), hnp.array_shapes(max_dims=3, max_side=40)), st.data(), BLOCKS)
    def check(want, data, block_nbytes):
        a = lm.from_provider(want.tobytes(), want.shape, want.dtype, block_nbytes=block_nbytes, delivery=delivery)
        key = data.draw(hnp.basic_indices(want.shape, min_dims=1))
        with np.errstate(all="ignore"):
            for f in (lambda x: x + x, lambda x: x[key] * 2, lambda x: x.sum(axis=-1), lambda x: np.sort(x, axis=None)):
                got, expected = f(a), f(want)
                assert got.dtype == expected.dtype
                np.testing.assert_array_equal(got, expected)

    check()
