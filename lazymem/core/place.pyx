"""How do bytes get into their place in a region, and out of it, whichever kind of memory it is?

With a userfaultfd pages are placed one by one, each with its bytes and its waiters woken, and no place is taken twice
(uffd.pyx); in a file of memory they may be there without being mapped (shared.pyx). Without one they are written behind the
mapping, and the block is shown when they are complete (mprotect.pyx); nobody sleeps in the kernel. Units: `at`, bytes of the
region.
"""
from lazymem.core.abi cimport MADV_DONTNEED_LOCKED
from lazymem.core.mprotect cimport (
    mprotect_expose, mprotect_exposed, mprotect_peek, mprotect_remove, mprotect_write, mprotect_zeros,
)
from lazymem.core.native cimport *
from lazymem.core.region cimport ANONYMOUS, CONTINUED, MPROTECT, Region, region_block_nbytes, whole_pages
from lazymem.core.shared cimport shared_drop, shared_write
from lazymem.core.table cimport AGAIN, DIRTY, RESIDENT, STATE
from lazymem.core.uffd cimport (
    PLAINLY, PROTECTED, CopyCounts, page_is_absent, page_nbytes, uffd_continue, uffd_copy, uffd_wake, uffd_zero,
)


cdef extern from "native.h" nogil:
    int madvise(void *, size_t, int)
    int munlock(const void *, size_t)
    int MADV_DONTNEED


