"""Where there is no userfaultfd: which blocks does an array's mapping let through?

The array is a file of memory (memfd), mapped PROT_NONE: a touch is a SIGSEGV, on the touching thread. The bytes of a block are
written into the file, behind the mapping, by pwrite (where memory is short that is an errno; a store would be a SIGBUS); only
when all are there is the block exposed, by mprotect. So nobody ever sees half a block, and nothing is written to what is
exposed.

A stretch of exposed blocks costs two mappings, its own and that of what is hidden behind it, and a process may have
vm.max_map_count. We take a quarter of them. One stretch more, and another is hidden again: its mapping merges with its
neighbours', its bytes stay in the file, and whoever touches it has it exposed again, without a fetch, together with all its
neighbours whose bytes are there (which costs no more mappings). A hand goes round the exposed stretches of all arrays, like a
clock's, and hides the next one: a stretch that has been passed is hidden again only when all the others have been. So an
instruction that touches several blocks, of which the hand takes one, has them all after as many faults more. Arrays of which a
buffer is handed out are passed over, since a system call on it could not wait, until they take as much again.

Bits, protections and the count of stretches change together, under a lock: a word, whose holder has all signals blocked,
touches no array, and does nothing but mprotect. So no handler of its thread can wait for it, and others wait as long as they
would for the kernel's own lock.
"""
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from lazymem.core.native cimport *
from lazymem.core.table cimport DIRTY, LEAVING, RESIDENT, STANDIN, STATE


