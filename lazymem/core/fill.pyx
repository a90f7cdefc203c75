"""How does a block get into place?

The one fill path, run by whoever needs the block: the touching thread (inline), a handler thread, a prefetcher, populate.

    claim the word -> a frame (evict.pyx) -> fetch (fetch.pyx) into a staging block, or read where the bytes lie -> into place -> publish

Into place by COPY; by MOVE where the frame is a recycled one, whose slot the bytes are fetched into (single pages excepted), or where
that is wanted. Of a sequential stream a whole unit is taken at once (units.pyx). A block that waits is put back without a fetch.

Losers of the claim wait on the word. A failed fetch is published as FAILED with its errno: who waited for it gets the same
error; who comes later fetches anew. Nothing here needs the GIL, allocates, or takes a lock.

When a touch fails there are two ends. On a thread inside an operation that can raise (failure.pyx), or inside a source, it
goes on over a stand-in and that operation, or that fetch, fails as it ends. Anywhere else an access to memory has no way to
be told: a message, and the end of the process by SIGBUS.
"""
from libc.string cimport memcpy, memset

from lazymem.core.failure cimport *
from lazymem.core.interrupt cimport touch_may_be_ended, wait_is_over
from lazymem.core.evict cimport frame_back, frame_for, moved_in, rescue
from lazymem.core.fetch cimport block_is_scratched, region_fetch, region_is_zero, sources_nest
from lazymem.core.frames cimport *
from lazymem.core.native cimport *
from lazymem.core.parking cimport lm_park
from lazymem.core.place cimport (
    pages_drop, place_bytes, place_empty_range, place_holds, place_shown, place_shown_again, place_unwritten, place_woken,
    place_zeros,
)
from lazymem.core.pool cimport pool_give, pool_take
from lazymem.core.region cimport *
from lazymem.core.standin cimport drop_standins, publish, stand_in, stand_in_loose, unmap_standin
from lazymem.core.table cimport *
from lazymem.core.thread cimport CHAIN_MAX, Thread, thread_find, thread_self, thread_tid
from lazymem.core.uffd cimport PLAINLY, page_is_absent, page_nbytes, uffd_protect
from lazymem.core.units cimport unit_fill, unit_gets_pages, unit_is_next
from lazymem.core.writes cimport block_written


cdef extern from "native.h" nogil:
    int INT_MAX

cdef enum:
    HUGE_NBYTES = 2097152

# Of a wait for another thread's fill, which says a little after its deadline how it ended. Threads that take the block one
# after the other, so many of them, are each waited for.
cdef uint64_t SLACK_NS = 250000000
cdef uint32_t FILLERS_MAX = 3


