from libc.stdint cimport int64_t, uint64_t

cdef int memory_for(uint64_t nbytes) noexcept nogil
cdef void memory_returned(uint64_t nbytes) noexcept nogil
cdef void account_for_files(int64_t nbytes) noexcept nogil
cdef void account_for_memory(int64_t nbytes) noexcept nogil
cdef void memory_limit_set(uint64_t nbytes) noexcept nogil
