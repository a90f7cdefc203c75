from libc.stdint cimport uint64_t

cdef int begin(uint64_t *sequence) except -1
cdef int blame(uint64_t sequence, operands) except -1
cdef object first_after(uint64_t sequence)
