"""What is memory that lies in a file, and has a userfaultfd all the same (memory="shared")?

The array is a file of memory (memory_file.h), mapped shared. A page may then be in one of three places: nowhere (a touch is a missing
fault), in the file only (a minor fault: only a CONTINUE maps it), and mapped. Dropping the mapping, as MADV_DONTNEED does, leaves the
bytes in the file; only a hole in the file takes them away.

A block is filled by COPY, which makes a page of the file and maps it in one step, or its bytes are written into the file and then
mapped by CONTINUE. They are written by a second mapping, the alias, not by pwrite(2): that makes huge pages where the system
makes them for files of memory, and what of a huge page has not been written would look as if it had been. Both mappings refuse them.
Pages that are in the file already are never written again: a signal handler that interrupted the filler has filled them, or
they are what is left of a block of which somebody dropped a part.

Nobody but a block's claimer CONTINUEs it, so nobody maps a page that is being written.
"""
from libc.stdlib cimport abort
from libc.string cimport memset, strlen
from posix.unistd cimport close

from lazymem.core.mprotect cimport mprotect_copy_end, mprotect_release
from lazymem.core.native cimport *
from lazymem.core.table cimport *
from lazymem.core.thread cimport thread_tid
from lazymem.core.uffd cimport page_nbytes


cdef extern from "native.h" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    int mprotect(void *, size_t, int)
    int munlock(const void *, size_t)
    int mincore(void *, size_t, unsigned char *)
    int PROT_NONE, PROT_READ, PROT_WRITE
    int MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED
    int MADV_DONTDUMP, MADV_DONTFORK, MADV_DONTNEED, MADV_NOHUGEPAGE, MADV_REMOVE
    void *MAP_FAILED

cdef extern from "memory_file.h" nogil:
    int lm_memory_file(uint64_t nbytes, uint64_t *device, uint64_t *inode)
    bint lm_is_file(int fd, uint64_t device, uint64_t inode)
    int lm_make_hole(int fd, uint64_t at, uint64_t n)
    int64_t lm_write_at(int fd, const void *src, uint64_t n, uint64_t at)
    int64_t lm_read_at(int fd, void *dst, uint64_t n, uint64_t at)
    int64_t lm_bytes_from(int fd, uint64_t at)
    int64_t lm_hole_from(int fd, uint64_t at)

cdef enum:
    STEP_PAGES = 64    # are written while the thread's signals wait
    COPY_NBYTES = 1048576

# For who puts a block into place, at a fork.
cdef uint64_t WAIT_NS = 5000000000


cdef int _lay(Exposure *e, uint64_t base, uint64_t *at) noexcept nogil:
    """Map the file, at `base` or anywhere: no huge pages, not a child's, not locked, nothing may be accessed yet. Return: 0 /
    -errno."""
    cdef int how = MAP_SHARED | MAP_NORESERVE | (MAP_FIXED if base else 0), error
    cdef void *p = mmap(<void *>base, e.map_nbytes, PROT_NONE, how, e.fd, 0)
    if p == MAP_FAILED:
        return -errno
    at[0] = <uint64_t>p
    if madvise(p, e.map_nbytes, MADV_DONTFORK) or (madvise(p, e.map_nbytes, MADV_NOHUGEPAGE) and errno != EINVAL):
        return -errno  # EINVAL: a kernel that has none
    munlock(p, e.map_nbytes)
    return 0


cdef int _lay_both(Exposure *e, bint aliased) noexcept nogil:
    """The array's mapping, and the alias. Return: 0 / -errno: the caller maps the first away."""
    cdef uint64_t at = 0
    cdef int error = _lay(e, e.base, &at)
    if error == 0 and aliased:
        error = _lay(e, 0, &e.alias)
        if error == 0 and mprotect(<void *>e.alias, e.map_nbytes, PROT_READ | PROT_WRITE):
            error = -errno
        if error == 0:
            madvise(<void *>e.alias, e.map_nbytes, MADV_DONTDUMP)  # it is all in the other one
    return error


