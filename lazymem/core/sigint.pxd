from libc.stdint cimport uint32_t

from lazymem.core.thread cimport Thread

cdef bint sigint_may_end(Thread *me, uint32_t toucher) noexcept nogil
cdef void sigint_no_more(Thread *me) noexcept nogil
cdef void sigint_forget() noexcept nogil
