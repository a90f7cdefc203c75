from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.native cimport sigset_t

cdef enum FrameState:
    EMPTY = 0          # nobody's, and no memory in it
    BUSY = 1           # somebody is filling or emptying it
    USED = 2           # `block` lies in it: in the region, or in its slot

cdef enum:
    SMALL = 0          # frames of one block
    UNITS = 1          # frames of a unit: 2 MiB, moved whole
    KINDS = 2
    FRAMES_MOST = 4194303

ctypedef struct Frame:
    uint64_t block     # the first that lies in it; of an empty one: the next empty one's number
    uint32_t pins      # it may not be evicted as long as there are any
    uint32_t state

ctypedef struct Clock:
    Frame *frames      # number 0 is nobody's
    uint64_t slots     # address of the first slot; 0: no frame has been evicted yet
    uint64_t nbytes    # of a frame
    uint64_t blocks    # in a frame
    uint32_t most      # the highest number there may be
    uint32_t top       # the next number that was never used
    uint64_t empty     # the first empty one's number, and above it a count against ABA
    uint32_t evicting  # the hand that evicts, and the one that recycles behind it: numbers
    uint32_t recycling
    uint32_t used      # frames that are not empty
    uint32_t waiting   # frames whose bytes lie in their slots
    uint32_t opening   # 1: somebody is making the slots; 2: it was tried

cdef void clock_make(Clock *c, Frame *frames, uint64_t nbytes, uint64_t blocks, uint32_t most) noexcept nogil
cdef uint32_t clock_most(uint64_t nblocks, uint64_t blocks, uint64_t nbytes, uint64_t most_nbytes) noexcept nogil
cdef uint32_t frame_take(Clock *c) noexcept nogil
cdef void frame_empty(Clock *c, uint32_t i) noexcept nogil
cdef void frame_use(Clock *c, uint32_t i, uint64_t block) noexcept nogil
cdef uint32_t hand_next(Clock *c, uint32_t *hand) noexcept nogil
cdef uint64_t frame_slot(Clock *c, uint32_t i) noexcept nogil
cdef void moves_enter(sigset_t *before) noexcept nogil
cdef void moves_leave(const sigset_t *before) noexcept nogil
cdef void moves_not_copied() noexcept nogil
cdef void moves_hold() noexcept nogil
cdef void moves_let_go() noexcept nogil
cdef void moves_forget() noexcept nogil
