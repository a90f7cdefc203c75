"""What must an array do that an ordinary one does not?

`LazyBase`, a heap type made from numpy.ndarray at import, without numpy's headers: its instances are ndarrays with two more words,
the region that their memory is and nothing else. Slots, not Python methods: a `__array_finalize__` in Python alone would double the
cost of a slice.

    operations   run between begin and end (failure.pyx), so that a touch that fails in one becomes its PageError
    copies       come back as plain ndarrays: operands are handed on as plain views
    getbuffer    fetches and holds what a system call may be given, where those cannot wait for pages
    slow sources (a provider's process) are asked before the operation, with the GIL given up: other threads run meanwhile, several blocks
                 are under way at once, and Ctrl-C is heard. An optimisation: what is not fetched ahead, the operation touches
    finalize, dealloc   count the instances, for close()
"""
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_WRITABLE
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.standin cimport operation_end
from lazymem.core.memory cimport Memory, memory_of, refuse
from lazymem.core.native cimport lm_add32, lm_load32, lm_sub32
from lazymem.core.operation cimport begin, blame
from lazymem.core.region cimport LIVE, Region, region_at

import warnings

import numpy as np


cdef extern from *:
    """
    /* The head of numpy's PyArrayObject_fields, the same in every numpy since 1.7. */
    typedef struct {
        PyObject_HEAD
        char *data;
        int nd;
        Py_ssize_t *dimensions;
        Py_ssize_t *strides;
    } lm_array;
    /* Py_buffer.obj by hand: Cython would count its references. Both hand the reference over. */
    static inline PyObject *lm_buffer_take(Py_buffer *view) { PyObject *o = view->obj; view->obj = NULL; return o; }
    static inline void lm_buffer_give(Py_buffer *view, PyObject *o) { view->obj = o; }
    """
    PyObject *lm_buffer_take(Py_buffer *view)
    void lm_buffer_give(Py_buffer *view, PyObject *owned)
    ctypedef struct lm_array:
        char *data
        int nd
        Py_ssize_t *dimensions
        Py_ssize_t *strides

cdef extern from "Python.h":
    ctypedef struct PyType_Slot:
        int slot
        void *pfunc
    ctypedef struct PyType_Spec:
        const char *name
        int basicsize
        int itemsize
        unsigned int flags
        PyType_Slot *slots
    object PyType_FromSpecWithBases(PyType_Spec *spec, object bases)
    void *PyType_GetSlot(PyTypeObject *type, int slot)
    object PyCapsule_New(void *pointer, const char *name, void *destructor)
    int Py_TPFLAGS_DEFAULT, Py_TPFLAGS_BASETYPE
    int Py_tp_dealloc, Py_tp_hash, Py_tp_richcompare, Py_mp_subscript, Py_mp_ass_subscript, Py_sq_item, Py_bf_getbuffer
    int Py_nb_add, Py_nb_subtract, Py_nb_multiply, Py_nb_true_divide, Py_nb_floor_divide, Py_nb_remainder, Py_nb_divmod
    int Py_nb_power, Py_nb_lshift, Py_nb_rshift, Py_nb_and, Py_nb_or, Py_nb_xor, Py_nb_matrix_multiply
    int Py_nb_negative, Py_nb_positive, Py_nb_absolute, Py_nb_invert, Py_nb_bool, Py_nb_int, Py_nb_float, Py_nb_index
    Py_hash_t PyObject_HashNotImplemented(object)
    object PyNumber_Add(object, object)
    object PyNumber_Subtract(object, object)
    object PyNumber_Multiply(object, object)
    object PyNumber_TrueDivide(object, object)
    object PyNumber_FloorDivide(object, object)
    object PyNumber_Remainder(object, object)
    object PyNumber_Divmod(object, object)
    object PyNumber_Power(object, object, object)
    object PyNumber_Lshift(object, object)
    object PyNumber_Rshift(object, object)
    object PyNumber_And(object, object)
    object PyNumber_Or(object, object)
    object PyNumber_Xor(object, object)
    object PyNumber_MatrixMultiply(object, object)
    object PyNumber_Negative(object)
    object PyNumber_Positive(object)
    object PyNumber_Absolute(object)
    object PyNumber_Invert(object)
    object PyObject_RichCompare(object, object, int)
    object PyObject_GetItem(object, object)
    bint PyLong_CheckExact(object)
    bint PySlice_Check(object)
    bint PyTuple_CheckExact(object)
    bint PyUnicode_CheckExact(object)
    bint PyObject_TypeCheck(object, PyTypeObject *)
    void Py_DECREF(PyObject *)
    void Py_XDECREF(PyObject *)

