from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.ring cimport Ring, RING_CHAIN


cdef extern from "process.h" nogil:
    ctypedef struct lm_spawn:
        char **argv
        char **envp
        int cwd_fd
        int reserved_fd
    int lm_spawn_prepare(lm_spawn *s, char **argv, char **envp)
    void lm_spawn_release(lm_spawn *s)
    bint lm_fd_is_ours(const lm_spawn *s, int fd)

cdef enum:
    PROCESSES_MAX = 16     # of one set
    TEXTS = 4

cdef enum:
    ABOUT_ALL = 0xffffffffffffffff   # a text's offset that is no block's

# The life of one place in a set of processes, in a word (process.pyx).
ctypedef uint32_t Place

ctypedef struct Text:
    uint64_t sequence      # 0: being written
    uint64_t offset        # of the block it is about, bytes
    char text[1 << 12]

ctypedef struct Asking:
    # What a fault needs to ask for a provider's bytes.
    uint64_t id            # never reused
    uint64_t identity      # of the array: the same in every process that has it
    uint64_t nbytes        # of the provider
    const char *pickle
    uint64_t pickle_nbytes
    lm_spawn *spawn
    uint64_t block_nbytes  # room in a slot
    uint64_t spin_ns
    Place *shared          # the set's processes
    Place own[PROCESSES_MAX]  # its own, once an attempt of it has killed or stalled one
    uint32_t has_own
    uint32_t processes     # how many of either
    uint64_t timeout_ns    # of an attempt
    uint64_t deadline_ns   # of a fetch
    uint32_t retries
    const uint64_t *stored # where bytes are stored, if that is known: start, stop, start, stop, ... ascending, never touching
    uint64_t stored_count  # of such pairs; everything else is zeros
    uint64_t typical_ns    # how long an answer takes, while that is short
    uint64_t attempts      # made
    uint64_t lost          # that went down with a process and were not counted
    uint64_t said          # texts ever
    Text texts[TEXTS]

cdef int asking_borrow(void *ctx, uint64_t offset, uint64_t nbytes, void **bytes, uint64_t *loan) noexcept nogil
cdef void asking_give_back(void *ctx, uint64_t loan) noexcept nogil
cdef int asking_store(void *ctx, const void *src, uint64_t offset, uint64_t nbytes) noexcept nogil
cdef int asking_sync(void *ctx) noexcept nogil
cdef int process_start(lm_spawn *spawn, uint64_t block_nbytes, uint64_t spin_ns, Place *place) noexcept nogil
cdef void process_end(Place *place) noexcept nogil
cdef void provider_forget(Asking *asking) noexcept nogil
cdef bint rings_attend(uint64_t *said, uint64_t *dropped, char *text, uint32_t *stream) noexcept nogil
cdef void rings_rest() noexcept nogil
cdef void rings_flush(uint64_t deadline_ns) noexcept nogil
cdef int rings_count(int *pids, int most) noexcept nogil
cdef void rings_forget() noexcept nogil
cdef void process_serves(uint32_t level) noexcept nogil
cdef void process_serving(uint32_t server, const uint64_t *chain, uint32_t depth) noexcept nogil
cdef bint process_is_provider() noexcept nogil
