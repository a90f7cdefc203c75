"""What does a region's source give for a block?

Its bytes, at any address: from where they lie, lent, or by running it, again where it says that this may help. What was written to
a private array and evicted comes from its scratch file. While a source runs that may touch lazy arrays itself, its thread's record says so
(thread.pyx): a touch of its own array is refused, and what it made of a stand-in is no data. Nothing here needs the GIL.
"""
from libc.string cimport memcpy

from lazymem.core.failure cimport *
from lazymem.core.native cimport *
from lazymem.core.region cimport *
from lazymem.core.scratch cimport scratch_has, scratch_read
from lazymem.core.standin cimport drop_standins
from lazymem.core.thread cimport CHAIN_MAX, Thread, thread_self


cdef uint64_t RETRY_PAUSE_NS = 1000000
# How many sources that may touch lazy arrays are running: while it is 0, no touch can be a source's.
cdef uint32_t _nesting_sources = 0


cdef bint sources_nest() noexcept nogil:
    """GIL: never. Blocks: no."""
    return lm_load32(&_nesting_sources) != 0


cdef int _ask(Region *r, void *dst, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """Run the source once, noting on this thread that it does, when it might touch lazy memory. Return: 0 / -errno."""
    cdef Thread *me
    cdef uint64_t failures
    cdef int error
    lm_count(&r.counters.asked, nbytes)
    if r.source.leaf:
        error = r.source.fetch(r.source.ctx, dst, offset, nbytes)
    else:
        me = thread_self()
        if me == NULL or me.depth == CHAIN_MAX:
            return -ELOOP
        me.chain[me.depth] = r
        me.depth += 1
        failures = failures_now()
        lm_add32(&_nesting_sources, 1)
        error = r.source.fetch(r.source.ctx, dst, offset, nbytes)
        lm_sub32(&_nesting_sources, 1)
        me.depth -= 1
        if me.error and error == 0:  # it read stand-ins: what it made of them is no data
            error = -me.error
        elif error == 0 and lm_load32(&r.nests) and (failures_now() != failures or standins_live() != 0):
            error = -EAGAIN  # it may have read another thread's stand-ins, which it could not tell from data
        if me.depth == 0 and me.operations == 0:
            drop_standins(me)
            me.error = 0
    return error if error <= 0 else -EPROTO


cdef int _fetch_borrowed(Region *r, uint64_t offset, uint64_t nbytes, void *dst) noexcept nogil:
    """`region_fetch_bytes` from a source that lends its bytes."""
    cdef uint64_t loan = 0
    cdef void *lent = NULL
    cdef int error
    lm_count(&r.counters.asked, nbytes)
    error = r.source.borrow(r.source.ctx, offset, nbytes, &lent, &loan)
    if error == 0:
        memcpy(dst, lent, nbytes)
        r.source.give_back(r.source.ctx, loan)
    return error


cdef int region_fetch(Region *r, uint64_t block, void *dst) noexcept nogil:
    """Fetch one block anywhere, asking again where the source says that it may help.

    Units: dst has room for the block's bytes. Return: 0 / -errno. GIL: never. Blocks: as the source does.
    """
    if block_is_scratched(r, block):
        return scratch_read(&r.scratch, block, dst, region_block_nbytes(r, block))
    return region_fetch_bytes(r, block * r.block_nbytes, region_block_nbytes(r, block), dst)


cdef bint block_is_scratched(Region *r, uint64_t block) noexcept nogil:
    """Was it written to and evicted, so that its source does not have it? GIL: never. Blocks: no."""
    return r.scratch.folder != NULL and scratch_has(&r.scratch, block)


cdef int region_fetch_bytes(Region *r, uint64_t offset, uint64_t nbytes, void *dst) noexcept nogil:
    """Fetch bytes of the source, of any number of blocks.

    Units: offset, nbytes inside the source; dst has room for them. Return: 0 / -errno. GIL: never. Blocks: as the source does.
    """
    cdef uint64_t pause_ns = RETRY_PAUSE_NS, deadline_ns = 0
    cdef uint32_t attempt = 0
    cdef int error
    cdef Thread *me = thread_self()
    if me != NULL:
        me.attempts = 1
    if r.source.direct != NULL:
        lm_count(&r.counters.asked, nbytes)
        return lm_copy_from(dst, r.source.direct + offset, nbytes)
    if r.source.borrow != NULL:
        return _fetch_borrowed(r, offset, nbytes, dst)
    while True:
        error = _ask(r, dst, offset, nbytes)
        if error == 0 or error not in (-EAGAIN, -EBUSY, -EINTR, -ETIMEDOUT):
            return error
        if deadline_ns == 0:
            deadline_ns = lm_now_ns() + r.timeout_ns
        if attempt == r.retries or lm_now_ns() + pause_ns > deadline_ns:
            return error if error != -EINTR else -EIO  # EINTR says that the user called it off, and has been told
        attempt += 1
        if me != NULL:
            me.attempts = attempt + 1
        lm_sleep_ns(pause_ns)
        pause_ns *= 2


cdef bint region_is_zero(Region *r, uint64_t block) noexcept nogil:
    """Is a block of the source known to be zeros, without a fetch? GIL: never. Blocks: as the source's `is_zero`."""
    return r.source.is_zero != NULL and r.source.is_zero(r.source.ctx, block * r.block_nbytes, region_block_nbytes(r, block))