ctypedef void (*destructor_t)(PyObject *) noexcept
ctypedef int (*getbuffer_t)(PyObject *, Py_buffer *, int) except -1
ctypedef object (*binary_t)(object, object)
ctypedef object (*unary_t)(object)
ctypedef int (*inquiry_t)(object) except -1
ctypedef object (*item_t)(object, Py_ssize_t)
ctypedef int (*assign_t)(PyObject *, PyObject *, PyObject *) except -1

ctypedef struct Extra:
    Region *region      # whose memory this is; NULL: ordinary memory

cdef PyTypeObject *_ndarray = <PyTypeObject *>np.ndarray
cdef Py_ssize_t _extra_at = np.ndarray.__basicsize__
cdef object _asarray = np.asarray
cdef object _ndarray_function = np.ndarray.__array_function__
cdef object _ndarray_wrap = np.ndarray.__array_wrap__
cdef destructor_t _nd_dealloc = <destructor_t>PyType_GetSlot(_ndarray, Py_tp_dealloc)
cdef getbuffer_t _nd_getbuffer = <getbuffer_t>PyType_GetSlot(_ndarray, Py_bf_getbuffer)
cdef binary_t _nd_subscript = <binary_t>PyType_GetSlot(_ndarray, Py_mp_subscript)
cdef assign_t _nd_assign = <assign_t>PyType_GetSlot(_ndarray, Py_mp_ass_subscript)
cdef item_t _nd_item = <item_t>PyType_GetSlot(_ndarray, Py_sq_item)
cdef inquiry_t _nd_bool = <inquiry_t>PyType_GetSlot(_ndarray, Py_nb_bool)
cdef unary_t _nd_int = <unary_t>PyType_GetSlot(_ndarray, Py_nb_int)
cdef unary_t _nd_float = <unary_t>PyType_GetSlot(_ndarray, Py_nb_float)
cdef unary_t _nd_index = <unary_t>PyType_GetSlot(_ndarray, Py_nb_index)

cdef PyTypeObject *_lazy = NULL


cdef inline Region *_region(object a) noexcept:
    """Whose memory a LazyBase instance is. GIL: held."""
    return (<Extra *>(<char *><PyObject *>a + _extra_at)).region


cdef inline bint _is_lazy(object x) noexcept:
    return PyObject_TypeCheck(x, _lazy)


cdef int _alive(Region *r) except -1:
    """Raise for an array that is closed, or another process's, or has lost its memory."""
    if r == NULL or lm_load32(&r.status) == LIVE:
        return 0
    return refuse(r)


cdef inline object _plain(object x):
    """A plain view of a LazyArray; anything else as it is."""
    if _is_lazy(x):
        _alive(_region(x))
        return _asarray(x)
    return x


cdef object _settled(object result):
    """A LazyArray that owns ordinary memory becomes a plain array."""
    if _is_lazy(result) and _region(result) == NULL:
        return _asarray(result)
    return result


cdef int _end(uint64_t sequence, object a, object b) except -1:
    """End an operation on these operands; raise for what failed in it.

    Who calls this in a `finally` returns what came of the operation behind it: a value that is being returned from a `try` whose `finally`
    raises is leaked (Cython 3.3; https://github.com/cython/cython/issues/760 is an older case).
    """
    if operation_end(sequence):
        blame(sequence, [_bounds(x) for x in (a, b) if _is_lazy(x)])
    return 0


