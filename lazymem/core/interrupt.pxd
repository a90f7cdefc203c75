from libc.stdint cimport uint32_t

from lazymem.core.thread cimport Thread

cdef bint touch_may_be_ended(Thread *me, uint32_t toucher) noexcept nogil
cdef bint operation_may_be_ended(Thread *me) noexcept nogil
cdef bint wait_is_over(Thread *me) noexcept nogil
cdef void interrupt_forget() noexcept nogil
