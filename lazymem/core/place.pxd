from libc.stdint cimport uint64_t

from lazymem.core.region cimport Region

cdef int place_bytes(Region *r, uint64_t at, uint64_t src, uint64_t nbytes, bint protected) noexcept nogil
cdef int place_zeros(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil
cdef int place_unwritten(Region *r, uint64_t block) noexcept nogil
cdef int place_shown(Region *r, uint64_t block) noexcept nogil
cdef int place_shown_again(Region *r, uint64_t block) noexcept nogil
cdef int place_shown_all(Region *r, uint64_t first, uint64_t last) noexcept nogil
cdef int place_empty(Region *r, uint64_t block) noexcept nogil
cdef bint place_holds(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil
cdef const char *place_seen(Region *r, uint64_t at, char *copied) noexcept nogil
cdef void place_woken(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil
cdef int pages_drop(uint64_t addr, uint64_t nbytes) noexcept nogil
cdef int place_empty_range(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil
