"""Where do private writes go when their block is evicted?

Into a file that has no name, each block at its own offset, and a bit says that it is there. Nothing is made before the
first write. Nothing here allocates, or waits for a thread that a handler may have interrupted, so all of it may run in a
signal handler, and several threads may be in it at once, as long as no two of them are at the same block (who calls has
claimed it).

A fork gives the same file to two processes that go on apart. So what has been forked is sealed: nobody changes it any more,
and each side makes a file of its own for what it writes next. The files lie in layers, and a block is looked for from the
top down:

    top       written to and forgotten in; there until the next fork
    sealed    only read. A block that is forgotten while one of them has it gets a grave in the top: a bit that ends the
              search

Which layers there are, and in what order, is one word (`stack`), changed by compare-and-swap: whoever finds that it has
changed looks again, and a child finds one state or the other. The bits of a slot stay mapped until the
end, so that late readers read nonsense at worst, and look again.

The order around a fork:

    before       1. `forking`: nobody begins to change anything 2. wait until nobody does any more 3. the top is sealed
    meanwhile    who would write or forget is told -EBUSY: the block stays where it is. It must not wait: the fork may be
                 waiting for what its thread holds. Reading changes nothing and goes on
    the parent   4. not `forking`
    the child    the same

For a fork copies memory a page at a time, while other threads go on: of two words the child may get the later state of one
and the earlier of the other, in whichever order they were written. Whoever changes something has signals blocked, so that
no handler forks on top of it.

Layers must not become more and more: when there are too many, who writes also copies a block of the pair of neighbours that
holds least into a new file, which takes the place of both as it is complete (`_merge_step`). Only where forks come faster
than that, a write waits for it.

A number that somebody closed (closerange), or another file's: it is looked at before and after each use. The file itself is
kept by a mapping of its first page, PROT_NONE. From there any block can be mapped, read and unmapped again, by any user
(mremap of no bytes; /proc/self/map_files would give a descriptor, to root alone). So the layer is sealed, read by that way,
and a new top is made.
"""
from libc.stddef cimport size_t
from libc.string cimport memset, strlen
from posix.unistd cimport close

from lazymem.core.native cimport *


