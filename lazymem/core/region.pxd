from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.frames cimport Clock, KINDS
from lazymem.core.mprotect cimport Exposure
from lazymem.core.scratch cimport Scratch
from lazymem.core.source cimport Source
from lazymem.core.uffd cimport CopyCounts, Uffd

cdef enum Delivery:
    THREADS = 0
    INLINE = 1
    MPROTECT = 2         # no userfaultfd: another kind of memory too

cdef enum Kind:
    ANONYMOUS = 0        # private memory of the process
    SHARED = 1           # a file of memory with a userfaultfd (shared.pyx), filled by COPY
    CONTINUED = 2        # the same, filled by CONTINUE

cdef enum Filling:       # how bytes come into place
    FILL_AUTO = 0
    FILL_COPY = 1
    FILL_MOVE = 2
    FILL_ZERO = 3

cdef enum Tracking:      # how writes are noticed
    UNTRACKED = 0        # not at all: what may be written is taken for written
    SYNC = 1             # the first write to a block is a fault
    ASYNC = 2            # the kernel notes them (PAGEMAP_SCAN)

cdef enum Status:
    FREED = 0            # the slot is nobody's
    LIVE = 1
    CLOSED = 2           # PROT_NONE; kept so that a touch can be told what it hit
    LOST = 3             # the same, in a forked child that did not get it
    SEVERED = 4          # the same, since somebody else closed the userfaultfd, and nobody held it
    UNREGISTERED = 5     # the same, since somebody else took it out of the userfaultfd's hands

cdef enum:
    NAME_NBYTES = 120
    BUCKETS = 64         # of the latency histogram: bucket i counts [2**i, 2**(i+1)) ns

ctypedef struct Counters:
    uint64_t taken       # faults: taken = filled + joined + failed
    uint64_t filled
    uint64_t joined
    uint64_t failed
    uint64_t blocks      # fills, whoever asked
    uint64_t asked       # bytes asked of the source
    uint64_t used        # bytes of them that were put into the region
    uint64_t zeroed      # blocks known to be zeros, and not asked for
    uint64_t refilled    # blocks resident in the table and absent in the kernel
    uint64_t moved       # fills by MOVE, of blocks or units
    uint64_t refused     # fills, evictions and rescues that MOVE did not do
    uint64_t units       # of the fills, those of a unit
    uint64_t evicted     # frames that were moved out of the region
    uint64_t rescued     # of them, those that were wanted again before their memory was
    uint64_t recycled    # and those whose memory went to another fetch, or back to the kernel
    uint64_t pinned      # evictions that did not take place: pinned, here or by the kernel
    uint64_t stored      # blocks, and their bytes, that were written back, or into the scratch file
    uint64_t stored_nbytes
    CopyCounts copy
    uint64_t latency[BUCKETS]

ctypedef struct Terms:   # what a region is to be
    uint64_t block_nbytes
    int delivery
    int kind
    int filling
    bint writable        # the user may write
    bint writes_back     # what he writes goes to the source
    uint64_t budget_nbytes
    const char *scratch  # folder for private writes that are evicted; NULL: they stay
    uint64_t timeout_ns
    uint32_t retries

