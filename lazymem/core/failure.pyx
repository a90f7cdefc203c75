"""What failed, when, and on whose touch?

A touch cannot raise. Inside an operation that can (LazyArray's), it is let go on over a stand-in, zeros that are no data, and the operation raises as
it ends. The order is the proof that nobody misses it:

    failing:   (1) live++   (2) log entry, failures++   (3) the stand-in becomes visible
    dropping:  (4) the stand-in is gone   (5) live--
    entering:  (1) read failures   (2) drop what is loose and wait until live is 0, at most 1 s
    leaving an operation: look at the log if failures moved
    leaving a guard: raise if failures moved

The log is a ring; whoever finds that it was overrun since it began must assume the worst.

A touch outside operations that may go on (under a guard, or on a Python thread that will be told) leaves a loose stand-in, which anybody may
drop. Its thread's further misses fail at once until the era changes: when a guard comes or goes, or a thread has been told.
"""
from lazymem.core.native cimport *


cdef extern from *:
    """
    #include "native.h"
    LM_THREAD_LOCAL int lm_guards_of_thread;
    static inline void lm_guards_here_more(int n) { lm_guards_of_thread += n; }
    static inline uint32_t lm_guards_here(void) { return lm_guards_of_thread > 0 ? (uint32_t)lm_guards_of_thread : 0; }
    """
    void lm_guards_here_more(int n) noexcept nogil
    uint32_t lm_guards_here() noexcept nogil

cdef Failure _log[LOG_ENTRIES]
cdef uint64_t _failures = 0
cdef uint64_t _live = 0
cdef uint64_t _loose = 0
cdef uint64_t _era = 1
cdef uint32_t _guards = 0
cdef uint32_t _guards_coming = 0


cdef uint64_t failures_now() noexcept nogil:
    """How many touches have failed in this process. GIL: never. Blocks: no."""
    return lm_load64(&_failures)


cdef uint64_t loose_now() noexcept nogil:
    """How many of them were outside operations, and went on. GIL: never. Blocks: no."""
    return lm_load64(&_loose)


cdef void loose_count() noexcept nogil:
    """One more; before its stand-in becomes visible. GIL: never. Blocks: no."""
    lm_add64(&_loose, 1)


cdef uint64_t failures_era() noexcept nogil:
    """What a thread's loose error is good for. GIL: never. Blocks: no."""
    return lm_load64(&_era)


cdef void failures_new_era() noexcept nogil:
    """From now on touches are tried anew. GIL: never. Blocks: no."""
    lm_add64(&_era, 1)


cdef uint32_t guards_now() noexcept nogil:
    """How many guards the process is under. GIL: never. Blocks: no."""
    return lm_load32(&_guards)


cdef uint32_t guards_coming() noexcept nogil:
    """How many are waiting to be entered: nothing outside a guard may leave a stand-in then. GIL: never. Blocks: no."""
    return lm_load32(&_guards_coming)


cdef void guards_count(int change) noexcept nogil:
    """One guard more, or fewer. GIL: never. Blocks: no. Thread: mostly that which entered it."""
    cdef uint32_t seen = lm_load32(&_guards)
    lm_guards_here_more(change)
    while (change > 0 or seen > 0) and not lm_cas32(&_guards, seen, seen + <uint32_t>change):  # 0: a frame of a thread that a fork lost
        seen = lm_load32(&_guards)
    failures_new_era()


cdef void guards_come(int change) noexcept nogil:
    """So many more (or fewer) that wait. GIL: never. Blocks: no."""
    lm_add32(&_guards_coming, <uint32_t>change)


cdef uint64_t standins_live() noexcept nogil:
    """How many stand-ins are, or are about to be, mapped. GIL: never. Blocks: no."""
    return lm_load64(&_live)


cdef void standins_count(int64_t change) noexcept nogil:
    """So many more (or fewer) stand-ins. GIL: never. Blocks: no."""
    lm_add64(&_live, <uint64_t>change)


