"""Who may touch a block, and who must wait for it?

    MISSING --claim--> FILLING --publish--> RESIDENT --claim--> LEAVING --publish--> WAITING --recycled--> MISSING
       ^                |   ^               (DIRTY: resident, changed by the user)      |
       |                |   +----------------------claim: it is wanted again------------+
       |                +-----> FAILED --claim--> FILLING
       +--drop---- FAILED|STANDIN

A claim is one compare-and-swap to FILLING or LEAVING with the claimer's thread number; only the claimer leaves that state, by
publish. Losers wait on the word. A sleeper sets WAITERS first, so that publish makes no system call when nobody sleeps.
The words are anonymous memory of the kernel's: a table for 64 TiB costs what of it was touched.
"""

from lazymem.core.native cimport *


cdef extern from "native.h" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    int sched_getaffinity(int pid, size_t nbytes, void *mask)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_DONTFORK
    void *MAP_FAILED
    int INT_MAX

cdef extern from *:
    """
    #include <sched.h>
    static inline int lm_cores(void)
    {
        cpu_set_t set;
        return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    }
    """
    int lm_cores() noexcept nogil

# Long enough for a fill of a few pages by another core, short beside a sleep's wake-up (some 40 us here).
cdef uint64_t SPIN_NS = 20000 if lm_cores() > 1 else 0
# No sleep is longer: a closed region and a passed deadline are seen at the latest then.
cdef uint64_t SLICE_NS = 50000000


cdef uint32_t *table_create(uint64_t nbytes) noexcept nogil:
    """All blocks missing, and zeros behind them. Return: NULL when there is no address space. GIL: never. Blocks: no."""
    cdef void *words = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if words == MAP_FAILED:
        return NULL
    return <uint32_t *>words


cdef void table_destroy(uint32_t *words, uint64_t nbytes) noexcept nogil:
    """GIL: never. Blocks: no."""
    munmap(words, nbytes)


cdef void table_publish(uint32_t *word, uint32_t now) noexcept nogil:
    """Leave FILLING or LEAVING for `now`, and wake the sleepers. Thread: the claimer. GIL: never. Blocks: no."""
    if lm_swap32(word, now) & WAITERS:
        lm_futex_wake(word, INT_MAX)


cdef int table_wait(uint32_t *word, uint32_t seen, uint64_t deadline_ns) noexcept nogil:
    """Wait a while for a word to change from `seen`: spin first, then sleep, never longer than a slice.

    Return: 0 look again; -ETIMEDOUT the deadline has passed. GIL: kept if held: nothing we wait for needs it.
    """
    cdef uint64_t now_ns = lm_now_ns(), spin_until_ns = now_ns + SPIN_NS, rest_ns
    cdef int i
    if now_ns >= deadline_ns:
        return -ETIMEDOUT
    while now_ns < spin_until_ns and not (seen & WAITERS):
        for i in range(32):
            if (lm_load32(word) & ~<uint32_t>WAITERS) != (seen & ~<uint32_t>WAITERS):
                return 0
            lm_pause()
        now_ns = lm_now_ns()
    if not (seen & WAITERS):
        if not lm_cas32(word, seen, seen | WAITERS):
            return 0
        seen |= WAITERS
    rest_ns = deadline_ns - now_ns if deadline_ns > now_ns else 1
    lm_futex_wait(word, seen, rest_ns if rest_ns < SLICE_NS else SLICE_NS)
    return 0
