from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.region cimport Region

cdef int frame_for(Region *r, int kind, bint wait, uint32_t *frame, bint *holds) noexcept nogil
cdef void frame_back(Region *r, int kind, uint32_t frame) noexcept nogil
cdef int rescue(Region *r, uint64_t block, uint32_t seen, uint32_t tid) noexcept nogil
cdef uint64_t evict_blocks(Region *r, uint64_t first, uint64_t last) noexcept nogil
cdef bint memory_is_short(Region *r, int kind) noexcept nogil
cdef void write_behind(Region *r, int kind, uint64_t first) noexcept nogil
cdef bint moved_in(Region *r, uint64_t at, uint64_t src, uint64_t nbytes, int mode) noexcept nogil