cdef int shared_open(Exposure *e, uint64_t base, uint64_t map_nbytes, uint64_t block_nbytes, uint64_t nblocks,
                     uint32_t *words, bint aliased) noexcept nogil:
    """Lay a file over addresses that are reserved. It may not be accessed yet: register it first.

    `aliased`: it will be filled by `shared_write`. Return: 0; -errno of memfd_create, ftruncate (-EFBIG: RLIMIT_FSIZE) or mmap: only
    the mapping is left then. GIL: any. Blocks: no.
    """
    cdef int error
    memset(e, 0, sizeof(Exposure))
    e.base = base
    e.map_nbytes = map_nbytes
    e.block_nbytes = block_nbytes
    e.nblocks = nblocks
    e.words = words
    e.copy_fd = -1
    e.fd = lm_memory_file(map_nbytes, &e.device, &e.inode)
    error = e.fd if e.fd < 0 else _lay_both(e, aliased)
    if error:
        shared_release(e)
    return error


cdef void shared_release(Exposure *e) noexcept nogil:
    """Close the file, if it is still ours, and unmap the alias. GIL: any. Blocks: no. Thread: when nobody fills it any more."""
    if e.alias:
        munmap(<void *>e.alias, e.map_nbytes)
    e.alias = 0
    mprotect_release(e)


cdef int _copy_range(Exposure *e, uint64_t at, uint64_t end, void *through) noexcept nogil:
    """Copy those bytes of a range that the file has. Return: 0 / -errno."""
    cdef int64_t found, n
    cdef uint64_t stop
    while at < end:
        found = lm_bytes_from(e.fd, at)
        if found < 0 or <uint64_t>found >= end:
            return 0 if found >= 0 or errno == ENXIO else -errno
        at = <uint64_t>found
        found = lm_hole_from(e.fd, at)
        if found < 0:
            return -errno
        stop = <uint64_t>found if <uint64_t>found < end else end
        while at < stop:
            n = lm_read_at(e.fd, through, stop - at if stop - at < COPY_NBYTES else <uint64_t>COPY_NBYTES, at)
            if n > 0:
                n = lm_write_at(e.copy_fd, through, <uint64_t>n, at)
            if n <= 0:
                return -errno if n < 0 else -EIO
            at += <uint64_t>n
    return 0


