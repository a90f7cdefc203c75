"""Which blocks has the user written, and how does that get back to where it belongs?

    SYNC    blocks come write-protected: the first write to one is a fault, which makes it DIRTY and lets it through. Exact
    ASYNC   for user faults, where a system call that wants to write to protected memory would get EFAULT: the kernel lifts the protection by itself,
            and says afterwards what was written (PAGEMAP_SCAN). Of a block that is being evicted that is too early: one more
            write may come. So what it holds is copied, then the scan says that it is clean up to here, then it is moved away; if it
            differs from the copy then, it was written
    neither what may be written is taken for written

Flushing a block: 1. claimed: a write that comes now waits  2. protected  3. stored  4. RESIDENT. With ASYNC nobody waits: what is
written meanwhile is noted as new. A block that could not be stored is DIRTY still, and is remembered.
"""
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.unistd cimport close

from lazymem.core.frames cimport *
from lazymem.core.native cimport *
from lazymem.core.parking cimport lm_park
from lazymem.core.place cimport place_shown, place_shown_again
from lazymem.core.pool cimport pool_give, pool_take
from lazymem.core.region cimport *
from lazymem.core.scratch cimport scratch_write
from lazymem.core.standin cimport publish
from lazymem.core.table cimport *
from lazymem.core.thread cimport Thread, thread_self, thread_tid
from lazymem.core.uffd cimport pages_written, uffd_protect


cdef int _open_pagemap() noexcept nogil:
    """Of this process, as it is now: a fork, or somebody's closerange, would leave a kept one another's."""
    return open(b"/proc/self/pagemap", O_RDONLY | O_CLOEXEC)


cdef int _is_written(int pagemap, uint64_t at, uint64_t nbytes, bint protect) noexcept nogil:
    """Has any page of a range been written since it was last protected? `protect`: again. Return: 0, 1; -errno: nobody knows."""
    cdef uint64_t found, end, from_at = at
    cdef int error = 0, written = 0
    while error == 0 and from_at < at + nbytes:
        error = pages_written(pagemap, from_at, at + nbytes - from_at, protect, &found, &end)
        if error == 0 and found < at + nbytes:
            written = 1
        if not protect and written:
            break
        from_at = end
    return error if error else written


