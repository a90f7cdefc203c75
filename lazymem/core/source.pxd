from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t, uint64_t

# lazymem.h's lazymem_fetch: 0 or -errno, fills exactly, no GIL.
ctypedef int (*fetch_t)(void *ctx, void *dst, uint64_t offset, uint64_t nbytes) noexcept nogil

# The same where the bytes come to lie in memory that is not ours: where they lie, until they are given back.
ctypedef int (*borrow_t)(void *ctx, uint64_t offset, uint64_t nbytes, void **bytes, uint64_t *loan) noexcept nogil
ctypedef void (*give_back_t)(void *ctx, uint64_t loan) noexcept nogil

# The way back: all of it is written, or -errno. GIL: never.
ctypedef int (*store_t)(void *ctx, const void *src, uint64_t offset, uint64_t nbytes) noexcept nogil
# What was stored is safe now, as far as the source can make it (a file: fsync). 0 / -errno. GIL: never.
ctypedef int (*sync_t)(void *ctx) noexcept nogil

# Are these bytes known to be zeros, so that nobody needs to fetch them? No is always right. GIL: never.
ctypedef bint (*is_zero_t)(void *ctx, uint64_t offset, uint64_t nbytes) noexcept nogil

ctypedef struct Source:
    fetch_t fetch
    borrow_t borrow      # not NULL: instead of fetch. It asks again by itself, and there is room for whole pages
    give_back_t give_back
    store_t store        # NULL: nothing can be written
    sync_t sync          # NULL: storing is all there is to it
    is_zero_t is_zero    # NULL: never known
    void *ctx
    const char *direct   # not NULL: the bytes lie in memory already and are copied from there, without a fetch
    bint may_block       # a handler thread hands the reading on before it runs this; others say themselves when they would wait
    bint leaf            # never touches a lazy array

ctypedef struct File:
    int fd               # its number. Anybody may close that, or put another file there
    char *path           # to open it again by; NULL: unknown
    uint64_t device      # which file it is
    uint64_t inode
    uint64_t start       # of the array's first byte in the file, bytes
    uint64_t length      # of the array's part, bytes
    int64_t nbytes       # of the file when it was opened
    int64_t mtime_ns
    bint writable        # we write to it, and others may: its mtime says nothing
    int holes_fd         # where it has holes: an open file of our own, whose position nobody else has; -1 none

cdef class NativeSource:
    cdef Source source
    cdef readonly uint64_t nbytes
    cdef readonly str kind
    cdef object explain(self, uint64_t offset)
    cdef int close(self) except -1

cdef class MemorySource(NativeSource):
    cdef Py_buffer _view

cdef class FileSource(NativeSource):
    cdef File _file

cdef class FunctionSource(NativeSource):
    cdef object _keep
