"""How does a block get into place?

The one fill path, run by whoever needs the block: the touching thread (inline), a handler thread, a prefetcher, populate.

    claim the word -> memory left? -> fetch into a staging block (or read where the bytes lie) -> UFFDIO_COPY -> publish

Losers of the claim wait on the word. A failed fetch is published as FAILED with its errno: who waited for it gets the same
error; who comes later fetches anew. Nothing here needs the GIL, allocates, or takes a lock.

When a touch fails there are two ends. On a thread inside an operation that can raise (failure.pyx), or inside a source, it goes on over a
stand-in and that operation, or that fetch, fails as it ends. Anywhere else an access to memory has no way to be told: a message,
and the end of the process by SIGBUS.
"""
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset, strlen
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.unistd cimport close, read, write

from lazymem.core.abi cimport MADV_DONTNEED_LOCKED
from lazymem.core.failure cimport *
from lazymem.core.native cimport *
from lazymem.core.pool cimport pool_give, pool_take
from lazymem.core.region cimport *
from lazymem.core.table cimport *
from lazymem.core.thread cimport CHAIN_MAX, STANDIN_REGIONS, Standins, Thread, thread_find, thread_self
from lazymem.core.uffd cimport page_is_absent, page_nbytes, uffd_copy, uffd_wake, uffd_zero


cdef extern from "native.h" nogil:
    int madvise(void *, size_t, int)
    int MADV_DONTNEED, INT_MAX

# ---------------------------------------------------------------------------------------------------------------------------
# Memory left. A kernel short of memory kills; it does not refuse. So the fetch that would pass the limit fails instead. What
# the whole process has resident is read anew after every LOOK_NBYTES of fills at the latest.

cdef uint64_t LOOK_NBYTES = 64 << 20
cdef uint64_t _limit_nbytes = 0        # 0: unknown
cdef uint64_t _filled_nbytes = 0       # in all regions
cdef uint64_t _look_at_nbytes = 0


