"""What does each way of getting a block into place cost, and nothing else?

For `lazymem bench copy-or-move`: bare loops over the core's own ioctls, over mremap and over memcpy. No table, no source, no
delivery; nothing faults, but where waking a sleeper is what is timed. One field is laid out at a time (`lay`, then `fill` or
`wake`, then `clear`), in a process that makes no lazy array.
"""
from libc.string cimport memcpy, memset, strcmp
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.unistd cimport close, ftruncate, read

from lazymem.core.abi cimport (
    UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MISSING_SHMEM, UFFD_FEATURE_MOVE, UFFD_FEATURE_PAGEFAULT_FLAG_WP, uffd_msg,
)
from lazymem.core.native cimport *
from lazymem.core.uffd cimport (
    ASLEEP, FAULTS_MINOR, FAULTS_MISSING, FAULTS_WRITE, PLAINLY, PROTECTED, CopyCounts, Uffd, page_nbytes, uffd_continue,
    uffd_copy, uffd_move, uffd_open, uffd_read, uffd_register, uffd_wake, uffd_zero,
)


cdef extern from "native.h" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    int PROT_NONE, PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED
    int MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTNEED
    void *MAP_FAILED

cdef extern from *:
    """
    #include <sched.h>
    static inline void *lm_mremap_onto(void *from, size_t nbytes, void *to)
    {
        return mremap(from, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    }
    static inline int lm_memfd(void) { return (int)syscall(SYS_memfd_create, "lazymem-bench", 1u /* MFD_CLOEXEC */); }
    static inline int lm_onto_core(int core)
    {
        cpu_set_t cores;
        CPU_ZERO(&cores);
        CPU_SET(core, &cores);
        return sched_setaffinity(0, sizeof cores, &cores) ? -errno : 0;
    }
    """
    void *lm_mremap_onto(void *origin, size_t nbytes, void *to) noexcept nogil
    int lm_memfd() noexcept nogil
    int lm_onto_core(int core) noexcept nogil

# ---------------------------------------------------------------------------------------------------------------------------
# The field
#
# One mapping, its parts apart from each other, that one munmap gives back:
#     region   what is filled. For what recycles, twice as long: its first half is evicted as its second is filled
#     slot     one block of staging memory
#     ready    as long as the region: what is moved between two ordinary ranges; the alias of shared memory
# What lies where, and is it there already? That is all in which the ways of filling differ, but for the step (Way.step).

cdef uint64_t HUGE_NBYTES = 2 << 20

cdef enum Laying:
    RESIDENT = 1         # the region is there: a plain copy overwrites it
    ORDINARY = 2         # the region is not registered
    EVICTED = 4          # its first half is there, and goes as the second comes
    SHARED = 8           # the region is a memory file's
    ALIASED = 16         # and mapped a second time, at `ready`
    READY = 32           # `ready` holds the blocks
    STAGED = 64          # the slot's pages are there, and stay
    WRITES = 128         # registered for writes too
    MINOR = 256          # and for minor faults
    SMALL = 512          # no huge pages, whatever the size; but for what is staged
    VANISHING = 1024     # what is moved away leaves no mapping behind

ctypedef struct Field:
    uint64_t mapping
    uint64_t mapping_nbytes
    uint64_t region      # where the filled blocks are
    uint64_t slot
    uint64_t ready
    uint64_t block_nbytes
    uint64_t nblocks
    uint64_t source      # so many blocks of it, resident, fetched from in turn
    uint64_t source_blocks
    uint64_t fetching_ns # of the block being filled: how much of its time was the fetch
    uint32_t laying
    int memfd
    CopyCounts counts

ctypedef int (*Step)(Field *f, uint64_t i) noexcept nogil

ctypedef struct Way:
    const char *name
    Step step            # fetch block i, and place it. 0 / -errno
    uint32_t laying
    uint64_t features    # what it needs of the kernel

cdef Uffd _uffd
_uffd.fd = -1
cdef Field _field
_field.mapping = 0
cdef Step _step = NULL


cdef inline uint64_t _to(Field *f, uint64_t i) noexcept nogil:
    return f.region + i * f.block_nbytes


cdef inline uint64_t _bytes_of(Field *f, uint64_t i) noexcept nogil:
    return f.source + i % f.source_blocks * f.block_nbytes


