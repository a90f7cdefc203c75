from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.region cimport Region

cdef enum Touched:
    GOES_ON = 0       # the page is there, or will be when the touching thread is woken
    LATER = 1         # another thread is filling it and will wake the toucher

cdef enum Access:
    UNKNOWN = 0
    READS = 1
    WRITES = 2        # to a page that is absent
    PROTECTS = 3      # to one that is there, and protected

cdef int region_need(Region *r, uint64_t block) noexcept nogil
cdef int region_touch(Region *r, uint64_t addr, uint32_t tid, int access, bint wait) noexcept nogil
cdef void wake_block(Region *r, uint64_t block) noexcept nogil
