"""What is the thread with this number doing for, or to, lazy arrays?

A fault that fails must know whether the touching thread is inside an operation that can raise, and a touch made by a source
must be told from a user's. The toucher itself knows by thread-local storage; a handler thread that serves it knows by the
number in the message. So each thread has a record in a table open to both.

A record is claimed at a thread's first contact, by one compare-and-swap, possibly in a signal handler: no malloc, no lock, no
destructor. Records of threads that have gone are taken over when a claim finds its neighbourhood full; a new thread with
the number of a dead one takes that record as it is, cleared.
"""
from lazymem.core.native cimport lm_cas32, lm_gettid, lm_load32, lm_thread_is_gone, uint32_t


cdef extern from *:
    """
    #include "native.h"
    LM_THREAD_LOCAL void *lm_self_word;
    static inline void *lm_self_get(void) { return lm_self_word; }
    static inline void lm_self_set(void *p) { lm_self_word = p; }
    static inline void *lm_zero_pages(size_t n)
    {
        void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return p == MAP_FAILED ? NULL : p;
    }
    """
    void *lm_self_get() noexcept nogil
    void lm_self_set(void *) noexcept nogil
    void *lm_zero_pages(size_t nbytes) noexcept nogil
    void *memset(void *, int, size_t) noexcept nogil
    int madvise(void *, size_t, int) noexcept nogil
    int MADV_DONTNEED

cdef enum:
    SLOTS = 8192          # a power of two
    NEIGHBOURHOOD = 64

cdef Thread *_slots = <Thread *>lm_zero_pages(SLOTS * sizeof(Thread))
if _slots == NULL:
    raise MemoryError("lazymem: no address space for the table of threads")


cdef Thread *_clear(Thread *slot, uint32_t tid) noexcept nogil:
    memset(<char *>slot + sizeof(uint32_t), 0, sizeof(Thread) - sizeof(uint32_t))
    lm_self_set(slot)
    return slot


cdef Thread *thread_self() noexcept nogil:
    """The calling thread's record; NULL when more threads are alive than there are slots near its number.

    GIL: never. Blocks: no. Thread: any, in a signal handler too.
    """
    cdef Thread *slot = <Thread *>lm_self_get()
    cdef uint32_t tid, held
    cdef int i
    if slot != NULL:
        return slot
    tid = lm_gettid()
    for i in range(NEIGHBOURHOOD):  # 1. a dead namesake's record, or a free one
        slot = &_slots[(tid + <uint32_t>i) & (SLOTS - 1)]
        held = lm_load32(&slot.tid)
        if held == tid or (held == 0 and lm_cas32(&slot.tid, 0, tid)):
            return _clear(slot, tid)
    for i in range(NEIGHBOURHOOD):  # 2. one whose thread has gone
        slot = &_slots[(tid + <uint32_t>i) & (SLOTS - 1)]
        held = lm_load32(&slot.tid)
        if lm_thread_is_gone(held) and lm_cas32(&slot.tid, held, tid):
            return _clear(slot, tid)
    return NULL


cdef uint32_t thread_tid() noexcept nogil:
    """The calling thread's number, without a system call if it has a record. GIL: never. Blocks: no. Thread: any, in a signal handler too."""
    cdef Thread *me = thread_self()
    return me.tid if me != NULL else lm_gettid()


cdef Thread *thread_find(uint32_t tid) noexcept nogil:
    """The record of another thread; NULL if it never had to do with us. GIL: never. Blocks: no."""
    cdef int i
    cdef Thread *slot
    for i in range(NEIGHBOURHOOD):
        slot = &_slots[(tid + <uint32_t>i) & (SLOTS - 1)]
        if lm_load32(&slot.tid) == tid:
            return slot
    return NULL


cdef void thread_forget_all() noexcept nogil:
    """In a forked child: the records are of the parent's threads. GIL: any. Blocks: no."""
    madvise(_slots, SLOTS * sizeof(Thread), MADV_DONTNEED)
    lm_self_set(NULL)


cdef void thread_will_wait() noexcept nogil:
    """The calling thread is about to sleep for something: what it wants done before is done (a handler thread hands the reading on).

    GIL: never. Blocks: no. Thread: any, in a signal handler too.
    """
    cdef Thread *me = thread_self()
    if me != NULL and me.before_blocking != NULL:
        me.before_blocking()
