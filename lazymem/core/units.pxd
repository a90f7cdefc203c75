from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.region cimport Region

cdef void unit_gets_pages(Region *r, uint64_t block) noexcept nogil
cdef bint unit_is_next(Region *r, uint64_t block, uint64_t *first) noexcept nogil
cdef bint unit_fill(Region *r, uint64_t first, uint64_t claimed, uint32_t tid) noexcept nogil
cdef bint region_need_unit(Region *r, uint64_t first) noexcept nogil
