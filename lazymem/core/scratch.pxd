from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    SCRATCH_LAYERS = 8       # files of one array, at most
    SCRATCH_SLOTS = 12       # and those that are being made meanwhile

ctypedef struct Layer:
    int fd                   # the file's number; -1 none. Anybody may close it, or put another file there
    uint64_t device          # which file it is
    uint64_t inode
    void *page               # its beginning, mapped: the way to its bytes when its number is gone; NULL: it cannot be
    uint64_t *there          # one bit a block: its bytes are in this file
    uint64_t *gone           # one bit a block: it was forgotten, whatever the files below say
    uint64_t blocks          # bits in `there`
    uint64_t graves          # bits in `gone`
    uint64_t low, high       # words of bits outside [low, high) are 0
    uint32_t writers         # threads that change it; when nobody can begin to any more, they only get fewer

ctypedef struct Scratch:
    const char *folder       # NULL: not open
    Layer *layers            # SCRATCH_SLOTS of them
    uint64_t nblocks
    uint64_t block_nbytes
    uint64_t last_nbytes     # of the last block, once it was written
    uint64_t blocks          # of which there are bytes
    uint64_t stack           # which slots are layers, in what order: one word, so that it changes at once, and is forked so
    uint32_t taken           # bits: slots that are somebody's
    uint32_t forking
    uint32_t inside          # threads that change something
    uint32_t merging         # somebody does the next step of a merge
    uint32_t merge_slot      # the layer that is being made of two, and those (slots from 1; 0: no merge is under way)
    uint32_t merge_upper
    uint32_t merge_lower
    uint64_t merge_at        # how far it is, in words of bits

cdef int scratch_open(Scratch *s, const char *folder, uint64_t nblocks, uint64_t block_nbytes) noexcept nogil
cdef void scratch_close(Scratch *s) noexcept nogil
cdef int scratch_check(const char *folder) noexcept nogil
cdef int scratch_write(Scratch *s, uint64_t block, const void *src, uint64_t nbytes) noexcept nogil
cdef int scratch_read(Scratch *s, uint64_t block, void *dst, uint64_t nbytes) noexcept nogil
cdef int scratch_forget(Scratch *s, uint64_t block) noexcept nogil
cdef bint scratch_has(Scratch *s, uint64_t block) noexcept nogil
cdef bint scratch_any(Scratch *s) noexcept nogil
cdef uint64_t scratch_nbytes(Scratch *s) noexcept nogil
cdef void scratch_before_fork(Scratch *s) noexcept nogil
cdef void scratch_after_fork(Scratch *s) noexcept nogil
cdef void scratch_in_child(Scratch *s) noexcept nogil