cdef tuple _bounds(object x):
    """The address range [low, high) that an array's elements lie in."""
    cdef lm_array *a = <lm_array *>x
    cdef uint64_t low = <uint64_t>a.data, high = low
    cdef int i
    for i in range(a.nd):
        if a.dimensions[i] == 0:
            return low, low
        if a.strides[i] < 0:
            low -= <uint64_t>((a.dimensions[i] - 1) * -a.strides[i])
        else:
            high += <uint64_t>((a.dimensions[i] - 1) * a.strides[i])
    return low, high + <uint64_t>x.itemsize


# ---------------------------------------------------------------------------------------------------------------------------
# Fetching ahead

cdef inline bint _is_slow(Region *r) noexcept:
    """Do its blocks come from another process?"""
    return r != NULL and r.source.borrow != NULL and lm_load32(&r.status) == LIVE


cdef int _ask_for(object x) except -1:
    """Fetch what an operation that reads all of `x` is about to touch, if that is slow. Raises PageError."""
    cdef uint64_t low, high
    cdef Region *r
    cdef Memory owner
    if not _is_lazy(x):
        return 0
    r = _region(x)
    if not _is_slow(r):
        return 0
    low, high = _bounds(x)
    # All of a range of which it reads less than half is none of its business.
    if high > low and high - low <= 2 * <uint64_t>x.nbytes and high - low <= _largest(r):
        owner = memory_of(r)
        owner.need(low - r.base, high - r.base)
    return 0


cdef int _ask_for_item(object self, object key) except -1:
    """The same for `self[key]` where that is one element."""
    cdef lm_array *a = <lm_array *>self
    cdef Region *r = _region(self)
    cdef Py_ssize_t i, n
    cdef uint64_t addr = <uint64_t>a.data
    cdef Memory owner
    if not _is_slow(r):
        return 0
    if type(key) is not tuple:
        key = (key,)
    n = len(key)
    if n != a.nd:
        return 0
    for i in range(n):
        part = key[i]
        if not isinstance(part, (int, np.integer)) or isinstance(part, bool):
            return 0
        place = int(part)
        if place < 0:
            place += a.dimensions[i]
        if not 0 <= place < a.dimensions[i]:
            return 0
        addr += <uint64_t>(<Py_ssize_t>place * a.strides[i])
    owner = memory_of(r)
    owner.need(addr - r.base, addr - r.base + <uint64_t>self.itemsize)
    return 0


# ---------------------------------------------------------------------------------------------------------------------------
# Life

cdef int _finalize(PyObject *made, PyObject *parent) noexcept:
    """numpy calls it for every new instance, view or copy. The memory tells which it is."""
    cdef Extra *extra = <Extra *>(<char *>made + _extra_at)
    cdef Region *r = NULL
    cdef uint64_t addr = <uint64_t>(<lm_array *>made).data
    if parent != NULL and PyObject_TypeCheck(<object>parent, _lazy):
        r = (<Extra *>(<char *>parent + _extra_at)).region
        if r != NULL and not (r.base <= addr <= r.base + r.map_nbytes):
            r = NULL
    else:
        r = region_at(addr)
    extra.region = r
    if r != NULL:
        lm_add32(&r.arrays, 1)
    return 0


cdef object _finalize_capsule = PyCapsule_New(<void *>_finalize, NULL, NULL)


cdef class _Finalize:
    """numpy's C code asks the type and takes a capsule; its Python code (`broadcast_to(subok=True)`) asks the array, for what it
    can call. The array has been through the capsule by then."""
    def __get__(self, instance, kind):
        return _finalize_capsule if instance is None else _nothing


def _nothing(parent):
    pass


