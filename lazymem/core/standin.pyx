"""What does a failed touch go on over, and who takes that away again?

Stand-ins: zeros that are no data, mapped so that an operation which can raise may end, and dropped as it does. The order of their
steps, and why nobody misses one, is in failure.pyx. A block that a thread sleeps for which cannot be told (a plain touch: WITNESS)
is never stood in, and neither are pages beside private writes.
"""
from libc.stdint cimport int64_t
from libc.stdlib cimport abort
from libc.string cimport memset, strlen

from lazymem.core.failure cimport *
from lazymem.core.mprotect cimport mprotect_exposed
from lazymem.core.native cimport *
from lazymem.core.parking cimport lm_park
from lazymem.core.place cimport place_bytes, place_empty, place_holds, place_seen, place_shown, place_woken, place_zeros
from lazymem.core.region cimport *
from lazymem.core.table cimport *
from lazymem.core.thread cimport STANDIN_REGIONS, Standins, Thread, thread_self, thread_tid
from lazymem.core.uffd cimport page_nbytes


cdef extern from "native.h" nogil:
    int INT_MAX

cdef void publish(Region *r, uint64_t block, uint32_t now) noexcept nogil:
    """Leave FILLING or LEAVING for `now`, and wake who sleeps for it: on the word, and in the kernel.

    GIL: never. Blocks: no. Thread: the claimer.
    """
    cdef uint32_t was = lm_swap32(&r.words[block], now)
    if was & WAITERS:
        lm_futex_wake(&r.words[block], INT_MAX)
    if was & JOINED:
        place_woken(r, block * r.block_nbytes, whole_pages(region_block_nbytes(r, block)))


cdef char _zeros[65536]
memset(_zeros, 0, sizeof(_zeros))

cdef enum:
    ABSENT_PAGE_NBYTES = 65536
    ABSENT_MOST_NBYTES = 67108864
    LOOSE_REGIONS = 256

ctypedef struct Loose:
    # Blocks [low, high] of one region among which are loose stand-ins. Only ever widened.
    uint64_t region_id     # 0: free; ~0: being taken
    Region *region
    uint64_t low
    uint64_t high

cdef Loose _loose[LOOSE_REGIONS]
memset(_loose, 0, sizeof(_loose))


cdef void _count_standin(Region *r, int64_t change) noexcept nogil:
    lm_add64(&r.standins, <uint64_t>change)
    standins_count(change)


cdef void forget_standins(Region *r) noexcept nogil:
    """The region's memory is gone, and its stand-ins with it. GIL: never. Thread: the closer, when nobody is in it any more."""
    standins_count(-<int64_t>lm_load64(&r.standins))
    lm_store64(&r.standins, 0)
    lm_store64(&r.loose, 0)


cdef uint64_t _log_failure(uint32_t tid, Region *r, uint64_t block, int error) noexcept nogil:
    cdef uint64_t sequence = failure_log(r.id, block, tid, error)
    r.last_failed_block = block
    r.last_error = error
    lm_store64(&r.last_failure, sequence)
    return sequence


cdef void _note_failure(Thread *toucher, Region *r, uint64_t block, int error) noexcept nogil:
    cdef uint64_t sequence = _log_failure(toucher.tid, r, block, error)
    if toucher.error == 0:
        toucher.first_sequence = sequence
        toucher.first_region = r.id
        toucher.first_block = block
        toucher.first_error = error
        toucher.error = error


cdef bint _remember_standin(Thread *toucher, Region *r, uint64_t block) noexcept nogil:
    """Return: False when the thread's stand-ins lie in too many regions already."""
    cdef Standins *s
    cdef int i
    for i in range(STANDIN_REGIONS):
        s = &toucher.standins[i]
        if s.region == NULL:
            s.region_id = r.id
            s.low = block
            s.high = block
            s.region = r
            return True
        if s.region == r and s.region_id == r.id:
            s.low = block if block < s.low else s.low
            s.high = block if block > s.high else s.high
            return True
    return False


