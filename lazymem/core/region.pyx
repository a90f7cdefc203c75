"""Which region is at this address, and how does one come and go?

The registry. A fault knows an address and must find its region without a lock, in a signal handler too. Regions lie in a
sorted array read under a sequence lock: writers (creating, freeing) make the sequence odd, change the array, make it even;
readers look again if it moved. The readers never write there, so they scale. What they may read stale never goes away: an outgrown
array is kept (it doubles, so all old ones together are no larger than the new one), and Region structures are reused but never
given back. So a reader 1. finds a candidate, 2. enters it (users++), 3. checks that it is still a region and covers the
address; a slot is reused only while nobody is in it.
A writer blocks signals, so that no handler of the same thread can look for a region while the sequence is odd.

Closing follows one order: 1. status CLOSED: nobody new starts a fill; 2. PROT_NONE memory over the range, atomically: what was there is freed,
no touch can see zeros; 3. wait until nobody is in it; 4. wake whoever sleeps on its faults: they touch again and are stopped.
"""
from libc.string cimport memcpy, memmove, memset, strncpy

from libc.stdint cimport int64_t

from lazymem.core.failure cimport failure_log, standins_count
from lazymem.core.frames cimport *
from lazymem.core.limit cimport memory_force, memory_give
from lazymem.core.mprotect cimport (
    mprotect_copy, mprotect_copy_end, mprotect_empty, mprotect_forget_all, mprotect_inherit, mprotect_open, mprotect_release,
    mprotect_shut, mprotect_was_copied,
)
from lazymem.core.native cimport *
from lazymem.core.parking cimport lm_park
from lazymem.core.scratch cimport (
    scratch_after_fork, scratch_before_fork, scratch_close, scratch_in_child, scratch_open,
)
from lazymem.core.shared cimport shared_copy, shared_inherit, shared_open, shared_release
from lazymem.core.table cimport *
from lazymem.core.uffd cimport (
    FAULTS_MINOR, FAULTS_MISSING, FAULTS_WRITE, Uffd, page_is_absent, page_nbytes, uffd_is_guarded, uffd_make_sure, uffd_moves,
    uffd_protect, uffd_register, uffd_shares, uffd_tracks, uffd_tracks_async, uffd_wake, uffds_unguarded,
)


cdef extern from "native.h" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    int mprotect(void *, size_t, int)
    int munlock(const void *, size_t)
    int PROT_NONE, PROT_READ, PROT_WRITE
    int MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED, MAP_FIXED_NOREPLACE
    int MADV_DOFORK, MADV_DONTFORK, MADV_DONTNEED, MADV_HUGEPAGE
    void *MAP_FAILED

cdef extern from *:
    """
    #include "native.h"
    static pthread_mutex_t lm_registry_lock = PTHREAD_MUTEX_INITIALIZER;
    static inline void lm_registry_enter(sigset_t *before)
    {
        lm_no_signals(before);
        pthread_mutex_lock(&lm_registry_lock);
    }
    static inline void lm_registry_exit(const sigset_t *before)
    {
        pthread_mutex_unlock(&lm_registry_lock);
        lm_signals_again(before);
    }
    static inline void lm_registry_hold(void) { pthread_mutex_lock(&lm_registry_lock); }
    static inline void lm_registry_let_go(void) { pthread_mutex_unlock(&lm_registry_lock); }
    """
    void lm_registry_enter(sigset_t *before) noexcept nogil
    void lm_registry_exit(const sigset_t *before) noexcept nogil
    void lm_registry_hold() noexcept nogil
    void lm_registry_let_go() noexcept nogil

# Longer than a handler thread takes from waking who touched to having left.
cdef uint64_t PARTING_NS = 10000
# Huge pages need regions that start where they do.
cdef uint64_t ALIGN_NBYTES = 2 << 20
# An instruction may touch several blocks at once; so many can always be resident.
cdef uint64_t FLOOR_BLOCKS = 16
cdef uint64_t FLOOR_PAGES = 64

ctypedef struct Entry:
    uint64_t base
    Region *region

cdef uint64_t _sequence = 0
cdef Entry *_entries = NULL
cdef uint64_t _count = 0
cdef uint64_t _capacity = 0
cdef Region *_free_regions = NULL
cdef uint64_t _next_id = 1
cdef Region *_dying = NULL     # nobody finds them any more, but somebody is in them, or their source is still to be let go of


cdef void *_pages(uint64_t nbytes) noexcept nogil:
    cdef void *p = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if p == MAP_FAILED else p


cdef bint _insert(Region *r) noexcept nogil:
    """Thread: the writer, registry entered. Return: False when there is no memory."""
    cdef Entry *grown
    cdef uint64_t i, capacity
    if _count == _capacity:
        capacity = 256 if _capacity == 0 else _capacity * 2
        grown = <Entry *>_pages(capacity * sizeof(Entry))
        if grown == NULL:
            return False
        if _count:
            memcpy(grown, _entries, _count * sizeof(Entry))
        global_set(grown, capacity)
    i = 0
    while i < _count and _entries[i].base < r.base:
        i += 1
    sequence_moves()
    memmove(&_entries[i + 1], &_entries[i], (_count - i) * sizeof(Entry))
    _entries[i].base = r.base
    _entries[i].region = r
    count_set(_count + 1)
    sequence_moves()
    return True


