from libc.stdint cimport uint32_t, uint64_t

# One word of 32 bits per block: what it is, whether somebody sleeps on it, and a detail (bits 9-31): the number of the thread
# that fills it or takes it away, the errno of a fetch that failed.
cdef enum BlockState:
    MISSING = 0
    FILLING = 1
    RESIDENT = 2
    DIRTY = 3
    LEAVING = 4
    FAILED = 5
    STATE = 7          # mask of the above
    WAITERS = 8        # somebody sleeps: whoever changes the word wakes them
    STANDIN = 16       # with FAILED: zero pages are mapped so that an operation could end; they are not data
                       # with FILLING: its own source touched it
    AGAIN = 32         # with FILLING: it was resident, some of its pages may still be
    LOOSE = 32         # with FAILED and STANDIN: no operation drops it
    WITNESS = 64       # a thread that cannot be told of a failure sleeps in the kernel for it; until it is resident
    MAKING = 128       # with FILLING: a stand-in is being made for the thread of the detail
    JOINED = 256       # a thread sleeps in the kernel while another changes the word: whoever publishes wakes it there too
    DETAIL_SHIFT = 9

cdef uint32_t *table_create(uint64_t nblocks) noexcept nogil
cdef void table_destroy(uint32_t *words, uint64_t nblocks) noexcept nogil
cdef void table_publish(uint32_t *word, uint32_t now) noexcept nogil
cdef int table_wait(uint32_t *word, uint32_t seen, uint64_t deadline_ns) noexcept nogil