cdef bint _remember_loose(Region *r, uint64_t block) noexcept nogil:
    """Return: False when there are loose stand-ins in too many regions."""
    cdef Loose *l
    cdef uint64_t held, seen
    cdef int i, turn
    for turn in range(2):
        for i in range(LOOSE_REGIONS):
            l = &_loose[i]
            held = lm_load64(&l.region_id)
            if turn and held != ~<uint64_t>0 and (held == 0 or region_numbered(held) == NULL):
                if lm_cas64(&l.region_id, held, ~<uint64_t>0):
                    l.region = r
                    l.low = l.high = block
                    lm_store64(&l.region_id, r.id)
                    held = r.id
            if held != r.id:
                continue
            seen = lm_load64(&l.low)
            while block < seen and not lm_cas64(&l.low, seen, block):
                seen = lm_load64(&l.low)
            seen = lm_load64(&l.high)
            while block > seen and not lm_cas64(&l.high, seen, block):
                seen = lm_load64(&l.high)
            return True
    return False


cdef void drop_loose() noexcept nogil:
    """Drop every loose stand-in, so that the next touch fetches anew. GIL: never. Blocks: for microseconds. Thread: any."""
    cdef Loose *l
    cdef Region *r
    cdef uint64_t block
    cdef uint32_t seen
    cdef int i
    for i in range(LOOSE_REGIONS):
        l = &_loose[i]
        if lm_load64(&l.region_id) in (0, ~<uint64_t>0):
            continue
        r = l.region
        lm_add32(&r.users, 1)
        if lm_load32(&r.status) == LIVE and r.id == lm_load64(&l.region_id) and lm_load64(&r.loose) != 0:
            for block in range(lm_load64(&l.low), lm_load64(&l.high) + 1):
                seen = lm_load32(&r.words[block])
                while (seen & STATE) == FILLING and seen & MAKING:
                    lm_sleep_ns(1000)  # its toucher goes on already; the handler thread is about to say what it goes on over
                    seen = lm_load32(&r.words[block])
                if (seen & STATE) == FAILED and seen & STANDIN and seen & LOOSE:
                    if lm_cas32(&r.words[block], seen, LEAVING | STANDIN | (thread_tid() << DETAIL_SHIFT)):
                        unmap_standin(r, block, True)
                        publish(r, block, MISSING)
        lm_sub32(&r.users, 1)


cdef bint stand_in_loose(Region *r, uint64_t block, Thread *toucher, int error) noexcept nogil:
    """Let a failed touch outside operations go on: under a guard, or on a thread that will be told.

    Return, GIL, Thread: as `stand_in`.
    """
    cdef uint64_t era = failures_era()  # now: once its page is there the toucher may leave its guard, and nothing fails at once any more
    if not _stand_in(r, block, toucher, error, True):
        return False
    lm_park(b"standin loose")
    toucher.loose_error = error
    toucher.loose_era = era
    return True


cdef bint stand_in(Region *r, uint64_t block, Thread *toucher, int error) noexcept nogil:
    """Let a failed touch go on over what its operation will disown.

    Return: False when it cannot: then the touch must not go on. GIL: never. Blocks: no.
    Thread: the toucher, or the handler thread that serves it while it sleeps.
    """
    return _stand_in(r, block, toucher, error, False)


cdef bint _stand_in(Region *r, uint64_t block, Thread *toucher, int error, bint loose) noexcept nogil:
    """`stand_in` and `stand_in_loose`."""
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen = lm_load32(word), state = seen & STATE
    cdef uint64_t at = block * r.block_nbytes, whole = whole_pages(region_block_nbytes(r, block))
    if state not in (MISSING, FAILED):
        if state == FILLING and (seen >> DETAIL_SHIFT) == toucher.tid and not seen & MAKING:
            return not loose and _stand_in_own(r, block, toucher, error)
        if state == FILLING and (error == ETIMEDOUT or error == EDEADLK):
            return False  # another thread's fetch hangs, or waits for ours: its block is not ours to put zeros into
        if (state == LEAVING and error == EDEADLK) or (is_waiting(seen) and error == ENOTRECOVERABLE):
            return False  # who takes it away has touched it; what was written to it cannot be put back: it would come back for ever
        if r.delivery == MPROTECT and (state == RESIDENT or state == DIRTY) and not mprotect_exposed(&r.exposure, block):
            return False  # its bytes are here, and cannot be shown: the touch would come back for ever
        place_woken(r, at, whole)  # somebody else is more fortunate: touch again
        return not is_resident(seen) or place_shown(r, block) == 0  # unless it is we who cannot be shown what is there
    if seen & WITNESS and not loose or not (_remember_loose(r, block) if loose else _remember_standin(toucher, r, block)):
        return False
    if not lm_cas32(word, seen, FILLING | MAKING | (seen & STANDIN) | (toucher.tid << DETAIL_SHIFT)):
        place_woken(r, at, whole)
        return True
    if not (seen & STANDIN):
        if r.writable and place_holds(r, at, whole):   # dropping the stand-in would drop private writes with it
            publish(r, block, seen & ~<uint32_t>WAITERS)
            return False
        _count_standin(r, 1)                           # (1)
        lm_park(b"standin 1")
        lm_or32(word, STANDIN)                         # a child forked from here on must drop what it finds
    elif seen & LOOSE:
        lm_sub64(&r.loose, 1)
    if loose:
        lm_add64(&r.loose, 1)
        loose_count()
        _log_failure(toucher.tid, r, block, error)     # (2)
    else:
        _note_failure(toucher, r, block, error)
    lm_park(b"standin 2")
    if _map_absent(r, block):                          # (3)
        unmap_standin(r, block, loose)                 # no memory even for that: the touch would come back for ever
        publish(r, block, FAILED | (<uint32_t>error << DETAIL_SHIFT))
        return False
    lm_park(b"standin 3")
    publish(r, block, FAILED | STANDIN | (LOOSE if loose else 0) | (<uint32_t>error << DETAIL_SHIFT))
    return True