cdef inline void _fetch(Field *f, uint64_t to, uint64_t i) noexcept nogil:
    cdef uint64_t began_ns = lm_now_ns()
    memcpy(<void *>to, <void *>_bytes_of(f, i), f.block_nbytes)
    f.fetching_ns = lm_now_ns() - began_ns


cdef int _move(Field *f, uint64_t to, uint64_t origin) noexcept nogil:
    cdef uint64_t moved = 0
    return uffd_move(&_uffd, to, origin, f.block_nbytes, PLAINLY, &moved)

# ---------------------------------------------------------------------------------------------------------------------------
# The ways

cdef int _by_memcpy(Field *f, uint64_t i) noexcept nogil:
    memcpy(<void *>_to(f, i), <void *>_bytes_of(f, i), f.block_nbytes)
    return 0


cdef int _by_copy(Field *f, uint64_t i) noexcept nogil:
    _fetch(f, f.slot, i)
    return uffd_copy(&_uffd, _to(f, i), f.slot, f.block_nbytes, PLAINLY, &f.counts)


cdef int _by_protected_copy(Field *f, uint64_t i) noexcept nogil:
    _fetch(f, f.slot, i)
    return uffd_copy(&_uffd, _to(f, i), f.slot, f.block_nbytes, PROTECTED, &f.counts)


cdef int _by_move(Field *f, uint64_t i) noexcept nogil:
    """The slot is empty: fetching into it is what brings fresh pages."""
    _fetch(f, f.slot, i)
    return _move(f, _to(f, i), f.slot)


cdef int _by_recycling(Field *f, uint64_t i) noexcept nogil:
    """Block i of the first half goes, and its pages come back as block i of the second."""
    cdef int error = _move(f, f.slot, _to(f, i) - f.nblocks * f.block_nbytes)
    if error:
        return error
    _fetch(f, f.slot, i)
    return _move(f, _to(f, i), f.slot)


cdef int _by_copy_in_place(Field *f, uint64_t i) noexcept nogil:
    """The same as recycling without a move: block i of the first half is dropped."""
    if madvise(<void *>(_to(f, i) - f.nblocks * f.block_nbytes), f.block_nbytes, MADV_DONTNEED):
        return -errno
    return _by_copy(f, i)


cdef int _by_zero(Field *f, uint64_t i) noexcept nogil:
    return uffd_zero(&_uffd, _to(f, i), f.block_nbytes)


cdef int _by_continuing(Field *f, uint64_t i) noexcept nogil:
    _fetch(f, f.ready + i * f.block_nbytes, i)
    return uffd_continue(&_uffd, _to(f, i), f.block_nbytes, PLAINLY)


cdef int _map(uint64_t addr, uint64_t nbytes, bint huge, int fd) noexcept nogil:
    """Put fresh memory at an address that is ours. Return: 0 / -errno."""
    cdef int flags = MAP_FIXED | MAP_NORESERVE | (MAP_SHARED if fd >= 0 else MAP_PRIVATE | MAP_ANONYMOUS)
    if mmap(<void *>addr, nbytes, PROT_READ | PROT_WRITE, flags, fd, 0) == MAP_FAILED:
        return -errno
    if fd < 0:
        madvise(<void *>addr, nbytes, MADV_HUGEPAGE if huge else MADV_NOHUGEPAGE)  # EINVAL: a kernel without them
    return 0


cdef bint _is_huge(Field *f) noexcept nogil:
    return f.block_nbytes >= HUGE_NBYTES and not f.laying & SMALL


cdef int _by_mremap(Field *f, uint64_t i) noexcept nogil:
    """mremap takes the slot's mapping along, so each block needs another."""
    cdef int error = _map(f.slot, f.block_nbytes, _is_huge(f), -1)
    if error:
        return error
    _fetch(f, f.slot, i)
    if lm_mremap_onto(<void *>f.slot, f.block_nbytes, <void *>_to(f, i)) == MAP_FAILED:
        return -errno
    return 0


cdef int _between_by_memcpy(Field *f, uint64_t i) noexcept nogil:
    memcpy(<void *>_to(f, i), <void *>(f.ready + i * f.block_nbytes), f.block_nbytes)
    return 0


cdef int _between_by_move(Field *f, uint64_t i) noexcept nogil:
    return _move(f, _to(f, i), f.ready + i * f.block_nbytes)


cdef int _between_by_mremap(Field *f, uint64_t i) noexcept nogil:
    if lm_mremap_onto(<void *>(f.ready + i * f.block_nbytes), f.block_nbytes, <void *>_to(f, i)) == MAP_FAILED:
        return -errno
    return 0


