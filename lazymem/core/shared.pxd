from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.mprotect cimport Exposure

cdef int shared_open(Exposure *e, uint64_t base, uint64_t map_nbytes, uint64_t block_nbytes, uint64_t nblocks,
                     uint32_t *words, bint aliased) noexcept nogil
cdef void shared_copy(Exposure *e) noexcept nogil
cdef int shared_inherit(Exposure *e, bint keep) noexcept nogil
cdef void shared_release(Exposure *e) noexcept nogil
cdef int shared_write(Exposure *e, uint64_t at, uint64_t src, uint64_t nbytes) noexcept nogil
cdef int shared_drop(Exposure *e, uint64_t at, uint64_t nbytes) noexcept nogil
