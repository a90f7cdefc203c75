from libc.stdint cimport uint32_t, uint64_t


cdef extern from "ring.h" nogil:
    enum:
        RING_SLOTS, RING_CHAIN, RING_TEXT_NBYTES, RING_SLOT_NBYTES, RING_OUTPUT_NBYTES, RING_HEAD_NBYTES, RING_BLOCKS_AT
        RING_LAST_WORDS_AT
        SLOT_FREE, SLOT_ASKED, SLOT_TAKEN, SLOT_DONE, SLOT_STATE, SLOT_SLEEPS, SLOT_TAG
        SLOT_GENERATION_SHIFT, SLOT_GENERATION, SLOT_THREAD_SHIFT
        ASK_FETCH, ASK_LOAD, ASK_FORGET, ASK_FLUSH, ASK_STORE, ASK_SYNC
        ANSWER_FILLED, ANSWER_AGAIN, ANSWER_FAILED, ANSWER_UNKNOWN, ANSWER_KEPT, ANSWER_CYCLE
    uint64_t RING_LAYOUT
    ctypedef struct lm_slot:
        uint32_t word
        uint32_t ask
        uint32_t begun
        uint32_t answer
        uint64_t receipt
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
        uint32_t server_cpu
        uint32_t asker_cpu
        char last_words[1]
        lm_output output[2]
    uint64_t lm_receipt(uint32_t tag, uint32_t ask, uint32_t answer, uint64_t provider, uint64_t offset, uint64_t nbytes)

cdef enum Life:
    RING_NONE = 0        # the record is nobody's
    RING_MAKING = 1
    RING_LIVE = 2
    RING_DEAD = 3        # its process has ended, or is being ended; nobody enters it any more
    RING_LIFE = 255
    RING_WHY_SHIFT = 8   # how it came to that
    RING_SLOT_SHIFT = 16 # and by whose request, where that matters

# The life of one claim to a slot:
#
#   FREE -claim-> HELD -post-> POSTED -answered-> LENT -release-> FREE (next generation)
#                                 \-left-> LEFT -the process has answered-> FREE
#
# All of it by its thread, but for this: a thread that has ended, or has jumped out of its wait and so is past its time, leaves a
# claim that whoever finds it takes over.
cdef enum Claimed:
    CLAIM_FREE = 0
    CLAIM_HELD = 1
    CLAIM_POSTED = 2
    CLAIM_LENT = 3       # its thread reads the answer
    CLAIM_LEFT = 4       # nobody waits for the answer any more

ctypedef struct Claim:
    uint32_t word        # state | generation << 4 | thread << 10, the latter two as in the slot
    uint32_t until_of    # whose (the same, without the state) until_ns is
    uint64_t until_ns    # its thread must have come back by then
    uint64_t provider

ctypedef struct Ring:
    # What the served side knows of a ring by itself.
    lm_head *head
    uint64_t nbytes
    uint64_t block_nbytes
    uint64_t spin_ns
    uint64_t started_ns
    uint64_t ended_ns      # when it was told to end
    uint32_t ready       # its process has said so once
    uint32_t life
    uint32_t users       # threads in it: it is unmapped when it is dead and they are none
    uint32_t busy        # requests under way
    uint32_t answered    # requests, modulo 2**32: does the process get anywhere?
    uint32_t freed       # futex of askers that found no slot free
    uint32_t wanting
    int pid
    int pidfd
    uint64_t dropped[2]  # bytes that it printed and nobody will see, as far as that has been said
    uint64_t dropped_seen[2]
    Claim claims[64]
    uint32_t debtors[64] # threads that count as users, though they may have jumped out

ctypedef struct Request:
    # What is asked of the provider of a claim (ring.h). What is written into the ring is never read back from there.
    uint32_t ask
    uint64_t offset
    uint64_t nbytes
    uint64_t total
    const void *src      # of what is stored, nbytes

cdef enum Waited:
    WAITED_DONE = 0
    WAITED_DEAD = 1         # the process has ended
    WAITED_LATE = 2         # nothing has moved for as long as it may
    WAITED_QUEUED = 3       # its turn has not come before the deadline, or only just
    WAITED_INTERRUPTED = 4
    WAITED_DISOWNED = 5     # the thread is so late that its claim was taken over
    WAITED_BROKEN = 6       # the process has written over the slot

cdef lm_slot *slot_at(lm_head *head, int slot) noexcept nogil
cdef void *block_at(lm_head *head, uint64_t block_nbytes, int slot) noexcept nogil
cdef int ring_claim(Ring *ring, uint32_t tid, uint64_t until_ns, uint64_t provider) noexcept nogil
cdef bint ring_wait_for_slot(Ring *ring, uint64_t deadline_ns) noexcept nogil
cdef void ring_post(Ring *ring, int slot, const Request *request) noexcept nogil
cdef int ring_wait(Ring *ring, int slot, uint32_t tag, uint64_t spin_ns, uint64_t patience_ns, uint64_t deadline_ns,
                   bint *begun) noexcept nogil
cdef bint ring_answered(Ring *ring, int slot, const Request *request, uint32_t *answer) noexcept nogil
cdef void ring_abandon(Ring *ring, int slot, uint32_t tag) noexcept nogil
cdef bint ring_take_back(Ring *ring, int slot, uint32_t tag) noexcept nogil
cdef void ring_await_end(Ring *ring, uint64_t deadline_ns) noexcept nogil
cdef void ring_release(Ring *ring, int slot) noexcept nogil
cdef bint ring_others_had_begun(Ring *ring, uint64_t provider) noexcept nogil
cdef void ring_settle_debts(Ring *ring) noexcept nogil
cdef bint ring_is_dead(Ring *ring) noexcept nogil
cdef bint ring_is_ready(Ring *ring) noexcept nogil
cdef int ring_next(lm_head *head) noexcept nogil
cdef void ring_answer(lm_head *head, int slot, uint32_t answer, uint64_t receipt) noexcept nogil
