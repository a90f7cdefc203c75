from libc.stdint cimport int64_t, uint32_t, uint64_t

from lazymem.core.region cimport Region
from lazymem.core.thread cimport Thread

cdef enum Touched:
    GOES_ON = 0       # the page is there, or will be when the touching thread is woken
    LATER = 1         # another thread is filling it and will wake the toucher

cdef int region_need(Region *r, uint64_t block) noexcept nogil
cdef int region_touch(Region *r, uint64_t addr, uint32_t tid, bint wait) noexcept nogil
cdef int region_fetch(Region *r, uint64_t block, void *dst) noexcept nogil
cdef bint sources_nest() noexcept nogil
cdef bint operation_begin(uint64_t *sequence) noexcept nogil
cdef bint standins_wait(uint64_t deadline_ns) noexcept nogil
cdef void forget_standins(Region *r) noexcept nogil
cdef bint operation_end(uint64_t sequence) noexcept nogil
cdef void wake_block(Region *r, uint64_t block) noexcept nogil
cdef void loud_stop(Region *r, uint64_t addr, int error) noexcept nogil
cdef void account_for_memory(int64_t nbytes) noexcept nogil
cdef void memory_limit_set(uint64_t nbytes) noexcept nogil
