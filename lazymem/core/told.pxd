from lazymem.core.region cimport Region
from libc.stdint cimport uint64_t

cdef bint tell_thread(Region *r, uint64_t block, int error) noexcept nogil
cdef void told_forget() noexcept nogil