cdef extern from "guardian.h" nogil:
    bint lm_file_is(int fd, uint64_t device, uint64_t inode)

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/resource.h>
    #include <sys/stat.h>
    #include <sys/vfs.h>
    #include <unistd.h>
    #include "native.h"

    #ifndef FALLOC_FL_KEEP_SIZE
    #define FALLOC_FL_KEEP_SIZE 1
    #endif
    #ifndef FALLOC_FL_PUNCH_HOLE
    #define FALLOC_FL_PUNCH_HOLE 2
    #endif
    enum { LM_SCRATCH_FD = 48 };   /* ours are kept above what programs name by number */

    /* A file that has a name for as long as it takes to remove it: for file systems without O_TMPFILE. */
    static int lm_create_and_remove(const char *folder)
    {
        static const char digits[] = "0123456789abcdef";
        char name[] = ".lazymem-0123456789abcdef";
        uint64_t number = lm_now_ns() ^ (uint64_t)lm_gettid() << 40;
        int at, i, tries, fd = -EEXIST, error;
        at = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (at < 0)
            return -errno;
        for (tries = 0; tries < 100 && fd == -EEXIST; tries++, number = number * 6364136223846793005u + 1442695040888963407u) {
            for (i = 0; i < 16; i++)
                name[sizeof name - 2 - i] = digits[number >> 4 * i & 15];
            fd = openat(at, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
            if (fd < 0)
                fd = -errno;
            else if (unlinkat(at, name, 0)) {
                error = errno;
                close(fd);
                fd = -error;
            }
        }
        close(at);
        return fd;
    }

    /* A file without a name, in a folder that is more than memory: its descriptor, what tells it from others; or -errno. */
    static int lm_scratch_file(const char *folder, uint64_t *device, uint64_t *inode)
    {
        struct stat st;
        struct statfs fs;
        int high, error = 0, fd = open(folder, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0 && errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)
            return -errno;
        if (fd < 0)
            fd = lm_create_and_remove(folder);
        if (fd < 0)
            return fd;
        if (fstat(fd, &st) || fstatfs(fd, &fs))
            error = errno;
        else if ((uint32_t)fs.f_type == 0x01021994 || (uint32_t)fs.f_type == 0x858458f6)   /* tmpfs, ramfs */
            error = EOPNOTSUPP;
        if (error) {
            close(fd);
            return -error;
        }
        *device = st.st_dev;
        *inode = st.st_ino;
        high = fcntl(fd, F_DUPFD_CLOEXEC, LM_SCRATCH_FD);
        if (high >= 0) {   /* EINVAL where RLIMIT_NOFILE is lower: stay where we are */
            close(fd);
            fd = high;
        }
        return fd;
    }

    /* All of it, or -errno. Past RLIMIT_FSIZE pwrite would also send SIGXFSZ, which ends a process. */
    static int lm_write_all(int fd, const char *src, uint64_t n, uint64_t at)
    {
        struct rlimit most;
        ssize_t done;
        if (getrlimit(RLIMIT_FSIZE, &most) == 0 && most.rlim_cur != RLIM_INFINITY && at + n > most.rlim_cur)
            return -EFBIG;
        for (; n; n -= (uint64_t)done, src += done, at += (uint64_t)done) {
            done = pwrite(fd, src, n, (off_t)at);
            if (done < 0 && errno == EINTR)
                done = 0;
            else if (done <= 0)
                return done < 0 ? -errno : -EIO;
        }
        return 0;
    }

    static int lm_read_all(int fd, char *dst, uint64_t n, uint64_t at)
    {
        ssize_t done;
        for (; n; n -= (uint64_t)done, dst += done, at += (uint64_t)done) {
            done = pread(fd, dst, n, (off_t)at);
            if (done < 0 && errno == EINTR)
                done = 0;
            else if (done <= 0)
                return done < 0 ? -errno : -EIO;
        }
        return 0;
    }

    static inline void lm_punch(int fd, uint64_t at, uint64_t n)
    {
        int ignored = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)n);
        (void)ignored;   /* where it cannot be, the file stays as large as it is */
    }

    /* Its first page; NULL where its file system cannot. Children get it. Unlocked (mlockall): what is mapped from it would be
     * read in whole. */
    static void *lm_map_beginning(int fd)
    {
        void *p = mmap(NULL, 1, PROT_NONE, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
            return NULL;
        munlock(p, 1);
        return p;
    }

    /* Read by way of that page. One byte of a mapping is its page. */
    static int lm_read_mapped(void *page, void *dst, uint64_t n, uint64_t at)
    {
        char *all;
        int error;
        if (page == NULL)
            return -EBADF;
        all = mremap(page, 0, at + n, MREMAP_MAYMOVE);
        if (all == MAP_FAILED)
            return -errno;
        if (at)
            munmap(all, at);   /* nothing of it was accessed */
        error = mprotect(all + at, n, PROT_READ) ? -errno : lm_copy_from(dst, all + at, n);
        munmap(all + at, n);
        return error;
    }
    """
    int lm_scratch_file(const char *folder, uint64_t *device, uint64_t *inode) noexcept nogil
    int lm_write_all(int fd, const char *src, uint64_t n, uint64_t at) noexcept nogil
    int lm_read_all(int fd, char *dst, uint64_t n, uint64_t at) noexcept nogil
    void lm_punch(int fd, uint64_t at, uint64_t n) noexcept nogil
    void *lm_map_beginning(int fd) noexcept nogil
    int lm_read_mapped(void *page, void *dst, uint64_t n, uint64_t at) noexcept nogil

cdef extern from "native.h" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_DONTNEED
    void *MAP_FAILED
    void *memcpy(void *, const void *, size_t)
    int ENAMETOOLONG

# The stack's word: four bits a layer, the slot's number from 1, the top's lowest; then how often it has changed; then
# whether the top may be changed.
cdef uint64_t SLOT_BITS = 4
cdef uint64_t SLOT_MASK = 15
cdef uint64_t LAYERS_MASK = (<uint64_t>1 << 48) - 1
cdef uint64_t CHANGED = <uint64_t>1 << 48
cdef uint64_t CHANGED_MASK = ((<uint64_t>1 << 15) - 1) << 48
cdef uint64_t TOP_IS_OPEN = <uint64_t>1 << 63

cdef uint64_t FOLDER_MAX_NBYTES = 1 << 14     # of a path; the kernel takes less
cdef uint64_t COPY_STEP_NBYTES = 1 << 20
cdef int FEW_LAYERS = 4                       # from here on who writes also merges
cdef uint64_t STEP_WORDS = 1 << 12               # of bits that one step of a merge looks at
cdef uint64_t ROOM_NS = 5000000000            # so long a write waits for another thread's merge


# ---------------------------------------------------------------------------------------------------------------------------
# Bits, and the stack's word

cdef bint _bit(uint64_t *bits, uint64_t block) noexcept nogil:
    return (lm_load64(&bits[block >> 6]) >> (block & 63)) & 1


cdef uint64_t _bits_nbytes(Scratch *s) noexcept nogil:
    """Of one of the two kinds."""
    return (s.nblocks // 64 + 1) * sizeof(uint64_t)


cdef Layer *_layer(Scratch *s, uint64_t slot) noexcept nogil:
    return &s.layers[slot - 1]


cdef int _depth(uint64_t stack) noexcept nogil:
    cdef int n = 0
    stack &= LAYERS_MASK
    while stack:
        n += 1
        stack >>= SLOT_BITS
    return n


cdef bint _top_is_open(uint64_t stack) noexcept nogil:
    return (stack & TOP_IS_OPEN) != 0  # as a number of 32 bits that bit would be lost


cdef uint64_t _changed(uint64_t was, uint64_t layers, bint is_open) noexcept nogil:
    """The word after `was`."""
    return ((was + CHANGED) & CHANGED_MASK) | layers | (TOP_IS_OPEN if is_open else 0)


cdef uint64_t _find(Scratch *s, uint64_t layers, uint64_t block) noexcept nogil:
    """The slot of the layer that a block is to be read from; 0: none."""
    cdef Layer *layer
    layers &= LAYERS_MASK
    while layers:
        layer = _layer(s, layers & SLOT_MASK)
        if _bit(layer.there, block):
            return layers & SLOT_MASK
        if _bit(layer.gone, block):
            return 0
        layers >>= SLOT_BITS
    return 0


cdef bint _is_below(Scratch *s, uint64_t slot, uint64_t block) noexcept nogil:
    """Would a block be found below a layer? Thread: one that keeps it from being merged."""
    cdef uint64_t stack = lm_load64(&s.stack), again, left
    cdef bint found
    while True:
        left = stack & LAYERS_MASK
        while left & SLOT_MASK != slot:
            left >>= SLOT_BITS
        found = _find(s, left >> SLOT_BITS, block) != 0
        again = lm_load64(&s.stack)
        if again == stack:
            return found
        stack = again


cdef void _cover(Layer *layer, uint64_t word) noexcept nogil:
    """Note that a word of bits is about to be changed: those who merge look between `low` and `high`."""
    cdef uint64_t seen = lm_load64(&layer.low)
    while word < seen and not lm_cas64(&layer.low, seen, word):
        seen = lm_load64(&layer.low)
    seen = lm_load64(&layer.high)
    while word >= seen and not lm_cas64(&layer.high, seen, word + 1):
        seen = lm_load64(&layer.high)


cdef void _bring(Layer *layer, uint64_t block) noexcept nogil:
    """It is there, then not gone: in between it is there. Thread: the block's."""
    cdef uint64_t bit = <uint64_t>1 << (block & 63)
    _cover(layer, block >> 6)
    if not _bit(layer.there, block):
        lm_or64(&layer.there[block >> 6], bit)
        lm_add64(&layer.blocks, 1)
    if lm_take_bits64(&layer.gone[block >> 6], bit):
        lm_sub64(&layer.graves, 1)


cdef bint _bury(Layer *layer, uint64_t block, bint is_below) noexcept nogil:
    """Gone, where a layer below has it, then not there. Return: was it there? Thread: the block's."""
    cdef uint64_t bit = <uint64_t>1 << (block & 63)
    _cover(layer, block >> 6)
    if is_below and not _bit(layer.gone, block):
        lm_or64(&layer.gone[block >> 6], bit)
        lm_add64(&layer.graves, 1)
    if lm_take_bits64(&layer.there[block >> 6], bit):
        lm_sub64(&layer.blocks, 1)
        return True
    return False


cdef uint64_t _block_nbytes(Scratch *s, uint64_t block) noexcept nogil:
    return s.last_nbytes if block == s.nblocks - 1 else s.block_nbytes


# ---------------------------------------------------------------------------------------------------------------------------
# Slots

cdef void _empty(Scratch *s, Layer *layer) noexcept nogil:
    """No file, no bits; the bits' memory stays."""
    cdef int fd = layer.fd
    cdef void *page = layer.page
    cdef uint64_t nbytes = 2 * _bits_nbytes(s)
    layer.fd = -1
    layer.page = NULL
    if lm_file_is(fd, layer.device, layer.inode):
        close(fd)
    if page != NULL:
        munmap(page, 1)
    if layer.there != NULL and madvise(layer.there, nbytes, MADV_DONTNEED):
        memset(layer.there, 0, nbytes)  # somebody locked it (mlockall)
    layer.blocks = layer.graves = 0
    layer.low = ~<uint64_t>0
    layer.high = 0


cdef void _give_slot(Scratch *s, uint64_t slot) noexcept nogil:
    _empty(s, _layer(s, slot))
    lm_and_not32(&s.taken, <uint32_t>1 << (slot - 1))


cdef int _take_slot(Scratch *s) noexcept nogil:
    """Make an empty layer, of nobody's yet. Return: its slot from 1 on; -EAGAIN there is none just now; -errno."""
    cdef uint32_t seen = lm_load32(&s.taken)
    cdef uint64_t slot = 1
    cdef Layer *layer
    cdef void *bits
    cdef int fd
    while True:
        slot = 1 + <uint64_t>lm_low_bit(~<uint64_t>seen)
        if slot > SCRATCH_SLOTS:
            return -EAGAIN
        if lm_cas32(&s.taken, seen, seen | (<uint32_t>1 << (slot - 1))):
            break
        seen = lm_load32(&s.taken)
    layer = _layer(s, slot)
    if layer.there == NULL:
        bits = mmap(NULL, 2 * _bits_nbytes(s), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if bits == MAP_FAILED:
            lm_and_not32(&s.taken, <uint32_t>1 << (slot - 1))
            return -ENOMEM
        layer.there = <uint64_t *>bits
        layer.gone = layer.there + _bits_nbytes(s) // sizeof(uint64_t)
    layer.fd = -1
    layer.low = ~<uint64_t>0
    layer.high = 0
    fd = lm_scratch_file(s.folder, &layer.device, &layer.inode)
    if fd < 0:
        lm_and_not32(&s.taken, <uint32_t>1 << (slot - 1))
        return fd
    layer.fd = fd
    layer.page = lm_map_beginning(fd)
    return <int>slot


# ---------------------------------------------------------------------------------------------------------------------------
# The top

cdef void _seal(Scratch *s, uint64_t seen) noexcept nogil:
    """Nobody begins to change the top any more, unless the stack is another by now."""
    lm_cas64(&s.stack, seen, _changed(seen, seen & LAYERS_MASK, False))


cdef int _make_top(Scratch *s, uint64_t seen) noexcept nogil:
    """A layer on top of what was seen, which has no open one. Return: 0 look again; -errno."""
    cdef int slot
    if _depth(seen) >= SCRATCH_LAYERS:
        return _make_room(s)
    slot = _take_slot(s)
    if slot == -EAGAIN:  # others are making theirs
        lm_sleep_ns(10000)
        return 0
    if slot < 0:
        return slot if lm_load64(&s.stack) == seen else 0
    if not lm_cas64(&s.stack, seen, _changed(seen, ((seen & LAYERS_MASK) << SLOT_BITS) | <uint64_t>slot, True)):
        _give_slot(s, <uint64_t>slot)
    return 0


cdef bint _enter(Scratch *s, sigset_t *before) noexcept nogil:
    """Be one of those who change something: no fork until `_exit`. Return: False while there is one: nothing is entered."""
    lm_no_signals(before)
    lm_add32(&s.inside, 1)
    if lm_load32(&s.forking) == 0:
        return True
    _exit(s, before)
    return False


cdef void _exit(Scratch *s, const sigset_t *before) noexcept nogil:
    lm_sub32(&s.inside, 1)
    lm_signals_again(before)


cdef int _enter_top(Scratch *s, uint64_t *stack) noexcept nogil:
    """Be one of those who change the top, until `writers` is counted down. Thread: inside.

    Return: 0, and what the stack was; -errno: no top can be made.
    """
    cdef uint64_t seen
    cdef int error
    cdef Layer *layer
    while True:
        seen = lm_load64(&s.stack)
        if not _top_is_open(seen):
            error = _make_top(s, seen)
            if error:
                return error
            continue
        layer = _layer(s, seen & SLOT_MASK)
        lm_add32(&layer.writers, 1)
        if lm_load64(&s.stack) == seen:
            stack[0] = seen
            return 0
        lm_sub32(&layer.writers, 1)


cdef void _punch(Scratch *s, Layer *layer, uint64_t block) noexcept nogil:
    """Give the disk back what a block of the top takes. Thread: inside: no child has that file."""
    if lm_file_is(layer.fd, layer.device, layer.inode):
        lm_punch(layer.fd, block * s.block_nbytes, s.block_nbytes)


# ---------------------------------------------------------------------------------------------------------------------------
# Merging
#
# Two sealed neighbours that nobody writes to any more do not change: what of them can still be seen is copied into a file
# that nobody else knows, a step at a time, whoever does the next (`merging`, with signals blocked, so that no handler waits
# for what it interrupted; others go on without). One swap of the stack puts it in their place.

cdef int _read_layer(Scratch *s, Layer *layer, void *dst, uint64_t nbytes, uint64_t at) noexcept nogil:
    """Return: 0; -EBADF its number is not its own any more and it cannot be mapped; -errno."""
    cdef int error = lm_read_all(layer.fd, <char *>dst, nbytes, at)
    if lm_file_is(layer.fd, layer.device, layer.inode):
        return error
    return lm_read_mapped(layer.page, dst, nbytes, at)


cdef int _copy_block(Scratch *s, Layer *src, Layer *dst, uint64_t block, void *through) noexcept nogil:
    cdef uint64_t at = block * s.block_nbytes, end = at + _block_nbytes(s, block), step
    cdef int error
    while at < end:
        step = end - at if end - at < COPY_STEP_NBYTES else COPY_STEP_NBYTES
        error = _read_layer(s, src, through, step, at)
        if error == 0 and not lm_file_is(dst.fd, dst.device, dst.inode):
            error = -EBADF
        if error == 0:
            error = lm_write_all(dst.fd, <const char *>through, step, at)
        if error:
            return error
        at += step
    return 0 if lm_file_is(dst.fd, dst.device, dst.inode) else -EBADF


cdef bint _drop_empty(Scratch *s) noexcept nogil:
    """Take out one sealed layer that says nothing. Return: was there one? Thread: who merges."""
    cdef uint64_t seen = lm_load64(&s.stack), left = seen & LAYERS_MASK, slot, upper
    cdef uint64_t shift = 0
    cdef Layer *layer
    if _top_is_open(seen):
        shift = SLOT_BITS
    while left >> shift:
        slot = (left >> shift) & SLOT_MASK
        layer = _layer(s, slot)
        if (lm_load32(&layer.writers) == 0 and lm_load64(&layer.blocks) == 0 and
                (lm_load64(&layer.graves) == 0 or left >> shift >> SLOT_BITS == 0)):  # at the bottom a grave hides nothing
            upper = left & ((<uint64_t>1 << shift) - 1)
            if lm_cas64(&s.stack, seen, _changed(seen, upper | (left >> shift >> SLOT_BITS << shift), _top_is_open(seen))):
                _give_slot(s, slot)
                return True
            return False
        shift += SLOT_BITS
    return False


cdef int _begin_merge(Scratch *s) noexcept nogil:
    """Choose the two that hold least. Return: 0; -ENOENT there are none to be merged; -errno. Thread: who merges."""
    cdef uint64_t left = lm_load64(&s.stack), upper, lower, least = 0, blocks
    cdef int slot
    s.merge_upper = s.merge_lower = 0
    left = (left & LAYERS_MASK) >> (SLOT_BITS if _top_is_open(left) else 0)
    while left >> SLOT_BITS:
        upper = left & SLOT_MASK
        lower = (left >> SLOT_BITS) & SLOT_MASK
        left >>= SLOT_BITS
        if lm_load32(&_layer(s, upper).writers) or lm_load32(&_layer(s, lower).writers):
            continue
        blocks = _layer(s, upper).blocks + _layer(s, lower).blocks
        if s.merge_upper == 0 or blocks < least:
            least = blocks
            s.merge_upper = <uint32_t>upper
            s.merge_lower = <uint32_t>lower
    if s.merge_upper == 0:
        return -ENOENT
    slot = _take_slot(s)
    if slot < 0:
        return slot
    s.merge_slot = <uint32_t>slot
    s.merge_at = min(_layer(s, s.merge_upper).low, _layer(s, s.merge_lower).low)
    return 0


cdef void _abandon_merge(Scratch *s) noexcept nogil:
    cdef uint32_t slot = s.merge_slot
    s.merge_slot = 0
    _give_slot(s, slot)


cdef int _merge_word(Scratch *s, uint64_t word, void *through, uint64_t *copied) noexcept nogil:
    """64 blocks. Those that a layer above says something of are left out: nobody will ever ask for them here.

    Graves are not: who forgets such a block in the top looks at the two that are being merged, finds a grave, and makes none.
    """
    cdef Layer *upper = _layer(s, s.merge_upper)
    cdef Layer *lower = _layer(s, s.merge_lower)
    cdef Layer *made = _layer(s, s.merge_slot)
    cdef uint64_t left = lm_load64(&s.stack) & LAYERS_MASK, hidden = 0, ours, theirs, graves, bits, block
    cdef int error
    while left & SLOT_MASK != s.merge_upper:
        hidden |= lm_load64(&_layer(s, left & SLOT_MASK).there[word]) | lm_load64(&_layer(s, left & SLOT_MASK).gone[word])
        left >>= SLOT_BITS
    ours = upper.there[word] & ~hidden
    theirs = lower.there[word] & ~hidden & ~upper.there[word] & ~upper.gone[word]
    graves = (upper.gone[word] & ~upper.there[word]) | (lower.gone[word] & ~lower.there[word] & ~upper.there[word])
    bits = ours | theirs
    while bits:
        block = word * 64 + <uint64_t>lm_low_bit(bits)
        error = _copy_block(s, upper if (ours >> (block & 63)) & 1 else lower, made, block, through)
        if error:
            return error
        _bring(made, block)
        copied[0] += 1
        bits &= bits - 1
    while graves:
        _bury(made, word * 64 + <uint64_t>lm_low_bit(graves), True)
        graves &= graves - 1
    return 0


cdef void _end_merge(Scratch *s) noexcept nogil:
    """Put it in their place."""
    cdef uint64_t seen, layers, shift
    while True:
        seen = lm_load64(&s.stack)
        layers = seen & LAYERS_MASK
        shift = 0
        while (layers >> shift) & SLOT_MASK != s.merge_upper:
            shift += SLOT_BITS
        layers = ((layers & ((<uint64_t>1 << shift) - 1)) |
                  (layers >> shift >> 2 * SLOT_BITS << SLOT_BITS | s.merge_slot) << shift)
        if lm_cas64(&s.stack, seen, _changed(seen, layers, _top_is_open(seen))):
            break
    s.merge_slot = 0
    _give_slot(s, s.merge_upper)
    _give_slot(s, s.merge_lower)


cdef int _step(Scratch *s) noexcept nogil:
    """Thread: who merges."""
    cdef uint64_t nbytes = min(s.block_nbytes, COPY_STEP_NBYTES), copied = 0, words = 0, end
    cdef void *through
    cdef int error = 0
    if s.merge_slot == 0:
        if _drop_empty(s):
            return 0
        error = _begin_merge(s)
        if error:
            return error
    through = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if through == MAP_FAILED:
        return -ENOMEM
    end = max(_layer(s, s.merge_upper).high, _layer(s, s.merge_lower).high)
    while error == 0 and s.merge_at < end and copied == 0 and words < STEP_WORDS:
        error = _merge_word(s, s.merge_at, through, &copied)
        s.merge_at += 1
        words += 1
    munmap(through, nbytes)
    if error:
        _abandon_merge(s)
    elif s.merge_at >= end:
        _end_merge(s)
    return error


cdef int _merge_step(Scratch *s) noexcept nogil:
    """Return: 0; -EBUSY another thread is at it; -ENOENT there is nothing to merge; -errno. Thread: inside."""
    cdef int error = -EBUSY
    if lm_cas32(&s.merging, 0, 1):
        error = _step(s)
        lm_store32(&s.merging, 0)
    return error


cdef int _make_room(Scratch *s) noexcept nogil:
    """Merge until there can be a layer more. Return: 0; -EBUSY others are at it for too long; -errno."""
    cdef uint64_t until_ns = lm_now_ns() + ROOM_NS
    cdef int error
    while _depth(lm_load64(&s.stack)) >= SCRATCH_LAYERS:
        if lm_load32(&s.forking):  # it waits for us
            return -EBUSY
        error = _merge_step(s)
        if error == 0:
            continue
        if error != -EBUSY and error != -ENOENT and error != -EAGAIN:
            return error
        if lm_now_ns() > until_ns:
            return -EBUSY
        lm_sleep_ns(100000)
    return 0


# ---------------------------------------------------------------------------------------------------------------------------
# What others call

cdef int scratch_open(Scratch *s, const char *folder, uint64_t nblocks, uint64_t block_nbytes) noexcept nogil:
    """Remember where; nothing is made yet.

    Units: blocks; bytes, whole pages. Return: 0; -ENAMETOOLONG; -ENOMEM. GIL: any. Blocks: no.
    """
    cdef size_t n = strlen(folder) + 1
    cdef void *p
    cdef int i
    memset(s, 0, sizeof(Scratch))
    if n > FOLDER_MAX_NBYTES:
        return -ENAMETOOLONG
    p = mmap(NULL, SCRATCH_SLOTS * sizeof(Layer) + n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if p == MAP_FAILED:
        return -ENOMEM
    s.layers = <Layer *>p
    for i in range(SCRATCH_SLOTS):
        s.layers[i].fd = -1
    s.folder = <const char *>p + SCRATCH_SLOTS * sizeof(Layer)
    memcpy(<void *>s.folder, folder, n)
    s.nblocks = nblocks
    s.block_nbytes = block_nbytes
    return 0


cdef void scratch_close(Scratch *s) noexcept nogil:
    """All of it is forgotten; the disk has its room back when no forked process has it any more. Nothing where it is not open.

    GIL: any. Blocks: while the disk gives it back. Thread: when nobody else is in it any more.
    """
    cdef int i
    cdef Layer *layer
    if s.folder == NULL:
        return
    for i in range(SCRATCH_SLOTS):
        layer = &s.layers[i]
        if layer.there != NULL:
            _empty(s, layer)
            munmap(layer.there, 2 * _bits_nbytes(s))
    munmap(s.layers, SCRATCH_SLOTS * sizeof(Layer) + strlen(s.folder) + 1)
    memset(s, 0, sizeof(Scratch))


cdef int scratch_check(const char *folder) noexcept nogil:
    """Can a folder be written to, and is it more than memory?

    Return: 0; -EOPNOTSUPP it is memory (tmpfs, ramfs); -errno of making a file there. GIL: any. Blocks: on the disk.
    """
    cdef uint64_t device = 0, inode = 0
    cdef int fd = lm_scratch_file(folder, &device, &inode)
    if fd < 0:
        return fd
    close(fd)
    return 0


cdef int _write(Scratch *s, uint64_t block, const void *src, uint64_t nbytes) noexcept nogil:
    """Thread: inside."""
    cdef uint64_t stack = 0
    cdef bint is_ours, was
    cdef Layer *layer
    cdef int error, losses
    for losses in range(SCRATCH_LAYERS):
        error = _enter_top(s, &stack)
        if error:
            return error
        layer = _layer(s, stack & SLOT_MASK)
        is_ours = lm_file_is(layer.fd, layer.device, layer.inode)
        if is_ours:
            error = lm_write_all(layer.fd, <const char *>src, nbytes, block * s.block_nbytes)
            is_ours = lm_file_is(layer.fd, layer.device, layer.inode)
        if not is_ours:  # somebody closed it: what is in there can still be read
            lm_sub32(&layer.writers, 1)
            _seal(s, stack)
            continue
        was = scratch_has(s, block)
        if error == 0:
            if block == s.nblocks - 1:
                lm_store64(&s.last_nbytes, nbytes)
            if not was:
                lm_add64(&s.blocks, 1)
            _bring(layer, block)
        elif was:
            lm_sub64(&s.blocks, 1)
            _bury(layer, block, _is_below(s, stack & SLOT_MASK, block))
        if error:
            _punch(s, layer, block)
        lm_sub32(&layer.writers, 1)
        if _depth(stack) > FEW_LAYERS:
            _merge_step(s)  # where it fails it is tried again
        return error
    return -EBADF


cdef int scratch_write(Scratch *s, uint64_t block, const void *src, uint64_t nbytes) noexcept nogil:
    """Keep a block's bytes; in place of those that it had.

    Units: nbytes, of the block: less than a whole one only of the last, always as many. Return: 0; -errno of making a file
    (-EMFILE, ...) or of writing to it (-ENOSPC, -EDQUOT, -EFBIG, -EIO); -EOPNOTSUPP the folder is memory; -EBUSY there is
    a fork: the block must stay where it is. GIL: never. Blocks: on the disk. Thread: the block's claimer, in a signal
    handler too.
    """
    cdef sigset_t before
    cdef int error
    if not _enter(s, &before):
        return -EBUSY
    error = _write(s, block, src, nbytes)
    _exit(s, &before)
    return error


cdef bint scratch_has(Scratch *s, uint64_t block) noexcept nogil:
    """Are a block's bytes here? GIL: never. Blocks: no. Thread: the block's claimer, in a signal handler too."""
    cdef uint64_t stack = lm_load64(&s.stack), again
    cdef bint found
    while True:
        found = _find(s, stack, block) != 0
        again = lm_load64(&s.stack)
        if again == stack:
            return found
        stack = again


cdef int scratch_read(Scratch *s, uint64_t block, void *dst, uint64_t nbytes) noexcept nogil:
    """Get a block's bytes, or the first of them.

    Return: 0; -ENODATA they are not here; -EBADF somebody closed the file, and it cannot be mapped; -EIO and the like.
    GIL: never. Blocks: on the disk. Thread: the block's claimer, in a signal handler too.
    """
    cdef uint64_t stack, slot
    cdef int error
    while True:
        stack = lm_load64(&s.stack)
        slot = _find(s, stack, block)
        error = -ENODATA if slot == 0 else _read_layer(s, _layer(s, slot), dst, nbytes, block * s.block_nbytes)
        if lm_load64(&s.stack) == stack:  # else the slot may have been another layer's by then
            return error


cdef int _forget(Scratch *s, uint64_t block) noexcept nogil:
    """Thread: inside."""
    cdef uint64_t stack = 0
    cdef Layer *layer
    cdef int error
    error = _enter_top(s, &stack)
    if error:
        return error
    layer = _layer(s, stack & SLOT_MASK)
    lm_sub64(&s.blocks, 1)
    if _bury(layer, block, _is_below(s, stack & SLOT_MASK, block)):
        _punch(s, layer, block)
    lm_sub32(&layer.writers, 1)
    return 0


cdef int scratch_forget(Scratch *s, uint64_t block) noexcept nogil:
    """A block's bytes are wanted no more.

    Return: 0; -EBUSY there is a fork; -errno: no top can be made for its grave: it is still there. GIL: never. Blocks: on
    the disk. Thread: the block's claimer, in a signal handler too.
    """
    cdef sigset_t before
    cdef int error
    if not scratch_has(s, block):
        return 0
    if not _enter(s, &before):
        return -EBUSY
    error = _forget(s, block)
    _exit(s, &before)
    return error


cdef bint scratch_any(Scratch *s) noexcept nogil:
    """Are any block's bytes here? GIL: never. Blocks: no."""
    return lm_load64(&s.blocks) != 0


cdef uint64_t scratch_nbytes(Scratch *s) noexcept nogil:
    """How many are here, bytes; of a block once, whatever layers have it. GIL: never. Blocks: no."""
    cdef uint64_t nbytes = lm_load64(&s.blocks) * s.block_nbytes
    if s.nblocks and scratch_has(s, s.nblocks - 1):
        nbytes -= s.block_nbytes - lm_load64(&s.last_nbytes)
    return nbytes


# ---------------------------------------------------------------------------------------------------------------------------
# Forks

cdef void scratch_before_fork(Scratch *s) noexcept nogil:
    """From here on nothing changes, until one of the two below.

    GIL: any. Blocks: while others write a block each. Thread: the forking one; no other forks.
    """
    cdef uint64_t seen
    lm_store32(&s.forking, 1)             # 1.
    while lm_load32(&s.inside) != 0:      # 2.
        lm_sleep_ns(10000)
    seen = lm_load64(&s.stack)
    if _top_is_open(seen):                # 3.
        _seal(s, seen)


cdef void scratch_after_fork(Scratch *s) noexcept nogil:
    """In the parent. GIL: any. Blocks: no. Thread: the forking one."""
    lm_store32(&s.forking, 0)             # 4.


cdef void scratch_in_child(Scratch *s) noexcept nogil:
    """In the child: what is here is as of the fork, and what is written from now on its own.

    GIL: any. Blocks: no. Thread: the only one.
    """
    if s.folder == NULL:
        return
    if s.merge_slot:  # the parent goes on with it
        _abandon_merge(s)
    scratch_after_fork(s)


def check_folder(folder):
    """`scratch_check` of a path in bytes: 0 / -errno. GIL: given up. Blocks: on the disk."""
    cdef const char *path = folder
    cdef int error
    with nogil:
        error = scratch_check(path)
    return error
