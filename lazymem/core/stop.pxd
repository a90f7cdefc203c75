from libc.stdint cimport uint64_t

from lazymem.core.region cimport Region

cdef void loud_stop(Region *r, uint64_t addr, int error) noexcept nogil
