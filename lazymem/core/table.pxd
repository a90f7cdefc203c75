from libc.stdint cimport uint32_t, uint64_t

# One word of 32 bits per block: what it is, whether somebody sleeps on it, and a detail (bits 9-31): the number of the thread
# that fills it or takes it away, the errno of a fetch that failed, the frame that it lies in.
cdef enum BlockState:
    MISSING = 0
    FILLING = 1
    RESIDENT = 2
    DIRTY = 3
    LEAVING = 4
    FAILED = 5
    WAITING = 6        # evicted: its bytes are in its frame's slot still
    WAITING_DIRTY = 7  # the same, and nowhere else
    STATE = 7          # mask of the above
    WAITERS = 8        # somebody sleeps: whoever changes the word wakes them
    STANDIN = 16       # with FAILED: zero pages are mapped so that an operation could end; they are not data
                       # with FILLING: its own source touched it; with LEAVING: they are being dropped
    AGAIN = 32         # with FILLING: it was resident, some of its pages may still be
    LOOSE = 32         # with FAILED and STANDIN: no operation drops it
    WITNESS = 64       # a thread that cannot be told of a failure sleeps in the kernel for it; until it is resident
    MAKING = 128       # with FILLING: a stand-in is being made for the thread of the detail
    JOINED = 256       # a thread sleeps in the kernel while another changes the word: whoever publishes wakes it there too
    DETAIL_SHIFT = 9
    FRAME = 0x3fffff   # of the detail of a block that is resident or waits: its frame, 0 none
    UNIT_SHIFT = 31    # and whether that is a unit's

cdef inline bint is_resident(uint32_t word) noexcept nogil:
    return (word & STATE) == RESIDENT or (word & STATE) == DIRTY

cdef inline bint is_waiting(uint32_t word) noexcept nogil:
    return (word & STATE) == WAITING or (word & STATE) == WAITING_DIRTY

cdef inline uint32_t frame_of(uint32_t word) noexcept nogil:
    return (word >> DETAIL_SHIFT) & FRAME

cdef inline uint32_t in_frame(uint32_t state, uint32_t frame, uint32_t unit) noexcept nogil:
    return state | (frame << DETAIL_SHIFT) | (unit << UNIT_SHIFT)

cdef uint32_t *table_create(uint64_t nbytes) noexcept nogil
cdef void table_destroy(uint32_t *words, uint64_t nbytes) noexcept nogil
cdef void table_publish(uint32_t *word, uint32_t now) noexcept nogil
cdef int table_wait(uint32_t *word, uint32_t seen, uint64_t deadline_ns) noexcept nogil