cdef bint _stand_in_own(Region *r, uint64_t block, Thread *toucher, int error) noexcept nogil:
    """A source touched the very block it is being asked for. The block stays claimed; its fetch fails as it ends, and `_fill`
    drops the zeros before it says so. Return: False where pages of the block hold bytes that must not be dropped with them."""
    cdef uint32_t *word = &r.words[block]
    if lm_load32(word) & (AGAIN | WITNESS):
        return False
    if not (lm_load32(word) & STANDIN):
        lm_or32(word, STANDIN)
        _count_standin(r, 1)
    _note_failure(toucher, r, block, error)
    return _map_absent(r, block) == 0


cdef int _map_absent(Region *r, uint64_t block) noexcept nogil:
    """NaN or NaT, where the array's elements have it: what was made of them by mistake shows. Only so many, since each takes memory.

    Return: 0 / -errno: there is no memory for them.
    """
    cdef uint64_t at = block * r.block_nbytes, whole = whole_pages(region_block_nbytes(r, block))
    cdef char page[ABSENT_PAGE_NBYTES]
    cdef uint64_t i, done = 0, page_size = page_nbytes()
    cdef int error
    if r.absent_nbytes == 0 or page_size > ABSENT_PAGE_NBYTES or lm_load64(&r.standins) * r.block_nbytes > ABSENT_MOST_NBYTES:
        error = _map_zeros(r, at, whole)
        return error if error else place_shown(r, block)
    for i in range(page_size):  # elements of 2, 4, 8 or 16 bytes: every page of the block holds the same
        page[i] = r.absent[_phase(r, at + i)]
    while done < whole:
        error = place_bytes(r, at + done, <uint64_t>&page[0], page_size, False)
        if error:
            return error
        done += page_size
    return place_shown(r, block)


cdef int _map_zeros(Region *r, uint64_t at, uint64_t whole) noexcept nogil:
    """The zero page where it can be had: a scan over a dead source must not eat memory. Poisoned pages need a copy."""
    cdef uint64_t done = 0
    cdef int error
    if place_zeros(r, at, whole) == 0:
        return 0
    while done < whole:
        error = place_zeros(r, at + done, page_nbytes())
        if error == -EEXIST:
            error = place_bytes(r, at + done, <uint64_t>&_zeros[0], page_nbytes(), False)
        if error:
            return error
        done += page_nbytes()
    return 0


cdef void _stop_undropped() noexcept nogil:
    """The next touch would take a stand-in for data."""
    cdef const char *text = (b"\nlazymem: what stands in for a block that could not be fetched cannot be taken out of memory again "
                             b"(madvise); it would be read as data. Stopping.\n")
    lm_say(text, strlen(text))
    abort()


cdef uint32_t _stores_lost = 0


cdef bint stores_lost() noexcept nogil:
    """Has any region stores that were lost, and nobody told of it? GIL: held. Blocks: no."""
    return lm_swap32(&_stores_lost, 0) != 0


