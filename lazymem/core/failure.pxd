from libc.stdint cimport int64_t, uint32_t, uint64_t

ctypedef struct Failure:
    uint64_t sequence       # 1, 2, ...; 0: the entry is being written
    uint64_t region_id
    uint64_t block
    uint32_t tid            # the thread that touched
    int error               # errno

cdef enum:
    LOG_ENTRIES = 8192  # a scan over a dead source writes one for each block that it goes on over, while others' operations run

cdef uint64_t failures_now() noexcept nogil
cdef uint64_t failures_era() noexcept nogil
cdef void failures_new_era() noexcept nogil
cdef uint32_t guards_now() noexcept nogil
cdef uint32_t guards_coming() noexcept nogil
cdef void guards_count(int change) noexcept nogil
cdef void guards_come(int change) noexcept nogil
cdef uint64_t loose_now() noexcept nogil
cdef void loose_count() noexcept nogil
cdef uint64_t standins_live() noexcept nogil
cdef void standins_count(int64_t change) noexcept nogil
cdef uint64_t failure_log(uint64_t region_id, uint64_t block, uint32_t tid, int error) noexcept nogil
cdef bint failure_read(uint64_t sequence, Failure *entry) noexcept nogil
cdef void failures_forget() noexcept nogil
cdef const char *cause(int error) noexcept nogil
