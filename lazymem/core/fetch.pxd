from libc.stdint cimport uint64_t

from lazymem.core.region cimport Region

cdef bint sources_nest() noexcept nogil
cdef int region_fetch(Region *r, uint64_t block, void *dst) noexcept nogil
cdef int region_fetch_bytes(Region *r, uint64_t offset, uint64_t nbytes, void *dst) noexcept nogil
cdef bint block_is_scratched(Region *r, uint64_t block) noexcept nogil
cdef bint region_is_zero(Region *r, uint64_t block) noexcept nogil