cdef uint64_t _process_nbytes() noexcept nogil:
    """What the process has resident. Return: 0 when it cannot be read. Source: proc(5) statm. GIL: never. Blocks: no."""
    cdef char text[128]
    cdef ssize_t n, i = 0
    cdef uint64_t pages = 0
    cdef int fd = open(b"/proc/self/statm", O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return 0
    n = read(fd, text, sizeof(text))
    close(fd)
    while i < n and text[i] != c' ':
        i += 1
    i += 1
    while i < n and c'0' <= text[i] <= c'9':
        pages = pages * 10 + <uint64_t>(text[i] - c'0')
        i += 1
    return pages * page_nbytes()


cdef int _memory_for(uint64_t nbytes) noexcept nogil:
    """May so many bytes more become resident? Return: 0 / -EDQUOT. GIL: never. Blocks: no."""
    global _look_at_nbytes
    cdef uint64_t filled = lm_add64(&_filled_nbytes, nbytes) + nbytes, resident, step
    if filled < lm_load64(&_look_at_nbytes) or _limit_nbytes == 0:
        return 0
    resident = _process_nbytes()
    if resident + nbytes > _limit_nbytes:
        lm_sub64(&_filled_nbytes, nbytes)
        return -EDQUOT
    step = (_limit_nbytes - resident) // 4
    lm_store64(&_look_at_nbytes, filled + (step if step < LOOK_NBYTES else LOOK_NBYTES))
    return 0


cdef void account_for_memory(int64_t nbytes) noexcept nogil:
    """So many bytes of fills are gone (a region was closed). GIL: never. Blocks: no."""
    lm_sub64(&_filled_nbytes, <uint64_t>nbytes)
    lm_store64(&_look_at_nbytes, 0)


cdef void memory_limit_set(uint64_t nbytes) noexcept nogil:
    """Units: bytes resident in the process; 0 none. GIL: never. Blocks: no."""
    global _limit_nbytes
    _limit_nbytes = nbytes
    lm_store64(&_look_at_nbytes, 0)


# ---------------------------------------------------------------------------------------------------------------------------
# Fetch

cdef uint64_t RETRY_PAUSE_NS = 1000000
# How many sources that may touch lazy arrays are running: while it is 0, no touch can be a source's.
cdef uint32_t _nesting_sources = 0


cdef bint sources_nest() noexcept nogil:
    """GIL: never. Blocks: no."""
    return lm_load32(&_nesting_sources) != 0


cdef uint64_t _block_nbytes(Region *r, uint64_t block) noexcept nogil:
    """Of the source's bytes: the last block may be short."""
    cdef uint64_t offset = block * r.block_nbytes
    return r.nbytes - offset if r.nbytes - offset < r.block_nbytes else r.block_nbytes


cdef uint64_t _whole_pages(uint64_t nbytes) noexcept nogil:
    return (nbytes + page_nbytes() - 1) & ~(page_nbytes() - 1)


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
            _drop_standins(me)
            me.error = 0
    return error if error <= 0 else -EPROTO


cdef int region_fetch(Region *r, uint64_t block, void *dst) noexcept nogil:
    """Fetch one block anywhere, asking again where the source says that it may help.

    Units: dst has room for the block's bytes. Return: 0 / -errno. GIL: never. Blocks: as the source does.
    """
    cdef uint64_t offset = block * r.block_nbytes, nbytes = _block_nbytes(r, block)
    cdef uint64_t pause_ns = RETRY_PAUSE_NS, deadline_ns = 0
    cdef uint32_t attempt = 0
    cdef int error
    if r.source.direct != NULL:
        lm_count(&r.counters.asked, nbytes)
        return lm_copy_from(dst, r.source.direct + offset, nbytes)
    while True:
        error = _ask(r, dst, offset, nbytes)
        if error == 0 or error not in (-EAGAIN, -EBUSY, -EINTR, -ETIMEDOUT):
            return error
        if deadline_ns == 0:
            deadline_ns = lm_now_ns() + r.timeout_ns
        if attempt == r.retries or lm_now_ns() + pause_ns > deadline_ns:
            return error
        attempt += 1
        lm_sleep_ns(pause_ns)
        pause_ns *= 2


cdef int _fill_staged(Region *r, uint64_t block, uint64_t from_byte) noexcept nogil:
    """Fetch into a staging block and copy it in; bytes behind the source's end are zeros, never what lay there before."""
    cdef uint64_t nbytes = _block_nbytes(r, block), whole = _whole_pages(nbytes)
    cdef void *staging = pool_take(whole)
    cdef int error
    if staging == NULL:
        return -ENOMEM
    error = region_fetch(r, block, staging)
    if error == 0:
        memset(<char *>staging + nbytes, 0, whole - nbytes)
        error = uffd_copy(r.uffd, r.base + block * r.block_nbytes + from_byte, <uint64_t>staging + from_byte,
                          whole - from_byte, &r.counters.copy)
    pool_give(staging, whole)
    return error


cdef int _fill_direct(Region *r, uint64_t block) noexcept nogil:
    """Copy in from where the bytes lie; only a last page that the source does not fill goes through a staging block."""
    cdef uint64_t nbytes = _block_nbytes(r, block), offset = block * r.block_nbytes
    cdef uint64_t body = nbytes & ~(page_nbytes() - 1)
    cdef int error = 0
    if body:
        lm_count(&r.counters.asked, body)
        error = uffd_copy(r.uffd, r.base + offset, <uint64_t>(r.source.direct + offset), body, &r.counters.copy)
    if error == 0 and body < nbytes:
        error = _fill_staged(r, block, body)
    return error


cdef void _publish(Region *r, uint64_t block, uint32_t now) noexcept nogil:
    """Leave FILLING or LEAVING for `now`, and wake who sleeps for it: on the word, and in the kernel. Thread: the claimer."""
    cdef uint32_t was = lm_swap32(&r.words[block], now)
    if was & WAITERS:
        lm_futex_wake(&r.words[block], INT_MAX)
    if was & JOINED:
        uffd_wake(r.uffd, r.base + block * r.block_nbytes, _whole_pages(_block_nbytes(r, block)))


cdef int _fill(Region *r, uint64_t block) noexcept nogil:
    """Fetch and fill a block that this thread has claimed, and publish what became of it. Return: 0 / -errno."""
    cdef uint64_t nbytes = _block_nbytes(r, block), whole = _whole_pages(nbytes)
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen
    cdef int error = _memory_for(whole)
    if error == 0:
        error = _fill_direct(r, block) if r.source.direct != NULL else _fill_staged(r, block, 0)
        if error:
            lm_sub64(&_filled_nbytes, whole)
    if error == 0:
        lm_count(&r.held, whole)
        lm_count(&r.counters.blocks, 1)
        lm_count(&r.counters.used, nbytes)
        _publish(r, block, RESIDENT)
    else:
        seen = lm_load32(word)
        if seen & STANDIN:
            _unmap_standin(r, block)
        while not lm_cas32(word, seen, FAILED | (seen & (WITNESS | JOINED)) | (<uint32_t>-error << DETAIL_SHIFT)):
            seen = lm_load32(word)
        if seen & WAITERS:
            lm_futex_wake(word, INT_MAX)
    return error


cdef void wake_block(Region *r, uint64_t block) noexcept nogil:
    """Threads that sleep in the kernel for a block whose fetch failed must come and be told: wake them, once it is decided what
    becomes of the touch that asked (a stand-in, poison). Woken before, that touch itself would ask a second time, and the
    answer would find its operation ended. GIL: never. Blocks: no."""
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen = lm_load32(word)
    uffd_wake(r.uffd, r.base + block * r.block_nbytes, _whole_pages(_block_nbytes(r, block)))
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
    return _fill_direct(r, block) if r.source.direct != NULL else _fill_staged(r, block, 0)


cdef int _need(Region *r, uint64_t block, Thread *me, uint32_t toucher, bint wait, bint plain, int *filled) noexcept nogil:
    """Make a block resident for thread `toucher`. `filled`: whether it was this call that did it.

    `wait`: for another thread's fill; else the toucher sleeps in the kernel meanwhile, and `plain` says that it cannot be
    told of a failure. Return: 0; LATER another thread is at it and `wait` is false; -errno. GIL: kept if held. Blocks:
    source, deadline.
    """
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen, state, mark, tid = me.tid if me != NULL else lm_gettid()
    cdef uint64_t deadline_ns = 0
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
        if state == FAILED and waited:
            return -<int>(seen >> DETAIL_SHIFT)
        if state == MISSING or state == FAILED:
            error = _own_source_runs(r, me)
            if error:
                return error
            mark = seen & (WITNESS | JOINED)
            if plain and not wait:
                mark |= WITNESS
            if not lm_cas32(word, seen, FILLING | mark | (tid << DETAIL_SHIFT)):
                continue
            if seen & STANDIN:
                _unmap_standin(r, block)
            error = _fill(r, block)
            filled[0] = error == 0
            return error
        if (seen >> DETAIL_SHIFT) == toucher and state == FILLING and not seen & MAKING:
            error = _own_source_runs(r, me)  # its own source touched it; else a signal handler did
            return error if error else _fill_beside(r, block)
        if not wait:
            # Whoever publishes must wake it: pages that come and are dropped again before that have woken nobody for good.
            mark = seen | JOINED | (WITNESS if plain else 0)
            if mark != seen and not lm_cas32(word, seen, mark):
                continue
            return LATER
        if deadline_ns == 0:
            deadline_ns = lm_now_ns() + r.timeout_ns
        waited = True
        error = table_wait(word, seen, deadline_ns)
        if error:
            return error


cdef int region_need(Region *r, uint64_t block) noexcept nogil:
    """Fetch a block unless it is there: what populate, prefetch and exports call.

    Return: 0 / -errno. GIL: kept if held; not needed. Blocks: on the source; on another thread's fetch until the deadline.
    Thread: any that has entered the region.
    """
    cdef Thread *me = thread_self()
    cdef int filled
    cdef int error = _need(r, block, me, me.tid if me != NULL else lm_gettid(), True, False, &filled)
    if error:
        wake_block(r, block)
    return error


cdef int _refill(Region *r, uint64_t addr, uint64_t block, Thread *me, int *filled) noexcept nogil:
    """A fault on a block that the table calls resident. If its page really is gone (somebody's MADV_DONTNEED, a memory
    error), fetch the block again; pages that stayed keep what they hold. Return: 0 / -errno."""
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen = lm_load32(word), tid = me.tid if me != NULL else lm_gettid()
    cdef int error
    if not page_is_absent(addr & ~(page_nbytes() - 1)):
        return 0  # it came between the fault and us
    if (seen & STATE) != RESIDENT and (seen & STATE) != DIRTY:
        return 0  # it is being seen to: the next touch decides
    error = _own_source_runs(r, me)
    if error == 0 and lm_cas32(word, seen, FILLING | AGAIN | (tid << DETAIL_SHIFT)):
        lm_count(&r.counters.refilled, 1)
        error = _fill(r, block)
        filled[0] = error == 0
    return error


# ---------------------------------------------------------------------------------------------------------------------------
# A fault

cdef void _note_nesting(Thread *toucher) noexcept nogil:
    cdef uint32_t i
    for i in range(toucher.depth):
        lm_store32(&(<Region *>toucher.chain[i]).nests, 1)


cdef int region_touch(Region *r, uint64_t addr, uint32_t tid, bint wait) noexcept nogil:
    """Answer a touch of an absent page by thread `tid` (inline: the caller itself).

    Every fault is accounted for: taken = filled + joined + failed.
    Return: GOES_ON; LATER (only without `wait`); -errno: it may not go on. GIL: kept if held. Blocks: as `region_need`.
    """
    cdef uint64_t began_ns = lm_now_ns(), block
    cdef Thread *me = thread_self()
    cdef Thread *toucher = me
    cdef int error, filled = 0
    cdef bint lent = False
    lm_count(&r.counters.taken, 1)
    if lm_load32(&r.status) != LIVE or addr >= r.base + r.map_nbytes or r.nblocks == 0:
        lm_count(&r.counters.failed, 1)
        return -ESHUTDOWN
    block = (addr - r.base) // r.block_nbytes
    if me == NULL or me.tid != tid:
        toucher = thread_find(tid)
        error = 0
        if toucher != NULL and sources_nest() and toucher.depth:
            _note_nesting(toucher)
            error = _own_source_runs(r, toucher)
            if me != NULL:  # the toucher's chain goes on with the source that we run for it
                lent = True
                me.depth = toucher.depth
                memcpy(me.chain, toucher.chain, sizeof(me.chain))
    else:
        error = 0
        if me.depth:
            _note_nesting(me)
    if error == 0 and toucher != NULL and toucher.error and (toucher.operations or toucher.depth):
        error = -toucher.error  # one deadline per operation: after the first miss that failed, the others fail at once
        if (lm_load32(&r.words[block]) & STATE) in (RESIDENT, DIRTY, FILLING):
            error = 0
    if error == 0:
        # A source's touch waits here even for another thread's fill: two that wait for each other must meet a deadline.
        error = _need(r, block, me, tid, wait or lent, toucher == NULL or not (toucher.operations or toucher.depth), &filled)
        if error == 0 and not filled:
            error = _refill(r, addr, block, me, &filled)
    if lent:
        me.depth = 0
        if me.error:
            _drop_standins(me)
            me.error = 0
    if error >= 0:
        lm_count(&r.counters.filled if filled else &r.counters.joined, 1)
        if error == 0 and not filled and not wait:
            uffd_wake(r.uffd, addr & ~(page_nbytes() - 1), page_nbytes())  # it came while the message was under way
        if error == 0:
            lm_count(&r.counters.latency[lm_high_bit((lm_now_ns() - began_ns) | 1)], 1)
        return error
    lm_count(&r.counters.failed, 1)
    if lm_load32(&r.status) != LIVE:
        return -ESHUTDOWN  # closed meanwhile: the late message of a touch that is long over, and nobody's failure now
    if toucher != NULL and (toucher.operations or toucher.depth):
        if error != -ESHUTDOWN and _stand_in(r, block, toucher, -error):
            return GOES_ON
    return error


# ---------------------------------------------------------------------------------------------------------------------------
# Stand-ins (the order of their steps: failure.pyx)

cdef char _zeros[65536]
memset(_zeros, 0, sizeof(_zeros))


cdef void _count_standin(Region *r, int64_t change) noexcept nogil:
    lm_add64(&r.standins, <uint64_t>change)
    standins_count(change)


cdef void forget_standins(Region *r) noexcept nogil:
    """The region's memory is gone, and its stand-ins with it. Thread: the closer, when nobody is in the region any more."""
    standins_count(-<int64_t>lm_load64(&r.standins))
    lm_store64(&r.standins, 0)


cdef void _note_failure(Thread *toucher, Region *r, uint64_t block, int error) noexcept nogil:
    cdef uint64_t sequence = failure_log(r.id, block, toucher.tid, error)
    r.last_failed_block = block
    r.last_error = error
    lm_store64(&r.last_failure, sequence)
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


cdef bint _has_pages(uint64_t start, uint64_t whole) noexcept nogil:
    cdef uint64_t done = 0
    while done < whole:
        if not page_is_absent(start + done):
            return True
        done += page_nbytes()
    return False


cdef bint _stand_in(Region *r, uint64_t block, Thread *toucher, int error) noexcept nogil:
    """Let a failed touch go on over zeros that its operation will disown.

    Return: False when it cannot: then the touch must not go on. GIL: never. Blocks: no.
    Thread: the toucher, or the handler thread that serves it while it sleeps.
    """
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen = lm_load32(word), state = seen & STATE
    cdef uint64_t start = r.base + block * r.block_nbytes, whole = _whole_pages(_block_nbytes(r, block)), done = 0
    if state == RESIDENT or state == DIRTY or state == FILLING or state == LEAVING:
        if state == FILLING and (seen >> DETAIL_SHIFT) == toucher.tid and not seen & MAKING:
            return _stand_in_own(r, block, toucher, error)
        if state == FILLING and (error == ETIMEDOUT or error == EDEADLK):
            return False  # another thread's fetch hangs, or waits for ours: its block is not ours to put zeros into
        uffd_wake(r.uffd, start, whole)  # somebody else is more fortunate: touch again
        return True
    if seen & WITNESS or not _remember_standin(toucher, r, block):
        return False
    if not lm_cas32(word, seen, FILLING | MAKING | (toucher.tid << DETAIL_SHIFT)):
        uffd_wake(r.uffd, start, whole)
        return True
    if not (seen & STANDIN):
        if r.writable and _has_pages(start, whole):    # dropping the stand-in would drop private writes with it
            _publish(r, block, seen & ~<uint32_t>WAITERS)
            return False
        _count_standin(r, 1)                           # (1)
    _note_failure(toucher, r, block, error)            # (2)
    _map_zeros(r, start, whole)                        # (3)
    _publish(r, block, FAILED | STANDIN | (<uint32_t>error << DETAIL_SHIFT))
    return True


cdef bint _stand_in_own(Region *r, uint64_t block, Thread *toucher, int error) noexcept nogil:
    """A source touched the very block it is being asked for. The block stays claimed; its fetch fails as it ends, and `_fill`
    drops the zeros before it says so. Return: False where pages of the block hold bytes that must not be dropped with them."""
    cdef uint64_t start = r.base + block * r.block_nbytes, whole = _whole_pages(_block_nbytes(r, block))
    cdef uint32_t *word = &r.words[block]
    if lm_load32(word) & (AGAIN | WITNESS):
        return False
    if not (lm_load32(word) & STANDIN):
        lm_or32(word, STANDIN)
        _count_standin(r, 1)
    _note_failure(toucher, r, block, error)
    _map_zeros(r, start, whole)
    return True


cdef void _map_zeros(Region *r, uint64_t start, uint64_t whole) noexcept nogil:
    """The zero page where it can be had: a scan over a dead source must not eat memory. Poisoned pages need a copy."""
    cdef uint64_t done = 0
    if uffd_zero(r.uffd, start, whole) == 0:
        return
    while done < whole:
        if uffd_zero(r.uffd, start + done, page_nbytes()) == -EEXIST:
            uffd_copy(r.uffd, start + done, <uint64_t>&_zeros[0], page_nbytes(), &r.counters.copy)
        done += page_nbytes()


cdef void _unmap_standin(Region *r, uint64_t block) noexcept nogil:
    """(4), (5). Thread: the claimer of the block."""
    cdef uint64_t whole = _whole_pages(_block_nbytes(r, block))
    if madvise(<void *>(r.base + block * r.block_nbytes), whole, MADV_DONTNEED):
        madvise(<void *>(r.base + block * r.block_nbytes), whole, MADV_DONTNEED_LOCKED)
    _count_standin(r, -1)


cdef void _drop_standins(Thread *me) noexcept nogil:
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
                    if lm_cas32(&r.words[block], seen, LEAVING | (me.tid << DETAIL_SHIFT)):
                        _unmap_standin(r, block)
                        _publish(r, block, MISSING)
        lm_sub32(&r.users, 1)


cdef bint operation_begin(uint64_t *sequence) noexcept nogil:
    """The calling thread starts an operation that can raise. Must be followed by `operation_end`.

    Return: False while there are other threads' stand-ins: `standins_wait` first. GIL: any. Blocks: no.
    """
    cdef Thread *me = thread_self()
    if me != NULL:
        if standins_live() != 0 and me.operations == 0 and me.depth == 0:
            _drop_standins(me)  # a message that came twice (signals) may have been answered after its operation ended
            me.error = 0
            if standins_live() != 0:
                return False
        me.operations += 1
    sequence[0] = failures_now()
    return True


cdef bint standins_wait(uint64_t deadline_ns) noexcept nogil:
    """Wait for other threads' operations to drop their stand-ins. Return: False at the deadline. GIL: must not be held, they
    may need it to end."""
    while standins_live() != 0:
        if lm_now_ns() > deadline_ns:
            return False
        lm_sleep_ns(20000)
    return True


cdef bint operation_end(uint64_t sequence) noexcept nogil:
    """Return: did any touch fail in the process since it began? GIL: kept. Blocks: no."""
    cdef Thread *me = thread_self()
    if me != NULL and me.operations != 0:  # 0: forked in the middle of it, the child's record is new
        me.operations -= 1
        if me.operations == 0 and me.depth == 0 and me.error:
            _drop_standins(me)
            me.error = 0
    return failures_now() != sequence


# ---------------------------------------------------------------------------------------------------------------------------
# The end that cannot be avoided, said loudly

cdef char *_put_text(char *at, const char *end, const char *text) noexcept nogil:
    cdef size_t n = strlen(text)
    if n > <size_t>(end - at):
        n = <size_t>(end - at)
    memcpy(at, text, n)
    return at + n


cdef char *_put_number(char *at, const char *end, uint64_t number) noexcept nogil:
    cdef char digits[24]
    cdef int i = 23
    digits[i] = 0
    while True:
        i -= 1
        digits[i] = <char>(c'0' + number % 10)
        number //= 10
        if number == 0:
            break
    return _put_text(at, end, &digits[i])


cdef void loud_stop(Region *r, uint64_t addr, int error) noexcept nogil:
    """Say on descriptor 2 which access to which array cannot go on, and why. The caller ends the process.

    Units: error an errno. GIL: never. Blocks: no. Thread: any, in a signal handler too.
    """
    cdef char text[1024]
    cdef char *at = text
    cdef const char *end = text + sizeof(text) - 1
    cdef const char *why = cause(error)
    cdef uint64_t block = (addr - r.base) // r.block_nbytes, offset = block * r.block_nbytes
    at = _put_text(at, end, b"\nlazymem: an access to lazy array '")
    at = _put_text(at, end, r.name)
    if lm_load32(&r.status) != LIVE:
        at = _put_text(at, end, b"' cannot go on: the array is ")
        at = _put_text(at, end, b"closed" if lm_load32(&r.status) == CLOSED else
                       b"its parent process's, and was not inherited by this forked one: open it again here")
    else:
        at = _put_text(at, end, b"', block ")
        at = _put_number(at, end, block)
        at = _put_text(at, end, b" (bytes ")
        at = _put_number(at, end, offset)
        at = _put_text(at, end, b"..")
        at = _put_number(at, end, offset + (_block_nbytes(r, block) if block < r.nblocks else 0))
        at = _put_text(at, end, b"), cannot go on: ")
        if why != NULL:
            at = _put_text(at, end, why)
        at = _put_text(at, end, b" (errno ")
        at = _put_number(at, end, <uint64_t>error)
        at = _put_text(at, end, b")")
    at = _put_text(at, end, b".\nlazymem: an access to memory cannot raise; lazymem.populate() and operations on the LazyArray "
                            b"itself do. Stopping.\n")
    write(2, text, <size_t>(at - text))
