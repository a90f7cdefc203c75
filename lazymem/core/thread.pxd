from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    CHAIN_MAX = 4      # arrays whose sources may be running inside one another on one thread
    STANDIN_REGIONS = 256  # in one operation: np.concatenate of so many arrays whose disk has gone still raises

ctypedef struct Standins:
    # Blocks [low, high] of one region among which are stand-ins that this thread's failed touches made.
    uint64_t region_id
    void *region
    uint64_t low
    uint64_t high

ctypedef struct Thread:
    uint32_t tid
    uint32_t operations        # LazyArray operations running on it, inside one another
    int handler                # not 0: it is a handler thread (threads.pyx)
    void (*before_blocking)() noexcept nogil   # what it wants done before a source waits for a disk; NULL nothing
    bint (*interrupted)() noexcept nogil       # asked now and then by waits that may be given up for a signal; NULL: may not
    uint32_t ended_by, listening, signals_seen  # then: by which signals, which of them are listened to, how many had come (interrupt.pyx)
    uint32_t depth             # sources running on it, inside one another
    int error                  # errno of the first touch that failed in the outermost of them; further misses fail at once
    uint64_t first_sequence    # that touch's log entry, kept here since the log may be overrun
    uint64_t first_region
    uint64_t first_block
    int first_error
    uint64_t unsure_region     # a block whose fetch failed for this thread, if it still sleeps for it: it is asked by being woken (fill.pyx)
    uint64_t unsure_block
    uint32_t unsure_error      # its errno; 0: there is none
    uint32_t attempts          # at the fetch that this thread did last
    int loose_error            # errno of a touch outside operations that failed; others fail at once while `failures_era` is the same
    uint64_t loose_era
    uint64_t same_addr         # of its latest SIGSEGV in a block that may be accessed, and how many there were in a row
    uint32_t same_faults
    void *chain[CHAIN_MAX]     # the regions of those sources
    uint32_t around_depth      # in a provider process: arrays that wait, outside it, for what this thread does
    uint64_t around[CHAIN_MAX] # their identities
    Standins standins[STANDIN_REGIONS]

cdef Thread *thread_self() noexcept nogil
cdef uint32_t thread_tid() noexcept nogil
cdef Thread *thread_find(uint32_t tid) noexcept nogil
cdef void thread_forget_all() noexcept nogil
cdef void thread_will_wait() noexcept nogil
