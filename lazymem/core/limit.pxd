from libc.stdint cimport uint64_t

cdef bint memory_take(uint64_t nbytes) noexcept nogil
cdef void memory_give(uint64_t nbytes) noexcept nogil
cdef uint64_t memory_used() noexcept nogil
cdef uint64_t memory_budget() noexcept nogil
cdef void memory_budget_set(uint64_t nbytes) noexcept nogil
cdef void memory_force(uint64_t nbytes) noexcept nogil