cdef void global_set(Entry *grown, uint64_t capacity) noexcept nogil:
    global _entries, _capacity
    sequence_moves()
    _entries = grown  # the old array stays for readers that still look at it
    _capacity = capacity
    sequence_moves()


cdef void count_set(uint64_t count) noexcept nogil:
    global _count
    _count = count


cdef void sequence_moves() noexcept nogil:
    lm_add64(&_sequence, 1)


cdef void _remove(Region *r) noexcept nogil:
    """Thread: the writer, registry entered."""
    cdef uint64_t i = 0
    while i < _count and _entries[i].region != r:
        i += 1
    if i == _count:
        return
    sequence_moves()
    memmove(&_entries[i], &_entries[i + 1], (_count - i - 1) * sizeof(Entry))
    count_set(_count - 1)
    sequence_moves()


cdef Region *_beside(uint64_t addr, bint above) noexcept nogil:
    """The region with the greatest base that is not above `addr`, or with the lowest that is, as the registry stands; NULL: none.

    GIL: never. Blocks: no.
    """
    cdef uint64_t before, low, high, middle, count
    cdef Entry *entries
    cdef Region *found
    while True:
        before = lm_load64(&_sequence)
        if before & 1:
            lm_pause()
            continue
        low = 0
        high = count = lm_load64(&_count)  # before the array: one that has been outgrown since would be shorter
        entries = <Entry *>lm_load64(<uint64_t *>&_entries)
        while low < high:
            middle = (low + high) // 2
            if entries[middle].base <= addr:
                low = middle + 1
            else:
                high = middle
        found = NULL
        if above:
            if low < count:
                found = entries[low].region
        elif low:
            found = entries[low - 1].region
        lm_loads_done()
        if lm_load64(&_sequence) == before:
            return found


cdef Region *region_enter(uint64_t addr) noexcept nogil:
    """Find the region at an address and keep it from going away, until `region_leave`.

    The address just behind a region is its own too (an empty view at the end points there; a guard page lies there).
    Return: NULL when the address is not ours. Closed regions are found. GIL: never. Blocks: no. Thread: any.
    """
    cdef Region *r = _beside(addr, False)
    if r == NULL:
        return NULL
    lm_add32(&r.users, 1)
    if lm_load32(&r.status) == FREED or addr < r.base or addr > r.base + r.map_nbytes:
        lm_sub32(&r.users, 1)
        return NULL
    return r


cdef Region *region_enter_above(uint64_t addr) noexcept nogil:
    """Enter the region with the lowest base above `addr`: for a walk through all that holds nobody up. NULL: there is none.

    GIL: any. Blocks: no. Thread: any.
    """
    cdef Region *r
    while True:
        r = _beside(addr, True)
        if r == NULL:
            return NULL
        lm_add32(&r.users, 1)
        if lm_load32(&r.status) != FREED and r.base > addr:
            return r
        lm_sub32(&r.users, 1)


cdef bint regions_slot(uint64_t addr) noexcept nogil:
    """Is it in a slot, where evicted blocks wait? GIL: never. Blocks: no. Thread: any."""
    cdef Region *r
    cdef Clock *c
    cdef uint64_t at = 0, slots
    cdef bint found = False
    cdef int kind
    while not found:
        r = region_enter_above(at)
        if r == NULL:
            return False
        at = r.base
        for kind in range(KINDS):
            c = &r.clocks[kind]
            slots = lm_load64(&c.slots)
            if slots and slots <= addr < slots + c.most * c.nbytes:
                found = True
        region_leave(r)
    return True


cdef void region_leave(Region *r) noexcept nogil:
    """GIL: never. Blocks: no."""
    lm_sub32(&r.users, 1)


cdef Region *region_at(uint64_t addr) noexcept nogil:
    """`region_enter` for callers that know the region stays: they hold an array of it, or its owner. GIL: never. Blocks: no."""
    cdef Region *r = region_enter(addr)
    if r != NULL:
        lm_sub32(&r.users, 1)
    return r


cdef Region *region_numbered(uint64_t id) noexcept nogil:
    """The region with an id, or NULL. Thread: one that knows it stays, or only looks at its name. GIL: any. Blocks: no."""
    cdef sigset_t before
    cdef uint64_t i
    cdef Region *found = NULL
    lm_registry_enter(&before)
    for i in range(_count):
        if _entries[i].region.id == id:
            found = _entries[i].region
    lm_registry_exit(&before)
    return found


cdef uint64_t _reserve(uint64_t nbytes) noexcept nogil:
    """Address space for a region, a guard page on each side, so that neighbours never merge. Return: 0 when there is none."""
    cdef uint64_t page = page_nbytes(), whole = nbytes + ALIGN_NBYTES + 2 * page, start, base
    cdef void *p
    if whole < nbytes:
        return 0
    p = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if p == MAP_FAILED:
        return 0
    start = <uint64_t>p
    base = (start + page + ALIGN_NBYTES - 1) & ~(ALIGN_NBYTES - 1)
    if base - page > start:
        munmap(p, base - page - start)
    if start + whole > base + nbytes + page:
        munmap(<void *>(base + nbytes + page), start + whole - (base + nbytes + page))
    return base


cdef void _release(uint64_t base, uint64_t nbytes) noexcept nogil:
    munmap(<void *>(base - page_nbytes()), nbytes + 2 * page_nbytes())


