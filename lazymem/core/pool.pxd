from libc.stdint cimport uint64_t

cdef void *pool_take(uint64_t nbytes) noexcept nogil
cdef void pool_give(void *staging, uint64_t nbytes) noexcept nogil
cdef void pool_forget_all() noexcept nogil
