"""What does the core answer when its nogil functions are called one by one?"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.ioctl cimport ioctl

from lazymem.core.abi cimport *
from lazymem.core.native cimport *
from lazymem.core.pool cimport pool_give, pool_take
from lazymem.core.ring cimport RING_HEAD_NBYTES, RING_SLOT_NBYTES, RING_SLOTS
from lazymem.core.region cimport LIVE, Region, region_at, region_enter, region_leave
from lazymem.core.scratch cimport *
from lazymem.core.source cimport NativeSource
from lazymem.core.table cimport *
from lazymem.core.uffd cimport *

cdef extern from "sched.h" nogil:
    int sched_yield()
cdef extern from "native.h" nogil:
    int madvise(void *, size_t, int)


def open_uffd(uint64_t wanted, bint for_system_calls=True):
    """(descriptor or -errno, privilege, features)"""
    cdef Uffd opened
    cdef int error = uffd_open(&opened, wanted, for_system_calls)
    return (error if error else opened.fd), opened.privilege, opened.features


cdef Uffd _known


cdef Uffd *_uffd(int fd) noexcept nogil:
    """A userfaultfd without a guardian. Thread: one, or all of the same descriptor."""
    if _known.fd != fd or uffd_make_sure(&_known):
        memset(&_known, 0, sizeof(_known))
        uffd_know(&_known, fd)
    return &_known


def register(int fd, uint64_t addr, uint64_t nbytes):
    return uffd_register(_uffd(fd), addr, nbytes, FAULTS_MISSING)


def wake(int fd, uint64_t addr, uint64_t nbytes):
    return uffd_wake(_uffd(fd), addr, nbytes)


def zero(int fd, uint64_t addr, uint64_t nbytes):
    return uffd_zero(_uffd(fd), addr, nbytes)


def poison(int fd, uint64_t addr, uint64_t nbytes):
    return uffd_poison(_uffd(fd), addr, nbytes)


def absent(uint64_t addr):
    return page_is_absent(addr)


def copy(int fd, uint64_t dst, uint64_t src, uint64_t nbytes):
    """(0 or -errno, eexist, eagain)"""
    cdef CopyCounts counts
    cdef int error
    memset(&counts, 0, sizeof(counts))
    with nogil:
        error = uffd_copy(_uffd(fd), dst, src, nbytes, PLAINLY, &counts)
    return error, counts.eexist, counts.eagain


def raw_copy(int fd, uint64_t dst, uint64_t src, uint64_t nbytes, uint64_t mode=0, int64_t preset=0):
    """One UFFDIO_COPY as the kernel answers it: (errno, the field it says how far it came in)."""
    cdef uffdio_copy request
    cdef int error = 0
    request.dst = dst
    request.src = src
    request.len = nbytes
    request.mode = mode
    request.copy = preset
    with nogil:
        if ioctl(fd, UFFDIO_COPY, &request):
            error = errno
    return error, request.copy


def read_message(int fd):
    """(what uffd_read answers, event, address, thread)"""
    cdef uffd_msg message
    cdef int n
    memset(&message, 0, sizeof(message))
    with nogil:
        n = uffd_read(_uffd(fd), &message)
    return n, message.event, message.address, message.ptid


cdef uint32_t _gates[2]


cdef void _meet(uint32_t round_number, int gate) noexcept nogil:
    """Two threads wait for each other."""
    lm_add32(&_gates[gate], 1)
    while lm_load32(&_gates[gate]) < 2 * round_number:
        sched_yield()


def race_copies_reset():
    _gates[0] = 0
    _gates[1] = 0


def race_copies(int fd, uint64_t dst, uint64_t src, uint64_t nbytes, uint32_t rounds, bint drops):
    """Copy to one place as often as another thread does, at the same time; one of them drops it after each round.

    (errors, EEXIST seen, rounds in which a page was absent after the copy)
    """
    cdef CopyCounts counts
    cdef uint32_t i
    cdef uint64_t errors = 0, absent_after = 0, page
    cdef Uffd *uffd = _uffd(fd)
    memset(&counts, 0, sizeof(counts))
    with nogil:
        for i in range(1, rounds + 1):
            _meet(i, 0)
            if uffd_copy(uffd, dst, src, nbytes, PLAINLY, &counts):
                errors += 1
            page = 0
            while page < nbytes:
                absent_after += page_is_absent(dst + page)
                page += page_nbytes()
            _meet(i, 1)
            if drops:
                madvise(<void *>dst, nbytes, 4)
    return errors, counts.eexist, absent_after


def dirty_staging(uint64_t nbytes, int blocks, int byte):
    """Fill the pool's staging blocks of a size class with one byte, and give them back."""
    cdef void *taken[64]
    cdef int i
    for i in range(blocks):
        taken[i] = pool_take(nbytes)
        memset(taken[i], byte, nbytes)
    for i in range(blocks):
        pool_give(taken[i], nbytes)