cdef enum:
    WAYS = 14

cdef Way[WAYS] _ways
_ways[0] = Way(b"memcpy", _by_memcpy, RESIDENT | ORDINARY, 0)
_ways[1] = Way(b"copy", _by_copy, STAGED, 0)
_ways[2] = Way(b"copy-protected", _by_protected_copy, STAGED | WRITES, UFFD_FEATURE_PAGEFAULT_FLAG_WP)
_ways[3] = Way(b"move-fresh", _by_move, 0, UFFD_FEATURE_MOVE)
_ways[4] = Way(b"move-fresh-small", _by_move, SMALL, UFFD_FEATURE_MOVE)
_ways[5] = Way(b"move-recycled", _by_recycling, EVICTED, UFFD_FEATURE_MOVE)
_ways[6] = Way(b"zero", _by_zero, 0, 0)
_ways[7] = Way(b"shared-copy", _by_copy, STAGED | SHARED, UFFD_FEATURE_MISSING_SHMEM)
_ways[8] = Way(b"shared-continue", _by_continuing, SHARED | ALIASED | MINOR, UFFD_FEATURE_MINOR_SHMEM)
_ways[9] = Way(b"mremap", _by_mremap, VANISHING, 0)
_ways[10] = Way(b"ranges-memcpy", _between_by_memcpy, RESIDENT | ORDINARY | READY, 0)
_ways[11] = Way(b"ranges-move", _between_by_move, READY, UFFD_FEATURE_MOVE)
_ways[12] = Way(b"ranges-mremap", _between_by_mremap, ORDINARY | READY | VANISHING, 0)
_ways[13] = Way(b"copy-evicting", _by_copy_in_place, STAGED | EVICTED | SMALL, 0)


def start():
    """Open this process's userfaultfd.

    Returns
    -------
    list of str
        The ways that this kernel has, of all that there are.

    Raises
    ------
    OSError
        No userfaultfd.

    Notes
    -----
    Blocks: no. GIL: kept.
    """
    cdef int error, i
    if _uffd.fd < 0:
        error = uffd_open(&_uffd, 0, True)
        if error:
            raise OSError(-error, "userfaultfd")
    return [_ways[i].name.decode() for i in range(WAYS) if not _ways[i].features & ~_uffd.features]


cdef int _make_resident(uint64_t addr, uint64_t nbytes) noexcept nogil:
    memset(<void *>addr, 1, nbytes)
    return 0