cdef void _dealloc(PyObject *self) noexcept:
    cdef PyTypeObject *own_type = (<PyObject *>self).ob_type
    cdef Region *r = (<Extra *>(<char *>self + _extra_at)).region
    if r != NULL:
        lm_sub32(&r.arrays, 1)  # its base still holds the region
    _nd_dealloc(self)
    Py_DECREF(<PyObject *>own_type)


# ---------------------------------------------------------------------------------------------------------------------------
# Subscripts and conversions

cdef inline bint _is_basic_part(object key) noexcept:
    return PyLong_CheckExact(key) or PySlice_Check(key) or key is Ellipsis or key is None


cdef bint _is_basic(object key):
    """Would numpy answer with a view, or one element?"""
    if _is_basic_part(key) or PyUnicode_CheckExact(key):
        return True
    if PyTuple_CheckExact(key):
        for part in <tuple>key:
            if not _is_basic_part(part) and not isinstance(part, np.integer):
                return False
        return True
    return isinstance(key, np.integer)


cdef object _subscript(object self, object key):
    cdef Region *r = _region(self)
    cdef uint64_t sequence
    if r == NULL:
        return _settled(_nd_subscript(self, key))
    if r.source.borrow != NULL:
        _ask_for_item(self, key)
    begin(&sequence)
    try:
        if lm_load32(&r.status) != LIVE:
            _alive(r)
        result = _nd_subscript(self, key) if _is_basic(key) else PyObject_GetItem(_asarray(self), _plain(key))
    finally:
        _end(sequence, self, key)
    return result


cdef int _assign(PyObject *self, PyObject *key, PyObject *value) except -1:
    cdef uint64_t sequence
    held = _plain(<object>self)  # numpy may give the GIL up: close() counts this view
    begin(&sequence)
    try:
        return _nd_assign(self, key, value)
    finally:
        _end(sequence, <object>self, <object>value if value != NULL else None)


cdef object _item(object self, Py_ssize_t i):
    cdef uint64_t sequence
    if _is_slow(_region(self)):
        _ask_for_item(self, i)
    begin(&sequence)
    try:
        _alive(_region(self))
        result = _nd_item(self, i)
    finally:
        _end(sequence, self, None)
    return result


cdef int _bool(object self) except -1:
    cdef uint64_t sequence
    _ask_for(self)
    begin(&sequence)
    try:
        _alive(_region(self))
        return _nd_bool(self)
    finally:
        _end(sequence, self, None)


cdef object _convert(object self, unary_t how):
    cdef uint64_t sequence
    _ask_for(self)
    begin(&sequence)
    try:
        _alive(_region(self))
        result = how(self)
    finally:
        _end(sequence, self, None)
    return result


cdef object _int(object self): return _convert(self, _nd_int)
cdef object _float(object self): return _convert(self, _nd_float)
cdef object _index(object self): return _convert(self, _nd_index)


# ---------------------------------------------------------------------------------------------------------------------------
# Arithmetic. On plain views: the result is plain, and numpy's search for overrides finds none.

cdef object _binary(object a, object b, binary_t how):
    cdef uint64_t sequence
    cdef object x = _plain(a), y = _plain(b)
    _ask_for(a)
    _ask_for(b)
    begin(&sequence)
    try:
        result = how(x, y)
    finally:
        _end(sequence, a, b)
    return result


cdef object _unary(object a, unary_t how):
    cdef uint64_t sequence
    cdef object x = _plain(a)
    _ask_for(a)
    begin(&sequence)
    try:
        result = how(x)
    finally:
        _end(sequence, a, None)
    return result