def staging_apart(uint64_t nbytes, int blocks):
    """The addresses of so many staging blocks taken at the same time."""
    cdef list taken = [<size_t>pool_take(nbytes) for _ in range(blocks)]
    for addr in taken:
        memset(<void *><size_t>addr, 7, nbytes)
        pool_give(<void *><size_t>addr, nbytes)
    return taken


def look_up(addresses, uint32_t rounds):
    """Enter and leave whatever region is at each address, again and again. How often one that was entered did not cover it."""
    cdef uint64_t at[256]
    cdef uint64_t i, n = len(addresses), wrong = 0, found = 0
    cdef uint32_t k
    cdef Region *r
    for i in range(n):
        at[i] = addresses[i]
    with nogil:
        for k in range(rounds):
            for i in range(n):
                r = region_enter(at[i])
                if r != NULL:
                    found += 1
                    if at[i] < r.base or at[i] > r.base + r.map_nbytes or lm_load32(&r.users) == 0:
                        wrong += 1
                    region_leave(r)
    return wrong, found


def users_at(uint64_t addr):
    """How many threads are in the region there, or -1."""
    cdef Region *r = region_at(addr)
    return <int>lm_load32(&r.users) if r != NULL else -1


def words_at(uint64_t addr):
    """The block table of the region there."""
    cdef Region *r = region_at(addr)
    return [lm_load32(&r.words[i]) for i in range(r.nblocks)]


cdef class Words:
    """A block table of its own."""
    cdef uint32_t *words
    cdef readonly uint64_t n

    def __cinit__(self, uint64_t n):
        self.n = n
        self.words = table_create(n * 4)
        if self.words == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.words != NULL:
            table_destroy(self.words, self.n * 4)

    def get(self, uint64_t i):
        return lm_load32(&self.words[i])

    def claim(self, uint64_t i, uint32_t was, uint32_t tid):
        return lm_cas32(&self.words[i], was, FILLING | (tid << DETAIL_SHIFT))

    def publish(self, uint64_t i, uint32_t now):
        table_publish(&self.words[i], now)

    def wait(self, uint64_t i, uint32_t seen, double seconds):
        cdef int error
        with nogil:
            error = table_wait(&self.words[i], seen, lm_now_ns() + <uint64_t>(seconds * 1e9))
        return error

    def contend(self, uint64_t i, uint32_t tid, uint32_t rounds):
        """Claim, publish or wait, with others, until the detail of the word has reached `rounds`. How often this thread won.

        While it holds the word it moves a plain counter behind the last word, which nothing else protects.
        """
        cdef uint32_t seen, state, won = 0
        cdef uint32_t *counter = &self.words[self.n - 1]
        with nogil:
            while True:
                seen = lm_load32(&self.words[i])
                state = seen & STATE
                if state == FILLING:
                    if table_wait(&self.words[i], seen, lm_now_ns() + <uint64_t>5000000000):
                        break
                    continue
                if (seen >> DETAIL_SHIFT) >= rounds:
                    break
                if not lm_cas32(&self.words[i], seen, FILLING | (tid << DETAIL_SHIFT)):
                    continue
                counter[0] = counter[0] + 1
                won += 1
                table_publish(&self.words[i], RESIDENT | (((seen >> DETAIL_SHIFT) + 1) << DETAIL_SHIFT))
        return won