cdef int place_bytes(Region *r, uint64_t at, uint64_t src, uint64_t nbytes, bint protected) noexcept nogil:
    """Place bytes of one block; pages that are there, and blocks that are shown, keep what they hold.

    Units: at and nbytes whole pages. `protected`: a write to them is to be noticed. Return: 0 / -errno. GIL: never. Blocks: while somebody changes the mapping. Thread: the
    claimer.
    """
    cdef CopyCounts counts
    cdef int error
    if r.delivery == MPROTECT:
        return mprotect_write(&r.exposure, at, <const void *>src, nbytes)
    # (of a block of which pages may be there, each page that comes is to be whole at once: a fork looks at them)
    if r.kind == CONTINUED and not lm_load32(&r.words[at // r.block_nbytes]) & AGAIN:
        error = shared_write(&r.exposure, at, src, nbytes)
        return error if error else uffd_continue(r.uffd, r.base + at, nbytes, PLAINLY)
    if r.kind != ANONYMOUS:
        counts.eexist = counts.eagain = 0
        error = uffd_copy(r.uffd, r.base + at, src, nbytes, PLAINLY, &counts)
        if error == 0 and counts.eexist:
            error = uffd_continue(r.uffd, r.base + at, nbytes, PLAINLY)  # some pages were there, and perhaps not mapped
        lm_count(&r.counters.copy.eexist, counts.eexist)
        lm_count(&r.counters.copy.eagain, counts.eagain)
        return error
    return uffd_copy(r.uffd, r.base + at, src, nbytes, PROTECTED if protected else PLAINLY, &r.counters.copy)


cdef int place_zeros(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil:
    """Place zeros in a block, whole or (with a userfaultfd) in part, taking no memory for them.

    Return, GIL, Blocks, Thread: as `place_bytes`; -EEXIST a page is there, only with a userfaultfd.
    """
    if r.delivery == MPROTECT:
        return mprotect_zeros(&r.exposure, at // r.block_nbytes, False)
    return uffd_zero(r.uffd, r.base + at, nbytes)


cdef int place_unwritten(Region *r, uint64_t block) noexcept nogil:
    """Show zeros that take no memory in place of a block which is zeros, and nobody may write to.

    Return: 0; -errno, and a copy of zeros will do (-EEXIST, -ENOBUFS), or say why not. GIL, Blocks, Thread: as `place_bytes`.
    """
    if r.delivery == MPROTECT:
        return mprotect_zeros(&r.exposure, block, True)
    if r.kind != ANONYMOUS:
        return -EOPNOTSUPP  # a file has no zero page
    return uffd_zero(r.uffd, r.base + block * r.block_nbytes, whole_pages(region_block_nbytes(r, block)))


cdef int place_shown(Region *r, uint64_t block) noexcept nogil:
    """All bytes of a block are in place: let it be accessed. Return: 0 / -errno. GIL: never. Blocks: no. Thread: any, once
    they are."""
    return mprotect_expose(&r.exposure, block, False) if r.delivery == MPROTECT else 0


cdef int place_shown_again(Region *r, uint64_t block) noexcept nogil:
    """A resident block that was hidden, or whose protection somebody changed; without a userfaultfd, if it is not resident any more,
    nothing is done. Return: 0 / -errno. GIL: never. Blocks: no. Thread: any; of a block in a file with a userfaultfd the claimer, and
    -EFAULT says that pages of it are gone."""
    if r.delivery != MPROTECT:
        return uffd_continue(r.uffd, r.base + block * r.block_nbytes, whole_pages(region_block_nbytes(r, block)), PLAINLY)
    if not mprotect_exposed(&r.exposure, block):
        lm_count(&r.exposure.reexposed, 1)
    return mprotect_expose(&r.exposure, block, True)


cdef int place_shown_all(Region *r, uint64_t first, uint64_t last) noexcept nogil:
    """What is resident of blocks [first, last) may be accessed from now on: a system call is coming. Return: 0 / -errno. GIL:
    any. Blocks: no."""
    cdef uint64_t block
    cdef int error = 0
    if r.delivery == MPROTECT:
        for block in range(first, last):
            if not mprotect_exposed(&r.exposure, block) and (lm_load32(&r.words[block]) & STATE) in (RESIDENT, DIRTY):
                error = place_shown_again(r, block)
                if error:
                    break
    return error


cdef int place_empty(Region *r, uint64_t block) noexcept nogil:
    """Nothing is in place, and a touch is a fault again. Return: 0 / -errno: it is in place still. GIL: never. Blocks: no.
    Thread: the claimer of the block."""
    if r.delivery == MPROTECT:
        return mprotect_remove(&r.exposure, block)
    return place_empty_range(r, block * r.block_nbytes, whole_pages(region_block_nbytes(r, block)))


cdef int pages_drop(uint64_t addr, uint64_t nbytes) noexcept nogil:
    """Give private pages back to the kernel, also where somebody has locked all memory (mlockall): what stayed in a slot would
    be taken for what is copied there next. Units: page aligned. Return: 0 / -errno. GIL: never. Blocks: no."""
    cdef void *memory = <void *>addr
    if madvise(memory, nbytes, MADV_DONTNEED) and madvise(memory, nbytes, MADV_DONTNEED_LOCKED):
        munlock(memory, nbytes)  # before Linux 5.18
        if madvise(memory, nbytes, MADV_DONTNEED):
            return -errno
    return 0


cdef int place_empty_range(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil:
    """`place_empty` of several blocks; only with a userfaultfd. Units: `at`, bytes of the region. GIL: never. Blocks: no."""
    if r.kind != ANONYMOUS:
        return shared_drop(&r.exposure, at, nbytes)
    return pages_drop(r.base + at, nbytes)


cdef bint place_holds(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil:
    """Does a block that is not resident hold pages all the same? Only where pages come one by one. GIL: never. Blocks: no."""
    cdef uint64_t done = 0
    while done < nbytes and r.delivery != MPROTECT:
        if not page_is_absent(r.base + at + done):
            return True
        done += page_nbytes()
    return False


cdef const char *place_seen(Region *r, uint64_t at, char *copied) noexcept nogil:
    """A page that is in place, to look at, without a fault. Return: where it, or a copy, lies; NULL: it is not there, or
    cannot be read.

    Units: room for a page. GIL: never. Blocks: no. Thread: the claimer of the block.
    """
    if r.delivery == MPROTECT:
        if mprotect_peek(&r.exposure, at, copied, page_nbytes()):
            return NULL
        return copied
    if r.kind != ANONYMOUS and uffd_continue(r.uffd, r.base + at, page_nbytes(), PLAINLY):
        return NULL  # it is in the file, if anywhere
    if page_is_absent(r.base + at):
        return NULL
    return <const char *>(r.base + at)


cdef void place_woken(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil:
    """Whoever sleeps in the kernel for these pages looks again. GIL: never. Blocks: no."""
    if r.delivery != MPROTECT:
        uffd_wake(r.uffd, r.base + at, nbytes)
