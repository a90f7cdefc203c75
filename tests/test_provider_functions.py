"""Does a function give the elements that numpy.fromfunction would have, in blocks of any size, and clear errors otherwise?"""

import threading
import warnings

import cloudpickle
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from provider_kit import elements, read_all, read_block
from support import PAGE, wait_until

from lazymem.providers.base import Traits, check_provider
from lazymem.providers.elements import holes_of
from lazymem.providers.functions import FillProvider, FunctionProvider, coordinates

RELAXED = settings(max_examples=200, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))
LONG_DOUBLE_HAS_HOLES = np.finfo(np.longdouble).nmant == 63


def raw(k, nbytes):
    return np.repeat(np.asarray(k % 256).astype("u1")[..., None], nbytes, -1).view(f"V{nbytes}")[..., 0]


# dtype, and a function of the element's number that gives values of it (or that become it).
KINDS = {
    "u1": lambda k: k * 7,
    "?": lambda k: k % 3 == 0,
    "<i2": lambda k: k - 1000,
    ">i4": lambda k: k * k,
    "<u8": lambda k: k * 0x9E3779B97F4A7C % (1 << 61),
    "f2": lambda k: k / 8,
    "<f4": lambda k: np.sqrt(k),
    ">f8": lambda k: np.sin(k),
    "g": lambda k: k / 3,
    ">g": lambda k: k / 3,
    "c8": lambda k: k + 1j * k,
    "G": lambda k: k / 3 + 2j,
    "M8[s]": lambda k: k.astype("M8[s]"),
    ">M8[D]": lambda k: k.astype("M8[D]"),
    "m8[ms]": lambda k: k.astype("m8[ms]"),
    "U7": lambda k: k.astype("U7"),
    ">U3": lambda k: (k % 1000).astype("U3"),
    "S5": lambda k: (k % 1000).astype("S5"),
    "V3": lambda k: raw(k, 3),
    "V80": lambda k: raw(k, 80),
}
STRUCTURE = np.dtype([("a", "u1"), ("b", ">f4"), ("c", "S3"), ("d", "i2", (2,))])
PADDED = np.dtype([("a", "u1"), ("b", "f8"), ("c", "u2")], align=True)


def number(shape, index):
    """An element's number, in C order, from its coordinates."""
    k = np.zeros(np.shape(index[0]) if index else (), np.int64)
    for length, i in zip(shape, index, strict=True):
        k = k * length + i
    return k


def oracle(f, shape, dtype):
    values = np.asarray(np.fromfunction(f, shape, dtype=np.int64))
    return np.broadcast_to(values, shape).astype(dtype)


@st.composite
def shapes(draw):
    shape = []
    most = 6000
    for _ in range(draw(st.integers(0, 5))):
        shape.append(draw(st.integers(0, max(1, min(most, draw(st.sampled_from([1, 2, 7, 60, 6000])))))))
        most //= max(1, shape[-1])
    return tuple(shape)


@RELAXED
@given(kind=st.sampled_from(sorted(KINDS)), shape=shapes(), pages=st.sampled_from([1, 2, 3, 16]))
@example(kind="<f4", shape=(3000, 2), pages=1)
@example(kind="U7", shape=(), pages=1)
@example(kind="V3", shape=(0, 5), pages=1)
def test_a_function_gives_what_fromfunction_gives(kind, shape, pages):
    def f(*index):
        return KINDS[kind](number(shape, index))

    provider = FunctionProvider(f, shape, kind)
    assert provider.nbytes == int(np.prod(shape)) * np.dtype(kind).itemsize
    want = oracle(f, shape, kind)
    got = elements(provider, pages * PAGE)
    assert got.dtype == np.dtype(kind)
    assert got.shape == want.shape
    np.testing.assert_array_equal(got, want)


@RELAXED
@given(kind=st.sampled_from(sorted(KINDS)), shape=shapes(), pages=st.sampled_from([1, 2, 3, 16]))
def test_a_fill_writes_what_it_would_write_into_one_array(kind, shape, pages):
    def fill(out, start):
        assert (out.dtype, out.ndim, out.flags.writeable) == (np.dtype(kind), 1, True)
        assert type(start) is int
        out[:] = KINDS[kind](np.arange(start, start + len(out)))

    provider = FillProvider(fill, shape, kind)
    want = np.zeros(int(np.prod(shape)), kind)
    fill(want, 0)
    np.testing.assert_array_equal(elements(provider, pages * PAGE), want.reshape(shape))


