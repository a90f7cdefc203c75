"""Where does a block lie between its fetch and its fill?

Staging blocks, by size class (powers of two from one page), up to 64 kept per class. A bit per block says free; taking one
is one compare-and-swap, so a signal handler may. The kernel gives a block's memory at its first use; the 65th at the same
time is mapped for the occasion and unmapped after.
"""
from libc.string cimport memset

from lazymem.core.native cimport *
from lazymem.core.uffd cimport page_nbytes


cdef extern from "native.h" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    int munlock(const void *, size_t)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_DONTFORK, MADV_DONTNEED, MADV_HUGEPAGE
    void *MAP_FAILED

cdef enum:
    CLASSES = 40
    KEPT = 64
    # Above this a given block's memory goes back to the kernel at once: 64 of a large class would be a lot to sit on.
    KEEP_NBYTES = 4194304
    HUGE_NBYTES = 2097152

ctypedef struct SizeClass:
    uint64_t taken             # a bit per staging block
    void *staging[KEPT]        # NULL until first used

cdef SizeClass _classes[CLASSES]
memset(_classes, 0, sizeof(_classes))


cdef void *_map(uint64_t nbytes) noexcept nogil:
    """Huge pages where they fit: such a block is moved whole. Locked by nobody, or it could not be moved (mlockall)."""
    cdef uint64_t slack = HUGE_NBYTES if nbytes >= HUGE_NBYTES else 0, start, base
    cdef void *staging = mmap(NULL, nbytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if staging == MAP_FAILED:
        return NULL
    if slack:
        start = <uint64_t>staging
        base = (start + slack - 1) & ~(slack - 1)
        if base > start:
            munmap(staging, base - start)
        if start + slack > base:
            munmap(<void *>(base + nbytes), start + slack - base)
        staging = <void *>base
        madvise(staging, nbytes, MADV_HUGEPAGE)
    madvise(staging, nbytes, MADV_DONTFORK)
    munlock(staging, nbytes)
    return staging


cdef uint64_t _class_of(uint64_t nbytes) noexcept nogil:
    return 0 if nbytes <= page_nbytes() else <uint64_t>lm_high_bit((nbytes - 1) // page_nbytes()) + 1


cdef void *pool_take(uint64_t nbytes) noexcept nogil:
    """A page-aligned staging block of at least `nbytes`; its bytes are whatever they were.

    Return: NULL when there is no memory. GIL: never. Blocks: no. Thread: any, in a signal handler too.
    """
    cdef uint64_t order = _class_of(nbytes), taken, bit
    cdef SizeClass *c = &_classes[order]
    cdef int i
    while True:
        taken = lm_load64(&c.taken)
        if ~taken == 0:
            return _map(page_nbytes() << order)
        i = lm_low_bit(~taken)
        bit = <uint64_t>1 << i
        if lm_cas64(&c.taken, taken, taken | bit):
            break
    if c.staging[i] == NULL:
        c.staging[i] = _map(page_nbytes() << order)
        if c.staging[i] == NULL:
            lm_and_not64(&c.taken, bit)
    return c.staging[i]


cdef void pool_give(void *staging, uint64_t nbytes) noexcept nogil:
    """Give back what `pool_take(nbytes)` gave. GIL: never. Blocks: no. Thread: any."""
    cdef uint64_t order = _class_of(nbytes)
    cdef SizeClass *c = &_classes[order]
    cdef int i
    for i in range(KEPT):
        if c.staging[i] == staging:
            if (page_nbytes() << order) > KEEP_NBYTES:
                madvise(staging, page_nbytes() << order, MADV_DONTNEED)
            lm_and_not64(&c.taken, <uint64_t>1 << i)
            return
    munmap(staging, page_nbytes() << order)


cdef void pool_forget_all() noexcept nogil:
    """In a forked child: the blocks were not inherited. GIL: any. Blocks: no."""
    memset(_classes, 0, sizeof(_classes))
