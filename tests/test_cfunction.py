"""Is a C function from anywhere taken as a source, and anything else refused?"""

import ctypes
import errno
import gc
import os
import sysconfig

import numpy as np
import pytest
from support import PAGE, check_child, compile_library, needs_compiler, settled

import lazymem as lm

NBYTES = 20 * PAGE + 40
WANT = np.arange(NBYTES // 8, dtype="i8")

# Ten lines, as a user would write them: element i is i * ctx[0] + ctx[1], without ctx i.
TEN_LINES = """
#include "lazymem.h"
int counting(void *ctx, void *dst, uint64_t offset, uint64_t nbytes)
{
    int64_t *out = dst, first = (int64_t)(offset / 8), *line = ctx;
    for (int64_t i = 0; i < (int64_t)(nbytes / 8); i++)
        out[i] = line ? (first + i) * line[0] + line[1] : first + i;
    return 0;
}
static lazymem_fetch check = counting;
void *get(void) { return (void *)check; }
"""
CFFI = """
void *get(void);
int counting(void *ctx, void *dst, uint64_t offset, uint64_t nbytes);
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_library(TEN_LINES, tmp_path_factory.mktemp("counting"))


@pytest.fixture
def counting(library):
    fn = ctypes.CDLL(str(library)).counting
    fn.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
    return fn


def _right(provider, delivery, want=WANT):
    a = lm.from_provider(provider, dtype="i8", block_nbytes=PAGE, delivery=delivery)
    gc.collect()
    assert lm.stats(a).blocks == 0
    assert a.nbytes == provider.nbytes
    assert a[-1] == want[-1]
    assert settled(a).blocks == 1
    assert np.array_equal(a, want)
    assert settled(a).blocks == -(-a.nbytes // PAGE)


@needs_compiler
def test_ctypes(counting, delivery):
    _right(lm.CFunction(counting, NBYTES), delivery)
    counting.argtypes = None  # as a library's function is at first
    _right(lm.CFunction(counting, NBYTES), delivery)
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
    _right(lm.CFunction(prototype(ctypes.cast(counting, ctypes.c_void_p).value), NBYTES), delivery)


@needs_compiler
@pytest.mark.parametrize(
    "kind", ["array", "bytearray", "bytes", "ctypes array", "structure", "pointer", "void pointer", "address", "byref"]
)
def test_user_data(counting, delivery, kind):
    words = np.array([3, 5], "i8")

    class Line(ctypes.Structure):
        _fields_ = [("a", ctypes.c_int64), ("b", ctypes.c_int64)]

    data = {
        "array": lambda: np.array([3, 5], "i8"),
        "bytearray": lambda: bytearray(words.tobytes()),
        "bytes": lambda: words.tobytes(),
        "ctypes array": lambda: (ctypes.c_int64 * 2)(3, 5),
        "structure": lambda: Line(3, 5),
        "pointer": lambda: ctypes.pointer(Line(3, 5)),
        "void pointer": lambda: ctypes.c_void_p(words.ctypes.data),
        "address": lambda: words.ctypes.data,
        "byref": lambda: ctypes.byref(Line(3, 5)),
    }[kind]()
    if kind == "byref":  # no type that says what it is: refused, clearly
        with pytest.raises(TypeError, match="user_data"):
            lm.CFunction(counting, NBYTES, data)
        return
    provider = lm.CFunction(counting, NBYTES, data)
    del data  # what it points to is kept
    gc.collect()
    [bytearray(16) for _ in range(1000)]
    _right(provider, delivery, WANT * 3 + 5)


@needs_compiler
def test_the_array_keeps_all_that_it_needs(counting, delivery):
    def make():
        data = np.array([3, 5], "i8")
        return lm.from_provider(lm.CFunction(counting, NBYTES, data), dtype="i8", delivery=delivery, block_nbytes=PAGE)

    b = np.asarray(make())
    gc.collect()
    [np.zeros(2, "i8") for _ in range(1000)]
    assert np.array_equal(b, WANT * 3 + 5)


@needs_compiler
def test_cffi_abi(library, delivery):
    ffi = pytest.importorskip("cffi").FFI()
    ffi.cdef(CFFI)
    opened = ffi.dlopen(str(library))
    _right(lm.CFunction(opened.counting, NBYTES), delivery)
    line = ffi.new("int64_t[2]", [3, 5])
    _right(lm.CFunction(opened.counting, NBYTES, line), delivery, WANT * 3 + 5)
    _right(
        lm.CFunction(ffi.cast("int (*)(void *, void *, uint64_t, uint64_t)", ffi.cast("uintptr_t", opened.counting)), NBYTES),
        delivery,
    )


@needs_compiler
def test_cffi_api(tmp_path, delivery, monkeypatch):
    cffi = pytest.importorskip("cffi")
    pytest.importorskip("setuptools")
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        pytest.skip("Python's headers are not installed")
    ffi = cffi.FFI()
    ffi.cdef(CFFI)
    ffi.set_source("_lm_counting", TEN_LINES, include_dirs=[lm.get_include()])
    made = tmp_path / "build"
    ffi.compile(tmpdir=str(made), verbose=False)
    monkeypatch.syspath_prepend(str(made))
    import _lm_counting

    pointer = _lm_counting.ffi.addressof(_lm_counting.lib, "counting")
    _right(lm.CFunction(pointer, NBYTES), delivery)
    _right(lm.CFunction(_lm_counting.lib.counting, NBYTES), delivery)
    with pytest.raises(TypeError, match=r"int \(void \*"):
        lm.CFunction(_lm_counting.lib.get, NBYTES)


def test_numba(delivery):
    pytest.importorskip("numba")
    from numba import carray, cfunc, types

    @cfunc(types.int32(types.voidptr, types.voidptr, types.uint64, types.uint64))
    def counting(ctx, dst, offset, nbytes):
        out = carray(dst, nbytes // 8, np.int64)
        for i in range(nbytes // 8):
            out[i] = offset // 8 + i
        return 0

    _right(lm.CFunction(counting, NBYTES), delivery)

    @cfunc(types.int32(types.CPointer(types.int64), types.CPointer(types.int64), types.uint64, types.uint64))
    def typed(ctx, dst, offset, nbytes):
        for i in range(nbytes // 8):
            dst[i] = (np.int64(offset) // 8 + np.int64(i)) * ctx[0] + ctx[1]
        return 0

    _right(lm.CFunction(typed, NBYTES, np.array([3, 5], "i8")), delivery, WANT * 3 + 5)
    for signature in (
        types.int64(types.voidptr, types.voidptr, types.uint64, types.uint64),
        types.int32(types.voidptr, types.uint64),
        types.int32(types.voidptr, types.voidptr, types.uint32, types.uint64),
        types.float64(types.float64),
    ):
        wrong = cfunc(signature)({2: lambda a, b: 0, 4: lambda a, b, c, d: 0, 1: lambda a: a}[len(signature.args)])
        with pytest.raises(TypeError, match=r"int \(void \*"):
            lm.CFunction(wrong, NBYTES)


@needs_compiler
def test_low_level_callable(counting, library, delivery):
    scipy = pytest.importorskip("scipy")
    _right(lm.CFunction(scipy.LowLevelCallable(_capsule(counting)), NBYTES), delivery)
    data = np.array([3, 5], "i8")
    with_data = scipy.LowLevelCallable(_capsule(counting), ctypes.c_void_p(data.ctypes.data))
    _right(lm.CFunction(with_data, NBYTES), delivery, WANT * 3 + 5)
    _right(lm.CFunction(scipy.LowLevelCallable(counting), NBYTES), delivery)
    _right(lm.CFunction(scipy.LowLevelCallable(counting, with_data.user_data), NBYTES), delivery, WANT * 3 + 5)
    with pytest.raises(TypeError, match="again"):
        lm.CFunction(with_data, NBYTES, data)

    ffi = pytest.importorskip("cffi").FFI()
    ffi.cdef(CFFI)
    opened = ffi.dlopen(str(library))
    line = ffi.new("int64_t[2]", [3, 5])
    made = scipy.LowLevelCallable(opened.counting, ffi.cast("void *", line))
    _right(lm.CFunction(made, NBYTES), delivery, WANT * 3 + 5)
    for wrong in (opened.get, ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)):
        with pytest.raises((TypeError, ValueError)):
            lm.CFunction(scipy.LowLevelCallable(wrong), NBYTES)


def _capsule(fn, name=b"int (void *, void *, uint64_t, uint64_t)", context=None):
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
        ("PyCapsule_New", ctypes.pythonapi)
    )
    _kept.append(ctypes.c_char_p(name))
    capsule = new(ctypes.cast(fn, ctypes.c_void_p).value, _kept[-1], None)
    if context is not None:
        set_context = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(
            ("PyCapsule_SetContext", ctypes.pythonapi)
        )
        assert set_context(capsule, context) == 0
    return capsule


_kept = []


@needs_compiler
def test_capsule(counting, delivery):
    _right(lm.CFunction(_capsule(counting), NBYTES), delivery)
    _right(lm.CFunction(_capsule(counting, b"int (void*, void*, uint64_t, uint64_t)"), NBYTES), delivery)
    data = np.array([3, 5], "i8")
    _right(lm.CFunction(_capsule(counting, context=data.ctypes.data), NBYTES), delivery, WANT * 3 + 5)
    for name in (b"double (double)", b"", b"int (void *)"):
        with pytest.raises(TypeError, match="PyCapsule"):
            lm.CFunction(_capsule(counting, name), NBYTES)


@needs_compiler
def test_signatures_that_are_wrong(counting):
    for argtypes in (
        [],
        [ctypes.c_void_p] * 3,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64],
        [ctypes.c_double] * 4,
    ):
        counting.argtypes = argtypes
        with pytest.raises(TypeError, match="declared with the arguments"):
            lm.CFunction(counting, NBYTES)
    counting.argtypes = None
    for restype in (None, ctypes.c_double, ctypes.c_int64, ctypes.c_void_p):
        counting.restype = restype
        with pytest.raises(TypeError, match="declared to return"):
            lm.CFunction(counting, NBYTES)


def test_python_callbacks_are_refused():
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
    with pytest.raises(TypeError, match=r"Python callback.*GIL"):
        lm.CFunction(prototype(lambda *a: 0), 100)
    with pytest.raises(TypeError, match=r"Python callback.*GIL"):
        lm.CFunction(ctypes.cast(prototype(lambda *a: 0), prototype), 100)
    cffi = pytest.importorskip("cffi")
    ffi = cffi.FFI()
    callback = ffi.callback("int(void *, void *, uint64_t, uint64_t)", lambda *a: 0)
    with pytest.raises(TypeError, match=r"Python callback.*GIL"):
        lm.CFunction(callback, 100)


@pytest.mark.parametrize("thing", [None, 3, "name", lambda: 0, len, object(), np.sin, b"x"], ids=lambda t: type(t).__name__)
def test_no_function_at_all(thing):
    with pytest.raises(TypeError):
        lm.CFunction(thing, 100)


@needs_compiler
def test_lengths(counting, delivery):
    for nbytes, kind in ((-1, ValueError), (2**63, ValueError), (1.5, TypeError), (True, TypeError), ("8", TypeError)):
        with pytest.raises(kind, match="nbytes="):
            lm.CFunction(counting, nbytes)
    assert lm.from_provider(lm.CFunction(counting, 0), dtype="i8").shape == (0,)
    a = lm.from_provider(lm.CFunction(counting, 1 << 40), (1 << 27, 1 << 10), "i8", delivery=delivery)
    assert a[12345, 678] == (12345 << 10) + 678
    assert settled(a).blocks == 1
    with pytest.raises(TypeError, match="null"):
        lm.CFunction(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)(0), 8)


@needs_compiler
def test_each_block_is_asked_for_once_and_exactly(folder):
    """Offsets and lengths as they reach the function: blocks, the last one short, each once."""
    library = compile_library(
        """
        #include "lazymem.h"
        int noting(void *ctx, void *dst, uint64_t offset, uint64_t nbytes)
        {
            uint64_t *log = ctx, at = __atomic_fetch_add(log, 1, __ATOMIC_SEQ_CST);
            log[1 + 2 * at] = offset;
            log[2 + 2 * at] = nbytes;
            for (uint64_t i = 0; i < nbytes; i++)
                ((unsigned char *)dst)[i] = (unsigned char)(offset + i);
            return 0;
        }
        """,
        folder,
    )
    check_child(f"""
    import ctypes, numpy as np, lazymem as lm
    from support import PAGE
    noting = ctypes.CDLL({str(library)!r}).noting
    for delivery in ("inline", "threads"):
        for nbytes in (1, PAGE - 1, PAGE, PAGE + 1, 6 * PAGE, 6 * PAGE + 7):
            log = np.zeros(100, "u8")
            a = lm.from_provider(lm.CFunction(noting, nbytes, log), block_nbytes=2 * PAGE, delivery=delivery)
            assert np.array_equal(a[::-1], (np.arange(nbytes) % 256).astype("u1")[::-1])
            assert np.array_equal(a, (np.arange(nbytes) % 256).astype("u1"))
            n = int(log[0])
            asked = sorted(zip(log[1 : 1 + 2 * n : 2].tolist(), log[2 : 2 + 2 * n : 2].tolist()))
            assert asked == [(o, min(2 * PAGE, nbytes - o)) for o in range(0, nbytes, 2 * PAGE)], asked
    """)


@needs_compiler
def test_a_positive_answer_is_an_error(folder, delivery):
    library = compile_library("int odd(void *c, void *d, unsigned long o, unsigned long n) { return 5; }", folder)
    a = lm.from_provider(lm.CFunction(ctypes.CDLL(str(library)).odd, 1000), delivery=delivery)
    with pytest.raises(lm.PageError, match="positive") as caught:
        a[0]
    assert caught.value.errno == errno.EPROTO
