"""What is said when an access to memory cannot go on, and nobody can be told by an exception?"""
from libc.string cimport memcpy, strlen

from lazymem.core.failure cimport cause
from lazymem.core.native cimport *
from lazymem.core.region cimport CLOSED, LIVE, SEVERED, UNREGISTERED, Region, region_block_nbytes


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
                       b"without memory: somebody closed lazymem's userfaultfd (os.closerange? a daemoniser?), and its missing "
                       b"pages would have been zeros" if lm_load32(&r.status) == SEVERED else
                       b"without memory: somebody took it from lazymem's userfaultfd (unregistering, mremap, munmap?), and its "
                       b"missing pages were zeros" if lm_load32(&r.status) == UNREGISTERED else
                       b"its parent process's, and was not inherited by this forked one: open it again here")
    else:
        at = _put_text(at, end, b"', block ")
        at = _put_number(at, end, block)
        at = _put_text(at, end, b" (bytes ")
        at = _put_number(at, end, offset)
        at = _put_text(at, end, b"..")
        at = _put_number(at, end, offset + (region_block_nbytes(r, block) if block < r.nblocks else 0))
        at = _put_text(at, end, b"), cannot go on: ")
        if why != NULL:
            at = _put_text(at, end, why)
        at = _put_text(at, end, b" (errno ")
        at = _put_number(at, end, <uint64_t>error)
        at = _put_text(at, end, b")")
    at = _put_text(at, end, b".\nlazymem: an access to memory cannot raise; lazymem.populate() and operations on the LazyArray "
                            b"itself do. Stopping.\n")
    lm_say(text, <size_t>(at - text))
