from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.region cimport Region
from lazymem.core.source cimport NativeSource

cdef class Memory:
    cdef Region *region
    cdef NativeSource _source
    cdef public uint32_t helpers
    cdef uint64_t _element_nbytes, _element_at
    cdef object __weakref__
    cdef int need(self, uint64_t start, uint64_t stop) except -1
    cpdef pin(self, uint64_t start, uint64_t stop, bint write)
    cpdef unpin(self, uint64_t start, uint64_t stop, bint write)
    cdef int _run(self, uint64_t start, uint64_t stop) except -1

cdef object memory_of(Region *r)
cdef str lost_stores()
cdef object error_of(Region *r, uint64_t block, int error, bint stored=*)
cdef int refuse(Region *r) except -1
cdef int raise_page_error(Region *r, uint64_t block, int error) except -1
