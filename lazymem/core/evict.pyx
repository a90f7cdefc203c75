"""Where does memory come from when there is no more of it?

From frames that are in use. Eviction takes a block out of the region into its frame's slot, atomically for whoever writes to it:

    by MOVE     the pages themselves. Refused for pages that the kernel is writing to (pinned): then the block stays
    by COPY     where there is no MOVE: 1. writes become faults, which wait  2. a copy into the slot  3. the pages are dropped
                4. who wants to write touches what is missing now. Read-only memory needs no 1.

There it waits (frames.pyx). Recycling writes what only it holds back to where it belongs, and takes the slot: for the next fetch,
which goes straight into it; back to the kernel for another region's, and if blocks are single pages (_is_copied). Of a stream that
writes, what it has just left is evicted and written back at once (write_behind): the hand, which comes half a budget later, would
find it in no cache.

    a frame for a fill:  1. room in the budgets: an empty frame  2. a recycled one of its own  3. the other kind gives way
                         4. so does the region that holds most  5. nothing to be had: wait while anybody is at work, else -EDQUOT

Nobody is robbed below what lets one instruction that touches many blocks go on (floor_nbytes). Words are claimed as for a fill
(table.pyx); of a unit, all of its blocks or none.
"""
from libc.string cimport memcmp

from lazymem.core.frames cimport *
from lazymem.core.limit cimport memory_budget, memory_force, memory_give, memory_take, memory_used
from lazymem.core.native cimport *
from lazymem.core.parking cimport lm_park
from lazymem.core.place cimport pages_drop, place_empty, place_empty_range, place_holds, place_woken
from lazymem.core.pool cimport pool_give, pool_take
from lazymem.core.region cimport *
from lazymem.core.standin cimport publish
from lazymem.core.table cimport *
from lazymem.core.thread cimport Thread, thread_self, thread_tid
from lazymem.core.uffd cimport (
    ASLEEP, PLAINLY, PROTECTED, CopyCounts, page_is_absent, page_nbytes, uffd_copy, uffd_move, uffd_protect,
)
from lazymem.core.writes cimport region_store, wait_while_busy, written_since


cdef enum:
    BLOCKS_MOST = 512          # of a unit
    BATCH = 32                 # frames are evicted so many at a time
    WAITING_SHARE = 4          # one frame in so many waits, once memory is short
    UNITS_SHARE = 2            # and of units, of which a stream takes several at a time: what is wanted again must outlast that
    TURN = 64                  # fills, between two looks at who holds most
    IDLE_ROUNDS = 3            # nobody was at work so often, and nothing was to be had: there is nothing
    RESCUE_TRIES = 4           # to put back what is nowhere else

cdef uint64_t GIVE_WAY_NBYTES = 1 << 20   # another region gives at least this much at a time
cdef uint64_t PAUSE_NS = 50000
cdef uint64_t RESCUE_PAUSE_NS = 1000000


cdef uint64_t _frame_nbytes(Region *r, Clock *c, uint64_t first) noexcept nogil:
    """Of the bytes in a frame, whole pages: a last block may be short."""
    return c.nbytes if c.blocks > 1 else whole_pages(region_block_nbytes(r, first))


# ---------------------------------------------------------------------------------------------------------------------------
# Claims of all the blocks of a frame

cdef bint _is_in(uint32_t word, uint32_t i, int kind) noexcept nogil:
    return frame_of(word) == i and (word >> UNIT_SHIFT) == <uint32_t>kind


cdef void _publish_frame(Region *r, Clock *c, uint64_t first, uint32_t now) noexcept nogil:
    cdef uint64_t k
    for k in range(c.blocks):
        publish(r, first + k, now)


