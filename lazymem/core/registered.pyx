"""Is arrays' memory still registered with the userfaultfd that serves it?

Somebody with our descriptor may unregister it, and mremap(2) of a part leaves that part's registration behind. Nobody
is told; missing pages are zeros from then on. Asking costs a system call for each array, too much for a touch, not for one that leaves a
guard or calls lm.check: what is found loses its memory, and who has been reading it is told.
"""
from lazymem.core.inline cimport segv_take
from lazymem.core.memory cimport Memory, refuse
from lazymem.core.native cimport *
from lazymem.core.region cimport (
    ANONYMOUS, LIVE, SEVERED, UNREGISTERED, Region, region_enter_above, region_leave, region_take_away,
)
from lazymem.core.uffd cimport page_nbytes, uffd_unregistered

cdef enum:
    ASKS_OF_A_GUARD = 1000    # some 2 ms. Processes with more arrays are looked at in turns

cdef uint64_t _looked_at = 0  # where the latest turn ended


cdef bint _look(Region *r, uint32_t *asks) noexcept nogil:
    """Take a region's memory away if some of it is not registered any more.

    Units: `asks` as `uffd_unregistered`. Return: was it so? Blocks: for 2 us; where mappings were split, for each of them.
    Thread: one that is in the region.
    """
    # (a file's memory has a page before it that nobody can read, as all has)
    cdef uint64_t unreadable = r.base - page_nbytes() if r.kind != ANONYMOUS else 0
    if lm_load32(&r.status) != LIVE or r.uffd == NULL:
        return False
    if not uffd_unregistered(r.uffd, r.base, r.map_nbytes, asks, unreadable):
        return False
    if lm_load32(&r.status) != LIVE:  # closing unregisters too
        return False
    segv_take()
    return region_take_away(r)


cdef void regions_look() noexcept nogil:
    """Look at every region; the failures' number moves if anything is found. Blocks: 2 us for each, at most some 2 ms.

    GIL: held, so that nobody waits for us to let go of an array that is deallocated.
    """
    global _looked_at
    cdef uint32_t asks = ASKS_OF_A_GUARD
    cdef uint64_t start = _looked_at, at = start
    cdef bint wrapped = False
    cdef Region *r
    while asks != 0:
        r = region_enter_above(at)
        if r == NULL or (wrapped and r.base > start):
            if r != NULL:
                region_leave(r)
            if wrapped or start == 0:
                break
            wrapped = True
            at = 0
            continue
        _look(r, &asks)
        at = r.base
        region_leave(r)
    _looked_at = at if asks == 0 else 0


def look(Memory memory not None):
    """Raise if some of its memory is no longer registered, or was found so before; it has lost its memory then.

    Raises
    ------
    RuntimeError

    Notes
    -----
    Blocks: some 2 us; where somebody's mprotect, mlock or madvise has split its mapping, for each part. GIL: kept.
    """
    cdef Region *r = memory.region
    cdef uint32_t asks = 0xffffffff
    lm_add32(&r.users, 1)
    _look(r, &asks)
    lm_sub32(&r.users, 1)
    if lm_load32(&r.status) in (SEVERED, UNREGISTERED):
        refuse(r)
