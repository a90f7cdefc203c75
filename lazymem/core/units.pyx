"""How does a unit of 2 MiB get into place?

A sequential stream of a local source is fetched in units, huge pages that are moved whole: whoever touches the first block of a missing
unit behind one that is there, or the last before one, takes all of it. The table is all that is looked at. Where writes are tracked a
unit must follow one that has been written, and is taken for written. If anything is in the way, the block is filled alone (fill.pyx).
"""
from lazymem.core.evict cimport frame_back, frame_for, moved_in
from lazymem.core.fetch cimport region_fetch_bytes
from lazymem.core.frames cimport *
from lazymem.core.native cimport *
from lazymem.core.parking cimport lm_park
from lazymem.core.place cimport pages_drop, place_empty_range, place_woken, place_zeros
from lazymem.core.pool cimport pool_give, pool_take
from lazymem.core.region cimport *
from lazymem.core.scratch cimport scratch_any
from lazymem.core.standin cimport publish
from lazymem.core.table cimport *
from lazymem.core.thread cimport thread_tid
from lazymem.core.uffd cimport ASLEEP
from lazymem.core.writes cimport all_written


cdef void unit_gets_pages(Region *r, uint64_t block) noexcept nogil:
    """Small pages are put where a unit could lie. GIL: never. Blocks: no. Thread: the claimer of a block there."""
    cdef uint32_t *paged = &r.paged[block // r.clocks[UNITS].blocks]
    if lm_load32(paged) == 0:
        lm_store32(paged, 1)


cdef int _page_table_goes(Region *r, uint64_t first) noexcept nogil:
    """The page table of small pages that lay where a unit is to lie would split its huge page. Return: 0 / -errno. GIL: never. Blocks: no.
    Thread: the claimer of all its blocks. (It interrupts every other core: not done for each unit of a stream that is only read.)"""
    cdef uint32_t *paged = &r.paged[first // r.clocks[UNITS].blocks]
    cdef int error = 0
    if r.writable or lm_load32(paged):     # (the touch of what may be written has just made one: region.pyx)
        error = place_empty_range(r, first * r.block_nbytes, r.clocks[UNITS].nbytes)
        if error == 0:
            lm_store32(paged, 0)
    return error


cdef bint unit_is_next(Region *r, uint64_t block, uint64_t *first) noexcept nogil:
    """Is a touch of `block` one of a stream, at the edge of a unit that may be missing whole? `first`: the unit's first block.

    GIL: never. Blocks: no.
    """
    cdef uint64_t n = r.clocks[UNITS].blocks, k, beside
    cdef uint32_t seen
    cdef bint clean = False
    if not r.units:
        return False
    first[0] = block // n * n
    if block == first[0] and block >= n:
        beside = first[0] - n
    elif block == first[0] + n - 1 and (first[0] + 2 * n) * r.block_nbytes <= r.nbytes:
        beside = first[0] + n
    else:
        return False
    for k in range(n):
        seen = lm_load32(&r.words[beside + k])
        if not (is_resident(seen) or is_waiting(seen)):
            return False
        clean = clean or seen & STATE == RESIDENT or seen & STATE == WAITING
    return not clean or r.tracking == UNTRACKED or (
        r.tracking == ASYNC and all_written(r, r.base + beside * r.block_nbytes, n * r.block_nbytes))


cdef bint unit_fill(Region *r, uint64_t first, uint64_t claimed, uint32_t tid) noexcept nogil:
    """Fetch a whole unit, if all of it is missing, and memory for it is to be had.

    `claimed`: the block of it that this thread has claimed already; ~0: none. Return: is it resident? Else nothing has changed.
    GIL: never. Blocks: on the source; of a toucher's unit, on memory for it too.
    """
    cdef Clock *c = &r.clocks[UNITS]
    cdef uint64_t n = c.blocks, k, done = 0
    cdef uint64_t dst
    cdef uint32_t frame = 0
    cdef bint holds = False
    cdef int error = 0
    if (first + n) * r.block_nbytes > r.nbytes or (r.scratch.folder != NULL and scratch_any(&r.scratch)):
        return False
    while done < n and (first + done == claimed or lm_cas32(&r.words[first + done], MISSING, FILLING | (tid << DETAIL_SHIFT))):
        done += 1
    if done < n:
        error = -EBUSY
    elif not r.writable and r.source.is_zero != NULL and r.source.is_zero(r.source.ctx, first * r.block_nbytes, c.nbytes):
        unit_gets_pages(r, first)
        error = place_zeros(r, first * r.block_nbytes, c.nbytes)
        if error == 0:
            lm_count(&r.counters.blocks, n)
            lm_count(&r.counters.zeroed, n)
            for k in range(n):
                publish(r, first + k, RESIDENT)
            return True
    if error == 0:
        error = frame_for(r, UNITS, claimed != ~<uint64_t>0, &frame, &holds)
    if error == 0:
        lm_store64(&c.frames[frame].block, first)
        dst = frame_slot(c, frame) if holds else <uint64_t>pool_take(c.nbytes)
        error = region_fetch_bytes(r, first * r.block_nbytes, c.nbytes, <void *>dst) if dst else -ENOMEM
        lm_park(b"fetched")
        if error == 0:
            _page_table_goes(r, first)
            error = 0 if moved_in(r, first * r.block_nbytes, dst, c.nbytes, ASLEEP) else -ENOMEM
        if not holds and dst:
            pool_give(<void *>dst, c.nbytes)
        if error:
            if holds:
                pages_drop(dst, c.nbytes)
            frame_back(r, UNITS, frame)
    if error:
        for k in range(done):
            if first + k != claimed:
                publish(r, first + k, MISSING)
        return False
    lm_count(&r.counters.blocks, n)
    lm_count(&r.counters.used, c.nbytes)
    lm_count(&r.counters.units, 1)
    frame_use(c, frame, first)
    for k in range(n):
        publish(r, first + k, in_frame(DIRTY if r.tracking != UNTRACKED else RESIDENT, frame, UNITS))
    # Woken by the MOVE itself, a toucher could be at the next unit before the table says that there is one before it.
    place_woken(r, first * r.block_nbytes, c.nbytes)
    return True


cdef bint region_need_unit(Region *r, uint64_t first) noexcept nogil:
    """`region_need` of all blocks of a unit at once. Return: are they there? Else each is to be asked for. GIL, Blocks, Thread: as that."""
    return not r.writable and unit_fill(r, first, ~<uint64_t>0, thread_tid())