ctypedef struct Region:
    uint64_t base        # address, bytes; page aligned
    uint64_t nbytes      # of the source's bytes
    uint64_t map_nbytes  # of the mapping: nbytes rounded up to pages, at least one
    uint64_t block_nbytes
    uint64_t nblocks
    uint32_t *words      # the block table
    Source source
    Uffd *uffd           # NULL with MPROTECT
    Exposure exposure    # where it lies in a file
    int delivery
    int kind
    bint writable
    bint kernel_faults   # system calls on absent pages wait for them
    uint32_t status
    uint32_t users       # threads on the fill path, and lookups; memory and source outlive them
    uint64_t id          # never reused
    uint64_t timeout_ns  # how long to wait for a block that another thread fetches
    uint32_t retries
    uint32_t arrays      # LazyArray instances whose memory this is
    uint32_t exports     # buffers handed out
    void *owner          # the Python object, borrowed; only with the GIL
    Region *next_free    # of the free ones, or of those that die
    void *kept           # while it dies: the Python object that its source lives in, a reference
    char name[NAME_NBYTES]
    uint32_t nests         # its source has been seen to touch lazy arrays
    uint64_t last_failure  # log number, block and errno of its latest failed touch: for operations that find the log overrun
    uint64_t last_failed_block
    int last_error
    uint64_t standins    # blocks of it that are, or are about to be, stand-ins
    uint64_t loose       # of them, those that no operation drops
    uint32_t absent_nbytes  # what stands in: so many bytes of `absent`, again and again from byte `absent_at` on; 0: zeros
    uint64_t absent_at
    char absent[16]
    uint64_t errors      # fetches that have failed, and the latest of them
    uint64_t failed_block
    int failed_error
    uint32_t failed_attempts
    uint64_t stores_lost   # stand-ins dropped since somebody was told of it, into which the program had stored; the first of them
    uint64_t store_lost_block
    uint64_t held        # bytes of its frames: resident, or waiting
    uint64_t budget_nbytes  # of that, at most; 0: as much as the process may have
    uint64_t most_nbytes # what its frames were made for
    uint64_t floor_nbytes   # nobody else takes memory from it below this
    Clock clocks[KINDS]
    uint32_t *paged      # a word a unit: small pages lay in it, whose page table would split a huge page that is moved there
    uint64_t looked        # how many turns of recycled frames had passed when it last looked at who holds most (evict.pyx)
    uint64_t touched     # first block of the unit that was touched last while it was fetched, or for which it was
    int filling
    int tracking
    bint moves           # pages may be moved: private memory that is mapped writable, and a kernel that can
    bint units           # a sequential stream is fetched in units
    bint writes_back
    Scratch scratch      # private writes that were evicted
    int store_error      # errno of the latest block that could not be written, which one; of those since a flush
    uint64_t store_block
    uint64_t store_errors
    Counters counters

cdef Region *region_create(Source source, uint64_t nbytes, const Terms *terms, Uffd *uffd, const char *name,
                           int *error) noexcept nogil
cdef bint region_slots(Region *r, Clock *c) noexcept nogil
cdef bint lies_in_file(Region *r) noexcept nogil
cdef Region *region_enter(uint64_t addr) noexcept nogil
cdef bint regions_slot(uint64_t addr) noexcept nogil
cdef void region_leave(Region *r) noexcept nogil
cdef Region *region_numbered(uint64_t id) noexcept nogil
cdef Region *region_at(uint64_t addr) noexcept nogil
cdef uint64_t region_block_nbytes(Region *r, uint64_t block) noexcept nogil
cdef uint64_t whole_pages(uint64_t nbytes) noexcept nogil
cdef int region_close(Region *r, uint64_t deadline_ns) noexcept nogil
cdef bint region_free(Region *r) noexcept nogil
cdef void region_die(Region *r, void *kept) noexcept nogil
cdef Region *region_left_behind() noexcept nogil
cdef void region_unlist(Region *r) noexcept nogil
cdef bint regions_free(uint32_t *freed) noexcept nogil
cdef bint region_bury(void **kept) noexcept nogil
cdef void regions_hold() noexcept nogil
cdef void regions_let_go() noexcept nogil
cdef void regions_reserve() noexcept nogil
cdef void regions_inherit(Uffd *uffd) noexcept nogil
cdef bint regions_severed() noexcept nogil
cdef Region *region_enter_above(uint64_t addr) noexcept nogil
cdef bint region_take_away(Region *r) noexcept nogil
cdef void regions_wake(Uffd *uffd) noexcept nogil
cdef bint regions_any() noexcept nogil