cdef object _add(object a, object b): return _binary(a, b, PyNumber_Add)
cdef object _subtract(object a, object b): return _binary(a, b, PyNumber_Subtract)
cdef object _multiply(object a, object b): return _binary(a, b, PyNumber_Multiply)
cdef object _true_divide(object a, object b): return _binary(a, b, PyNumber_TrueDivide)
cdef object _floor_divide(object a, object b): return _binary(a, b, PyNumber_FloorDivide)
cdef object _remainder(object a, object b): return _binary(a, b, PyNumber_Remainder)
cdef object _divmod(object a, object b): return _binary(a, b, PyNumber_Divmod)
cdef object _lshift(object a, object b): return _binary(a, b, PyNumber_Lshift)
cdef object _rshift(object a, object b): return _binary(a, b, PyNumber_Rshift)
cdef object _and(object a, object b): return _binary(a, b, PyNumber_And)
cdef object _or(object a, object b): return _binary(a, b, PyNumber_Or)
cdef object _xor(object a, object b): return _binary(a, b, PyNumber_Xor)
cdef object _matmul(object a, object b): return _binary(a, b, PyNumber_MatrixMultiply)
cdef object _negative(object a): return _unary(a, PyNumber_Negative)
cdef object _positive(object a): return _unary(a, PyNumber_Positive)
cdef object _absolute(object a): return _unary(a, PyNumber_Absolute)
cdef object _invert(object a): return _unary(a, PyNumber_Invert)


cdef object _power(object a, object b, object c):
    cdef uint64_t sequence
    cdef object x = _plain(a), y = _plain(b)
    _ask_for(a)
    _ask_for(b)
    begin(&sequence)
    try:
        result = PyNumber_Power(x, y, c)
    finally:
        _end(sequence, a, b)
    return result


cdef object _richcompare(object a, object b, int how):
    cdef uint64_t sequence
    cdef object x = _plain(a), y = _plain(b)
    _ask_for(a)
    _ask_for(b)
    begin(&sequence)
    try:
        result = PyObject_RichCompare(x, y, how)
    finally:
        _end(sequence, a, b)
    return result


def _array_ufunc(self, ufunc, method, *inputs, **kwargs):
    """Run the ufunc on plain views; a LazyArray given as `out` is what comes back."""
    cdef uint64_t sequence
    out = kwargs.get("out")
    lazy = [x for x in inputs if _is_lazy(x)]
    if isinstance(out, np.ndarray):
        out = (out,)  # numba hands on what it was called with, numpy a tuple
    if out is not None:
        lazy += [x for x in out if _is_lazy(x)]
        kwargs["out"] = tuple([_plain(x) for x in out])
    where = kwargs.get("where")
    if where is not None and _is_lazy(where):
        lazy.append(where)
        kwargs["where"] = _plain(where)
    plain = [_plain(x) for x in inputs]
    if method != "at":
        for x in inputs:
            _ask_for(x)
    elif _is_lazy(inputs[0]) and not inputs[0].flags.writeable:
        raise ValueError("output array is read-only")  # numpy does not look, and the write would be the end of the process
    begin(&sequence)
    try:
        result = getattr(ufunc, method)(*plain, **kwargs)
    finally:
        _end_many(sequence, lazy)
    if out is None or method == "at":
        return result
    return out[0] if len(out) == 1 else tuple(given if given is not None else made for given, made in zip(out, result))


def _array_function(self, func, types, args, kwargs):
    """Run numpy's own implementation; what it copied comes back plain."""
    cdef uint64_t sequence
    lazy = []
    _collect(args, lazy, 3)
    _collect(tuple(kwargs.values()), lazy, 3)
    held = [_plain(x) for x in lazy]  # numpy may give the GIL up: close() counts these views
    if func in _READ_ALL:
        for x in lazy:
            _ask_for(x)
    begin(&sequence)
    try:
        result = _ndarray_function(self, func, types, args, kwargs)
    finally:
        _end_many(sequence, lazy)
    if type(result) in (list, tuple):
        return type(result)([_settled(x) for x in result])
    return _settled(result)


def _array_wrap(self, made, context=None, return_scalar=False):
    """What a library made from the array, and would give its class: a view stays lazy (squeeze), what was computed is plain
    (numpy.linalg)."""
    wrapped = _ndarray_wrap(self, made)
    if _is_lazy(wrapped) and _region(wrapped) != NULL:
        return wrapped
    return made[()] if return_scalar else made