cdef bint all_written(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil:
    """Has every page of a range been written? Only with ASYNC. GIL: never. Blocks: no."""
    cdef uint64_t found = 0, end = 0
    cdef int pagemap = _open_pagemap()
    if pagemap < 0:
        return False
    if pages_written(pagemap, at, nbytes, False, &found, &end):
        found = 0
    close(pagemap)
    return found == at and end == at + nbytes


cdef void *written_since(Region *r, uint64_t at, uint64_t nbytes) noexcept nogil:
    """What a clean block holds, from `pool_take(nbytes)`, as of a moment when it surely was clean; NULL: it was written, or nobody knows.

    GIL: never. Blocks: no. Thread: the claimer of the block.
    """
    cdef void *copy = pool_take(nbytes)
    cdef int pagemap = _open_pagemap()
    if copy != NULL and (pagemap < 0 or lm_copy_from(copy, <const void *>at, nbytes) or _is_written(pagemap, at, nbytes, False)):
        pool_give(copy, nbytes)
        copy = NULL
    if pagemap >= 0:
        close(pagemap)
    return copy


cdef int block_written(Region *r, uint64_t block, uint32_t tid) noexcept nogil:
    """A write to a resident block that is protected: note it, and let it through.

    Return: 0; -EAGAIN: the block is being seen to, look again. GIL: never. Blocks: no. Thread: any.
    """
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen = lm_load32(word)
    cdef sigset_t before
    cdef int error = -EAGAIN
    if not is_resident(seen):
        return -EAGAIN
    moves_enter(&before)
    if lm_cas32(word, seen, LEAVING | (tid << DETAIL_SHIFT)):  # 1. nobody takes it for clean from here on
        lm_park(b"written")
        error = uffd_protect(r.uffd, r.base + block * r.block_nbytes, whole_pages(region_block_nbytes(r, block)), False)  # 2.
        publish(r, block, seen & ~<uint32_t>STATE | DIRTY)     # 3.
    moves_leave(&before)
    return error


cdef void blocks_written(Region *r, uint64_t first, uint64_t last) noexcept nogil:
    """Blocks that somebody writes, or has written, without a fault of it: devices do. GIL: any. Blocks: no. Thread: who has pinned
    them."""
    cdef uint64_t block
    cdef uint32_t seen
    if not r.writable:
        return
    for block in range(first, last):
        if r.tracking == SYNC:
            while (block_written(r, block, thread_tid()) == -EAGAIN and lm_load32(&r.status) == LIVE and
                   lm_load32(&r.words[block]) & STATE not in (MISSING, FAILED)):
                table_wait(&r.words[block], lm_load32(&r.words[block]), lm_now_ns() + 1000000)
        else:
            seen = lm_load32(&r.words[block])
            while lm_load32(&r.status) == LIVE and seen & STATE in (RESIDENT, LEAVING, FILLING):
                if seen & STATE != RESIDENT:    # it is being flushed: what that stores may be from before
                    table_wait(&r.words[block], seen, lm_now_ns() + 1000000)
                elif lm_cas32(&r.words[block], seen, seen ^ (RESIDENT ^ DIRTY)):
                    break
                seen = lm_load32(&r.words[block])


cdef int _store(Region *r, uint64_t block, const void *src) noexcept nogil:
    cdef uint64_t nbytes = region_block_nbytes(r, block)
    cdef int error = -EROFS
    if r.writes_back and r.source.store != NULL:
        error = r.source.store(r.source.ctx, src, block * r.block_nbytes, nbytes)
    elif r.scratch.folder != NULL:
        error = scratch_write(&r.scratch, block, src, nbytes)
    if error == 0:
        lm_count(&r.counters.stored, 1)
        lm_count(&r.counters.stored_nbytes, nbytes)
    return error


cdef int region_store(Region *r, uint64_t first, uint64_t blocks, const void *src) noexcept nogil:
    """Write blocks back, or, where writes are private, into the scratch file. What fails is remembered.

    Return: 0 / -errno. GIL: never. Blocks: on the source. Thread: the claimer.
    """
    cdef uint64_t nbytes = blocks * r.block_nbytes, k
    cdef Thread *me = thread_self()
    cdef int error = 0
    if me != NULL and me.before_blocking != NULL:   # a handler thread: others' faults must not wait for this
        me.before_blocking()
    if blocks > 1 and r.writes_back and r.source.store != NULL:   # a unit in one piece
        error = r.source.store(r.source.ctx, src, first * r.block_nbytes, nbytes)
        if error == 0:
            lm_count(&r.counters.stored, blocks)
            lm_count(&r.counters.stored_nbytes, nbytes)
    else:
        for k in range(blocks):
            if error == 0:
                error = _store(r, first + k, <const char *>src + k * r.block_nbytes)
    if error:
        r.store_block = first
        r.store_error = -error
        lm_add64(&r.store_errors, 1)
    return error


cdef uint32_t _claim_to_store(Region *r, uint64_t block, uint32_t tid) noexcept nogil:
    """Return: the word as it was, of a block that is claimed now; 0: there is nothing to be stored."""
    cdef uint32_t *word = &r.words[block]
    cdef uint32_t seen
    while True:
        seen = lm_load32(word)
        if seen & STATE == LEAVING or seen & STATE == FILLING:
            if table_wait(word, seen, lm_now_ns() + r.timeout_ns):
                return 0
            continue
        if not (seen & STATE == DIRTY or seen & STATE == WAITING_DIRTY or
                (seen & STATE == RESIDENT and r.tracking != SYNC and r.writable)):
            return 0
        if lm_cas32(word, seen, LEAVING | (tid << DETAIL_SHIFT)):
            return seen


cdef int _flush_block(Region *r, uint64_t block, uint32_t seen, int pagemap) noexcept nogil:
    """Store one block that this thread has claimed, and publish it. Return: 0 / -errno."""
    cdef uint64_t at = r.base + block * r.block_nbytes, whole = whole_pages(region_block_nbytes(r, block))
    cdef int kind = <int>(seen >> UNIT_SHIFT)
    cdef Clock *c = &r.clocks[kind]
    cdef uint32_t now = seen, clean = seen & ~<uint32_t>STATE
    cdef int error = 0, written = 1
    if is_waiting(seen):
        at = frame_slot(c, frame_of(seen)) + (block - c.frames[frame_of(seen)].block) * r.block_nbytes
        error = region_store(r, block, 1, <void *>at)
        now = seen if error else clean | WAITING
    else:
        if r.tracking == SYNC:
            error = uffd_protect(r.uffd, at, whole, True)
        elif r.tracking == ASYNC:
            written = _is_written(pagemap, at, whole, True)
            if seen & STATE == DIRTY:
                written = 1
        lm_park(b"flushing")
        if error == 0:
            # (a store that reads it by a system call could not wait for what is in a file and not mapped)
            error = place_shown(r, block) if r.kind == ANONYMOUS else place_shown_again(r, block)
        if error == 0 and written:
            error = region_store(r, block, 1, <void *>at)
        now = clean | (DIRTY if error else RESIDENT)
    if lm_load32(&r.words[block]) & AGAIN:     # a signal's handler on this very thread wrote to it
        now = clean | DIRTY
    publish(r, block, now)
    return error


cdef void wait_while_busy(Region *r, Clock *c, uint32_t i) noexcept nogil:
    """Who touched the block that is being put into a frame may have written to it before that is published: wait for it.

    GIL: better released. Blocks: on the source, at most until the region's timeout. Thread: one that has entered the region.
    """
    cdef Frame *f = &c.frames[i]
    cdef uint64_t deadline_ns = lm_now_ns() + r.timeout_ns, block
    cdef uint32_t seen
    while lm_load32(&r.status) == LIVE and lm_now_ns() < deadline_ns:
        if lm_load32(&f.state) == BUSY:
            lm_sleep_ns(20000)
            continue
        block = lm_load64(&f.block)
        if lm_load32(&f.state) != USED:
            return
        seen = lm_load32(&r.words[block])
        if seen & STATE != FILLING and seen & STATE != LEAVING:
            return
        table_wait(&r.words[block], seen, deadline_ns)


cdef int region_flush(Region *r, uint64_t first, uint64_t last, uint64_t *failed) noexcept nogil:
    """Store what is dirty of blocks [first, last), and have the source make it safe.

    Return: 0; -errno: of the latest block that could not be stored, `failed`: it is dirty still. GIL: better released. Blocks: on
    the source. Thread: one that has entered the region.
    """
    cdef Clock *c
    cdef Frame *f
    cdef uint64_t block, k
    cdef uint32_t i, seen, tid = thread_tid()
    cdef int kind, error = 0, pagemap = -1
    if not r.writes_back or not r.writable:
        return 0
    if r.tracking == ASYNC:
        pagemap = _open_pagemap()
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
            for k in range(c.blocks):
                if lm_load32(&r.status) != LIVE:
                    error = -ESHUTDOWN
                if not first <= block + k < last:
                    continue
                seen = _claim_to_store(r, block + k, tid) if error == 0 else 0   # (a dead source costs one deadline, not many)
                if seen:
                    error = _flush_block(r, block + k, seen, pagemap)
                    failed[0] = block + k
    if pagemap >= 0:
        close(pagemap)
    if error == 0 and r.source.sync != NULL:
        error = r.source.sync(r.source.ctx)
        failed[0] = first
        if error:
            _take_for_dirty(r, first, last)
    return error


cdef void _take_for_dirty(Region *r, uint64_t first, uint64_t last) noexcept nogil:
    """What was stored is not safe, and nobody says which of it (a kernel whose fsync failed has forgotten): all that is there is
    stored again."""
    cdef Clock *c
    cdef uint32_t *word
    cdef uint64_t block, k
    cdef uint32_t i, seen
    cdef int kind
    for kind in range(KINDS):
        c = &r.clocks[kind]
        for i in range(1, lm_load32(&c.top)):
            block = lm_load64(&c.frames[i].block)
            for k in range(c.blocks):
                if lm_load32(&c.frames[i].state) == USED and first <= block + k < last:
                    word = &r.words[block + k]
                    seen = lm_load32(word)
                    if seen & STATE == RESIDENT:
                        lm_cas32(word, seen, seen ^ (RESIDENT ^ DIRTY))
                    elif seen & STATE == WAITING:
                        lm_cas32(word, seen, seen ^ (WAITING ^ WAITING_DIRTY))


cdef bint region_dirty(Region *r, uint64_t first, uint64_t last) noexcept nogil:
    """Is anything of blocks [first, last) written and nowhere else? GIL: any. Blocks: no."""
    cdef Clock *c
    cdef uint64_t block, k, nbytes = whole_pages((last - first) * r.block_nbytes)
    cdef uint32_t i, seen
    cdef int kind, pagemap, written
    if not r.writable or first >= last:
        return False
    if r.tracking == ASYNC:
        if nbytes > r.map_nbytes - first * r.block_nbytes:
            nbytes = r.map_nbytes - first * r.block_nbytes
        pagemap = _open_pagemap()
        written = 1 if pagemap < 0 else _is_written(pagemap, r.base + first * r.block_nbytes, nbytes, False)
        if pagemap >= 0:
            close(pagemap)
        if written:
            return True
    for kind in range(KINDS):
        c = &r.clocks[kind]
        for i in range(1, lm_load32(&c.top)):
            block = lm_load64(&c.frames[i].block)
            if first <= block < last and lm_load32(&c.frames[i].state) == BUSY:
                return True
            if lm_load32(&c.frames[i].state) != USED or block + c.blocks <= first or block >= last:
                continue
            for k in range(c.blocks):
                seen = lm_load32(&r.words[block + k])
                if not first <= block + k < last:
                    continue
                if seen & STATE == DIRTY or seen & STATE == WAITING_DIRTY or seen & STATE == LEAVING:
                    return True
                if seen & STATE == RESIDENT and r.tracking == UNTRACKED:
                    return True
    return False