cdef void _no_page_table(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil:
    """Before a MOVE of huge pages to where none is: the page table that the touch has made would split them. Thread: the claimer."""
    if nbytes % HUGE_NBYTES == 0:
        place_empty_range(r, at, nbytes)


cdef int _fill_staged(Region *r, uint64_t block, uint64_t from_byte, bint protected, bint move) noexcept nogil:
    """Fetch into a staging block and copy or move it in; bytes behind the source's end are zeros, never what lay there before."""
    cdef uint64_t nbytes = region_block_nbytes(r, block), whole = whole_pages(nbytes)
    cdef void *staging = pool_take(whole)
    cdef int error
    if staging == NULL:
        return -ENOMEM
    error = region_fetch(r, block, staging)
    lm_park(b"fetched")
    if error == 0:
        memset(<char *>staging + nbytes, 0, whole - nbytes)
        if move:
            _no_page_table(r, block * r.block_nbytes, whole)
            error = 0 if moved_in(r, block * r.block_nbytes, <uint64_t>staging, whole, PLAINLY) else -ENOMEM
        else:
            error = place_bytes(r, block * r.block_nbytes + from_byte, <uint64_t>staging + from_byte, whole - from_byte, protected)
    pool_give(staging, whole)
    return error


cdef int _fill_in_slot(Region *r, uint64_t block, uint64_t slot, bint protected) noexcept nogil:
    """Fetch into a recycled frame's slot, and put it in from there. The slot is empty then, whatever comes of it."""
    cdef uint64_t nbytes = region_block_nbytes(r, block), whole = whole_pages(nbytes), at = block * r.block_nbytes
    cdef int error = region_fetch(r, block, <void *>slot)
    lm_park(b"fetched")
    if error == 0:
        memset(<void *>(slot + nbytes), 0, whole - nbytes)
        if r.moves and not protected:
            _no_page_table(r, at, whole)
            error = 0 if moved_in(r, at, slot, whole, PLAINLY) else -ENOMEM
            if error == 0 and whole == r.block_nbytes:
                return 0
        else:
            error = place_bytes(r, at, slot, whole, protected)
    pages_drop(slot, r.block_nbytes)
    return error


cdef int _fill_borrowed(Region *r, uint64_t block, bint protected) noexcept nogil:
    """Copy in from where the source lets the bytes lie."""
    cdef uint64_t nbytes = region_block_nbytes(r, block), whole = whole_pages(nbytes), loan = 0
    cdef void *lent = NULL
    cdef int error
    lm_count(&r.counters.asked, nbytes)
    error = r.source.borrow(r.source.ctx, block * r.block_nbytes, nbytes, &lent, &loan)
    if error == 0:
        memset(<char *>lent + nbytes, 0, whole - nbytes)
        error = place_bytes(r, block * r.block_nbytes, <uint64_t>lent, whole, protected)
        r.source.give_back(r.source.ctx, loan)
    return error


cdef int _fill_direct(Region *r, uint64_t block, bint protected) noexcept nogil:
    """Copy in from where the bytes lie; only a last page that the source does not fill goes through a staging block."""
    cdef uint64_t nbytes = region_block_nbytes(r, block), offset = block * r.block_nbytes
    cdef uint64_t body = nbytes & ~(page_nbytes() - 1)
    cdef int error = 0
    if body:
        lm_count(&r.counters.asked, body)
        error = place_bytes(r, offset, <uint64_t>(r.source.direct + offset), body, protected)
    if error == 0 and body < nbytes:
        error = _fill_staged(r, block, body, protected, False)
    return error


cdef bint _fill_unwritten(Region *r, uint64_t block) noexcept nogil:
    """Show zeros in place of a block that is known to be zeros, taking no memory for them.

    Not where the program may write: what it takes then would be on nobody's account. Not where pages may be there.
    Return: False it takes memory after all, `_fill_zeros`.
    """
    if r.writable or r.filling == FILL_COPY or lm_load32(&r.words[block]) & AGAIN:
        return False
    return place_unwritten(r, block) == 0


cdef int _fill_zeros(Region *r, uint64_t block, bint protected) noexcept nogil:
    """Put zeros into place that are like any other bytes from then on. Return: 0 / -errno."""
    cdef uint64_t whole = whole_pages(region_block_nbytes(r, block))
    cdef void *zeros = pool_take(whole)
    cdef int error
    if zeros == NULL:
        return -ENOMEM
    memset(zeros, 0, whole)
    error = place_bytes(r, block * r.block_nbytes, <uint64_t>zeros, whole, protected)
    pool_give(zeros, whole)
    return error if error else place_shown(r, block)


cdef int _fill_pages(Region *r, uint64_t block, bint protected, bint move) noexcept nogil:
    """Fetch a block and put it into place, in the way that its source allows. `move`: by MOVE, if that can be.

    Return: 0 / -errno.
    """
    cdef int error
    if block_is_scratched(r, block):
        error = _fill_staged(r, block, 0, protected, False)
    elif move and r.moves and not protected and r.source.borrow == NULL:
        error = _fill_staged(r, block, 0, False, True)
    elif r.source.direct != NULL:
        error = _fill_direct(r, block, protected)
    elif r.source.borrow != NULL:
        error = _fill_borrowed(r, block, protected)
    else:
        error = _fill_staged(r, block, 0, protected, False)
    return error if error else place_shown(r, block)


cdef int _fill_frame(Region *r, uint64_t block, bint protected, bint zeros, uint32_t *frame) noexcept nogil:
    """Fetch and fill a block whose pages are all absent, into a frame of its own. Return: 0, and the frame, BUSY; -errno."""
    cdef bint holds
    cdef int error = frame_for(r, SMALL, True, frame, &holds)
    if error:
        return error
    lm_store64(&r.clocks[SMALL].frames[frame[0]].block, block)  # who flushes waits for it: its toucher may write before it is published
    if holds and not zeros and (r.moves and not protected or r.source.direct == NULL and r.source.borrow == NULL):
        error = _fill_in_slot(r, block, frame_slot(&r.clocks[SMALL], frame[0]), protected)
    else:
        if holds:
            pages_drop(frame_slot(&r.clocks[SMALL], frame[0]), r.block_nbytes)
        if zeros:
            error = _fill_zeros(r, block, protected)
        else:
            error = _fill_pages(r, block, protected, r.filling == FILL_MOVE or r.block_nbytes % HUGE_NBYTES == 0)
    if error:
        frame_back(r, SMALL, frame[0])
    return error


cdef int _fill(Region *r, uint64_t block, bint write, uint32_t was) noexcept nogil:
    """Fetch and fill a block that this thread has claimed, and publish what became of it.

    `write`: it is about to be written. `was`: the word of a block that was resident, of whose pages some are gone; else MISSING.
    Return: 0 / -errno.
    """
    cdef uint64_t nbytes = region_block_nbytes(r, block)
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen, frame = 0
    cdef Thread *me
    cdef bint written = write and r.tracking == SYNC
    cdef bint zeros = not block_is_scratched(r, block) and region_is_zero(r, block), unwritten = zeros and _fill_unwritten(r, block)
    cdef int error = 0
    if r.units:
        unit_gets_pages(r, block)
    if unwritten:
        pass
    elif is_resident(was):
        error = _fill_pages(r, block, r.tracking != UNTRACKED and was & STATE == RESIDENT, False)
    else:
        if was & STATE == FAILED and r.tracking != UNTRACKED and place_holds(r, block * r.block_nbytes, whole_pages(nbytes)):
            written = True  # its refill failed, and what the user had written beside what was gone is there still
        error = _fill_frame(r, block, r.tracking != UNTRACKED and not written, zeros, &frame)
    if error == -EBADF:
        regions_severed()
    if error == 0:
        lm_park(b"copied")
        lm_count(&r.counters.blocks, 1)
        if zeros:
            lm_count(&r.counters.zeroed, 1)
        else:
            lm_count(&r.counters.used, nbytes)
        if is_resident(was):
            publish(r, block, was & ~<uint32_t>WAITERS)
        elif unwritten:
            publish(r, block, RESIDENT)
        else:
            frame_use(&r.clocks[SMALL], frame, block)
            publish(r, block, in_frame(DIRTY if written else RESIDENT, frame, SMALL))
        lm_park(b"published")
    else:
        lm_park(b"failing")
        if is_resident(was) and was >> UNIT_SHIFT == SMALL and frame_of(was):
            lm_store32(&r.clocks[SMALL].frames[frame_of(was)].state, BUSY)
            frame_back(r, SMALL, frame_of(was))
        me = thread_self()
        r.failed_block = block
        r.failed_error = -error
        r.failed_attempts = 1 if r.source.direct != NULL else me.attempts if me != NULL else 0
        lm_add64(&r.errors, 1)
        seen = lm_load32(word)
        if seen & STANDIN:
            unmap_standin(r, block, False)
        while not lm_cas32(word, seen, FAILED | (seen & (WITNESS | JOINED)) | (<uint32_t>-error << DETAIL_SHIFT)):
            seen = lm_load32(word)
        if seen & WAITERS:
            lm_futex_wake(word, INT_MAX)
    return error


cdef void wake_block(Region *r, uint64_t block) noexcept nogil:
    """Threads that sleep in the kernel for a block whose fetch failed must come and be told: wake them, once it is decided
    what becomes of the touch that asked (a stand-in, poison). Woken before, that touch itself would ask a second time, and the
    answer would find its operation ended. GIL: never. Blocks: no."""
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen = lm_load32(word)
    place_woken(r, block * r.block_nbytes, whole_pages(region_block_nbytes(r, block)))
    if (seen & STATE) == FAILED and seen & WITNESS and not seen & JOINED:
        lm_cas32(word, seen, seen & ~<uint32_t>WITNESS)  # nobody slept but the toucher that has been refused


cdef int _own_source_runs(Region *r, Thread *thread) noexcept nogil:
    """Is this thread inside the source of `r`? Return: 0; -EDEADLK; -ELOOP when no more may be nested."""
    cdef uint32_t i
    if thread == NULL:
        return 0
    for i in range(thread.depth):
        if thread.chain[i] == r:
            return -EDEADLK
    return -ELOOP if thread.depth == CHAIN_MAX else 0


cdef int _fill_beside(Region *r, uint64_t block) noexcept nogil:
    """Fill a block that the touching thread itself is filling, further down its stack: a signal handler interrupted it there,
    and it cannot go on before we do. The interrupted fill then finds the pages there. Return: 0 / -errno."""
    return _fill_pages(r, block, r.tracking != UNTRACKED, False)


cdef int _need(Region *r, uint64_t block, Thread *me, uint32_t toucher, bint wait, bint plain, bint write,
               int *filled) noexcept nogil:
    """Make a block resident for thread `toucher`. `filled`: whether it was this call that did it. `write`: it is to be written.

    `wait`: for another thread's fill; else the toucher sleeps in the kernel meanwhile, and `plain` says that it cannot be
    told of a failure. Return: 0; LATER another thread is at it and `wait` is false; -errno. GIL: kept if held. Blocks:
    source, deadline.
    """
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen, state, mark, tid = thread_tid()
    cdef uint64_t deadline_ns = 0, unit
    cdef uint32_t filler = 0, fillers = 0
    cdef bint waited = False
    cdef int error
    filled[0] = 0
    while True:
        seen = lm_load32(word)
        state = seen & STATE
        if state == RESIDENT or state == DIRTY:
            return 0
        if lm_load32(&r.status) != LIVE:
            return -ESHUTDOWN
        if is_waiting(seen):
            error = rescue(r, block, seen, tid)
            if error == -EAGAIN:
                continue
            return error
        if state == FAILED and waited and (seen >> DETAIL_SHIFT) != EINTR:  # its fetch was called off, not ours
            return -<int>(seen >> DETAIL_SHIFT)
        if state == MISSING or state == FAILED:
            error = _own_source_runs(r, me)
            if error:
                return error
            mark = seen & (WITNESS | JOINED)
            if plain and not wait:
                mark |= WITNESS
            mark |= seen & STANDIN  # a child forked before it is gone must drop it
            if not lm_cas32(word, seen, FILLING | mark | (tid << DETAIL_SHIFT)):
                continue
            if seen & STANDIN:
                unmap_standin(r, block, seen & LOOSE != 0)
                lm_and_not32(word, STANDIN)
            lm_park(b"claimed")
            if seen & ~<uint32_t>(WITNESS | JOINED) == MISSING and unit_is_next(r, block, &unit) and unit_fill(r, unit, block, tid):
                error = 0
            else:
                error = _fill(r, block, write, seen & STATE)
            filled[0] = error == 0
            return error
        if (seen >> DETAIL_SHIFT) == toucher and state == FILLING and not seen & MAKING:
            error = _own_source_runs(r, me)  # its own source touched it; else a signal handler did
            return error if error else _fill_beside(r, block)
        if (seen >> DETAIL_SHIFT) == toucher and state == LEAVING:
            return -EDEADLK  # it is taking the block away itself, and touched it
        if not wait:
            # Whoever publishes must wake it: pages that come and are dropped again before that have woken nobody for good.
            mark = seen | JOINED | (WITNESS if plain else 0)
            if mark != seen and not lm_cas32(word, seen, mark):
                continue
            return LATER
        if seen >> DETAIL_SHIFT != filler and fillers < FILLERS_MAX:  # each has a deadline of its own
            filler = seen >> DETAIL_SHIFT
            fillers += 1
            deadline_ns = lm_now_ns() + r.timeout_ns + SLACK_NS
        waited = True
        if me != NULL and me.interrupted != NULL and me.interrupted():  # before it sleeps, so that it is heard then
            return -EINTR
        lm_park(b"waits")
        error = table_wait(word, seen, deadline_ns)
        if error == 0 and me != NULL and me.interrupted != NULL and me.interrupted():
            error = -EINTR
        if error:
            return error


cdef int region_need(Region *r, uint64_t block) noexcept nogil:
    """Fetch a block unless it is there: what populate, prefetch and exports call.

    Return: 0 / -errno. GIL: kept if held; not needed. Blocks: on the source; on another thread's fetch until the deadline.
    Thread: any that has entered the region.
    """
    cdef Thread *me = thread_self()
    cdef int filled
    cdef int error = _need(r, block, me, thread_tid(), True, False, False, &filled)
    if error:
        wake_block(r, block)
    return error


cdef int _refill(Region *r, uint64_t addr, uint64_t block, uint32_t toucher, Thread *me, bint written, int *filled) noexcept nogil:
    """A fault on a block that the table calls resident. If its page really is gone (somebody's MADV_DONTNEED, a memory
    error), fetch the block again; pages that stayed keep what they hold. In a file of memory
    they may only have to be mapped again. Behind a mapping bytes cannot go: it is shown again.
    `written`: it is, or may be, the write to what is protected. Return: 0 / -errno."""
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen = lm_load32(word), tid = thread_tid()
    cdef int error
    if r.delivery == MPROTECT:
        return place_shown_again(r, block)
    if r.kind == ANONYMOUS and not page_is_absent(addr & ~(page_nbytes() - 1)):
        if written and (seen & STATE) == LEAVING and (seen >> DETAIL_SHIFT) == toucher:  # it is storing the block itself
            lm_or32(word, AGAIN)
            uffd_protect(r.uffd, r.base + block * r.block_nbytes, whole_pages(region_block_nbytes(r, block)), False)
        elif written:
            error = block_written(r, block, tid)
            return error if error != -EAGAIN else 0
        return 0  # it came between the fault and us
    if (seen & STATE) != RESIDENT and (seen & STATE) != DIRTY:
        return 0  # it is being seen to: the next touch decides
    error = _own_source_runs(r, me)
    if error == 0 and lm_cas32(word, seen, FILLING | AGAIN | (tid << DETAIL_SHIFT)):
        if r.kind != ANONYMOUS and place_shown_again(r, block) == 0:  # only the mapping had been dropped
            publish(r, block, seen & ~<uint32_t>(WAITERS | JOINED | WITNESS))
            return 0
        lm_count(&r.counters.refilled, 1)
        error = _fill(r, block, False, seen)
        filled[0] = error == 0
    return error


# ---------------------------------------------------------------------------------------------------------------------------
# A fault
#
# With `threads` a message may be older than it looks: a signal takes its thread out of the fault, the touch comes again with
# a message of its own, is answered, and the operation ends, before the first message is looked at. If its fetch fails, the
# failure would be that of whatever the thread is at by now. So a failure of a thread that can raise is not its own before it
# is sure: the thread is woken, and only if it comes again for the same block, at once, it was asleep for it.

cdef bint _comes_again(Region *r, uint64_t block, Thread *toucher) noexcept nogil:
    """Has the thread been woken to see whether it sleeps for this block? GIL: never. Thread: the handler that serves it."""
    cdef uint32_t error = lm_load32(&toucher.unsure_error), seen = lm_load32(&r.words[block])
    return error != 0 and toucher.unsure_region == r.id and toucher.unsure_block == block and (
        seen & STATE in (MISSING, FAILED) or (is_waiting(seen) and error == ENOTRECOVERABLE))


cdef void _make_it_come_again(Region *r, uint64_t block, Thread *toucher, int error) noexcept nogil:
    """GIL, Thread: as `_comes_again`."""
    toucher.unsure_region = r.id
    toucher.unsure_block = block
    lm_store32(&toucher.unsure_error, <uint32_t>error)
    wake_block(r, block)


cdef void _note_nesting(Thread *toucher) noexcept nogil:
    cdef uint32_t i
    for i in range(toucher.depth):
        lm_store32(&(<Region *>toucher.chain[i]).nests, 1)


cdef int region_touch(Region *r, uint64_t addr, uint32_t tid, int access, bint wait) noexcept nogil:
    """Answer a touch of an absent page by thread `tid` (inline: the caller itself), or its write to a protected one.

    Every fault is accounted for: taken = filled + joined + failed.
    Return: GOES_ON; LATER (only without `wait`); -errno: it may not go on. GIL: kept if held. Blocks: as `region_need`.
    """
    cdef uint64_t began_ns = lm_now_ns(), block
    cdef Thread *me = thread_self()
    cdef Thread *toucher = me
    cdef int error, filled = 0
    cdef bint lent = False, sure = True, ends, written
    lm_count(&r.counters.taken, 1)
    if lm_load32(&r.status) != LIVE or addr >= r.base + r.map_nbytes or r.nblocks == 0:
        lm_count(&r.counters.failed, 1)
        return -ESHUTDOWN
    block = (addr - r.base) // r.block_nbytes
    # Where nobody says what the touch was: one of a block that was there already can only have been a write.
    written = r.tracking == SYNC and (access == PROTECTS or (access == UNKNOWN and is_resident(lm_load32(&r.words[block]))))
    if me == NULL or me.tid != tid:
        toucher = thread_find(tid)
        error = 0
        sure = wait or toucher == NULL
        if toucher != NULL and sources_nest() and toucher.depth:
            _note_nesting(toucher)
            error = _own_source_runs(r, toucher)
            if me != NULL:  # the toucher's chain goes on with the source that we run for it
                lent = sure = True
                me.depth = toucher.depth
                memcpy(me.chain, toucher.chain, sizeof(me.chain))
        if toucher != NULL and toucher.around_depth and me != NULL:  # what waits for the toucher waits for us
            me.around_depth = toucher.around_depth
            memcpy(me.around, toucher.around, sizeof(me.around))
    else:
        error = 0
        if me.depth:
            _note_nesting(me)
    sure = sure or error != 0
    if not sure and toucher != NULL and _comes_again(r, block, toucher):
        error = -<int>lm_swap32(&toucher.unsure_error, 0)
        if error:  # it has been counted, as one that failed
            sure = True
            lm_count(&r.counters.taken, <uint64_t>-1)
            lm_count(&r.counters.failed, <uint64_t>-1)
    elif error == 0 and toucher != NULL and toucher.error and (toucher.operations or toucher.depth):
        error = -toucher.error  # one deadline per operation: after the first miss that failed, the others fail at once
        if (lm_load32(&r.words[block]) & STATE) not in (MISSING, FAILED):
            error = 0
        sure = True
    elif error == 0 and toucher != NULL and toucher.loose_error and toucher.loose_era == failures_era() and not (
            toucher.operations or toucher.depth):
        error = -toucher.loose_error  # the same for a scan outside operations, until its thread has been told
        if (lm_load32(&r.words[block]) & STATE) not in (MISSING, FAILED):
            error = 0
    if error == 0:
        ends = me != NULL and touch_may_be_ended(me, tid)
        # A source's touch waits here even for another thread's fill: two that wait for each other must meet a deadline.
        error = _need(r, block, me, tid, wait or lent, toucher == NULL or not (toucher.operations or toucher.depth),
                      access == WRITES, &filled)
        sure = sure or error == -EDEADLK
        if error == 0 and not filled:
            error = _refill(r, addr, block, tid, me, written, &filled)
        if ends:
            wait_is_over(me)
    if me != toucher and me != NULL:
        me.around_depth = 0
    if lent:
        me.depth = 0
        if me.error:
            drop_standins(me)
            me.error = 0
    if error >= 0:
        lm_count(&r.counters.filled if filled else &r.counters.joined, 1)
        if error == 0 and not filled and not wait:
            place_woken(r, (addr - r.base) & ~(page_nbytes() - 1), page_nbytes())  # it came while the message was under way
        if error == 0:
            lm_count(&r.counters.latency[lm_high_bit((lm_now_ns() - began_ns) | 1)], 1)
        return error
    lm_count(&r.counters.failed, 1)
    if lm_load32(&r.status) != LIVE:
        return -ESHUTDOWN  # closed meanwhile: the late message of a touch that is long over, and nobody's failure now
    if toucher != NULL and (toucher.operations or toucher.depth):
        if not sure and not toucher.error and error != -ESHUTDOWN:
            _make_it_come_again(r, block, toucher, -error)
            return GOES_ON
        if error != -ESHUTDOWN and stand_in(r, block, toucher, -error):
            return GOES_ON
    elif guards_now() and toucher != NULL and error != -ESHUTDOWN and stand_in_loose(r, block, toucher, -error):
        return GOES_ON
    return error