# Functions in C that read all of their arrays; those in Python come to methods and ufuncs.
_READ_ALL = frozenset((np.concatenate, np.dot, np.inner, np.vdot, np.where, np.bincount, np.lexsort))


def run_plain(method, self, args, kwargs, bint reads_all=False):
    """`ndarray.method` on a plain view, as one operation. GIL: kept, but to fetch ahead. Blocks: as its touches do."""
    cdef uint64_t sequence
    plain = _plain(self)
    if reads_all:
        _ask_for(self)
        for x in args:
            _ask_for(x)
    args = tuple([_plain(x) for x in args])
    begin(&sequence)
    try:
        result = method(plain, *args, **kwargs)
    finally:
        _end(sequence, self, None)
    return result


def run_view(method, self, args, kwargs):
    """`ndarray.method` that answers with a view where it can: plain where it had to copy."""
    cdef uint64_t sequence
    held = _plain(self)
    begin(&sequence)
    try:
        result = _settled(method(self, *args, **kwargs))
    finally:
        _end(sequence, self, None)
    return result


cdef int _collect(object found_in, list lazy, int depth) except -1:
    for x in found_in:
        if _is_lazy(x):
            lazy.append(x)
        elif depth and type(x) in (list, tuple):
            _collect(x, lazy, depth - 1)
    return 0


cdef int _end_many(uint64_t sequence, list lazy) except -1:
    if operation_end(sequence):
        blame(sequence, [_bounds(x) for x in lazy])
    return 0


# ---------------------------------------------------------------------------------------------------------------------------
# Buffers

cdef bint _warned = False
# Set by options: what share of memory one system call's buffer may fetch.
largest_export_nbytes = 1 << 62


cdef class Export:
    """What a buffer of a LazyArray belongs to: it holds the array, and counts until the buffer is released."""
    cdef object _exporter
    cdef Region *_region
    cdef uint64_t _start, _stop    # bytes of the region that are pinned meanwhile
    cdef bint _writes

    def __getbuffer__(self, Py_buffer *view, int flags):
        raise BufferError("a buffer of a lazy array is asked of the array")

    def __releasebuffer__(self, Py_buffer *view):
        cdef Memory owner
        if self._stop > self._start:
            owner = memory_of(self._region)
            if owner is not None:
                owner.unpin(self._start, self._stop, self._writes)
        lm_sub32(&self._region.exports, 1)


cdef int _getbuffer(PyObject *self, Py_buffer *view, int flags) except -1:
    """Like ndarray's, and 1. what a system call would read of it is fetched first, where one could not wait for it, and pinned until it is
    released; what it may write counts as written; 2. the buffer is counted until it is released. System calls are given simple requests: `memoryview(a)` and
    `np.asarray(a)` make others and stay lazy."""
    cdef Region *r = (<Extra *>(<char *>self + _extra_at)).region
    cdef Export export
    cdef PyObject *exporter
    if r == NULL:
        return _nd_getbuffer(self, view, flags)
    _alive(r)
    if _nd_getbuffer(self, view, flags) < 0:
        return -1
    exporter = lm_buffer_take(view)
    export = Export.__new__(Export)
    export._exporter = <object>exporter
    export._region = r
    Py_DECREF(exporter)
    if not (flags & (PyBUF_ND | PyBUF_FORMAT)) and not r.kernel_faults:
        export._writes = flags & PyBUF_WRITABLE != 0 and r.writable
        if _may_fetch_ahead(r, <uint64_t>view.len):
            memory_of(r).pin(<uint64_t>view.buf - r.base, <uint64_t>view.buf - r.base + <uint64_t>view.len, export._writes)
            export._start = <uint64_t>view.buf - r.base
            export._stop = export._start + <uint64_t>view.len
    lm_add32(&r.exports, 1)
    Py_INCREF(export)
    lm_buffer_give(view, <PyObject *>export)
    return 0


cdef uint64_t _largest(Region *r) noexcept:
    """How much of a region may be fetched at once because somebody might need it, bytes."""
    cdef uint64_t largest = <uint64_t>largest_export_nbytes
    return r.budget_nbytes // 4 if 0 < r.budget_nbytes // 4 < largest else largest