cdef uint64_t failure_log(uint64_t region_id, uint64_t block, uint32_t tid, int error) noexcept nogil:
    """Write an entry. Return: its sequence number. GIL: never. Blocks: no. Thread: any, in a signal handler too."""
    cdef uint64_t sequence = lm_add64(&_failures, 1) + 1
    cdef Failure *entry = &_log[sequence % LOG_ENTRIES]
    lm_store64(&entry.sequence, 0)
    entry.region_id = region_id
    entry.block = block
    entry.tid = tid
    entry.error = error
    lm_store64(&entry.sequence, sequence)
    return sequence


cdef bint failure_read(uint64_t sequence, Failure *entry) noexcept nogil:
    """Copy one entry out. Return: False when it has been overwritten. GIL: never. Blocks: no."""
    entry[0] = _log[sequence % LOG_ENTRIES]
    return entry.sequence == sequence and lm_load64(&_log[sequence % LOG_ENTRIES].sequence) == sequence


cdef void failures_forget() noexcept nogil:
    """In a forked child: stand-ins are in the parent's regions, and what fails from now on is its own. GIL: any."""
    lm_store64(&_live, 0)
    lm_store32(&_guards_coming, 0)
    lm_store32(&_guards, lm_guards_here())  # those of the parent's other threads will never be left here, nor raise


cdef const char *cause(int error) noexcept nogil:
    """What an errno of a fetch means to a user. GIL: never. Blocks: no. Thread: any, in a signal handler too."""
    if error == ENODATA:
        return b"the file ends before this block: it was truncated after it was opened"
    if error == ESTALE:
        return b"the file was changed or replaced on disk after it was opened; open it again"
    if error == EDQUOT:
        return b"there is no memory left in the budget: all of it is pinned, or cannot be written back, or is other arrays'; look at lazymem.stats and lazymem.set_budget"
    if error == EDEADLK:
        return b"it was touched by its own source, or by a provider whose array waits for it"
    if error == ELOOP:
        return b"more than 4 arrays' sources or providers were waiting for one another"
    if error == ETIMEDOUT:
        return b"it took longer than its timeout"
    if error == EREMOTEIO:
        return b"its provider failed"
    if error == EPIPE:
        return b"its provider's process died"
    if error == ESHUTDOWN:
        return b"the array is closed"
    if error == ENOENT:
        return b"its memory is no longer mapped as lazymem made it (munmap, mremap?)"
    if error == ENOBUFS:
        return b"the process may have no more mappings (vm.max_map_count)"
    if error == EBADF:
        return b"somebody closed a descriptor of lazymem's (closerange? a daemoniser?), and it cannot be had again"
    if error == EFAULT:
        return b"the memory it is copied from cannot be read"
    if error == EPROTO:
        return b"the source returned a positive number; it must be 0 or -errno"
    if error == EIO:
        return b"the source reports an input/output error"
    if error == ENOMEM:
        return b"out of memory"
    return lm_errno_text(error)


cdef const char *_cause_of_store(int error) noexcept nogil:
    """What an errno means when bytes are written back, where that is something else."""
    if error == ESTALE:
        return b"the file was cut short or replaced on disk after it was opened"
    if error == EDQUOT:
        return b"the disk quota is used up"
    if error == EFBIG:
        return b"the file may not become so large (RLIMIT_FSIZE, ulimit -f)"
    if error == ENOSPC:
        return b"no space left on the device"
    if error == EFAULT:
        return b"the memory that it is copied from, or to, is not to be had"
    if error == EINVAL:
        return b"the bytes are not the source's"
    return cause(error)


def cause_of(int error, bint stored=False):
    """What an errno of a fetch means to a user, or of writing back, as str."""
    cdef const char *text = _cause_of_store(error) if stored else cause(error)
    return text.decode() if text != NULL else f"errno {error}"
