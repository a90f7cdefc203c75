from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.frames cimport Clock
from lazymem.core.region cimport Region

cdef int region_store(Region *r, uint64_t first, uint64_t blocks, const void *src) noexcept nogil
cdef int region_flush(Region *r, uint64_t first, uint64_t last, uint64_t *failed) noexcept nogil
cdef bint region_dirty(Region *r, uint64_t first, uint64_t last) noexcept nogil
cdef void *written_since(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil
cdef int block_written(Region *r, uint64_t block, uint32_t tid) noexcept nogil
cdef void blocks_written(Region *r, uint64_t first, uint64_t last) noexcept nogil
cdef bint all_written(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil
cdef void wait_while_busy(Region *r, Clock *c, uint32_t i) noexcept nogil
