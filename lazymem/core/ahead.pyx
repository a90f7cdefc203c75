"""What follows the touch that was just answered?

A handler that has nothing else to do fetches what a stream will touch next, so that not each unit wakes a thread, and it the toucher; of
a stream that writes, it writes back what that has left. Only where faults are delivered to threads.
"""
from lazymem.core.evict cimport memory_is_short, write_behind
from lazymem.core.fill cimport region_need
from lazymem.core.frames cimport *
from lazymem.core.native cimport *
from lazymem.core.region cimport *
from lazymem.core.table cimport *
from lazymem.core.units cimport region_need_unit


cdef enum:
    AHEAD = 2             # units: fewer than wait evicted, so that what is wanted again while they come is still there

cdef uint64_t STAY_NS = 300000


cdef void _stay_awake(Region *r, uint64_t block, bint (*wanted)() noexcept nogil) noexcept nogil:
    """Nothing runs on the toucher's core while it waits for a unit, and a core that has gone to sleep for that long takes half as long as the
    fetch to wake (80 us here, in a virtual machine; 10 while it is awake). Blocks: until the unit is there, `wanted` says yes, or for STAY_NS."""
    cdef uint64_t until_ns = lm_now_ns() + STAY_NS
    cdef int i
    while lm_now_ns() < until_ns and lm_load32(&r.words[block]) & STATE == FILLING and lm_load32(&r.status) == LIVE and not wanted():
        for i in range(64):
            lm_pause()


cdef bint _all_resident(Region *r, uint64_t first, uint64_t last) noexcept nogil:
    while first < last and is_resident(lm_load32(&r.words[first])):
        first += 1
    return first == last


cdef void region_read_ahead(Region *r, uint64_t addr, void (*begin)() noexcept nogil, bint (*wanted)() noexcept nogil) noexcept nogil:
    """After a touch that came to a unit, or has gone through a quarter of one: fetch what follows, so that not each piece of it wakes
    a thread, and it the toucher. If units are written, write back the one that the stream has left.

    While a unit is read ahead its touch, which waits for it, has this go on from there: the stream is as fast as we are. `begin`: called
    before anything is fetched. `wanted`: is there anything else to do?
    GIL: never. Blocks: on the source; as long as the stream goes on. Thread: one that has entered the region.
    """
    cdef uint64_t n = r.clocks[UNITS].blocks, block, first
    cdef uint32_t seen
    if not r.units:
        return
    block = (addr - r.base) // r.block_nbytes
    first = block // n * n + n
    seen = lm_load32(&r.words[block])
    if r.writable:    # nothing is fetched ahead: a unit that is there counts as written
        if is_resident(seen) and seen >> UNIT_SHIFT == UNITS and memory_is_short(r, UNITS):
            begin()
            if block % n == 0 and first >= 2 * n:
                write_behind(r, UNITS, first - 2 * n)
        return
    if block % n == n // 4 - 1 and _all_resident(r, first - n, block + 1):
        begin()
        while block + 1 < first and (block + 1) * r.block_nbytes < r.nbytes and region_need(r, block + 1) == 0:
            block += 1
        if block + 1 < first:
            return
        lm_store64(&r.touched, first - n)
    elif block % n or not (seen & STATE == FILLING or seen >> UNIT_SHIFT == UNITS):
        return
    else:
        lm_store64(&r.touched, block)
        if seen & STATE == FILLING:
            _stay_awake(r, block, wanted)
            return
        if (first + n) * r.block_nbytes > r.nbytes or lm_load32(&r.words[first]) != MISSING:
            return
        begin()
    while (first - lm_load64(&r.touched) <= AHEAD * n and (first + n) * r.block_nbytes <= r.nbytes and
           lm_load32(&r.status) == LIVE and region_need_unit(r, first)):
        first += n
