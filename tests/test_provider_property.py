"""Does an array of a function hold what numpy would compute, for any shape, dtype and block, through real processes?"""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from native_kit import PAGE
from support import settled

import lazymem as lm

RELAXED = settings(max_examples=40, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))
KINDS = ["u1", "?", "<i2", ">i4", "i8", "f2", "f4", ">f8", "c8", "c16", "M8[s]", "S3", "U5", "V3"]
BLOCKS = st.sampled_from([1, PAGE, 3 * PAGE, 5 * PAGE, 64 * PAGE])


@st.composite
def shapes(draw):
    lengths, most = [], 20_000
    for _ in range(draw(st.integers(0, 4))):
        lengths.append(draw(st.integers(0, max(1, min(most, draw(st.sampled_from([2, 7, 60, 20_000])))))))
        most //= max(1, lengths[-1])
    return tuple(lengths)


def number_of(shape):
    """An element's number in C order, from its coordinates."""

    def number(*places):
        made = 0
        for place, length in zip(places, shape, strict=True):
            made = made * length + place
        return made

    return number


@pytest.mark.parametrize("how", ["function", "fill"])
def test_any_function(delivery, how):
    @RELAXED
    @given(shapes(), st.sampled_from(KINDS).map(np.dtype), BLOCKS, st.integers(0, 3))
    @example((), np.dtype("f8"), PAGE, 0)
    @example((3, PAGE // 8 + 1), np.dtype("f8"), PAGE, 1)
    @example((1, 20_000, 1), np.dtype("V3"), 5 * PAGE, 2)
    def check(shape, dtype, block_nbytes, seed):
        n = int(np.prod(shape, dtype=int))
        kind = "i8" if dtype.kind in "M" else "u1"

        def values(i):
            made = np.asarray((i * 131 + seed) % 251, kind)
            if dtype.kind == "V":
                return np.char.mod("%03d", made).astype("S3").view(dtype) if made.ndim else np.void(b"%03d" % int(made))
            return made.astype("S3" if dtype.kind == "S" else "U3" if dtype.kind == "U" else kind)

        def fill(out, start):
            out[:] = values(np.arange(start, start + out.size)).astype(dtype)

        number = number_of(shape)
        if how == "function":
            a = lm.from_function(lambda *at: values(number(*at)), shape, dtype, delivery=delivery, block_nbytes=block_nbytes)
        else:
            a = lm.from_fill(fill, shape, dtype, delivery=delivery, block_nbytes=block_nbytes)
        want = values(np.arange(n)).astype(dtype).reshape(shape)
        assert (a.shape, a.dtype) == (want.shape, want.dtype)
        if n:
            assert a.strides == want.strides
            at = tuple(int(length * (seed + 1) / 5) for length in shape)
            assert a[at].tobytes() == want[at].tobytes()
        assert a.tobytes() == want.tobytes()
        assert settled(a).failed == 0

    check()