cdef int _map_region(Region *r) noexcept nogil:
    """The one place where a region's memory is made. Return: 0 / -errno.

    1. Reserve PROT_NONE: under mlockall(MCL_FUTURE) memory that may be accessed would be filled with zeros at once.
    2. Not inherited: a child would read zeros where pages are missing. 3. Register: from here on no page appears but by us.
    4. Unlock (MCL_FUTURE locked it). 5. Allow access: read-only memory is read-only to C code too.
    An empty array's page stays out of bounds. Without a userfaultfd a file is laid over what was reserved, and stays out of bounds too.
    """
    cdef int error
    r.base = _reserve(r.map_nbytes)
    if r.base == 0:
        return -ENOMEM
    if r.delivery == MPROTECT:
        error = mprotect_open(&r.exposure, r.base, r.map_nbytes, r.block_nbytes, r.nblocks, r.words, &r.exports, r.writable)
        if error:
            _release(r.base, r.map_nbytes)
        return error
    if r.kind == ANONYMOUS:
        error = -errno if madvise(<void *>r.base, r.map_nbytes, MADV_DONTFORK) else 0
        if r.units and not r.writable:
            # A touch then leaves no page table where a huge page is to go. (One that is to be written would first clear a huge page.)
            madvise(<void *>r.base, r.map_nbytes, MADV_HUGEPAGE)
    else:
        error = shared_open(&r.exposure, r.base, r.map_nbytes, r.block_nbytes, r.nblocks, r.words, r.kind == CONTINUED)
    if error == 0:
        error = uffd_register(r.uffd, r.base, r.map_nbytes, _faults(r))
    if error == 0:
        munlock(<void *>r.base, r.map_nbytes)
        if r.nbytes and mprotect(<void *>r.base, r.map_nbytes, _access(r)):
            error = -errno
    if error and r.kind != ANONYMOUS:
        shared_release(&r.exposure)
    if error:
        _release(r.base, r.map_nbytes)
    return error


cdef int _access(Region *r) noexcept nogil:
    """Pages are moved between writable mappings only: then mode "r" is kept by numpy's flag."""
    return PROT_READ | (PROT_WRITE if r.writable or r.moves else 0)


cdef uint64_t _faults(Region *r) noexcept nogil:
    return FAULTS_MISSING | (FAULTS_WRITE if r.tracking != UNTRACKED else 0) | (FAULTS_MINOR if r.kind != ANONYMOUS else 0)


cdef bint region_slots(Region *r, Clock *c) noexcept nogil:
    """Make the slots of a kind of frames, where its blocks wait. Return: are there any? GIL: never. Blocks: no.

    Registered with the region's userfaultfd, without which nothing can be moved there; what lies in a file has none. Never touched
    while they are empty. Inherited by forked children where the region is.
    """
    cdef uint64_t nbytes = c.most * c.nbytes, base
    cdef int error
    if lm_load64(&c.slots):
        return True
    lm_park(b"slots")
    # Once and for all: who has seen none before another made them must not make others, and lose what waits in those.
    if not lm_cas32(&c.opening, 0, 1):
        return lm_load64(&c.slots) != 0    # else somebody is at it, or they cannot be had
    base = _reserve(nbytes) if not lies_in_file(r) else 0
    if base:
        error = madvise(<void *>base, nbytes, MADV_DONTFORK)
        if error == 0:
            error = uffd_register(r.uffd, base, nbytes, _faults(r))
        if error == 0:
            munlock(<void *>base, nbytes)
            error = mprotect(<void *>base, nbytes, PROT_READ | PROT_WRITE)
        if error == 0:
            lm_store64(&c.slots, base)
            lm_store32(&c.opening, 2)
            return True
        _release(base, nbytes)
    lm_store32(&c.opening, 2)
    return False