cdef bint _may_fetch_ahead(Region *r, uint64_t nbytes) except *:
    global _warned
    if nbytes <= _largest(r):
        return nbytes != 0
    if not _warned:
        _warned = True
        warnings.warn(f"a buffer of {nbytes} bytes of lazy array {r.name.decode('utf-8', 'replace')!r} is handed out "
                      "unfetched: it is more than a quarter of what may be resident. A system call on it may end with "
                      "EFAULT; write slices of it, or lazymem.pin them first", RuntimeWarning, stacklevel=2)
    return False


# ---------------------------------------------------------------------------------------------------------------------------
# The type

cdef PyType_Slot _slots[40]
cdef int _nslots = 0


cdef void _slot(int which, void *function) noexcept:
    global _nslots
    _slots[_nslots].slot = which
    _slots[_nslots].pfunc = function
    _nslots += 1


_slot(Py_tp_dealloc, <void *>_dealloc)
_slot(Py_tp_hash, <void *>PyObject_HashNotImplemented)
_slot(Py_tp_richcompare, <void *>_richcompare)
_slot(Py_mp_subscript, <void *>_subscript)
_slot(Py_mp_ass_subscript, <void *>_assign)
_slot(Py_sq_item, <void *>_item)
_slot(Py_bf_getbuffer, <void *>_getbuffer)
_slot(Py_nb_add, <void *>_add)
_slot(Py_nb_subtract, <void *>_subtract)
_slot(Py_nb_multiply, <void *>_multiply)
_slot(Py_nb_true_divide, <void *>_true_divide)
_slot(Py_nb_floor_divide, <void *>_floor_divide)
_slot(Py_nb_remainder, <void *>_remainder)
_slot(Py_nb_divmod, <void *>_divmod)
_slot(Py_nb_power, <void *>_power)
_slot(Py_nb_lshift, <void *>_lshift)
_slot(Py_nb_rshift, <void *>_rshift)
_slot(Py_nb_and, <void *>_and)
_slot(Py_nb_or, <void *>_or)
_slot(Py_nb_xor, <void *>_xor)
_slot(Py_nb_matrix_multiply, <void *>_matmul)
_slot(Py_nb_negative, <void *>_negative)
_slot(Py_nb_positive, <void *>_positive)
_slot(Py_nb_absolute, <void *>_absolute)
_slot(Py_nb_invert, <void *>_invert)
_slot(Py_nb_bool, <void *>_bool)
_slot(Py_nb_int, <void *>_int)
_slot(Py_nb_float, <void *>_float)
_slot(Py_nb_index, <void *>_index)
_slot(0, NULL)

cdef PyType_Spec _spec
_spec.name = b"lazymem.core.lazyarray.LazyBase"
_spec.basicsize = <int>(_extra_at + sizeof(Extra))
_spec.itemsize = 0
_spec.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE
_spec.slots = _slots

LazyBase = PyType_FromSpecWithBases(&_spec, (np.ndarray,))
_lazy = <PyTypeObject *>LazyBase
LazyBase.__array_finalize__ = _Finalize()
LazyBase.__array_ufunc__ = _array_ufunc
LazyBase.__array_function__ = _array_function
LazyBase.__array_wrap__ = _array_wrap
if hasattr(np.ndarray, "__array_prepare__"):  # numpy 1.26: what numpy.linalg asks first
    LazyBase.__array_prepare__ = _array_wrap


def owner(x):
    """The Memory that a LazyArray's elements lie in, or None."""
    cdef Region *r
    if not _is_lazy(x):
        raise TypeError(f"not a LazyArray: {type(x).__name__}")
    r = _region(x)
    return memory_of(r) if r != NULL else None


def bounds(x):
    """The address range [low, high) that an ndarray's elements lie in."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"not an array: {type(x).__name__}")
    return _bounds(x)