cdef extern from "native.h" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    int mprotect(void *, size_t, int)
    int munlock(const void *, size_t)
    int mincore(void *, size_t, unsigned char *)
    int PROT_NONE, PROT_READ, PROT_WRITE
    int MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED
    int MADV_DONTDUMP, MADV_DONTFORK, MADV_DONTNEED
    void *MAP_FAILED

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <unistd.h>
    #include "native.h"

    #include "memory_file.h"

    /* A second mapping of shared pages, without their file; nothing may be accessed yet. NULL and errno: there is none. */
    static inline void *lm_map_again(void *p, uint64_t n)
    {
        void *again = mremap(p, 0, n, MREMAP_MAYMOVE);
        return again == MAP_FAILED ? NULL : again;
    }

    static uint32_t lm_exposing;      /* 0 free, 1 held, 2 held and others sleep for it */
    static void lm_exposing_enter(sigset_t *before)
    {
        lm_no_signals(before);
        if (lm_cas32(&lm_exposing, 0, 1))
            return;
        while (lm_swap32(&lm_exposing, 2))
            lm_futex_wait(&lm_exposing, 2, 1000000000);
    }
    static void lm_exposing_exit(const sigset_t *before)
    {
        if (lm_swap32(&lm_exposing, 0) == 2)
            lm_futex_wake(&lm_exposing, 1);
        lm_signals_again(before);
    }
    static inline void lm_exposing_forget(void) { lm_exposing = 0; }

    /* vm.max_map_count; what kernels have had for ever where it cannot be read. */
    static uint64_t lm_most_mappings(void)
    {
        char text[32] = "";
        uint64_t n = 0;
        int fd = open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            if (read(fd, text, sizeof text - 1) > 0)
                n = strtoull(text, NULL, 10);
            close(fd);
        }
        return n ? n : 65530;
    }
    """
    void *lm_map_again(void *p, uint64_t n) noexcept nogil
    void lm_exposing_enter(sigset_t *before) noexcept nogil
    void lm_exposing_exit(const sigset_t *before) noexcept nogil
    void lm_exposing_forget() noexcept nogil
    uint64_t lm_most_mappings() noexcept nogil

cdef extern from "memory_file.h" nogil:
    int lm_memory_file(uint64_t nbytes, uint64_t *device, uint64_t *inode)
    bint lm_is_file(int fd, uint64_t device, uint64_t inode)
    int lm_make_hole(int fd, uint64_t at, uint64_t n)
    int64_t lm_write_at(int fd, const void *src, uint64_t n, uint64_t at)
    int64_t lm_read_at(int fd, void *dst, uint64_t n, uint64_t at)
    int64_t lm_bytes_from(int fd, uint64_t at)
    void lm_make_empty(int fd)

cdef enum:
    RUN_MAPPINGS = 2            # that one stretch costs at most
    MAKE_ROOM = 64              # so many are hidden, at most, where the process has no more
    GATHER_BLOCKS = 65536       # so many neighbours on each side are exposed with a block

# One write holds up the thread's signals: not for longer than this takes.
cdef uint64_t WRITE_STEP_NBYTES = 2 << 20
cdef uint64_t COPY_STEP_NBYTES = 1 << 20

cdef Exposure *_ring = NULL        # the array that the hand is at
cdef uint64_t _runs = 0            # stretches of all arrays
cdef uint64_t _most_runs = 0       # 0: not looked yet
cdef uint64_t _blank_runs = 0      # stretches of blocks whose addresses are not the file's: each costs as much again


# ---------------------------------------------------------------------------------------------------------------------------
# Bits. Thread: the lock's holder, but for reads of single ones.

cdef bint mprotect_exposed(Exposure *e, uint64_t block) noexcept nogil:
    """May a block be accessed, as far as we know? GIL: never. Blocks: no. Thread: any."""
    return (lm_load64(&e.bits[block >> 6]) >> (block & 63)) & 1


cdef uint64_t _bits_nbytes(uint64_t nblocks) noexcept nogil:
    return (nblocks // 64 + 1) * sizeof(uint64_t)


cdef uint64_t *_bits_for(uint64_t nblocks) noexcept nogil:
    """Return: NULL when there is no address space."""
    cdef void *p = mmap(NULL, _bits_nbytes(nblocks), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if p == MAP_FAILED else <uint64_t *>p


cdef void _clear_bits(uint64_t *bits, uint64_t nblocks) noexcept nogil:
    if madvise(bits, _bits_nbytes(nblocks), MADV_DONTNEED):
        memset(bits, 0, _bits_nbytes(nblocks))  # somebody locked it (mlockall)


cdef void _set_bits(uint64_t *bits, uint64_t first, uint64_t last, bint on) noexcept nogil:
    cdef uint64_t n, mask
    while first < last:
        n = 64 - (first & 63)
        if n > last - first:
            n = last - first
        mask = (~<uint64_t>0 >> (64 - n)) << (first & 63)
        if on:
            lm_or64(&bits[first >> 6], mask)
        else:
            lm_and_not64(&bits[first >> 6], mask)
        first += n


cdef uint64_t _next(Exposure *e, uint64_t block, bint exposed) noexcept nogil:
    """The first block from `block` on that is (not) exposed; nblocks: none."""
    cdef uint64_t word
    while block < e.nblocks:
        word = e.bits[block >> 6] if exposed else ~e.bits[block >> 6]
        word >>= block & 63
        if word:
            block += <uint64_t>lm_low_bit(word)
            return block if block < e.nblocks else e.nblocks
        block = (block | 63) + 1
    return e.nblocks


cdef uint64_t _run_start(Exposure *e, uint64_t block) noexcept nogil:
    """Of the stretch that an exposed block lies in."""
    cdef uint64_t gaps
    while block:
        gaps = ~e.bits[(block - 1) >> 6] << (63 - ((block - 1) & 63))
        if gaps:
            return block - (63 - <uint64_t>lm_high_bit(gaps))
        block = (block - 1) & ~<uint64_t>63
    return 0


# ---------------------------------------------------------------------------------------------------------------------------
# Protections. Thread: the lock's holder.

cdef uint64_t _nbytes(Exposure *e, uint64_t first, uint64_t last) noexcept nogil:
    """Of blocks [first, last), whole pages."""
    cdef uint64_t end = last * e.block_nbytes
    return (end if end < e.map_nbytes else e.map_nbytes) - first * e.block_nbytes


cdef int _protect(Exposure *e, uint64_t first, uint64_t last, int access) noexcept nogil:
    return -errno if mprotect(<void *>(e.base + first * e.block_nbytes), _nbytes(e, first, last), access) else 0


cdef int _lay(Exposure *e, uint64_t first, uint64_t last, bint blank) noexcept nogil:
    """Lay the file, or nothing but zeros, over blocks: nothing may be accessed, nothing is locked (mlockall), no child
    inherits it."""
    cdef uint64_t at = first * e.block_nbytes, nbytes = _nbytes(e, first, last)
    cdef int how = MAP_FIXED | MAP_NORESERVE | (MAP_PRIVATE | MAP_ANONYMOUS if blank else MAP_SHARED)
    if mmap(<void *>(e.base + at), nbytes, PROT_NONE, how, -1 if blank else e.fd, <long>(0 if blank else at)) == MAP_FAILED:
        return -errno
    if madvise(<void *>(e.base + at), nbytes, MADV_DONTFORK):
        return -errno
    madvise(<void *>(e.base + at), nbytes, MADV_DONTDUMP)  # to dump what is missing, the kernel would make zeros of it
    munlock(<void *>(e.base + at), nbytes)
    return 0


cdef bint _is_blank(Exposure *e, uint64_t block) noexcept nogil:
    return (e.blank[block >> 6] >> (block & 63)) & 1


cdef bint _has_blank_beside(Exposure *e, uint64_t block) noexcept nogil:
    return (block != 0 and _is_blank(e, block - 1)) or (block + 1 < e.nblocks and _is_blank(e, block + 1))


cdef void _note_blank(Exposure *e, uint64_t block, bint blank) noexcept nogil:
    global _blank_runs
    cdef uint64_t grown = 1
    if _is_blank(e, block) == blank:
        return
    grown -= block != 0 and _is_blank(e, block - 1)
    grown -= block + 1 < e.nblocks and _is_blank(e, block + 1)
    _set_bits(e.blank, block, block + 1, blank)
    e.blank_runs += grown if blank else -grown
    _blank_runs += grown if blank else -grown


cdef int _lay_block(Exposure *e, uint64_t block, bint blank) noexcept nogil:
    """One block, unless it is so: fewer mappings are made do with where no more can be had."""
    cdef int error = 0, tries
    if _is_blank(e, block) == blank:
        return 0
    if not blank and not lm_is_file(e.fd, e.device, e.inode):
        return -EBADF
    _note_blank(e, block, True)  # until the file surely lies there again, nobody is to believe so
    for tries in range(MAKE_ROOM):
        error = _lay(e, block, block + 1, blank)
        if error != -ENOMEM or not (_hide_one(False) or _hide_one(True)):
            break
    if error == 0 and not blank:
        _note_blank(e, block, False)
    return error if error != -ENOMEM else -ENOBUFS


cdef void _count(Exposure *e, uint64_t first, uint64_t last, bint on) noexcept nogil:
    """Blocks [first, last) have all become (or ceased to be) exposed: note it, and what it makes of the stretches."""
    global _runs
    cdef uint64_t neighbours = 0
    if first and mprotect_exposed(e, first - 1):
        neighbours += 1
    if last < e.nblocks and mprotect_exposed(e, last):
        neighbours += 1
    _set_bits(e.bits, first, last, on)
    if on:
        e.runs += 1 - neighbours
        _runs += 1 - neighbours
    else:
        e.runs += neighbours - 1
        _runs += neighbours - 1


cdef bint _hide_run(Exposure *e, uint64_t block) noexcept nogil:
    """The stretch around a block, whole: no mapping is split for it, so it works where no more can be had. The hand is behind
    it then."""
    cdef uint64_t first = _run_start(e, block), last = _next(e, block, False)
    e.hand = last
    if _protect(e, first, last, PROT_NONE):
        return False
    _count(e, first, last, False)
    return True


cdef bint _hide_one(bint lent) noexcept nogil:
    """Hide the stretch that the hand comes to next; `lent`: also of arrays of which a buffer is out. Return: False when there
    is none."""
    global _ring
    cdef Exposure *start = _ring
    cdef uint64_t block
    cdef int turns = 0
    if start == NULL:
        return False
    while turns < 2:
        if _ring.runs and (lent or lm_load32(_ring.exports) == 0):
            block = _next(_ring, _ring.hand, True)
            if block < _ring.nblocks:
                return _hide_run(_ring, block)
        _ring.hand = 0
        _ring = _ring.after
        turns += _ring == start
    return False


cdef void _keep_to_ours() noexcept nogil:
    """Make room for one stretch more. A buffer may be held for ever: the rest of the process needs mappings too."""
    while _runs >= _most_runs and _hide_one(_runs >= 2 * _most_runs):
        pass


cdef bint _is_there(Exposure *e, uint64_t block) noexcept nogil:
    return (lm_load32(&e.words[block]) & STATE) in (RESIDENT, DIRTY)


cdef bint _is_stored(Exposure *e, uint64_t block) noexcept nogil:
    """Is somebody writing it back? Nothing that may be written to is evicted."""
    return lm_load32(&e.words[block]) & (STATE | STANDIN) == LEAVING


cdef int _expose(Exposure *e, uint64_t block) noexcept nogil:
    cdef uint64_t first, last, least = 0, most = e.nblocks
    cdef unsigned char unused
    cdef int error, tries
    _keep_to_ours()
    error = 0 if _is_there(e, block) else _lay_block(e, block, False)  # zeros that are there stay without memory
    if error:
        return error
    for tries in range(MAKE_ROOM):
        first = block
        last = block + 1
        if block > GATHER_BLOCKS:
            least = block - GATHER_BLOCKS
        if block + GATHER_BLOCKS < most:
            most = block + GATHER_BLOCKS
        while first > least and not mprotect_exposed(e, first - 1) and _is_there(e, first - 1):
            first -= 1
        while last < most and not mprotect_exposed(e, last) and _is_there(e, last):
            last += 1
        error = _protect(e, first, last, e.access)
        if error != -ENOMEM or not (_hide_one(False) or _hide_one(True)):
            break  # ENOMEM: somebody else has used up the mappings; we make do with fewer
    if error == 0:
        _count(e, first, last, True)
    elif error == -ENOMEM:
        error = -ENOENT if mincore(<void *>(e.base + block * e.block_nbytes), 1, &unused) else -ENOBUFS
    return error


cdef int mprotect_expose(Exposure *e, uint64_t block, bint again) noexcept nogil:
    """Let a block through whose bytes are complete, with its neighbours whose bytes are too; or, if it has been, once more:
    somebody may have changed its protection.

    `again`: it was resident a moment ago. If somebody has claimed it since, to take it away, what is exposed may be a hole: nothing is done.
    Return: 0; -ESHUTDOWN it is closed; -ENOBUFS no mapping is to be had; -ENOENT somebody took the memory away; -errno. GIL:
    never. Blocks: for as long as others' mprotect takes. Thread: any, in a signal handler too.
    """
    cdef sigset_t before
    cdef int error = -ESHUTDOWN
    lm_exposing_enter(&before)
    if e.live and again and not _is_there(e, block):
        error = 0
    elif e.live:
        error = _protect(e, block, block + 1, e.access) if mprotect_exposed(e, block) else _expose(e, block)
    lm_exposing_exit(&before)
    return error


cdef int mprotect_remove(Exposure *e, uint64_t block) noexcept nogil:
    """Hide a block, and give its memory back. Return: 0 / -errno. GIL: never. Blocks: as `mprotect_expose`. Thread: the
    claimer of the block."""
    cdef sigset_t before
    cdef int error = 0
    lm_exposing_enter(&before)
    if e.live and mprotect_exposed(e, block):
        error = _protect(e, block, block + 1, PROT_NONE)
        if error == 0:
            _count(e, block, block + 1, False)
        elif _hide_run(e, block):
            error = 0
    if e.live and error == 0:
        _lay_block(e, block, False)  # where it cannot be, it is once more before the block is exposed
    lm_exposing_exit(&before)
    if error == 0 and lm_is_file(e.fd, e.device, e.inode):
        lm_make_hole(e.fd, block * e.block_nbytes, _nbytes(e, block, block + 1))  # gVisor cannot: it is written over
    return error


# ---------------------------------------------------------------------------------------------------------------------------
# Bytes

cdef int _write_without_file(Exposure *e, uint64_t at, const void *src, uint64_t nbytes) noexcept nogil:
    """Somebody has closed our descriptor: through a second mapping, made of the first. Return, Thread: as `_write`."""
    cdef void *again
    cdef int error
    if _is_blank(e, at // e.block_nbytes):
        return -EBADF  # there the file is not mapped, and cannot be
    again = lm_map_again(<void *>(e.base + at), nbytes)
    if again == NULL:
        return -errno
    error = -errno if mprotect(again, nbytes, PROT_READ | PROT_WRITE) else lm_copy_from(again, src, nbytes)
    munmap(again, nbytes)
    return error


cdef int _write(Exposure *e, uint64_t at, const void *src, uint64_t nbytes) noexcept nogil:
    """Thread: signals blocked. Return: 0; 1 the block is exposed: nothing was written; -errno."""
    cdef int64_t n
    if mprotect_exposed(e, at // e.block_nbytes):
        return 1
    if not lm_is_file(e.fd, e.device, e.inode):
        return _write_without_file(e, at, src, nbytes)
    while nbytes:
        n = lm_write_at(e.fd, src, nbytes, at)
        if n < 0 and errno == EINTR:
            continue
        if n <= 0:
            return -errno if n < 0 else -EIO
        at += <uint64_t>n
        src = <const char *>src + n
        nbytes -= <uint64_t>n
    return 0


cdef int mprotect_write(Exposure *e, uint64_t at, const void *src, uint64_t nbytes) noexcept nogil:
    """Put bytes of one block behind the mapping. A block that is exposed keeps what it holds: a signal handler that
    interrupted its filler has filled it, and may have written to it since.

    Units: at, bytes of the region. Return: 0; -EFAULT src cannot be read; -EBADF our descriptor is closed, and needed; -errno,
    as pwrite(2). GIL: never. Blocks: no. Thread: the claimer of the block, in a signal handler too.
    """
    cdef sigset_t before
    cdef uint64_t step
    cdef int error = 0
    while nbytes and error == 0:
        step = nbytes if nbytes < WRITE_STEP_NBYTES else WRITE_STEP_NBYTES
        lm_no_signals(&before)  # between the look and the write such a handler must not come
        error = _write(e, at, src, step)
        lm_signals_again(&before)
        at += step
        src = <const char *>src + step
        nbytes -= step
    return error if error < 0 else 0


cdef int mprotect_peek(Exposure *e, uint64_t at, char *dst, uint64_t nbytes) noexcept nogil:
    """Read bytes of one block, exposed or hidden. Return: 0 / -errno. GIL: never. Blocks: as `mprotect_expose`. Thread: the
    claimer."""
    cdef sigset_t before
    cdef uint64_t block = at // e.block_nbytes
    cdef int error = -ESHUTDOWN
    lm_exposing_enter(&before)
    if e.live and _is_blank(e, block):
        error = 0 if mprotect_exposed(e, block) else _protect(e, block, block + 1, PROT_READ)
        if error == 0:
            memcpy(dst, <const void *>(e.base + at), nbytes)
        if not mprotect_exposed(e, block):
            _protect(e, block, block + 1, PROT_NONE)
    elif e.live and lm_is_file(e.fd, e.device, e.inode):
        error = 0 if lm_read_at(e.fd, dst, nbytes, at) == <int64_t>nbytes else -EIO
    lm_exposing_exit(&before)
    return error


cdef int mprotect_zeros(Exposure *e, uint64_t block, bint for_good) noexcept nogil:
    """Expose zeros in place of a block, unless it is exposed. They take memory only where they are written to: not the file's.

    `for_good`: the block becomes resident so; where there are many such stretches already, it is refused.
    Return: 0; -ENOBUFS; -errno. GIL: never. Blocks: as `mprotect_expose`. Thread: the claimer of the block, in a signal handler too.
    """
    cdef sigset_t before
    cdef int error = -ESHUTDOWN
    lm_exposing_enter(&before)
    if e.live:
        error = 0
        if for_good and _blank_runs >= _most_runs // 2 and not _has_blank_beside(e, block):
            error = -ENOBUFS
        elif not mprotect_exposed(e, block):
            _keep_to_ours()
            error = _lay_block(e, block, True)
            if error == 0:
                error = _protect(e, block, block + 1, e.access)
            if error == 0:
                _count(e, block, block + 1, True)
    lm_exposing_exit(&before)
    return error


# ---------------------------------------------------------------------------------------------------------------------------
# An array comes and goes

cdef int _lay_all(Exposure *e) noexcept nogil:
    """An empty array has a page, and no block."""
    return _lay(e, 0, e.nblocks if e.nblocks else 1, False)


cdef void _join(Exposure *e) noexcept nogil:
    global _ring
    cdef sigset_t before
    lm_exposing_enter(&before)
    e.runs = 0
    e.hand = 0
    if _ring == NULL:
        e.before = e.after = _ring = e
    else:
        e.after = _ring
        e.before = _ring.before
        e.before.after = e.after.before = e
    lm_store32(&e.live, 1)
    lm_exposing_exit(&before)


cdef int mprotect_open(Exposure *e, uint64_t base, uint64_t map_nbytes, uint64_t block_nbytes, uint64_t nblocks,
                       uint32_t *words, uint32_t *exports, bint writable) noexcept nogil:
    """Lay a file over addresses that are reserved, every block hidden.

    Return: 0; -errno of memfd_create, ftruncate (-EFBIG: RLIMIT_FSIZE) or mmap: nothing is left then. GIL: any. Blocks: no.
    """
    global _most_runs
    cdef int error
    if _most_runs == 0:
        _most_runs = lm_most_mappings() // 4 // RUN_MAPPINGS
    memset(e, 0, sizeof(Exposure))
    e.base = base
    e.map_nbytes = map_nbytes
    e.block_nbytes = block_nbytes
    e.nblocks = nblocks
    e.words = words
    e.exports = exports
    e.access = PROT_READ | (PROT_WRITE if writable else 0)
    e.copy_fd = -1
    e.bits = _bits_for(nblocks)
    e.blank = _bits_for(nblocks)
    e.fd = lm_memory_file(map_nbytes, &e.device, &e.inode)
    error = e.fd if e.fd < 0 else -ENOMEM if e.bits == NULL or e.blank == NULL else _lay_all(e)
    if error:
        mprotect_release(e)
        return error
    _join(e)
    return 0


cdef void mprotect_shut(Exposure *e) noexcept nogil:
    """From here on nothing is exposed any more; what is, the caller maps away. GIL: any. Blocks: as `mprotect_expose`. Once.
    """
    global _ring, _runs, _blank_runs
    cdef sigset_t before
    lm_exposing_enter(&before)
    if e.live:
        lm_store32(&e.live, 0)
        _runs -= e.runs
        _blank_runs -= e.blank_runs
        e.before.after = e.after
        e.after.before = e.before
        if _ring == e:
            _ring = e.after if e.after != e else NULL
    lm_exposing_exit(&before)


cdef void mprotect_empty(Exposure *e) noexcept nogil:
    """Its bytes are wanted no more. GIL: any. Blocks: no. Thread: the closer, who has mapped it away."""
    if lm_is_file(e.fd, e.device, e.inode):
        lm_make_empty(e.fd)


cdef void mprotect_release(Exposure *e) noexcept nogil:
    """Close the file, if it is still ours, and forget the bits. GIL: any. Blocks: no. Thread: when nobody fills it any more.
    """
    if lm_is_file(e.fd, e.device, e.inode):
        close(e.fd)
    e.fd = -1
    if e.bits != NULL:
        munmap(e.bits, _bits_nbytes(e.nblocks))
    if e.blank != NULL:
        munmap(e.blank, _bits_nbytes(e.nblocks))
    e.bits = e.blank = NULL


# ---------------------------------------------------------------------------------------------------------------------------
# A fork (region.pyx says when)

cdef int _copy_block(Exposure *e, uint64_t block, void *through) noexcept nogil:
    cdef uint64_t at = block * e.block_nbytes, end = at + e.block_nbytes
    cdef int64_t n
    if end > e.map_nbytes:
        end = e.map_nbytes
    while at < end:
        n = lm_read_at(e.fd, through, end - at if end - at < COPY_STEP_NBYTES else COPY_STEP_NBYTES, at)
        if n > 0:
            n = lm_write_at(e.copy_fd, through, <uint64_t>n, at)
        if n <= 0:
            return -errno if n < 0 else -EIO
        at += <uint64_t>n
    return 0


cdef void mprotect_copy(Exposure *e) noexcept nogil:
    """Before a fork: copy the blocks that are there into a file for the child. Where that fails it gets none.

    What other threads write to the array meanwhile is in the copy, or not. GIL: any. Blocks: as long as copying takes.
    """
    cdef uint64_t block = 0
    cdef int64_t found
    cdef int error = -ENOMEM
    cdef void *through = mmap(NULL, COPY_STEP_NBYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    e.copied = _bits_for(e.nblocks)
    e.copy_fd = lm_memory_file(e.map_nbytes, &e.copy_device, &e.copy_inode)
    if e.copied != NULL and e.copy_fd >= 0 and through != MAP_FAILED and lm_is_file(e.fd, e.device, e.inode):
        error = 0
    while error == 0 and block < e.nblocks:
        found = lm_bytes_from(e.fd, block * e.block_nbytes)  # holes are passed over
        if found < 0:
            error = 0 if errno == ENXIO else -errno
            break
        if <uint64_t>found // e.block_nbytes > block:
            block = <uint64_t>found // e.block_nbytes
        if _is_there(e, block) or _is_stored(e, block):  # before the copy: its bytes are complete
            error = _copy_block(e, block, through)
            _set_bits(e.copied, block, block + 1, True)
        block += 1
    if through != MAP_FAILED:
        munmap(through, COPY_STEP_NBYTES)
    if error:
        mprotect_copy_end(e)


cdef bint mprotect_was_copied(Exposure *e, uint64_t block) noexcept nogil:
    """In the child: is a block in its copy? GIL: any. Blocks: no."""
    return e.copied != NULL and (e.copied[block >> 6] >> (block & 63)) & 1


cdef void mprotect_copy_end(Exposure *e) noexcept nogil:
    """After it, in the parent and in the child: the copy is not, or no more, needed. GIL: any. Blocks: no."""
    if e.copy_fd >= 0:
        close(e.copy_fd)
    e.copy_fd = -1
    if e.copied != NULL:
        munmap(e.copied, _bits_nbytes(e.nblocks))
    e.copied = NULL


cdef void mprotect_forget_all() noexcept nogil:
    """In a forked child, first: none of what was exposed is here. GIL: any. Blocks: no. Thread: the only one."""
    global _ring, _runs, _blank_runs
    lm_exposing_forget()
    _ring = NULL
    _runs = 0
    _blank_runs = 0


cdef int mprotect_inherit(Exposure *e, bint keep) noexcept nogil:
    """In a forked child: lay a file of its own over the same addresses, reserved; `keep`: the copy that was made for it.

    Return: 0 / -errno: nothing can be accessed there then. GIL: any. Blocks: no. Thread: the only one.
    """
    cdef int error
    e.live = 0
    if lm_is_file(e.fd, e.device, e.inode):
        close(e.fd)  # the parent's
    e.fd = -1
    _clear_bits(e.bits, e.nblocks)
    _clear_bits(e.blank, e.nblocks)
    e.blank_runs = 0
    if keep:
        e.fd = e.copy_fd
        e.copy_fd = -1
        if e.fd < 0:
            return -ENOMEM
        e.device = e.copy_device
        e.inode = e.copy_inode
        error = 0
    else:
        e.fd = lm_memory_file(e.map_nbytes, &e.device, &e.inode)
        error = e.fd if e.fd < 0 else 0
    if error == 0:
        error = _lay_all(e)
    if error == 0:
        _join(e)
    return error


def most_mappings():
    """vm.max_map_count: how many mappings a process may have. Blocks: no. GIL: kept."""
    return lm_most_mappings()