cdef void _make_clocks(Region *r) noexcept nogil:
    """The frames lie behind the table, in the same mapping, and behind them what is known of units."""
    cdef uint64_t at = r.nblocks * sizeof(uint32_t) + 16 & ~<uint64_t>15
    cdef Frame *frames = <Frame *>(<uint64_t>r.words + at)
    cdef uint32_t most = clock_most(r.nblocks, 1, r.block_nbytes, r.most_nbytes)
    clock_make(&r.clocks[SMALL], frames, r.block_nbytes, 1, most)
    frames += most + 1
    most = clock_most(r.nblocks, ALIGN_NBYTES // r.block_nbytes, ALIGN_NBYTES, r.most_nbytes) if r.units else 0
    clock_make(&r.clocks[UNITS], frames, ALIGN_NBYTES, ALIGN_NBYTES // r.block_nbytes, most)
    r.paged = <uint32_t *>(frames + most + 1)


cdef uint64_t _table_nbytes(Region *r) noexcept nogil:
    cdef uint64_t frames = clock_most(r.nblocks, 1, r.block_nbytes, r.most_nbytes) + 1
    cdef uint64_t units = 0
    if r.units:
        frames += clock_most(r.nblocks, ALIGN_NBYTES // r.block_nbytes, ALIGN_NBYTES, r.most_nbytes)
        units = r.map_nbytes // ALIGN_NBYTES + 1
    return (r.nblocks + units) * sizeof(uint32_t) + 16 + (frames + 1) * sizeof(Frame)


cdef void _free_slots(Region *r) noexcept nogil:
    cdef int kind
    for kind in range(KINDS):
        if r.clocks[kind].slots:
            _release(r.clocks[kind].slots, r.clocks[kind].most * r.clocks[kind].nbytes)
            r.clocks[kind].slots = 0


cdef void _count_nothing(Region *r) noexcept nogil:
    """All its memory is gone, and nobody is in it: nothing of it counts any more."""
    memory_give(lm_swap64(&r.held, 0))


cdef void _unmap_region(Region *r) noexcept nogil:
    if r.delivery == MPROTECT:
        mprotect_shut(&r.exposure)
        mprotect_release(&r.exposure)
    elif r.kind != ANONYMOUS:
        shared_release(&r.exposure)
    _release(r.base, r.map_nbytes)
    _free_slots(r)
    scratch_close(&r.scratch)
    table_destroy(r.words, _table_nbytes(r))


cdef void _settle(Region *r, const Terms *terms) noexcept nogil:
    """What the kernel, the kind of memory and the source allow of what was wanted."""
    cdef bint local = r.source.direct != NULL or (r.source.borrow == NULL and r.source.leaf)
    cdef uint64_t unit_blocks = ALIGN_NBYTES // r.block_nbytes
    r.filling = terms.filling
    r.moves = (r.delivery != MPROTECT and r.kind == ANONYMOUS and uffd_moves(r.uffd) and
               (terms.filling != FILL_COPY or r.writable))
    r.tracking = UNTRACKED
    if r.writable and not lies_in_file(r) and uffd_tracks(r.uffd):
        # Of what the kernel notes by itself, only a MOVE can tell what was written at the last moment.
        r.tracking = ASYNC if r.moves and uffd_tracks_async(r.uffd) else SYNC
    r.units = (r.moves and local and (not r.writable or r.writes_back) and terms.filling in (FILL_AUTO, FILL_MOVE) and
               unit_blocks > 1 and ALIGN_NBYTES % r.block_nbytes == 0 and unit_blocks <= 512 and
               r.nbytes >= 2 * ALIGN_NBYTES and
               (r.budget_nbytes == 0 or r.budget_nbytes >= FLOOR_BLOCKS * ALIGN_NBYTES))
    r.floor_nbytes = FLOOR_BLOCKS * r.block_nbytes
    if r.floor_nbytes < FLOOR_PAGES * page_nbytes():
        r.floor_nbytes = FLOOR_PAGES * page_nbytes()


cdef Region *region_create(Source source, uint64_t nbytes, const Terms *terms, Uffd *uffd, const char *name,
                           int *error) noexcept nogil:
    """Make a region, every block missing, and let faults find it.

    Units: block_nbytes a multiple of the page. Return: NULL, and `error` an -errno: -ENOMEM no address space or no memory
    for it (RLIMIT_AS, overcommit_memory=2, max_map_count), -EOPNOTSUPP shared memory, and no kernel for it; else as
    `mprotect_open`, `shared_open`. GIL: any. Blocks: no.
    """
    cdef Region *r
    cdef sigset_t before
    cdef uint64_t page = page_nbytes(), block_nbytes = terms.block_nbytes
    cdef bint inserted
    if terms.kind != ANONYMOUS and (terms.delivery == MPROTECT or not uffd_shares(uffd)):
        error[0] = -EOPNOTSUPP
        return NULL
    lm_registry_enter(&before)
    r = _take_slot()
    lm_registry_exit(&before)
    if r == NULL:
        error[0] = -ENOMEM
        return NULL
    r.source = source
    r.nbytes = nbytes
    r.map_nbytes = (nbytes + page - 1) & ~(page - 1)
    if r.map_nbytes == 0:
        r.map_nbytes = page
    r.block_nbytes = block_nbytes
    r.nblocks = (nbytes + block_nbytes - 1) // block_nbytes
    r.uffd = uffd
    r.delivery = terms.delivery
    r.kind = terms.kind
    r.writable = terms.writable
    r.writes_back = terms.writes_back
    r.timeout_ns = terms.timeout_ns
    r.retries = terms.retries
    r.budget_nbytes = terms.budget_nbytes
    r.most_nbytes = terms.budget_nbytes if terms.budget_nbytes else lm_memory_nbytes()
    r.store_errors = 0
    r.store_error = 0
    r.arrays = 0
    r.exports = 0
    r.owner = NULL
    r.held = 0
    r.standins = 0
    r.loose = 0
    r.absent_nbytes = 0
    r.errors = 0
    r.stores_lost = 0
    r.kernel_faults = False
    r.nests = 0
    r.last_failure = 0
    memset(&r.counters, 0, sizeof(Counters))
    strncpy(r.name, name, NAME_NBYTES - 1)
    r.name[NAME_NBYTES - 1] = 0
    _settle(r, terms)
    memset(&r.scratch, 0, sizeof(r.scratch))
    r.words = table_create(_table_nbytes(r))
    error[0] = -ENOMEM
    if r.words != NULL:
        _make_clocks(r)
        error[0] = _map_region(r)
        if error[0] == 0 and r.writable and terms.scratch != NULL and not lies_in_file(r):  # (there all stays)
            error[0] = scratch_open(&r.scratch, terms.scratch, r.nblocks, r.block_nbytes)
            if error[0]:
                _release(r.base, r.map_nbytes)
        if error[0]:
            table_destroy(r.words, _table_nbytes(r))
    lm_registry_enter(&before)
    if error[0] == 0:
        r.id = _take_id()
        lm_store32(&r.status, LIVE)
        inserted = _insert(r)
        if not inserted:
            lm_store32(&r.status, FREED)
            _unmap_region(r)
            error[0] = -ENOMEM
    if error[0]:
        _give_slot(r)
        r = NULL
    lm_registry_exit(&before)
    return r


cdef Region *_take_slot() noexcept nogil:
    """Thread: registry entered. A slot that nobody is in; a late lookup may still be leaving one that was freed."""
    global _free_regions
    cdef Region *r = _free_regions
    cdef Region *previous = NULL
    cdef Region *slab
    cdef uint64_t i, n = 32
    while r != NULL and lm_load32(&r.users) != 0:
        previous = r
        r = r.next_free
    if r != NULL:
        if previous == NULL:
            _free_regions = r.next_free
        else:
            previous.next_free = r.next_free
        return r
    slab = <Region *>_pages(n * sizeof(Region))
    if slab == NULL:
        return NULL
    for i in range(1, n):
        _give_slot(&slab[i])
    return slab


cdef void _give_slot(Region *r) noexcept nogil:
    """Thread: registry entered."""
    global _free_regions
    r.next_free = _free_regions
    _free_regions = r


cdef uint64_t _take_id() noexcept nogil:
    global _next_id
    _next_id += 1
    return _next_id - 1


cdef bint lies_in_file(Region *r) noexcept nogil:
    """Is its memory a file's, which no forked child gets by itself? GIL: never. Blocks: no."""
    return r.delivery == MPROTECT or r.kind != ANONYMOUS


cdef uint64_t region_block_nbytes(Region *r, uint64_t block) noexcept nogil:
    """Of the source's bytes, bytes: the last block may be short. GIL: never. Blocks: no."""
    cdef uint64_t offset = block * r.block_nbytes
    return r.nbytes - offset if r.nbytes - offset < r.block_nbytes else r.block_nbytes


cdef uint64_t whole_pages(uint64_t nbytes) noexcept nogil:
    """Rounded up to pages. GIL: never. Blocks: no."""
    return (nbytes + page_nbytes() - 1) & ~(page_nbytes() - 1)


cdef int region_close(Region *r, uint64_t deadline_ns) noexcept nogil:
    """Take the memory away and wait for whoever is on the fill path.

    Return: 0; -ETIMEDOUT somebody is still in a fetch: memory is gone all the same, the source must stay; -ENOMEM the kernel refused.
    GIL: any. Blocks: until the deadline. Thread: any, once.
    """
    cdef uint64_t pause_ns = 1000, spin_until_ns
    lm_store32(&r.status, CLOSED)  # 1.
    if r.delivery == MPROTECT:
        mprotect_shut(&r.exposure)
    lm_park(b"close 1")
    if mmap(<void *>r.base, r.map_nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
            -1, 0) == MAP_FAILED:  # 2.
        return -errno
    madvise(<void *>r.base, r.map_nbytes, MADV_DONTFORK)
    lm_park(b"close 2")
    if lies_in_file(r):
        mprotect_empty(&r.exposure)
    if r.delivery != MPROTECT:
        uffd_wake(r.uffd, r.base, r.map_nbytes)
    spin_until_ns = lm_now_ns() + PARTING_NS
    while lm_load32(&r.users) != 0 and lm_now_ns() < spin_until_ns:  # 3. a handler thread that is just leaving
        lm_pause()
    while lm_load32(&r.users) != 0:  # a fetch
        if lm_now_ns() >= deadline_ns:
            return -ETIMEDOUT
        lm_sleep_ns(pause_ns)
        if pause_ns < 1000000:
            pause_ns *= 2
    _count_nothing(r)
    lm_park(b"close 3")
    if r.delivery == MPROTECT:
        mprotect_release(&r.exposure)
    else:
        uffd_wake(r.uffd, r.base, r.map_nbytes)  # 4. again: a fault may have been queued between 2 and 3
    return 0


cdef bint region_free(Region *r) noexcept nogil:
    """Give a closed region's address space and table back.

    Return: False while somebody is still in it: call again later. GIL: any. Blocks: no.
    """
    cdef sigset_t before
    cdef bint freed
    lm_registry_enter(&before)
    _remove(r)                       # 1. nobody finds it any more
    freed = _free(r)                 # 2. who found it before?
    if freed:
        _give_slot(r)
    lm_registry_exit(&before)
    return freed


cdef bint _free(Region *r) noexcept nogil:
    """Thread: registry entered. Return: False while somebody is in it."""
    if lm_load32(&r.users) != 0:
        return False
    lm_store32(&r.status, FREED)
    standins_count(-<int64_t>lm_load64(&r.standins))
    lm_store64(&r.standins, 0)
    _count_nothing(r)
    _unmap_region(r)
    r.words = NULL
    return True


# ---------------------------------------------------------------------------------------------------------------------------
# Dying
#
# What could not be freed, since somebody was in it: its memory goes as soon as nobody is (no GIL), its source after that (with it).

cdef void region_die(Region *r, void *kept) noexcept nogil:
    """Note a region that `region_free` could not free, and a reference to what keeps its source. GIL: any. Blocks: no."""
    cdef sigset_t before
    global _dying
    lm_registry_enter(&before)
    r.kept = kept
    r.next_free = _dying
    _dying = r
    lm_registry_exit(&before)


cdef Region *region_left_behind() noexcept nogil:
    """One of those that died with something written that its source does not have, entered; NULL: there is none. GIL: any. Blocks: no."""
    cdef sigset_t before
    cdef Region *r
    lm_registry_enter(&before)
    r = _dying
    while r != NULL and lm_load32(&r.status) != LIVE:
        r = r.next_free
    if r != NULL:
        lm_add32(&r.users, 1)
    lm_registry_exit(&before)
    return r


cdef void region_unlist(Region *r) noexcept nogil:
    """Nobody finds a dying region by its address any more. GIL: any. Blocks: no."""
    cdef sigset_t before
    lm_registry_enter(&before)
    _remove(r)
    lm_registry_exit(&before)


cdef bint regions_free(uint32_t *freed) noexcept nogil:
    """Free the memory of those that nobody is in any more. Return: are there any left with memory? GIL: any. Blocks: no.

    Units: `freed` counts those that are to be buried.
    """
    cdef sigset_t before
    cdef Region *r
    cdef bint left = False
    freed[0] = 0
    lm_registry_enter(&before)
    r = _dying
    while r != NULL:
        if lm_load32(&r.status) == FREED or (lm_load32(&r.status) != LIVE and _free(r)):
            freed[0] += 1
        else:
            left = True
        r = r.next_free
    lm_registry_exit(&before)
    return left


cdef bint region_bury(void **kept) noexcept nogil:
    """Take one that is freed off the list. Return: was there one? `kept`: the reference, now the caller's. GIL: held. Blocks: no."""
    cdef sigset_t before
    cdef Region *r
    cdef Region **link
    global _dying
    lm_registry_enter(&before)
    link = &_dying
    while link[0] != NULL and lm_load32(&link[0].status) != FREED:
        link = &link[0].next_free
    r = link[0]
    if r != NULL:
        link[0] = r.next_free
        kept[0] = r.kept
        _give_slot(r)
    lm_registry_exit(&before)
    return r != NULL


# ---------------------------------------------------------------------------------------------------------------------------
# A userfaultfd that is lost

cdef uint32_t _severed = 0


cdef bint regions_severed() noexcept nogil:
    """Has a userfaultfd that nobody holds for us been closed by somebody else? Then missing pages are zeros: memory is taken away.

    Asked as operations and guards end, where a fill fails, and when arrays are made; costs nothing where there is a guardian.
    Return: True if any region has lost its memory so, now or earlier. GIL: any. Blocks: for microseconds.
    """
    cdef sigset_t before
    cdef uint64_t i
    cdef Region *r
    cdef Uffd *sure = NULL
    if not uffds_unguarded():
        return False
    lm_registry_enter(&before)
    for i in range(_count):
        r = _entries[i].region
        if lm_load32(&r.status) != LIVE or r.uffd == NULL or r.uffd == sure:
            continue
        if uffd_is_guarded(r.uffd) or uffd_make_sure(r.uffd) == 0:
            sure = r.uffd
            continue
        lm_store32(&r.status, SEVERED)
        mmap(<void *>r.base, r.map_nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
        madvise(<void *>r.base, r.map_nbytes, MADV_DONTFORK)
        lm_store32(&_severed, 1)
    lm_registry_exit(&before)
    return lm_load32(&_severed) != 0


cdef bint region_take_away(Region *r) noexcept nogil:
    """Somebody has unregistered memory of a live region: what was read of it may be zeros that are no data. No more of that.

    Every guard and operation that is on its way hears of it. Under the registry's lock, so that no forked child gets the memory and is
    not told what it is.
    Return: False if the region is being closed instead. GIL: any. Blocks: no. Thread: one that is in the region.
    """
    cdef sigset_t before
    cdef bint live
    lm_registry_enter(&before)
    live = lm_load32(&r.status) == LIVE
    if live:
        failure_log(r.id, 0, 0, EBADF)             # 1. who leaves a guard finds this, or looks at the memory itself
        live = lm_cas32(&r.status, LIVE, UNREGISTERED)
    if live:                                       # 2. no touch sees zeros any more
        mmap(<void *>r.base, r.map_nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
        madvise(<void *>r.base, r.map_nbytes, MADV_DONTFORK)
    lm_registry_exit(&before)
    if live:
        uffd_wake(r.uffd, r.base, r.map_nbytes)    # 3. sleepers touch again, and are stopped
    return live


cdef void regions_wake(Uffd *uffd) noexcept nogil:
    """Who sleeps for a page of any region of this userfaultfd looks again: while it had no number, nobody could be woken.

    GIL: any. Blocks: no.
    """
    cdef sigset_t before
    cdef uint64_t i
    lm_registry_enter(&before)
    for i in range(_count):
        if _entries[i].region.uffd == uffd:
            uffd_wake(uffd, _entries[i].region.base, _entries[i].region.map_nbytes)
    lm_registry_exit(&before)


# ---------------------------------------------------------------------------------------------------------------------------
# Forks
#
# A region is MADV_DONTFORK: a child that comes about without these functions (a raw clone) has no memory there, and stops. An ordinary fork
# goes through them:
#
#   before       1. the registry stands still   2. regions with private writes are MADV_DOFORK: the child is to see them as of now;
#                those that lie in shared memory: what is resident of them is copied for the child, whose memory that is: this process's
#                budget does not count it, and need not have room (the default one is half of what is left)
#   the parent   3. DONTFORK again
#   the child    has a userfaultfd of its own, since the parent's acts on the parent's memory, and registers with it
#                4. memory that it got, private writes and all: resident blocks stay; what was under way is missing
#                5. memory that it did not get, at the same addresses: every block is missing, and is fetched again by whoever touches it
#                6. where that fails nothing is ever readable there: operations raise, a touch stops
# What the parent was fetching goes on there, into its own memory. Blocks under way were claimed by threads that the child does not have.

cdef void _share_private_writes(bint share) noexcept nogil:
    cdef uint64_t i
    cdef int kind
    cdef Region *r
    for i in range(_count):
        r = _entries[i].region
        if not r.writable or lm_load32(&r.status) != LIVE:
            continue
        if r.scratch.folder != NULL and share:
            scratch_before_fork(&r.scratch)
        elif r.scratch.folder != NULL:
            scratch_after_fork(&r.scratch)
        if not lies_in_file(r):
            madvise(<void *>r.base, r.map_nbytes, MADV_DOFORK if share else MADV_DONTFORK)
            for kind in range(KINDS):
                if r.clocks[kind].slots:
                    madvise(<void *>r.clocks[kind].slots, r.clocks[kind].most * r.clocks[kind].nbytes,
                            MADV_DOFORK if share else MADV_DONTFORK)
        elif not share:
            mprotect_copy_end(&r.exposure)
        elif r.kind == ANONYMOUS:
            mprotect_copy(&r.exposure)
        else:
            shared_copy(&r.exposure)


cdef void regions_hold() noexcept nogil:
    """Before a fork: nobody is changing the registry while it is copied. GIL: any. Blocks: for microseconds, and as long as it takes
    to copy what is resident of arrays with private writes in shared memory."""
    lm_registry_hold()
    moves_hold()               # no block is between region and slot
    lm_park(b"fork held")
    _share_private_writes(True)


cdef void regions_let_go() noexcept nogil:
    """After it, in the parent and in the child. GIL: any."""
    _share_private_writes(False)
    moves_let_go()
    lm_registry_let_go()


cdef void _keep_resident(Region *r) noexcept nogil:
    """4. What of the table is still true of memory that was copied at some moment of the parent's."""
    cdef uint64_t block, whole
    cdef uint32_t word, state
    cdef Clock *c
    for block in range(r.nblocks):
        word = r.words[block]
        state = word & STATE
        if word == MISSING:
            continue
        if is_resident(word) and (not lies_in_file(r) or mprotect_was_copied(&r.exposure, block)):
            r.counters.blocks += 1
            if frame_of(word):  # (memory is copied a page at a time: the frame may be from before the word)
                c = &r.clocks[word >> UNIT_SHIFT]
                frame_use(c, frame_of(word), block - block % c.blocks)
            continue
        if is_waiting(word):
            continue
        if not lies_in_file(r) and (word & STANDIN or state == LEAVING):
            whole = whole_pages(region_block_nbytes(r, block))
            madvise(<void *>(r.base + block * r.block_nbytes), whole, MADV_DONTNEED)
        r.words[block] = MISSING


cdef void _keep_stored(Region *r) noexcept nogil:
    """Blocks that the parent was writing back: what they hold is here, and is not known to be anywhere else."""
    cdef Clock *c
    cdef Frame *f
    cdef uint64_t k, at
    cdef uint32_t i
    cdef int kind
    cdef bint waits
    for kind in range(KINDS):
        c = &r.clocks[kind]
        for i in range(1, c.top):
            f = &c.frames[i]
            if f.state != USED:
                continue
            for k in range(c.blocks):
                if r.words[f.block + k] & STATE == LEAVING:
                    at = r.base + (f.block + k) * r.block_nbytes
                    waits = not lies_in_file(r) and page_is_absent(at)
                    r.words[f.block + k] = in_frame(WAITING_DIRTY if waits else DIRTY, i, <uint32_t>kind)


cdef void _keep_frames(Region *r) noexcept nogil:
    """Frames that somebody of the parent's was filling are empty here."""
    cdef Clock *c
    cdef Frame *f
    cdef uint32_t i, word
    cdef int kind
    _count_nothing(r)
    for kind in range(KINDS):
        c = &r.clocks[kind]
        c.empty = 0
        c.used = c.top - 1
        c.waiting = 0
        c.opening = 0
        for i in range(1, c.top):
            f = &c.frames[i]
            f.pins = 0
            word = r.words[f.block] if f.state == USED else <uint32_t>MISSING
            if (is_resident(word) or is_waiting(word)) and frame_of(word) == i and (word >> UNIT_SHIFT) == <uint32_t>kind:
                r.held += c.nbytes
                memory_force(c.nbytes)
                c.waiting += is_waiting(word)
                continue
            if c.slots:
                madvise(<void *>frame_slot(c, i), c.nbytes, MADV_DONTNEED)
            frame_empty(c, i)


cdef void _forget_resident(Region *r) noexcept nogil:
    """5."""
    cdef int kind
    if madvise(r.words, _table_nbytes(r), MADV_DONTNEED):
        memset(r.words, 0, _table_nbytes(r))  # somebody locked it (mlockall)
    memory_give(r.held)
    r.held = 0
    _make_clocks(r)            # slots were not inherited


cdef void _keep_written(Region *r) noexcept nogil:
    """What is written here stays here: a child's arrays are private. Write protection is not inherited: resident is written."""
    cdef uint64_t block
    r.writes_back = False
    if r.tracking == SYNC and uffd_protect(r.uffd, r.base, r.map_nbytes, True) == 0:
        return
    for block in range(r.nblocks):
        if r.words[block] & STATE == RESIDENT:
            r.words[block] ^= RESIDENT ^ DIRTY


cdef int _inherit_file(Region *r) noexcept nogil:
    """`_inherit` for memory that is a file's."""
    if r.writable:
        _keep_stored(r)
        _keep_resident(r)
        _keep_written(r)
        _keep_frames(r)
        return mprotect_inherit(&r.exposure, True)
    _forget_resident(r)
    return mprotect_inherit(&r.exposure, False)


cdef int _inherit_shared(Region *r, Uffd *uffd) noexcept nogil:
    """`_inherit` for memory that is a file's and has a userfaultfd. What was copied for it is in the file, mapped as it is touched."""
    cdef int error
    if not uffd_shares(uffd):
        return -EOPNOTSUPP
    if r.writable:
        _keep_stored(r)
        _keep_resident(r)
        _keep_written(r)
        _keep_frames(r)
    else:
        _forget_resident(r)
    error = shared_inherit(&r.exposure, r.writable)
    if error == 0:
        error = uffd_register(uffd, r.base, r.map_nbytes, _faults(r))
    if error == 0 and r.nbytes and mprotect(<void *>r.base, r.map_nbytes, _access(r)):
        error = -errno
    return error


cdef int _inherit(Region *r, Uffd *uffd) noexcept nogil:
    """Make a region of the parent's work in this child. Return: 0 / -errno."""
    cdef int error
    if uffd.fd < 0:
        return -EBADF
    cdef int kind
    if r.kind != ANONYMOUS:
        return _inherit_shared(r, uffd)
    if r.writable:
        r.moves = r.moves and uffd_moves(uffd)
        if r.tracking != UNTRACKED:  # what was noted of writes is lost with the parent's registration: all may be written
            r.tracking = UNTRACKED if not uffd_tracks(uffd) else ASYNC if r.moves and uffd_tracks_async(uffd) else SYNC
        error = uffd_register(uffd, r.base, r.map_nbytes, _faults(r))
        for kind in range(KINDS):
            if error == 0 and r.clocks[kind].slots:
                error = uffd_register(uffd, r.clocks[kind].slots, r.clocks[kind].most * r.clocks[kind].nbytes, _faults(r))
        if error == 0:
            _keep_stored(r)
            _keep_resident(r)
            _keep_written(r)
            _keep_frames(r)
    else:
        if mmap(<void *>r.base, r.map_nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
                -1, 0) == MAP_FAILED:
            return -errno
        madvise(<void *>r.base, r.map_nbytes, MADV_DONTFORK)
        r.moves = r.moves and uffd_moves(uffd)
        error = uffd_register(uffd, r.base, r.map_nbytes, _faults(r))
        munlock(<void *>r.base, r.map_nbytes)
        _forget_resident(r)
        if error == 0 and r.nbytes and mprotect(<void *>r.base, r.map_nbytes, _access(r)):
            error = -errno
    return error


cdef void regions_reserve() noexcept nogil:
    """In a forked child, before anything there is mapped (a guardian's stack, ...): the addresses of memory that it did not get are
    its own. GIL: any. Blocks: no. Thread: the only one."""
    cdef uint64_t i
    cdef Region *r
    for i in range(_count):
        r = _entries[i].region
        if lm_load32(&r.status) == LIVE and r.writable and not lies_in_file(r):
            continue  # it got that
        if mmap(<void *>r.base, r.map_nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
                -1, 0) == MAP_FAILED and lm_load32(&r.status) == LIVE:
            lm_store32(&r.status, LOST)


cdef void regions_inherit(Uffd *uffd) noexcept nogil:
    """In a forked child: make its parent's regions work here, served by `uffd`, inline; those without one as they were.

    Without a descriptor (-1) they are LOST. GIL: any. Blocks: no. Thread: the only one.
    """
    cdef uint64_t i
    cdef Region *r
    cdef int error
    mprotect_forget_all()
    r = _dying
    while r != NULL:  # who was in it is not here; its addresses stay its own until it is freed
        if lm_load32(&r.status) == LIVE:  # the parent stores what is left of it
            lm_store32(&r.status, CLOSED)
            _remove(r)
        if lm_load32(&r.status) != FREED:
            lm_store32(&r.users, 0)
            mmap(<void *>r.base, r.map_nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0)
        r = r.next_free
    for i in range(_count):
        r = _entries[i].region
        lm_store32(&r.users, 0)
        r.standins = 0
        r.loose = 0
        if lm_load32(&r.status) == LIVE:
            scratch_in_child(&r.scratch)
            memset(&r.counters, 0, sizeof(Counters))
            if r.delivery == MPROTECT:
                error = _inherit_file(r)
            else:
                r.uffd = uffd
                r.delivery = INLINE
                r.kernel_faults = False
                error = _inherit(r, uffd)
            if error == 0:
                continue
            lm_store32(&r.status, LOST)  # 6.
            mmap(<void *>r.base, r.map_nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)


cdef bint regions_any() noexcept nogil:
    """Are there regions that a child could inherit? GIL: any. Blocks: no. Thread: the only one."""
    return _count != 0 or _dying != NULL
