from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.region cimport Region
from lazymem.core.thread cimport Thread

cdef bint stand_in(Region *r, uint64_t block, Thread *toucher, int error) noexcept nogil
cdef bint stand_in_loose(Region *r, uint64_t block, Thread *toucher, int error) noexcept nogil
cdef bint stores_lost() noexcept nogil
cdef void drop_loose() noexcept nogil
cdef void unmap_standin(Region *r, uint64_t block, bint loose) noexcept nogil
cdef void drop_standins(Thread *me) noexcept nogil
cdef void forget_standins(Region *r) noexcept nogil
cdef void publish(Region *r, uint64_t block, uint32_t now) noexcept nogil
cdef bint operation_begin(uint64_t *sequence) noexcept nogil
cdef bint operation_end(uint64_t sequence) noexcept nogil
cdef bint standins_wait(uint64_t deadline_ns) noexcept nogil
