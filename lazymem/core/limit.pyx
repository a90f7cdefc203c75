"""May so much more become resident?

A kernel short of memory kills; it does not refuse. So the fetch that would pass the limit fails instead. What the whole process has
resident is read anew after every LOOK_NBYTES of fills at the latest.
"""
from libc.stdint cimport int64_t
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.unistd cimport close, read

from lazymem.core.native cimport *
from lazymem.core.uffd cimport page_nbytes

cdef uint64_t LOOK_NBYTES = 64 << 20
cdef uint64_t _limit_nbytes = 0        # 0: unknown
cdef uint64_t _filled_nbytes = 0       # in all regions
cdef uint64_t _look_at_nbytes = 0
cdef uint64_t _files_nbytes = 0        # that lie in files of memory: they count whether or not they are mapped


cdef uint64_t _process_nbytes() noexcept nogil:
    """What the process has resident. Return: 0 when it cannot be read. Source: proc(5) statm: size resident shared ...
    GIL: never. Blocks: no."""
    cdef char text[128]
    cdef ssize_t n, i = 0
    cdef uint64_t numbers[3]
    cdef uint64_t private
    cdef int k
    cdef int fd = open(b"/proc/self/statm", O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return 0
    n = read(fd, text, sizeof(text))
    close(fd)
    for k in range(3):
        numbers[k] = 0
        while i < n and c'0' <= text[i] <= c'9':
            numbers[k] = numbers[k] * 10 + <uint64_t>(text[i] - c'0')
            i += 1
        i += 1
        numbers[k] *= page_nbytes()
    private = numbers[1] - numbers[2] + lm_load64(&_files_nbytes)
    return private if private > numbers[1] else numbers[1]


cdef int memory_for(uint64_t nbytes) noexcept nogil:
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


cdef void memory_returned(uint64_t nbytes) noexcept nogil:
    """What `memory_for` allowed was not needed after all. GIL: never. Blocks: no."""
    lm_sub64(&_filled_nbytes, nbytes)


cdef void account_for_memory(int64_t nbytes) noexcept nogil:
    """So many bytes of fills are gone (a region was closed). GIL: never. Blocks: no."""
    lm_sub64(&_filled_nbytes, <uint64_t>nbytes)
    lm_store64(&_look_at_nbytes, 0)


cdef void account_for_files(int64_t nbytes) noexcept nogil:
    """So many bytes more of fills lie in files of memory (fewer, if negative). GIL: never. Blocks: no."""
    lm_add64(&_files_nbytes, <uint64_t>nbytes)


cdef void memory_limit_set(uint64_t nbytes) noexcept nogil:
    """Units: bytes resident in the process; 0 none. GIL: never. Blocks: no."""
    global _limit_nbytes
    _limit_nbytes = nbytes
    lm_store64(&_look_at_nbytes, 0)