cdef bint _holds_stores(Region *r, uint64_t at, uint64_t whole) noexcept nogil:
    """Has the program stored into a stand-in? Then a page of it differs from what was mapped. A store of the same bytes is no loss."""
    cdef char copied[ABSENT_PAGE_NBYTES]
    cdef const char *page
    cdef uint64_t done = 0, i
    cdef bint zeros, absent
    while done < whole and page_nbytes() <= ABSENT_PAGE_NBYTES:
        zeros = True
        absent = r.absent_nbytes != 0
        page = place_seen(r, at + done, copied)
        if page != NULL:  # somebody may have dropped it: reading it would fault
            for i in range(page_nbytes()):
                zeros = zeros and page[i] == 0
                absent = absent and page[i] == r.absent[_phase(r, at + done + i)]
                if not zeros and not absent:
                    return True
        done += page_nbytes()
    return False


cdef inline uint64_t _phase(Region *r, uint64_t at) noexcept nogil:
    """Which byte of `r.absent` stands at a byte of the region."""
    return (at + r.absent_nbytes - r.absent_at % r.absent_nbytes) % r.absent_nbytes


cdef void unmap_standin(Region *r, uint64_t block, bint loose) noexcept nogil:
    """Steps (4) and (5). GIL: never. Blocks: no. Thread: the claimer of the block."""
    if r.writable and _holds_stores(r, block * r.block_nbytes, whole_pages(region_block_nbytes(r, block))):
        if lm_add64(&r.stores_lost, 1) == 0:
            r.store_lost_block = block
        lm_store32(&_stores_lost, 1)
    if place_empty(r, block):
        _stop_undropped()
    lm_park(b"standin 4")
    if loose:
        lm_sub64(&r.loose, 1)
    _count_standin(r, -1)
    lm_park(b"standin 5")


cdef void drop_standins(Thread *me) noexcept nogil:
    """Drop what this thread's failed touches left, so that the next touch fetches anew. GIL: never. Blocks: no."""
    cdef Standins *s
    cdef Region *r
    cdef uint64_t block
    cdef uint32_t seen
    cdef int i
    for i in range(STANDIN_REGIONS):
        s = &me.standins[i]
        r = <Region *>s.region
        if r == NULL:
            break
        s.region = NULL
        lm_add32(&r.users, 1)
        if lm_load32(&r.status) == LIVE and r.id == s.region_id:
            for block in range(s.low, s.high + 1):
                seen = lm_load32(&r.words[block])
                while (seen & STATE) == FILLING and seen & MAKING and (seen >> DETAIL_SHIFT) == me.tid:
                    lm_pause()  # the zeros woke us; the handler thread is about to say what they are
                    seen = lm_load32(&r.words[block])
                if (seen & STATE) == FAILED and seen & STANDIN:
                    if lm_cas32(&r.words[block], seen, LEAVING | STANDIN | (me.tid << DETAIL_SHIFT)):
                        unmap_standin(r, block, seen & LOOSE != 0)
                        publish(r, block, MISSING)
        lm_sub32(&r.users, 1)


cdef bint operation_begin(uint64_t *sequence) noexcept nogil:
    """The calling thread starts an operation that can raise. Must be followed by `operation_end`.

    Return: False while there are other threads' stand-ins: `standins_wait` first. GIL: any. Blocks: no.
    """
    cdef Thread *me = thread_self()
    sequence[0] = failures_now()   # before the look at what is live: a stand-in that comes between the two is counted then
    if me != NULL:
        if me.operations == 0 and me.depth == 0:
            lm_store32(&me.unsure_error, 0)
        if standins_live() != 0 and me.operations == 0 and me.depth == 0:
            drop_standins(me)  # a message that came twice (signals) may have been answered after its operation ended
            me.error = 0
            drop_loose()
            if standins_live() != 0:
                return False
        me.operations += 1
    return True


cdef bint standins_wait(uint64_t deadline_ns) noexcept nogil:
    """Wait for other threads' operations to drop their stand-ins. Return: False at the deadline. GIL: must not be held, they
    may need it to end."""
    while standins_live() != 0:
        drop_loose()
        if lm_now_ns() > deadline_ns:
            return False
        lm_sleep_ns(20000)
    return True


cdef bint operation_end(uint64_t sequence) noexcept nogil:
    """Return: did any touch fail in the process since it began, or has any array lost its memory? GIL: kept. Blocks: no."""
    cdef Thread *me = thread_self()
    if me != NULL and me.operations != 0:  # 0: forked in the middle of it, the child's record is new
        me.operations -= 1
        if me.operations == 0 and me.depth == 0 and me.error:
            drop_standins(me)
            me.error = 0
    return failures_now() != sequence or regions_severed()