cdef int _lay(Field *f) noexcept nogil:
    """Lay the field out as `laying` says. Return: 0; -errno, and then `clear` is due."""
    cdef uint64_t nbytes = f.nblocks * f.block_nbytes, all_nbytes = nbytes * (2 if f.laying & EVICTED else 1), i
    cdef uint64_t faults = FAULTS_MISSING
    cdef bint huge = _is_huge(f)
    cdef int error
    # 1. Address space, with room between the parts.
    f.mapping_nbytes = all_nbytes + f.block_nbytes + nbytes + 7 * HUGE_NBYTES
    cdef void *p = mmap(NULL, f.mapping_nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if p == MAP_FAILED:
        return -errno
    f.mapping = <uint64_t>p
    cdef uint64_t first = (f.mapping + HUGE_NBYTES) & ~(HUGE_NBYTES - 1)
    f.region = first + all_nbytes - nbytes
    f.slot = (first + all_nbytes + 2 * HUGE_NBYTES) & ~(HUGE_NBYTES - 1)
    f.ready = (f.slot + f.block_nbytes + 2 * HUGE_NBYTES) & ~(HUGE_NBYTES - 1)
    # 2. The region, and what is there of it: before anybody is asked for its missing pages.
    if f.laying & SHARED:
        f.memfd = lm_memfd()
        if f.memfd < 0 or ftruncate(f.memfd, <long>nbytes):
            return -errno
    error = _map(first, all_nbytes, huge, f.memfd)
    if error:
        return error
    if f.laying & RESIDENT:
        _make_resident(first, all_nbytes)
    if f.laying & EVICTED:
        _make_resident(first, nbytes)
    if not f.laying & ORDINARY:
        faults |= FAULTS_WRITE if f.laying & WRITES else 0
        faults |= FAULTS_MINOR if f.laying & MINOR else 0
        error = uffd_register(&_uffd, first, all_nbytes, faults)
        if error:
            return error
    # 3. The slot. What is evicted into it must find it registered too.
    error = _map(f.slot, f.block_nbytes, huge or f.laying & STAGED != 0, -1)
    if error == 0 and f.laying & EVICTED and not f.laying & STAGED:
        error = uffd_register(&_uffd, f.slot, f.block_nbytes, FAULTS_MISSING)
    if error:
        return error
    if f.laying & STAGED:
        _make_resident(f.slot, f.block_nbytes)
    # 4. What is ready.
    if f.laying & (READY | ALIASED):
        error = _map(f.ready, nbytes, huge, f.memfd)
        if error:
            return error
    if f.laying & READY:
        for i in range(f.nblocks):
            memcpy(<void *>(f.ready + i * f.block_nbytes), <void *>_bytes_of(f, i), f.block_nbytes)
    return 0


def lay(str name not None, uint64_t nblocks, uint64_t block_nbytes, size_t source, uint64_t source_blocks):
    """Make everything that one way of filling needs, but for the blocks themselves.

    Parameters
    ----------
    name : str
        One that `start` gave.
    block_nbytes : int, bytes
        A power of two, from a page to 2 MiB.
    source, source_blocks : int
        Address of so many resident blocks; block i of the region gets block i % source_blocks. It must stay.

    Returns
    -------
    int
        Address of the region.

    Raises
    ------
    OSError
        What the kernel refused.
    RuntimeError
        Something is laid out already.
    ValueError
        No such way, or no such block.

    Notes
    -----
    Blocks: while memory is made resident. GIL: released meanwhile.
    """
    global _step
    cdef int error, i
    cdef bytes wanted = name.encode()
    if _field.mapping:
        raise RuntimeError("clear comes first")
    if block_nbytes < page_nbytes() or block_nbytes > HUGE_NBYTES or block_nbytes & (block_nbytes - 1) or not nblocks:
        raise ValueError(f"{nblocks} blocks of {block_nbytes} bytes: give some, of a power of two from a page to 2 MiB")
    for i in range(WAYS):
        if strcmp(_ways[i].name, wanted) == 0 and not _ways[i].features & ~_uffd.features:
            break
    else:
        raise ValueError(f"no way {name!r}")
    memset(&_field, 0, sizeof(Field))
    _field.block_nbytes = block_nbytes
    _field.nblocks = nblocks
    _field.source = source
    _field.source_blocks = source_blocks
    _field.laying = _ways[i].laying
    _field.memfd = -1
    _step = _ways[i].step
    with nogil:
        error = _lay(&_field)
    if error:
        clear()
        raise OSError(-error, f"{name} cannot be laid out")
    return _field.region


def clear():
    """Give everything back that `lay` made. GIL: released. Blocks: while the kernel frees it."""
    with nogil:
        if _field.mapping:
            munmap(<void *>_field.mapping, _field.mapping_nbytes)
            _field.mapping = 0
        if _field.memfd >= 0:
            close(_field.memfd)
            _field.memfd = -1

# ---------------------------------------------------------------------------------------------------------------------------
# The other thread: one that computes, or one that sleeps for a page
#
# One at a time, so its words are the module's. It goes to its core, says that it runs (1), runs until it is told to end or has done
# its part, and says that it has ended (0); who started it waits for both.

cdef uint32_t _runs = 0
cdef uint32_t _end = 0
cdef int _core = -1
cdef uint64_t _beats = 0   # of the one that computes


cdef void *_compute(void *unused) noexcept nogil:
    """Never in the kernel but for interrupts: a program's own work, on a core that has this process's addresses in its TLB."""
    lm_onto_core(_core)
    lm_store32(&_runs, 1)
    while lm_load32(&_end) == 0:
        lm_count(&_beats, 1)
    lm_store32(&_runs, 0)
    return NULL


cdef bint _it_computes(uint64_t patience_ns) noexcept nogil:
    """Is it on its core, or there within so long? Where others have that core, no interrupt is sent there, and nothing measured."""
    cdef uint64_t seen = lm_load64(&_beats), until_ns = lm_now_ns() + patience_ns
    while lm_load64(&_beats) == seen:
        if lm_now_ns() > until_ns:
            return False
    return True


cdef void _wait_until(uint32_t *word, uint32_t value) noexcept nogil:
    while lm_load32(word) != value:
        lm_sleep_ns(20000)


cdef int _fill(Field *f, Step step, const uint64_t *order, uint64_t n, uint64_t *took_ns, uint64_t *placing_ns,
               bint busy) noexcept nogil:
    cdef uint64_t k, began_ns, patience_ns = 100000000
    cdef bint counts = True
    cdef int error
    for k in range(n):
        if busy:
            counts = _it_computes(patience_ns)
            patience_ns = patience_ns if counts else 2000  # that core is not to be had: no block waits for it again
        f.fetching_ns = 0
        began_ns = lm_now_ns()
        error = step(f, order[k])
        took_ns[k] = lm_now_ns() - began_ns
        if error:
            return error
        placing_ns[k] = took_ns[k] - f.fetching_ns
        if busy and not (counts and _it_computes(2000)):
            took_ns[k] = placing_ns[k] = 0
        lm_touch(<void *>_to(f, order[k]))  # as who waited for it would; not counted
    return -EEXIST if f.counts.eexist else 0


def fill(size_t order, uint64_t n, size_t took_ns, size_t placing_ns, int busy_core=-1):
    """Fill `n` blocks of what is laid out, and note how long each took. Once for each `lay`.

    Parameters
    ----------
    order : int
        Address of `n` uint64, different from each other: which block next.
    took_ns, placing_ns : int
        Addresses of `n` uint64: where the time of each block goes, and what of it was not the fetch. Ways that only copy, or
        fetch nothing, have one time. 0: does not count, another thread was not on its core as it should have been.
    busy_core : int
        Where another thread of this process computes meanwhile; -1: none does.

    Raises
    ------
    OSError
        What the kernel refused. EEXIST: something was there already.

    Notes
    -----
    Blocks: until all are filled. GIL: released.
    """
    global _end, _core
    cdef int error = 0
    if not _field.mapping or n > _field.nblocks:
        raise ValueError(f"{n} blocks of {_field.nblocks}")
    with nogil:
        if busy_core >= 0:
            _core = busy_core
            lm_store32(&_end, 0)
            error = lm_start_thread(_compute, 0)
            if error == 0:
                _wait_until(&_runs, 1)
        if error == 0:
            error = _fill(&_field, _step, <const uint64_t *>order, n, <uint64_t *>took_ns, <uint64_t *>placing_ns,
                          busy_core >= 0)
        if busy_core >= 0:
            lm_store32(&_end, 1)
            _wait_until(&_runs, 0)
        # Nobody else's mapping may come to lie where one went away: `clear` would take it along.
        if _field.laying & VANISHING:
            mmap(<void *>_field.slot, _field.ready + _field.nblocks * _field.block_nbytes - _field.slot, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
    if error:
        raise OSError(-error, "a block cannot be filled")

# ---------------------------------------------------------------------------------------------------------------------------
# The wake
#
# For each block: (1) the sleeper touches it, and sleeps in the kernel; (2) its message is read, the block is fetched, and it is
# given time to be truly asleep; (3) the block is placed, and the sleeper woken, by that or apart; (4) it notes when it goes on.

cdef uint32_t _asked = 0
cdef uint32_t _went_on = 0
cdef uint64_t _n = 0
cdef const uint64_t *_order = NULL
cdef uint64_t *_woke_ns = NULL


cdef void *_sleep_for_pages(void *unused) noexcept nogil:
    cdef uint64_t k
    if _core >= 0:
        lm_onto_core(_core)
    lm_store32(&_runs, 1)
    for k in range(_n):
        while lm_load32(&_asked) == k:
            lm_futex_wait(&_asked, <uint32_t>k, 1000000000)
        lm_touch(<void *>_to(&_field, _order[k]))
        _woke_ns[k] = lm_now_ns()
        lm_store32(&_went_on, <uint32_t>k + 1)
    lm_store32(&_runs, 0)
    return NULL


cdef int _wake_one(Field *f, uint64_t i, bint apart, uint64_t *began_ns, uint64_t *filled_ns) noexcept nogil:
    cdef uffd_msg message
    cdef uint64_t until_ns
    cdef int n = 0, error
    while n == 0:
        n = uffd_read(&_uffd, &message)
    if n < 0:
        return n
    _fetch(f, f.slot, i)
    lm_sleep_ns(50000)               # on one core: it gets there only if we let it
    until_ns = lm_now_ns() + 30000
    while lm_now_ns() < until_ns:    # and our own core is awake again
        lm_pause()
    began_ns[0] = lm_now_ns()
    error = uffd_copy(&_uffd, _to(f, i), f.slot, f.block_nbytes, ASLEEP if apart else PLAINLY, &f.counts)
    if error == 0 and apart:
        error = uffd_wake(&_uffd, _to(f, i), f.block_nbytes)
    filled_ns[0] = lm_now_ns() - began_ns[0]
    return error


def wake(size_t order, uint64_t n, size_t filled_ns, size_t woke_ns, bint apart, int sleeper_core=-1):
    """Copy `n` blocks into what is laid out for "copy", each to a thread that sleeps for it.

    Parameters
    ----------
    order : int
        As `fill` takes it.
    filled_ns, woke_ns : int
        Addresses of `n` uint64: how long filling and waking took, and from the beginning of that until the sleeper went on.
    apart : bool
        The copy wakes nobody, one more call for the whole block does.
    sleeper_core : int
        Where it sleeps; -1: here.

    Raises
    ------
    OSError
        What the kernel refused; a block that nobody could be woken for ends the process instead.

    Notes
    -----
    Blocks: until the last has gone on. GIL: released.
    """
    global _asked, _went_on, _n, _order, _woke_ns, _core
    cdef uint64_t k, began_ns = 0
    cdef uint64_t *filled = <uint64_t *>filled_ns
    cdef int error
    if not _field.mapping or n > _field.nblocks:
        raise ValueError(f"{n} blocks of {_field.nblocks}")
    _asked = _went_on = 0
    _n = n
    _order = <const uint64_t *>order
    _woke_ns = <uint64_t *>woke_ns
    _core = sleeper_core
    error = lm_start_thread(_sleep_for_pages, 0)
    if error:
        raise OSError(-error, "no thread can be started")
    with nogil:
        _wait_until(&_runs, 1)
        for k in range(n):
            lm_store32(&_asked, <uint32_t>k + 1)
            lm_futex_wake(&_asked, 1)
            error = _wake_one(&_field, _order[k], apart, &began_ns, &filled[k])
            if error:
                break
            _wait_until(&_went_on, <uint32_t>k + 1)
            _woke_ns[k] -= began_ns
        if error == 0:
            _wait_until(&_runs, 0)
    if error:  # the sleeper still sleeps, and nothing may be taken away from under it
        raise SystemExit(f"a sleeper cannot be woken: errno {-error}")

# ---------------------------------------------------------------------------------------------------------------------------
# "Until we run out of vmas"

cdef int64_t _count_mappings() noexcept nogil:
    """Lines of /proc/self/maps, without a mapping or an allocation more. Return: how many / -errno."""
    cdef char[2048] text
    cdef ssize_t n, i
    cdef int64_t lines = 0
    cdef int fd = open(b"/proc/self/maps", O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return -errno
    while True:
        n = read(fd, text, sizeof(text))
        if n <= 0:
            break
        for i in range(n):
            if text[i] == 10:  # a line's end
                lines += 1
    close(fd)
    return lines


def run_out(uint64_t most):
    """Move ready pages onto a region by mremap, one page after the other, until the kernel refuses.

    Parameters
    ----------
    most : int
        How many to try at most.

    Returns
    -------
    (int, int, int)
        Pages that were moved, mappings that the process then had, errno (0: not refused).

    Notes
    -----
    In order, which is the best case: one more mapping a page. Blocks: about 4 us a page. GIL: released.
    """
    cdef uint64_t page = page_nbytes(), nbytes = (most + 4) * page, moved = 0, region, slot
    cdef int64_t mappings
    cdef int error
    cdef void *p = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if p == MAP_FAILED:
        raise OSError(errno, "the region cannot be made")
    region = <uint64_t>p
    slot = region + (most + 2) * page
    madvise(p, nbytes, MADV_NOHUGEPAGE)
    error = uffd_register(&_uffd, region, most * page, FAULTS_MISSING)
    if error:
        munmap(p, nbytes)
        raise OSError(-error, "the region cannot be registered")
    with nogil:
        while moved < most and error == 0:
            error = _map(slot, page, False, -1)
            if error == 0:
                memset(<void *>slot, 1, page)
                if lm_mremap_onto(<void *>slot, page, <void *>(region + moved * page)) == MAP_FAILED:
                    error = -errno
                else:
                    moved += 1
        mappings = _count_mappings()
        munmap(p, nbytes)  # at once: nothing else can be mapped before
    if mappings < 0:
        raise OSError(<int>-mappings, "/proc/self/maps")
    return moved, mappings, -error
