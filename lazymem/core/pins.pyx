"""What may not be evicted, however short memory is?

Blocks that somebody pinned, each as often as it was: for system calls that keep working on memory, and where waiting for a block would
be wrong. A pin is a count in the block's frame. Pinning: 1. the count goes up  2. the block is resident, in that frame, still.
Evicting: 1. the block is claimed  2. the count is 0. One of the two sees the other.
"""
from lazymem.core.fill cimport region_need
from lazymem.core.frames cimport *
from lazymem.core.native cimport *
from lazymem.core.parking cimport lm_park
from lazymem.core.region cimport LIVE, Region
from lazymem.core.table cimport *


cdef Frame *_frame(Region *r, uint32_t word) noexcept nogil:
    return &r.clocks[word >> UNIT_SHIFT].frames[frame_of(word)]


cdef int region_pin(Region *r, uint64_t first, uint64_t last, uint64_t *failed) noexcept nogil:
    """Fetch blocks [first, last) and keep them. Return: 0; -errno: of block `failed`, and nothing is pinned. GIL: better released.
    Blocks: on the source. Thread: one that has entered the region."""
    cdef uint64_t block = first
    cdef uint32_t seen, now
    cdef int error
    while block < last:
        error = region_need(r, block)
        if error:
            failed[0] = block
            region_unpin(r, first, block)
            return error
        seen = lm_load32(&r.words[block])
        if not is_resident(seen):
            continue
        if frame_of(seen) == 0:      # it has no memory to lose
            block += 1
            continue
        lm_park(b"pinning")
        lm_add32(&_frame(r, seen).pins, 1)                                       # 1.
        now = lm_load32(&r.words[block])
        if not is_resident(now) or (now ^ seen) & ~<uint32_t>STATE:              # 2. (in the same frame it may wait by now)
            lm_sub32(&_frame(r, seen).pins, 1)
            continue
        block += 1
    return 0


cdef void region_unpin(Region *r, uint64_t first, uint64_t last) noexcept nogil:
    """GIL: any. Blocks: while a pinned block is being written back. Thread: one that has entered the region."""
    cdef uint64_t block, deadline_ns = lm_now_ns() + r.timeout_ns
    cdef uint32_t seen
    for block in range(first, last):
        seen = lm_load32(&r.words[block])
        while not is_resident(seen) and lm_load32(&r.status) == LIVE and lm_now_ns() < deadline_ns:
            table_wait(&r.words[block], seen, deadline_ns)
            seen = lm_load32(&r.words[block])
        if is_resident(seen) and frame_of(seen):
            lm_sub32(&_frame(r, seen).pins, 1)