cdef bint _claim_frame(Region *r, int kind, uint32_t i, bint waiting, uint32_t claim, uint32_t *was) noexcept nogil:
    """Claim the blocks of a frame, resident or waiting. `was`: the strongest state among them.

    Return: False: one of them is not so, or not there; nothing is claimed.
    """
    cdef Clock *c = &r.clocks[kind]
    cdef uint64_t first = lm_load64(&c.frames[i].block), k = 0, n
    cdef uint32_t words[BLOCKS_MOST]
    cdef uint32_t seen
    was[0] = WAITING if waiting else RESIDENT
    while k < c.blocks:
        seen = lm_load32(&r.words[first + k])
        if not (is_waiting(seen) if waiting else is_resident(seen)) or not _is_in(seen, i, kind):
            break
        if not lm_cas32(&r.words[first + k], seen, claim):
            continue
        words[k] = seen
        if seen & STATE == DIRTY or seen & STATE == WAITING_DIRTY:
            was[0] = seen & STATE
        k += 1
    if k == c.blocks:
        return True
    for n in range(k):
        publish(r, first + n, words[n])
    return False


# ---------------------------------------------------------------------------------------------------------------------------
# Out of the region, and back

cdef bint _make_own(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil:
    """MOVE refuses pages that are shared with a child process, or with their like: write to each what it holds.

    Return: may it have helped? Thread: the claimer.
    """
    cdef uint64_t done = 0
    if r.tracking == SYNC and uffd_protect(r.uffd, at, nbytes, False):
        return False
    while done < nbytes:
        if page_is_absent(at + done):
            return False
        lm_make_own(<void *>(at + done))
        done += page_nbytes()
    return True


cdef int _out_by_move(Region *r, uint64_t slot, uint64_t at, uint64_t nbytes, bint *touched) noexcept nogil:
    """`touched`: its write protection is gone. Return: 0; -errno: all of it is in the region still."""
    cdef uint64_t moved = 0, back = 0
    cdef int error = uffd_move(r.uffd, slot, at, nbytes, ASLEEP, &moved)
    if error == -EBUSY and moved == 0:
        touched[0] = True
        if _make_own(r, at, nbytes):
            error = uffd_move(r.uffd, slot, at, nbytes, ASLEEP, &moved)
    if error:
        lm_count(&r.counters.refused, 1)
        if moved:
            touched[0] = True
            if uffd_move(r.uffd, at, slot, moved, PLAINLY, &back) or back != moved:
                uffd_copy(r.uffd, at + back, slot + back, moved - back, PLAINLY, &r.counters.copy)
                pages_drop(slot, nbytes)
        if error == -EEXIST:        # somebody has touched the slot (threads.pyx): another time, then
            pages_drop(slot, nbytes)
    return error


cdef int _out_by_copy(Region *r, uint64_t slot, uint64_t at, uint64_t nbytes) noexcept nogil:
    """Return: 0; -errno: all of it is in the region still."""
    cdef uint64_t done = 0
    cdef CopyCounts counts
    cdef Thread *me = thread_self()
    cdef int error = 0
    while done < nbytes:
        if page_is_absent(at + done):
            return -ENOENT
        done += page_nbytes()
    # A page that somebody drops from here on makes this very copy a touch, which another thread must be there to refuse (-EDEADLK).
    if me != NULL and me.before_blocking != NULL:
        me.before_blocking()
    if r.tracking == SYNC:
        error = uffd_protect(r.uffd, at, nbytes, True)
    if error == 0:
        counts.eexist = counts.eagain = 0
        error = uffd_copy(r.uffd, slot, at, nbytes, ASLEEP, &counts)
        lm_count(&r.counters.copy.eagain, counts.eagain)
        if error == 0 and counts.eexist:    # somebody has touched the slot, which keeps what it holds
            error = -EEXIST
    if error == 0:
        error = place_empty_range(r, at - r.base, nbytes)
    if error:   # (what was clean must stay protected; of what is dirty the next write is a fault again, which lets it through)
        pages_drop(slot, nbytes)
    return error


cdef bint _can_leave(Region *r) noexcept nogil:
    """Can its blocks be taken out without losing a write? Not from a file: nobody says what was written to it."""
    return not r.writable or (not lies_in_file(r) and (r.moves or r.tracking == SYNC))


cdef bint _drop(Region *r, uint32_t i, uint32_t tid) noexcept nogil:
    """In a file blocks have no place to wait in: what nobody may write to is dropped."""
    cdef uint32_t was
    cdef uint64_t block
    if not _claim_frame(r, SMALL, i, False, LEAVING | (tid << DETAIL_SHIFT), &was):
        return False
    block = r.clocks[SMALL].frames[i].block
    if lm_load32(&r.clocks[SMALL].frames[i].pins) or place_empty(r, block):
        publish(r, block, in_frame(was, i, SMALL))
        return False
    lm_count(&r.counters.evicted, 1)
    lm_count(&r.counters.recycled, 1)
    lm_store32(&r.clocks[SMALL].frames[i].state, BUSY)
    publish(r, block, MISSING)
    frame_back(r, SMALL, i)
    return True


cdef bint _evict(Region *r, int kind, uint32_t i, uint32_t tid) noexcept nogil:
    """Take what lies in a frame out of the region. Return: did it go? Thread: inside moves_enter."""
    cdef Clock *c = &r.clocks[kind]
    cdef Frame *f = &c.frames[i]
    cdef uint64_t first, at, nbytes, slot
    cdef uint32_t was
    cdef void *seen_clean = NULL
    cdef bint touched = False
    cdef int error
    if lm_load32(&f.state) != USED or not _can_leave(r):
        return False
    if lm_load32(&f.pins):
        lm_count(&r.counters.pinned, 1)
        return False
    if lies_in_file(r):
        return _drop(r, i, tid)
    if not region_slots(r, c):
        return False
    if not _claim_frame(r, kind, i, False, LEAVING | (tid << DETAIL_SHIFT), &was):
        return False
    first = f.block
    at = r.base + first * r.block_nbytes
    nbytes = _frame_nbytes(r, c, first)
    slot = frame_slot(c, i)
    if lm_load32(&f.pins):      # after the claim: who pins looks at the word after that
        lm_count(&r.counters.pinned, 1)
        _publish_frame(r, c, first, in_frame(was, i, <uint32_t>kind))
        return False
    lm_park(b"evicting")
    if r.tracking == ASYNC and was == RESIDENT:
        seen_clean = written_since(r, at, nbytes)    # what it held while it surely was not written; NULL: it was
        if seen_clean == NULL:
            was = DIRTY
    if r.moves:
        error = _out_by_move(r, slot, at, nbytes, &touched)
    else:
        error = _out_by_copy(r, slot, at, nbytes)
    if seen_clean != NULL:
        if error == 0 and memcmp(seen_clean, <void *>slot, nbytes) != 0:
            was = DIRTY
        pool_give(seen_clean, nbytes)
    if touched and r.tracking != UNTRACKED:
        was = DIRTY
    if error == -ENOENT and was == RESIDENT:    # somebody dropped pages of it: nothing is lost with the rest
        error = place_empty_range(r, at - r.base, nbytes)
        if error == 0:
            lm_store32(&f.state, BUSY)
            _publish_frame(r, c, first, MISSING)
            frame_back(r, kind, i)
            return True
    if error:
        lm_count(&r.counters.pinned, 1)
        _publish_frame(r, c, first, in_frame(was, i, <uint32_t>kind))
        if r.tracking == SYNC:
            place_woken(r, first * r.block_nbytes, nbytes)
        return False
    lm_count(&r.counters.evicted, 1)
    lm_add32(&c.waiting, 1)
    _publish_frame(r, c, first, in_frame(WAITING if was == RESIDENT else WAITING_DIRTY, i, <uint32_t>kind))
    if r.tracking == SYNC:      # who waits for leave to write
        place_woken(r, first * r.block_nbytes, nbytes)
    lm_park(b"evicted")
    return True


cdef bint moved_in(Region *r, uint64_t at, uint64_t src, uint64_t nbytes, int mode) noexcept nogil:
    """Put pages into place by MOVE, and what it does not take by COPY. If all are, nothing is left at `src`.

    Units: `at`, bytes of the region; whole pages; `mode` PLAINLY or ASLEEP. Return: are all in place? GIL: never. Blocks: as `uffd_copy`.
    Thread: the claimer.
    """
    cdef uint64_t moved = 0
    cdef int error = uffd_move(r.uffd, r.base + at, src, nbytes, mode, &moved)
    if error == 0:
        lm_count(&r.counters.moved, 1)
        return True
    lm_count(&r.counters.refused, 1)
    error = uffd_copy(r.uffd, r.base + at + moved, src + moved, nbytes - moved, mode, &r.counters.copy)
    if error == 0:
        pages_drop(src, nbytes)
    return error == 0


cdef int rescue(Region *r, uint64_t block, uint32_t seen, uint32_t tid) noexcept nogil:
    """Put a block that waits back, without a fetch; if the kernel will not, let its source be asked again, unless it was written.

    Return: 0; -EAGAIN it does not wait any more; -ENOTRECOVERABLE it was written, and waits still. GIL: never. Blocks: while a fork
    is under way; for a few ms if the kernel will not.
    """
    cdef int kind = <int>(seen >> UNIT_SHIFT)
    cdef Clock *c = &r.clocks[kind]
    cdef uint32_t i = frame_of(seen), was
    cdef Frame *f = &c.frames[i]
    cdef sigset_t before
    cdef uint64_t first, slot, nbytes
    cdef int error = 0, tries
    cdef bint clean, holds
    moves_enter(&before)
    if not _claim_frame(r, kind, i, True, FILLING | (tid << DETAIL_SHIFT), &was):
        moves_leave(&before)
        return -EAGAIN
    first = f.block
    slot = frame_slot(c, i)
    nbytes = _frame_nbytes(r, c, first)
    clean = was == WAITING
    lm_park(b"rescuing")
    for tries in range(RESCUE_TRIES):
        if r.moves and not (clean and r.tracking != UNTRACKED):
            error = 0 if moved_in(r, first * r.block_nbytes, slot, nbytes, PLAINLY) else -ENOTRECOVERABLE
        elif uffd_copy(r.uffd, r.base + first * r.block_nbytes, slot, nbytes,    # moved pages are not write-protected
                       PROTECTED if clean and r.tracking != UNTRACKED else PLAINLY, &r.counters.copy):
            error = -ENOTRECOVERABLE
        else:
            error = 0
            pages_drop(slot, nbytes)
        if error == 0 or clean:
            break
        lm_sleep_ns(RESCUE_PAUSE_NS)
    if error and clean:
        # (what came of it may be written to by now, which nobody is told of where the kernel notes writes: a fill goes round that)
        holds = r.tracking == ASYNC and place_holds(r, first * r.block_nbytes, nbytes)
        if not holds:
            place_empty_range(r, first * r.block_nbytes, nbytes)
        _slot_taken(r, c, i)
        _publish_frame(r, c, first, FAILED | <uint32_t>EINTR << DETAIL_SHIFT if holds else MISSING)
        pages_drop(slot, nbytes)
        frame_back(r, kind, i)
        error = -EAGAIN
    elif error == 0:
        lm_count(&r.counters.rescued, 1)
        lm_sub32(&c.waiting, 1)
        _publish_frame(r, c, first, in_frame(RESIDENT if clean else DIRTY, i, <uint32_t>kind))
    else:
        _publish_frame(r, c, first, in_frame(was, i, <uint32_t>kind))
    moves_leave(&before)
    return error


# ---------------------------------------------------------------------------------------------------------------------------
# The hands

cdef uint32_t _evict_some(Region *r, int kind, uint32_t n) noexcept nogil:
    """Move the evicting hand until `n` frames have gone, once round at most. Return: how many went."""
    cdef Clock *c = &r.clocks[kind]
    cdef uint32_t gone = 0, steps = lm_load32(&c.top), i, tid = thread_tid()
    cdef sigset_t before
    moves_enter(&before)
    while gone < n and steps:
        steps -= 1
        i = hand_next(c, &c.evicting)
        if i and _evict(r, kind, i, tid):
            gone += 1
    moves_leave(&before)
    return gone


cdef uint32_t _recycle(Region *r, int kind, uint32_t n_waiting, bint *busy) noexcept nogil:
    """Take the memory of a frame whose block waits, and see to it that others do.

    `busy`: somebody is at work in one of those that could not be had. Return: the frame, BUSY, its bytes of no meaning; 0: none.
    Blocks: where the block is dirty, on writing it back.
    """
    cdef Clock *c = &r.clocks[kind]
    cdef Frame *f
    cdef uint64_t first
    cdef uint32_t i, was, seen, turn = lm_load32(&c.top), steps = 2 * turn, waiting, tid = thread_tid()
    # What is evicted must wait a while, also where few frames are: it is what gives it its second chance.
    cdef uint32_t more, batch = n_waiting // 2 if n_waiting < 2 * BATCH else <uint32_t>BATCH
    cdef int error
    batch = batch if batch else 1
    if lies_in_file(r):
        return 0
    while steps:
        steps -= 1
        waiting = lm_load32(&c.waiting)
        # (Those that wait may all be somebody else's already, or not to be written back: after a turn, others.)
        if waiting == 0 or waiting + batch <= n_waiting or steps == turn:
            more = n_waiting - waiting if waiting < n_waiting else 0
            more = batch if more < batch else BATCH if more > BATCH else more
            if _evict_some(r, kind, more) == 0 and waiting == 0:
                busy[0] = busy[0] or _anybody(r, c)
                return 0
        i = hand_next(c, &c.recycling)
        if i == 0:
            return 0
        f = &c.frames[i]
        if lm_load32(&f.state) != USED:
            continue
        first = lm_load64(&f.block)
        seen = lm_load32(&r.words[first])
        if not is_waiting(seen):
            continue
        if c.blocks == 1 and seen & STATE == WAITING:       # what most are: nothing to be done but to take it
            if _take_clean(r, kind, i):
                return i
            continue
        if not _claim_frame(r, kind, i, True, LEAVING | (tid << DETAIL_SHIFT), &was):
            continue
        first = f.block
        if was == WAITING_DIRTY:
            error = region_store(r, first, c.blocks, <void *>frame_slot(c, i))
            if error:
                _publish_frame(r, c, first, in_frame(was, i, <uint32_t>kind))
                continue
        _take_slot(r, c, i)
        return i
    busy[0] = busy[0] or _anybody(r, c)
    return 0


cdef bint _is_copied(Region *r, Clock *c) noexcept nogil:
    """Is a recycled slot no good to a fill? A page that comes alone is copied into fresh memory for less than it is moved in for (random reads
    of 4 KiB, inline: 8.2 us against 8.9; of 16 KiB 13.0 against 11.3), if the slots go back to the kernel many at a time."""
    return c.nbytes == page_nbytes() and r.filling != FILL_MOVE


cdef void _drop_run(Region *r, int kind, uint32_t i) noexcept nogil:
    """Give the slot of frame `i`, BUSY, back to the kernel; where slots are of no use, in the same call also those that are to be
    recycled next."""
    cdef Clock *c = &r.clocks[kind]
    cdef uint32_t n = 1, top = lm_load32(&c.top), most = _waiting_share(c) // 4, k
    if _is_copied(r, c):
        most = BATCH if most > BATCH else most
        while n < most and i + n < top and _take_clean(r, kind, i + n):
            n += 1
        lm_cas32(&c.recycling, i + 1, i + n if i + n < top else 1)
    pages_drop(frame_slot(c, i), n * c.nbytes)
    for k in range(1, n):
        frame_back(r, kind, i + k)


cdef bint _take_clean(Region *r, int kind, uint32_t i) noexcept nogil:
    """Take the slot of a frame in which one clean block waits: nothing else is to be done for it. Return: is it ours, BUSY?

    For some instructions the block is missing, and may be fetched elsewhere, while its frame is USED still: who looks at a frame
    looks whether its block's word names it.
    """
    cdef Clock *c = &r.clocks[kind]
    cdef uint64_t block = lm_load64(&c.frames[i].block)
    cdef uint32_t seen = lm_load32(&r.words[block])
    if lm_load32(&c.frames[i].state) != USED or seen & STATE != WAITING or not _is_in(seen, i, kind):
        return False
    if not lm_cas32(&r.words[block], seen, MISSING):
        return False
    _slot_taken(r, c, i)
    moves_not_copied()
    return True


cdef void _take_slot(Region *r, Clock *c, uint32_t i) noexcept nogil:
    """The bytes of a block that waits, claimed, are no more: its frame is BUSY. Not while a fork copies memory, a page at a time: its
    child might find that the block waits, from before, and the next one's bytes in the slot."""
    cdef uint64_t first = c.frames[i].block
    cdef sigset_t before
    moves_enter(&before)
    _slot_taken(r, c, i)
    _publish_frame(r, c, first, MISSING)
    moves_leave(&before)


cdef void _slot_taken(Region *r, Clock *c, uint32_t i) noexcept nogil:
    lm_store32(&c.frames[i].state, BUSY)
    lm_sub32(&c.waiting, 1)
    lm_count(&r.counters.recycled, 1)


cdef bint memory_is_short(Region *r, int kind) noexcept nogil:
    """Will the next fill have to take somebody's memory? GIL: never. Blocks: no."""
    cdef uint64_t nbytes = r.clocks[kind].nbytes
    return (r.budget_nbytes and lm_load64(&r.held) + nbytes > r.budget_nbytes) or (
        memory_budget() and memory_used() + nbytes > memory_budget())


cdef void write_behind(Region *r, int kind, uint64_t first) noexcept nogil:
    """A stream has left the blocks of a frame, `first` and what follows: evict them and write them back now, while caches hold them, so that
    the fill which will take their memory need not wait for that.

    GIL: never. Blocks: on the source. Thread: one that has entered the region.
    """
    cdef Clock *c = &r.clocks[kind]
    cdef uint32_t seen = lm_load32(&r.words[first]), was, tid = thread_tid()
    cdef sigset_t before
    cdef int error
    if is_resident(seen) and seen >> UNIT_SHIFT == <uint32_t>kind and frame_of(seen):
        moves_enter(&before)
        _evict(r, kind, frame_of(seen), tid)
        moves_leave(&before)
        seen = lm_load32(&r.words[first])
    if (seen & STATE) == WAITING_DIRTY and seen >> UNIT_SHIFT == <uint32_t>kind and _claim_frame(
            r, kind, frame_of(seen), True, LEAVING | (tid << DETAIL_SHIFT), &was):
        first = c.frames[frame_of(seen)].block
        error = region_store(r, first, c.blocks, <void *>frame_slot(c, frame_of(seen))) if was == WAITING_DIRTY else 0
        _publish_frame(r, c, first, in_frame(was if error else WAITING, frame_of(seen), <uint32_t>kind))


cdef bint _anybody(Region *r, Clock *c) noexcept nogil:
    """Is somebody filling or emptying a frame?"""
    cdef uint32_t i, state
    if lm_load32(&c.opening) == 1:     # or making the slots, without which nothing can be emptied
        return True
    for i in range(1, lm_load32(&c.top)):
        if lm_load32(&c.frames[i].state) == BUSY:
            return True
        if lm_load32(&c.frames[i].state) == USED:
            state = lm_load32(&r.words[lm_load64(&c.frames[i].block)]) & STATE
            if state == FILLING or state == LEAVING:
                return True
    return False


cdef uint32_t _waiting_share(Clock *c) noexcept nogil:
    cdef uint32_t n = lm_load32(&c.used) // (WAITING_SHARE if c.blocks == 1 else UNITS_SHARE)
    return n if n else 1


cdef uint64_t _give_way(Region *r, uint64_t nbytes, bint *busy) noexcept nogil:
    """Give memory of a region back to the kernel. Return: how many bytes."""
    cdef uint64_t given = 0
    cdef uint32_t i
    cdef int kind
    if lies_in_file(r):
        given = _evict_some(r, SMALL, <uint32_t>(nbytes // r.block_nbytes) + 1) * r.block_nbytes
        busy[0] = busy[0] or _anybody(r, &r.clocks[SMALL])
        return given
    while given < nbytes:
        kind = UNITS if _held(r, UNITS) > _held(r, SMALL) else SMALL
        i = _recycle(r, kind, 1, busy)
        if i == 0:
            kind = SMALL if kind == UNITS else UNITS
            i = _recycle(r, kind, 1, busy)
        if i == 0:
            break
        pages_drop(frame_slot(&r.clocks[kind], i), r.clocks[kind].nbytes)
        frame_back(r, kind, i)
        given += r.clocks[kind].nbytes
    return given


cdef uint64_t _held(Region *r, int kind) noexcept nogil:
    """Bytes of one kind of frames."""
    return lm_load32(&r.clocks[kind].used) * r.clocks[kind].nbytes


cdef bint _others_give_way(Region *me, uint64_t nbytes, bint *busy) noexcept nogil:
    """Let the region that holds most give memory back, unless that is `me`. Return: did it?"""
    cdef Region *r
    cdef Region *largest = NULL
    cdef uint64_t most = lm_load64(&me.held), at = 0, held, given
    while True:
        r = region_enter_above(at)
        if r == NULL:
            break
        at = r.base
        held = lm_load64(&r.held)
        if r != me and lm_load32(&r.status) == LIVE and held > most and held > r.floor_nbytes + nbytes and _can_leave(r):
            if largest != NULL:
                region_leave(largest)
            largest = r
            most = held
        else:
            busy[0] = busy[0] or (held and lm_load32(&r.status) == CLOSED)    # it is just giving all back
            region_leave(r)
    if largest == NULL:
        return False
    nbytes = GIVE_WAY_NBYTES if nbytes < GIVE_WAY_NBYTES else nbytes
    given = _give_way(largest, nbytes if most > largest.floor_nbytes + nbytes else most - largest.floor_nbytes, busy)
    region_leave(largest)
    return given != 0


# ---------------------------------------------------------------------------------------------------------------------------
# What fills ask for

cdef bint _room(Region *r, uint64_t nbytes) noexcept nogil:
    """Count so many bytes, if both budgets have room for them."""
    cdef uint64_t held
    while True:
        held = lm_load64(&r.held)
        if r.budget_nbytes and held + nbytes > r.budget_nbytes:
            return False
        if lm_cas64(&r.held, held, held + nbytes):
            break
    if memory_take(nbytes):
        return True
    lm_sub64(&r.held, nbytes)
    return False


cdef void _over(Region *r, bint *busy) noexcept nogil:
    """More is held than the process may have: give some of it back, as much as a touch has patience for."""
    if not _others_give_way(r, GIVE_WAY_NBYTES, busy) and lm_load64(&r.held) > r.floor_nbytes + GIVE_WAY_NBYTES:
        _give_way(r, GIVE_WAY_NBYTES, busy)


cdef int frame_for(Region *r, int kind, bint wait, uint32_t *frame, bint *holds) noexcept nogil:
    """Memory for a fill. `holds`: the frame's slot has pages, to be fetched into; else it is empty. `wait`: for other threads.

    Return: 0, and a BUSY frame; -EDQUOT none to be had: all is pinned, or cannot be written back. GIL: never. Blocks: on writing dirty
    blocks back; while other threads are at work in all the frames there are, until the region's timeout. Thread: any that has
    entered the region, in a signal handler too.
    """
    cdef Clock *c = &r.clocks[kind]
    cdef int other = SMALL if kind == UNITS else UNITS
    cdef uint64_t deadline_ns = 0, now_ns, held, recycled
    cdef uint32_t i, idle = 0
    cdef bint busy, own
    holds[0] = False
    while lm_load32(&r.status) == LIVE:
        held = lm_load64(&r.held)
        recycled = lm_load64(&r.counters.recycled)
        if _room(r, c.nbytes):                                            # 1.
            frame[0] = frame_take(c)
            if frame[0]:
                return 0
            lm_sub64(&r.held, c.nbytes)
            memory_give(c.nbytes)
        busy = False
        own = r.budget_nbytes and lm_load64(&r.held) + c.nbytes > r.budget_nbytes
        # (4. first, for one that has little; and now and then for everybody, or who is idle would hold what he has for ever)
        if not own and (lm_load64(&r.held) < memory_budget() // 8 or recycled // TURN != lm_load64(&r.looked)):
            lm_store64(&r.looked, recycled // TURN)
            if _others_give_way(r, c.nbytes, &busy):
                continue
        if not own and lm_load64(&r.held) + c.nbytes <= r.floor_nbytes and memory_used() < lm_memory_nbytes() // 2:
            frame[0] = frame_take(c)                                      # others hold all there is: the least for everybody
            if frame[0]:
                lm_add64(&r.held, c.nbytes)
                memory_force(c.nbytes)
                return 0
        if memory_budget() and memory_used() > memory_budget():                               # (it was larger)
            _over(r, &busy)
        if _held(r, kind) >= _held(r, other):                             # 2.
            i = _recycle(r, kind, _waiting_share(c), &busy)
            if i:
                frame[0] = i
                # (a short last block lay in it: a fetch of more would touch what is absent)
                holds[0] = _frame_nbytes(r, c, c.frames[i].block) == c.nbytes and not _is_copied(r, c)
                if not holds[0]:
                    _drop_run(r, kind, i)
                return 0
        if _give_way(r, c.nbytes, &busy):                                 # 3.
            continue
        if not own and _others_give_way(r, c.nbytes, &busy):              # 4.
            continue
        now_ns = lm_now_ns()                                              # 5.
        if deadline_ns == 0:
            deadline_ns = now_ns + r.timeout_ns
        # What came free while this looked elsewhere has changed one of these: nobody is told that there is nothing while there is.
        if busy or lm_load64(&r.held) < held or lm_load64(&r.counters.recycled) != recycled:
            idle = 0
        else:
            idle += 1
        if not wait or idle == IDLE_ROUNDS or now_ns > deadline_ns:
            return -EDQUOT
        lm_sleep_ns(PAUSE_NS)
    return -ESHUTDOWN


cdef void frame_back(Region *r, int kind, uint32_t frame) noexcept nogil:
    """The frame holds no memory any more, and nothing came of it. GIL: never. Blocks: no. Thread: whose it is, BUSY."""
    frame_empty(&r.clocks[kind], frame)
    lm_sub64(&r.held, r.clocks[kind].nbytes)
    memory_give(r.clocks[kind].nbytes)


cdef uint64_t evict_blocks(Region *r, uint64_t first, uint64_t last) noexcept nogil:
    """Evict blocks [first, last), and give their memory back to the kernel; dirty ones are written first.

    Return: how many of them are resident or wait still: pinned, or not to be written. GIL: better released. Blocks: on writing.
    Thread: one that has entered the region.
    """
    cdef Clock *c
    cdef Frame *f
    cdef uint64_t block, left = 0, k
    cdef uint32_t i, was, tid = thread_tid()
    cdef int kind
    cdef sigset_t before
    for kind in range(KINDS):
        c = &r.clocks[kind]
        for i in range(1, lm_load32(&c.top)):
            f = &c.frames[i]
            block = lm_load64(&f.block)
            if lm_load32(&f.state) == EMPTY or block + c.blocks <= first or block >= last:
                continue
            wait_while_busy(r, c, i)
            block = lm_load64(&f.block)
            if lm_load32(&f.state) != USED or block + c.blocks <= first or block >= last:
                continue
            if not is_waiting(lm_load32(&r.words[block])):
                moves_enter(&before)
                _evict(r, kind, i, tid)
                moves_leave(&before)
            if _claim_frame(r, kind, i, True, LEAVING | (tid << DETAIL_SHIFT), &was):
                block = f.block
                if was == WAITING_DIRTY and region_store(r, block, c.blocks, <void *>frame_slot(c, i)):
                    _publish_frame(r, c, block, in_frame(was, i, <uint32_t>kind))
                else:
                    _take_slot(r, c, i)
                    pages_drop(frame_slot(c, i), c.nbytes)
                    frame_back(r, kind, i)
                    continue
            for k in range(c.blocks):
                if first <= block + k < last and lm_load32(&r.words[block + k]) & STATE not in (MISSING, FAILED):
                    left += 1
    if lm_load64(&r.counters.zeroed):
        _drop_zeros(r, first, last, tid)
    return left


cdef void _drop_zeros(Region *r, uint64_t first, uint64_t last, uint32_t tid) noexcept nogil:
    """Blocks that take no memory go too, so that what was evicted is asked for again."""
    cdef uint64_t block
    for block in range(first, last):
        if lm_load32(&r.words[block]) == RESIDENT and lm_cas32(&r.words[block], RESIDENT, LEAVING | (tid << DETAIL_SHIFT)):
            place_empty(r, block)
            publish(r, block, MISSING)