@RELAXED
@given(
    shape=st.lists(st.integers(1, 10**7), min_size=1, max_size=8),
    first=st.integers(0, (1 << 63) - 1),
    n=st.integers(1, 3000),
)
@example(shape=[10**6, 10**6, 10**6], first=10**18 - 3000, n=3000)
@example(shape=[3, 1, 1, 5], first=1, n=13)
@example(shape=[1, 1, 1], first=0, n=1)
@example(shape=[(1 << 63) - 1], first=(1 << 63) - 3001, n=3000)
def test_coordinates_are_exact(shape, first, n):
    while np.prod([*map(int, shape)], dtype=object) >= 1 << 63:
        shape.pop()
    size = int(np.prod([*map(int, shape)], dtype=object))
    n = min(n, size)
    first %= size - n + 1
    got = coordinates(tuple(shape), first, n)
    assert len(got) == len(shape)
    assert all(a.dtype == np.int64 and a.shape == (n,) and a.flags.writeable and a.flags.owndata for a in got)
    assert not any(np.shares_memory(a, b) for i, a in enumerate(got) for b in got[:i])
    for k in {0, 1 % n, n // 2, n - 1}:
        place = []
        rest = first + k
        for length in reversed(shape):
            rest, at = divmod(rest, length)
            place.append(at)
        assert [int(a[k]) for a in got] == place[::-1]
    again = 0
    for length, a in zip(shape, got, strict=True):
        again = again * length + a
    assert np.array_equal(again, np.arange(n) + first)


def test_coordinates_are_the_functions_own():
    def f(i, j):
        i *= 10
        i += j
        return i

    provider = FunctionProvider(f, (300, 40), "i8")
    for _ in range(2):
        want = np.arange(300)[:, None] * 10 + np.arange(40)
        np.testing.assert_array_equal(elements(provider), want)


def test_a_huge_shape_is_asked_in_its_last_block():
    shape = (10**6, 10**6, 10**5)
    provider = FunctionProvider(lambda i, j, k: (i + 1) * 10**11 + j * 10**5 + k, shape, "i8")
    assert provider.nbytes == 8 * 10**17
    block = np.frombuffer(read_block(provider, provider.nbytes - 800, 800), "i8")
    np.testing.assert_array_equal(block, np.arange(10**17 - 100, 10**17) + 10**11)


def test_structures():
    def f(i):
        made = np.zeros(i.size, STRUCTURE)
        made["a"], made["b"], made["c"], made["d"] = i, i / 2, i.astype("S3"), i[:, None]
        return made

    provider = FunctionProvider(f, (1000,), STRUCTURE)
    assert STRUCTURE.itemsize == 12
    np.testing.assert_array_equal(elements(provider), f(np.arange(1000)))
    tuples = FunctionProvider(lambda i: [(int(k) % 200, k / 4, b"x", (1, 2)) for k in i], (1000,), STRUCTURE)
    got = elements(tuples)
    assert got[999].tolist()[:3] == (999 % 200, 999 / 4, b"x")
    assert (got["d"] == [1, 2]).all()
    one = FunctionProvider(lambda i: (1, 2.0, b"abc", (3, 4)), (1000,), STRUCTURE)
    assert elements(one)[500].tolist()[:3] == (1, 2.0, b"abc")


@pytest.mark.parametrize("dtype", [PADDED, "g", ">g", "G", [("a", "u1"), ("b", "g")]], ids=str)
def test_bytes_that_hold_nothing_are_zero(dtype):
    dtype = np.dtype(dtype)
    holes = holes_of(dtype)
    if dtype != PADDED and not LONG_DOUBLE_HAS_HOLES:
        pytest.skip("long double has no holes here")
    assert holes is not None
    function = FunctionProvider(lambda i: np.full(i.size, 7).astype(dtype), (999,), dtype)

    def fill(out, start):
        for name in out.dtype.names or (...,):
            out[name] = 7

    for provider in (function, FillProvider(fill, (999,), dtype)):
        for block_nbytes in (PAGE, 3 * PAGE):
            raw = read_all(provider, block_nbytes).reshape(999, -1)
            assert not raw[:, holes].any()
            assert raw.any()


@pytest.mark.parametrize("dtype", ["u1", "f8", "U7", "V3", STRUCTURE, "c16", "M8[s]"])
def test_most_dtypes_have_no_holes(dtype):
    assert holes_of(np.dtype(dtype)) is None


def test_holes_are_where_numpy_puts_nothing():
    assert holes_of(PADDED).tolist() == [*range(1, 8), *range(18, 24)]
    nested = np.dtype([("x", PADDED, (2,)), ("y", "u1")])
    assert holes_of(nested).tolist() == [*range(1, 8), *range(18, 24), *range(25, 32), *range(42, 48)]
    if LONG_DOUBLE_HAS_HOLES:
        assert holes_of(np.dtype("<g")).tolist() == [*range(10, np.dtype("g").itemsize)]
        assert holes_of(np.dtype(">g")).tolist() == [*range(np.dtype("g").itemsize - 10)]


@pytest.mark.parametrize("dtype", ["f8", "U7", "V3", STRUCTURE, ">i4"], ids=str)
def test_what_a_fill_leaves_out_is_zero(dtype):
    provider = FillProvider(lambda out, start: None, (5000,), dtype)
    for block_nbytes in (PAGE, 7 * PAGE):
        assert not read_all(provider, block_nbytes).any()


def test_a_fill_gets_whole_elements_once():
    asked = []

    def fill(out, start):
        asked.append((start, len(out)))
        out[:] = np.arange(start, start + len(out))

    read_all(FillProvider(fill, (10_000,), "f8"), PAGE)
    per_block = PAGE // 8
    assert asked == [(k, min(per_block, 10_000 - k)) for k in range(0, 10_000, per_block)]


def test_an_aligned_block_is_written_in_place():
    seen = []
    provider = FillProvider(lambda out, start: seen.append(out.ctypes.data % PAGE), (PAGE,), "f8")
    read_all(provider)
    assert seen == [0] * 8


def test_one_element_larger_than_blocks():
    dtype = f"S{5 * PAGE + 11}"

    def f(i):
        return np.array([bytes([65 + int(k)]) * (5 * PAGE + 11) for k in i], dtype)

    np.testing.assert_array_equal(elements(FunctionProvider(f, (4,), dtype)), f(np.arange(4)))


VALUES = [
    ("scalar", lambda i: 3, "f4"),
    ("numpy scalar", lambda i: np.float32(3), "f8"),
    ("0-d", lambda i: np.array(3), "f8"),
    ("list", lambda i: i.tolist(), "f8"),
    ("strings", lambda i: ["2020-01-01"] * len(i), "M8[D]"),
    ("numbers in text", lambda i: [str(k) for k in i], "i4"),
    ("bool", lambda i: i > 5, "i1"),
    ("to bool", lambda i: i - 5, "?"),
    ("float to int", lambda i: i / 3, "i4"),
    ("int wraps", lambda i: i, "u1"),
    ("text is cut", lambda i: i.astype("U9"), "U2"),
    ("objects", lambda i: np.array([int(k) for k in i], object), "f8"),
    ("subclass", lambda i: np.ma.array(i), "f8"),
    ("read-only", lambda i: np.broadcast_to(np.float64(2), i.shape), "f8"),
    ("strided", lambda i: np.stack([i, i], 1)[:, 1], "f8"),
    ("complex to complex", lambda i: i * 1j, "c8"),
    ("complex to text", lambda i: i * 1j, "U20"),
    ("text", lambda i: "abc", "U7"),
]


@pytest.mark.parametrize(("f", "dtype"), [v[1:] for v in VALUES], ids=[v[0] for v in VALUES])
def test_values_are_converted_as_astype_does(f, dtype):
    provider = FunctionProvider(f, (2000,), dtype)
    want = np.broadcast_to(np.asarray(f(np.arange(2000))).astype(dtype), (2000,))
    np.testing.assert_array_equal(elements(provider), want)


@pytest.mark.parametrize("dtype", ["f8", "i4", "u1", "M8[s]"])
@pytest.mark.parametrize("f", [lambda i: i * 1j, lambda i: 1j, lambda i: np.complex64(1)])
def test_complex_never_becomes_real(f, dtype):
    provider = FunctionProvider(f, (10,), dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is no matter of warnings
        with pytest.raises(TypeError, match=r"complex.*\.real"):
            read_all(provider)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda i: i[:-1], r"shape \(511,\) for 512 elements"),
        (lambda i: np.zeros((2, 256)), r"shape \(2, 256\)"),
        (lambda i: i[None], r"shape \(1, 512\)"),
        (lambda i: [1], r"shape \(1,\)"),
        (lambda i: [], r"shape \(0,\)"),
    ],
)
def test_values_of_another_shape_are_refused(f, message):
    with pytest.raises(ValueError, match=message):
        read_block(FunctionProvider(f, (PAGE // 8,)), 0, PAGE)


def test_no_values_are_refused():
    with pytest.raises(TypeError, match="returned None"):
        read_all(FunctionProvider(lambda i: None, (5,)))


def test_an_exception_of_the_function_is_its_own():
    def f(i):
        raise LookupError("mine")

    def fill(out, start):
        raise LookupError("mine")

    for provider in (FunctionProvider(f, (5,)), FillProvider(fill, (5,))):
        with pytest.raises(LookupError, match="mine") as caught:
            provider.read_into(memoryview(bytearray(40)), 0)
        assert caught.traceback[-1].name in ("f", "fill")


def test_a_fill_that_returns_something_is_refused():
    with pytest.raises(TypeError, match=r"returned a ndarray.*from_function"):
        read_all(FillProvider(lambda out, start: out + start, (5,)))


def test_a_fill_that_keeps_its_array_is_found_out():
    kept = []
    with pytest.raises(BufferError):
        read_block(FillProvider(lambda out, start: kept.append(out), (512,)), 0, PAGE)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FunctionProvider(7, (3,)), TypeError, r"f\(i, j, \.\.\.\)"),
        (lambda: FillProvider(np.zeros(3), (3,)), TypeError, r"fill\(out, start\)"),
        (lambda: FunctionProvider(lambda i: i, (3, 4)), TypeError, r"cannot be called as <lambda>\(i, j\)"),
        (lambda: FunctionProvider(lambda i, j: i, 3), TypeError, r"cannot be called as <lambda>\(i\)"),
        (lambda: FunctionProvider(lambda: 1, ()), None, None),
        (lambda: FillProvider(lambda out: None, 3), TypeError, r"cannot be called as <lambda>\(out, start\)"),
        (lambda: FunctionProvider(np.add, (3, 4)), None, None),
        (lambda: FunctionProvider(np.vectorize(lambda i: i), 3), None, None),
        (lambda: FunctionProvider(lambda *index: 1, (1,) * 30), None, None),
        (lambda: FunctionProvider(lambda i: i, (3,), object), TypeError, "objects"),
        (lambda: FunctionProvider(lambda i: i, (3,), [("a", "O")]), TypeError, "objects"),
        (lambda: FunctionProvider(lambda i: i, (3,), "S0"), TypeError, "no size"),
        (lambda: FunctionProvider(lambda i: i, (3,), ("f4", (2,))), TypeError, r"ends in \(2,\)"),
        (lambda: FunctionProvider(lambda i: i, None), TypeError, "shape=None"),
        (lambda: FunctionProvider(lambda i: i, 2.5), TypeError, "shape=2.5"),
        (lambda: FunctionProvider(lambda i: i, (-1,)), ValueError, "every length must be given"),
        (lambda: FunctionProvider(lambda i: i, (-2,)), ValueError, "0 or more"),
        (lambda: FunctionProvider(lambda i, j: i, (1 << 40, 1 << 20)), ValueError, "address space"),
        (lambda: FillProvider(lambda out, start: None, 1 << 60), ValueError, "address space"),
        (lambda: FillProvider(lambda out, start: None, (0, 1 << 63)), ValueError, "address space"),
        (lambda: FillProvider(lambda out, start: None, (1 << 60) - 1), None, None),
    ],
)
def test_construction(make, error, message):
    if error is None:
        check_provider(make())
    else:
        with pytest.raises(error, match=message):
            make()


