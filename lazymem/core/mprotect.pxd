from libc.stdint cimport uint32_t, uint64_t

ctypedef struct Exposure:
    # What of one array's mapping may be accessed. Fields but `fd`, `reexposed` and reads of `bits` and `live`: the lock's.
    uint64_t base
    uint64_t map_nbytes
    uint64_t block_nbytes
    uint64_t nblocks
    uint32_t *words        # the block table, to know which neighbours are there
    uint32_t *exports      # buffers handed out: a system call may be about to use what is exposed
    int access             # PROT_ of an exposed block
    int fd                 # the file; -1 none
    uint64_t device        # what it must still be: somebody may close it, and the number be another's
    uint64_t inode
    uint32_t live          # 0: it is being closed; nothing is exposed any more
    uint64_t *bits         # one per block: exposed
    uint64_t *blank        # one per block: its addresses are not the file's just now, but zeros that take no memory
    uint64_t runs          # stretches of exposed blocks
    uint64_t blank_runs    # stretches of blank ones
    uint64_t hand          # block from which the next stretch to hide is looked for
    uint64_t reexposed     # how often a block was exposed again
    Exposure *before       # in the ring of all that are live
    Exposure *after
    uint64_t alias         # with memory="shared" only: address of a second mapping of the file; 0 none
    int copy_fd            # across a fork: a file that is the child's; -1 none
    uint64_t copy_device
    uint64_t copy_inode
    uint64_t *copied       # and which blocks lie in it

cdef int mprotect_open(Exposure *e, uint64_t base, uint64_t map_nbytes, uint64_t block_nbytes, uint64_t nblocks,
                       uint32_t *words, uint32_t *exports, bint writable) noexcept nogil
cdef int mprotect_write(Exposure *e, uint64_t at, const void *src, uint64_t nbytes) noexcept nogil
cdef int mprotect_zeros(Exposure *e, uint64_t block, bint for_good) noexcept nogil
cdef int mprotect_expose(Exposure *e, uint64_t block, bint again) noexcept nogil
cdef bint mprotect_exposed(Exposure *e, uint64_t block) noexcept nogil
cdef int mprotect_peek(Exposure *e, uint64_t at, char *dst, uint64_t nbytes) noexcept nogil
cdef int mprotect_remove(Exposure *e, uint64_t block) noexcept nogil
cdef void mprotect_shut(Exposure *e) noexcept nogil
cdef void mprotect_empty(Exposure *e) noexcept nogil
cdef void mprotect_release(Exposure *e) noexcept nogil
cdef void mprotect_copy(Exposure *e) noexcept nogil
cdef void mprotect_copy_end(Exposure *e) noexcept nogil
cdef void mprotect_forget_all() noexcept nogil
cdef bint mprotect_was_copied(Exposure *e, uint64_t block) noexcept nogil
cdef int mprotect_inherit(Exposure *e, bint keep) noexcept nogil
