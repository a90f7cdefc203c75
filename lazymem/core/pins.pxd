from libc.stdint cimport uint64_t

from lazymem.core.region cimport Region

cdef int region_pin(Region *r, uint64_t first, uint64_t last, uint64_t *failed) noexcept nogil
cdef void region_unpin(Region *r, uint64_t first, uint64_t last) noexcept nogil