STATES = {"MISSING": MISSING, "FILLING": FILLING, "RESIDENT": RESIDENT, "FAILED": FAILED, "WAITERS": WAITERS,
          "SHIFT": DETAIL_SHIFT}


def ring_layout():
    """How the memory begins that a provider process shares: (bytes of the head, slots, bytes of a slot)"""
    return RING_HEAD_NBYTES, RING_SLOTS, RING_SLOT_NBYTES


def store(NativeSource source not None, const unsigned char[::1] src, uint64_t offset):
    """Write bytes back to a source. 0 or -errno."""
    cdef int error
    cdef const void *start = &src[0] if src.shape[0] else NULL
    cdef uint64_t nbytes = src.shape[0]
    with nogil:
        error = source.source.store(source.source.ctx, start, offset, nbytes)
    return error


def sync(NativeSource source not None):
    """0 or -errno; None: storing is all there is to it."""
    cdef int error
    if source.source.sync == NULL:
        return None
    with nogil:
        error = source.source.sync(source.source.ctx)
    return error


def fetch(NativeSource source not None, uint64_t offset, unsigned char[::1] dst):
    """Read bytes of a source that does not lend them. 0 or -errno."""
    cdef int error
    with nogil:
        error = source.source.fetch(source.source.ctx, &dst[0], offset, dst.shape[0])
    return error


cdef class Scratches:
    """A scratch of its own. Answers are 0 or -errno, as the core gives them."""
    cdef Scratch s
    cdef readonly uint64_t block_nbytes

    def __init__(self, bytes folder, uint64_t nblocks, uint64_t block_nbytes):
        cdef int error = scratch_open(&self.s, folder, nblocks, block_nbytes)
        self.block_nbytes = block_nbytes
        if error:
            raise OSError(-error, "scratch_open")

    def close(self):
        scratch_close(&self.s)

    def write(self, uint64_t block, const unsigned char[::1] src):
        cdef int error
        with nogil:
            error = scratch_write(&self.s, block, &src[0], <uint64_t>src.shape[0])
        return error

    def read(self, uint64_t block, uint64_t nbytes=0):
        """Its bytes, or -errno."""
        cdef int error
        cdef bytearray dst = bytearray(nbytes or self.block_nbytes)
        cdef unsigned char[::1] view = dst
        with nogil:
            error = scratch_read(&self.s, block, &view[0], <uint64_t>view.shape[0])
        return error if error else bytes(dst)

    def forget(self, uint64_t block):
        cdef int error
        with nogil:
            error = scratch_forget(&self.s, block)
        return error

    def has(self, uint64_t block):
        return scratch_has(&self.s, block)

    def any(self):
        return scratch_any(&self.s)

    def nbytes(self):
        return scratch_nbytes(&self.s)

    def before_fork(self):
        with nogil:
            scratch_before_fork(&self.s)

    def after_fork(self):
        scratch_after_fork(&self.s)

    def in_child(self):
        scratch_in_child(&self.s)

    def layers(self):
        """(descriptor, blocks, graves) of each, the top first; and whether the top is open."""
        cdef list found = []
        cdef uint64_t stack = self.s.stack
        is_open = bool(stack >> 63)
        stack &= (<uint64_t>1 << 48) - 1
        while stack:
            layer = self.s.layers[(stack & 15) - 1]
            found.append((layer.fd, layer.blocks, layer.graves))
            stack >>= 4
        return found, is_open

    def slots(self):
        """How many are somebody's."""
        return bin(self.s.taken).count("1")
