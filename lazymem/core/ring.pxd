from libc.stdint cimport uint32_t, uint64_t


cdef extern from "ring.h" nogil:
    enum:
        RING_SLOTS, RING_CHAIN, RING_TEXT_NBYTES, RING_SLOT_NBYTES, RING_OUTPUT_NBYTES, RING_HEAD_NBYTES, RING_BLOCKS_AT
        RING_LAST_WORDS_AT
        SLOT_FREE, SLOT_HELD, SLOT_ASKED, SLOT_TAKEN, SLOT_DONE, SLOT_LEFT, SLOT_STATE, SLOT_SLEEPS
        SLOT_GENERATION_SHIFT, SLOT_THREAD_SHIFT
        ASK_FETCH, ASK_LOAD, ASK_FORGET
        ANSWER_FILLED, ANSWER_AGAIN, ANSWER_FAILED, ANSWER_UNKNOWN, ANSWER_KEPT, ANSWER_CYCLE
    uint64_t RING_LAYOUT
    ctypedef struct lm_slot:
        uint32_t word
        uint32_t ask
        uint32_t answer
        uint32_t text_nbytes
        uint64_t provider
        uint64_t offset
        uint64_t nbytes
        uint64_t total
        uint64_t chain[4]
        uint32_t depth
        char text[1]
    ctypedef struct lm_output:
        uint64_t written
        uint64_t dropped
        uint64_t read
        char bytes[1]
    ctypedef struct lm_head:
        uint64_t layout
        uint64_t block_nbytes
        uint64_t spin_ns
        uint32_t server_of
        uint32_t level
        uint32_t alive
        uint32_t ready
        uint32_t quit
        uint64_t asked
        uint32_t bell
        uint32_t sleepers
        uint32_t spinning
        uint32_t freed
        uint32_t wanting
        char last_words[1]
        lm_output output[2]

cdef enum Life:
    RING_NONE = 0        # the record is nobody's
    RING_LIVE = 1
    RING_DEAD = 2        # its process has ended, or is being ended; nobody enters it any more

ctypedef struct Ring:
    # What the served side knows of a ring by itself.
    lm_head *head
    uint64_t nbytes
    uint64_t block_nbytes
    uint64_t spin_ns
    uint32_t life
    uint32_t users       # threads in it: it is unmapped when it is dead and they are none
    uint32_t busy        # requests under way
    int pid
    int pidfd

cdef enum Waited:
    WAITED_DONE = 0
    WAITED_DEAD = 1      # the process has ended
    WAITED_LATE = 2
    WAITED_INTERRUPTED = 3

cdef lm_slot *slot_at(lm_head *head, int slot) noexcept nogil
cdef void *block_at(lm_head *head, uint64_t block_nbytes, int slot) noexcept nogil
cdef int ring_claim(Ring *ring, uint32_t tid) noexcept nogil
cdef bint ring_wait_for_slot(Ring *ring, uint64_t deadline_ns) noexcept nogil
cdef void ring_post(Ring *ring, int slot) noexcept nogil
cdef int ring_wait(Ring *ring, int slot, uint64_t spin_ns, uint64_t patience_ns, uint64_t deadline_ns, bint *taken) noexcept nogil
cdef void ring_abandon(Ring *ring, int slot) noexcept nogil
cdef void ring_release(Ring *ring, int slot) noexcept nogil
cdef bint ring_is_dead(Ring *ring) noexcept nogil
cdef int ring_next(lm_head *head) noexcept nogil
cdef void ring_answer(lm_head *head, int slot, uint32_t answer) noexcept nogil
cdef void ring_forget(lm_head *head, int slot) noexcept nogil