cdef int _settled(Exposure *e, uint64_t block, uint64_t deadline_ns, uint32_t *seen) noexcept nogil:
    """Wait for who is putting a block into place: a toucher may have written to it before its state says so. Return: 0; -EBUSY."""
    cdef unsigned char there[STEP_PAGES]
    cdef uint64_t at, end, page = page_nbytes(), step
    cdef bint any_there
    cdef uint64_t i
    while True:
        seen[0] = lm_load32(&e.words[block])
        if (seen[0] & STATE) != FILLING or seen[0] & (AGAIN | MAKING | STANDIN) or seen[0] >> DETAIL_SHIFT == thread_tid():
            return 0
        any_there = False
        at = e.base + block * e.block_nbytes
        end = at + e.block_nbytes if at + e.block_nbytes < e.base + e.map_nbytes else e.base + e.map_nbytes
        while at < end and not any_there:
            step = end - at if end - at < STEP_PAGES * page else STEP_PAGES * page
            if mincore(<void *>at, step, there):
                return -errno
            for i in range(step // page):
                any_there = any_there or there[i] & 1
            at += step
        if not any_there:
            return 0  # it is still being fetched
        if lm_now_ns() > deadline_ns:
            return -EBUSY
        lm_sleep_ns(20000)


cdef void shared_copy(Exposure *e) noexcept nogil:
    """Before a fork: copy what is there into a file for the child, as `mprotect_copy` does. Where that fails it gets none.

    What is left of blocks that are not resident, but were, is copied too: it may have been written to. GIL: any. Blocks: as long as
    copying takes.
    """
    cdef uint64_t block, at, end, deadline_ns = lm_now_ns() + WAIT_NS
    cdef uint32_t seen = 0
    cdef int error = -ENOMEM
    cdef void *through = mmap(NULL, COPY_NBYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    cdef void *bits = mmap(NULL, (e.nblocks // 64 + 1) * sizeof(uint64_t), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    e.copied = NULL if bits == MAP_FAILED else <uint64_t *>bits
    e.copy_fd = lm_memory_file(e.map_nbytes, &e.copy_device, &e.copy_inode)
    if e.copied != NULL and e.copy_fd >= 0 and through != MAP_FAILED and lm_is_file(e.fd, e.device, e.inode):
        error = 0
    block = 0
    while error == 0 and block < e.nblocks:
        at = <uint64_t>lm_bytes_from(e.fd, block * e.block_nbytes)
        if <int64_t>at < 0:
            error = 0 if errno == ENXIO else -errno
            break
        if at // e.block_nbytes > block:
            block = at // e.block_nbytes
        at = block * e.block_nbytes
        end = at + e.block_nbytes if at + e.block_nbytes < e.map_nbytes else e.map_nbytes
        error = _settled(e, block, deadline_ns, &seen)
        if error == 0 and not seen & (STANDIN | MAKING):
            if (seen & STATE) != FILLING or seen & AGAIN:
                error = _copy_range(e, at, end, through)
            if is_resident(seen) or (seen & STATE) == LEAVING:  # (somebody writes it back)
                e.copied[block >> 6] |= <uint64_t>1 << (block & 63)
        block += 1
    if through != MAP_FAILED:
        munmap(through, COPY_NBYTES)
    if error:
        mprotect_copy_end(e)


cdef int shared_inherit(Exposure *e, bint keep) noexcept nogil:
    """In a forked child: lay a file of its own over the same addresses; `keep`: the copy that was made for it.

    Return: 0 / -errno. GIL: any. Blocks: no. Thread: the only one.
    """
    cdef bint aliased = e.alias != 0
    e.alias = 0  # not inherited
    if lm_is_file(e.fd, e.device, e.inode):
        close(e.fd)  # the parent's
    if keep:
        e.fd = e.copy_fd
        e.device = e.copy_device
        e.inode = e.copy_inode
        e.copy_fd = -1
        if e.fd < 0:
            return -ENOMEM
    else:
        e.fd = lm_memory_file(e.map_nbytes, &e.device, &e.inode)
        if e.fd < 0:
            return e.fd
    return _lay_both(e, aliased)


cdef void _stop_half_written() noexcept nogil:
    cdef const char *text = (b"\nlazymem: there is no memory for a block, and what has been written of it cannot be taken out of "
                             b"memory again (fallocate, madvise); it would be read as data. Stopping.\n")
    lm_say(text, strlen(text))
    abort()


cdef int _write_absent(Exposure *e, uint64_t at, uint64_t src, uint64_t nbytes) noexcept nogil:
    """Write those pages that are not in the file. Thread: signals blocked. Return: 0; -errno: none of the pages was written that
    could not be written whole."""
    cdef unsigned char there[STEP_PAGES]
    cdef uint64_t page = page_nbytes(), first = 0, last, n = nbytes // page
    cdef int error
    if mincore(<void *>(e.alias + at), nbytes, there):
        return -errno
    while first < n:
        if there[first] & 1:
            first += 1
            continue
        last = first + 1
        while last < n and not there[last] & 1:
            last += 1
        error = lm_copy_to(<void *>(e.alias + at + first * page), <const void *>(src + first * page), (last - first) * page)
        if error:  # what is there of them is not whole, and must not be taken for it
            if shared_drop(e, at + first * page, (last - first) * page):
                _stop_half_written()
            return error
        first = last
    return 0


cdef int shared_write(Exposure *e, uint64_t at, uint64_t src, uint64_t nbytes) noexcept nogil:
    """Write a block's bytes into the file, where it has none; they are mapped nowhere.

    Units: whole pages. Return: 0; -EFAULT no memory for them, or src cannot be read; -errno. GIL: never. Blocks: no. Thread: the
    claimer of the block, in a signal handler too.
    """
    cdef sigset_t before
    cdef uint64_t done = 0, step
    cdef int error = 0
    while done < nbytes and error == 0:
        step = nbytes - done
        if step > STEP_PAGES * page_nbytes():
            step = STEP_PAGES * page_nbytes()
        lm_no_signals(&before)  # between the look and the write a handler must not fill it
        error = _write_absent(e, at + done, src + done, step)
        lm_signals_again(&before)
        done += step
    madvise(<void *>(e.alias + at), nbytes, MADV_DONTNEED)  # of this mapping only, or it would count as resident twice
    return error


cdef int shared_drop(Exposure *e, uint64_t at, uint64_t nbytes) noexcept nogil:
    """Pages are nowhere any more. Units: whole pages. Return: 0 / -errno: they are there still. GIL: never. Blocks: no. Thread: the
    claimer."""
    cdef int error = -EBADF
    if lm_is_file(e.fd, e.device, e.inode):
        error = lm_make_hole(e.fd, at, nbytes)
    if error and madvise(<void *>(e.base + at), nbytes, MADV_REMOVE) == 0:  # somebody closed our descriptor. Needs none, but,
        error = 0                                                           # before Linux 6.6, memory that may be written to
    return error