def test_async_functions_are_refused():
    async def f(i):
        return i

    with pytest.raises(TypeError, match="async"):
        FunctionProvider(f, 3)


def test_they_are_providers():
    assert check_provider(FunctionProvider(lambda i: i, 10, "u2")) == Traits(20, None, True, None)
    assert repr(FunctionProvider(np.sin, 10)) == "FunctionProvider(from_function(sin), shape=(10,), dtype=float64)"
    assert FillProvider(lambda out, start: None, (2, 0)).nbytes == 0


def test_a_copy_by_pickle_is_the_same():
    # More than one block of strings, so that some begin in the middle of one.
    for provider in (
        FunctionProvider(lambda i, j: i * 10 + j, (700, 9), "U7"),
        FillProvider(lambda out, start: out.fill(start), (700, 9), ">f4"),
    ):
        copy = cloudpickle.loads(cloudpickle.dumps(provider))
        assert np.array_equal(read_all(copy), read_all(provider))
        assert copy.dtype == provider.dtype


def test_several_threads_ask_at_once():
    inside = threading.Barrier(4)
    both = {"function": 0, "fill": 0}

    def f(i):
        inside.wait(10)
        both["function"] += 1
        return i

    def fill(out, start):
        inside.wait(10)
        both["fill"] += 1
        out[:] = np.arange(start, start + len(out))

    n = 4 * PAGE // 8
    for provider in (FunctionProvider(f, n), FillProvider(fill, n)):
        got = {}

        def ask(block, provider=provider, got=got):
            got[block] = read_block(provider, block * PAGE, PAGE)

        threads = [threading.Thread(target=ask, args=(b,)) for b in range(4)]
        for thread in threads:
            thread.start()
        assert wait_until(lambda threads=threads: not any(t.is_alive() for t in threads))
        assert np.array_equal(np.frombuffer(b"".join(got[b] for b in range(4))), np.arange(n))
    assert both == {"function": 4, "fill": 4}
