"""What does Python hold of a region?

`Memory`: the region's owner. Arrays reach it as their base, so it lives as long as they do; it exports the region as a buffer, keeps
the source alive, and ends the region, at the latest when it dies. Deallocation never waits: where a fetch is still running, address
space and source are the reaper's.
"""
cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from lazymem.core.fetch cimport region_fetch, region_is_zero
from lazymem.core.fill cimport region_need
from lazymem.core.interrupt cimport operation_may_be_ended, wait_is_over
from lazymem.core.inline cimport inline_uffd
from lazymem.core.jobs cimport job_collapse, job_post, job_run, jobs_cancel
from lazymem.core.evict cimport evict_blocks
from lazymem.core.frames cimport SMALL, UNITS
from lazymem.core.limit cimport memory_budget, memory_budget_set, memory_used
from lazymem.core.native cimport *
from lazymem.core.place cimport place_shown_all
from lazymem.core.reaper cimport reap_later, reap_now
from lazymem.core.region cimport *
from lazymem.core.source cimport NativeSource
from lazymem.core.scratch cimport scratch_any, scratch_has
from lazymem.core.standin cimport forget_standins, stores_lost
from lazymem.core.pins cimport region_pin, region_unpin
from lazymem.core.table cimport FAILED, MISSING, STATE, is_resident, is_waiting
from lazymem.core.thread cimport Thread, thread_self
from lazymem.core.threads cimport threads_uffd
from lazymem.core.uffd cimport Uffd, page_nbytes
from lazymem.core.writes cimport blocks_written, region_dirty, region_flush

from lazymem.core.failure import cause_of
from lazymem.errors import page_error

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(object)

cdef extern from "unistd.h":
    int lm_process "getpid"() noexcept nogil

_CLOSE_PATIENCE_NS = 5_000_000_000


def set_budget(uint64_t nbytes):
    """How much all arrays together may have, resident and waiting, bytes; 0: any amount."""
    memory_budget_set(nbytes)


def budget():
    """What `set_budget` was told, and what all arrays have now. Blocks: no. GIL: kept."""
    return memory_budget(), memory_used()


cdef int raise_page_error(Region *r, uint64_t block, int error) except -1:
    """Raise PageError for an errno. GIL: held."""
    made = error_of(r, block, error)
    raise made from made.__cause__


cdef str lost_stores():
    """What the program stored into stand-ins that were dropped since this was last asked, for messages; mostly "". GIL: held."""
    cdef Region *r
    cdef uint64_t n, at
    cdef str text = ""
    while stores_lost():
        r = region_enter_above(0)
        while r != NULL:
            n = lm_swap64(&r.stores_lost, 0)
            if n:
                text += (f"; what was stored into block {r.store_lost_block}" + (f" and {n - 1} more" if n > 1 else "") +
                         f" of array {r.name.decode('utf-8', 'replace')!r} since is lost")
            at = r.base
            region_leave(r)
            r = region_enter_above(at)
    return text


cdef object error_of(Region *r, uint64_t block, int error, bint stored=False):
    """The PageError for an errno of a fetch, or of writing back, its cause chained. GIL: held."""
    cdef Memory owner = memory_of(r)
    cdef uint64_t start = block * r.block_nbytes
    cdef uint64_t stop = start + r.block_nbytes if r.nbytes - start > r.block_nbytes else r.nbytes
    cdef uint64_t item = owner._element_nbytes if owner is not None else 0
    cdef NativeSource source = owner._source if owner is not None else None
    said = source.explain(start) if source is not None else None
    cause = cause_of(error, stored)
    if said is not None:  # its traceback is chained; its last line says most
        cause = f"{cause}: {str(said).strip().rpartition(chr(10))[2]}"
    made = page_error(r.name.decode("utf-8", "replace"), source.kind if source is not None else "gone", block,
                      start, stop, error, cause, lost_stores(),
                      elements=((start - min(start, owner._element_at)) // item,
                                (stop - min(stop, owner._element_at) + item - 1) // item) if item else None,
                      attempts=r.failed_attempts if r.failed_block == block and not stored else 0, stored=stored)
    made.__cause__ = said
    return made


cdef int refuse(Region *r) except -1:
    """Raise for a region that is not live. GIL: held."""
    name = r.name.decode("utf-8", "replace")
    if lm_load32(&r.status) == SEVERED:
        raise RuntimeError(f"array {name!r} has lost its memory: somebody closed lazymem's userfaultfd (os.closerange? a "
                           "daemoniser?), and its missing pages would have been zeros. Open it again, after that")
    if lm_load32(&r.status) == UNREGISTERED:
        raise RuntimeError(f"array {name!r} has lost its memory: it is no longer registered with lazymem's userfaultfd (somebody "
                           "unregistered, moved or unmapped it), so values read from it since may be zeros that are no data. "
                           "Open it again")
    if lm_load32(&r.status) == LOST:
        raise ValueError(f"array {name!r} was made before this process was forked and was not inherited: open it again here")
    raise ValueError(f"array {name!r} is closed")


cdef object memory_of(Region *r):
    """The owner of a region, or None while it is being deallocated. GIL: held."""
    return <object>r.owner if r.owner != NULL else None


@cython.no_gc_clear  # a fetch may be running in the source until the region is closed
cdef class Memory:
    """The memory of one region.

    Parameters
    ----------
    source : NativeSource
    block_nbytes : int, bytes
        A multiple of the page.
    delivery : int
        0 threads, 1 inline (its userfaultfd must be open), 2 mprotect.
    writable : bool
        The memory may be written to.
    name : str
        For messages.
    timeout_ns, retries : int
    writes_back : bool
        What is written goes back to the source.
    filling : int
        0 auto, 1 copy, 2 move, 3 zero.
    budget_nbytes : int, bytes
        How much of it may be resident or wait; 0: as much as the process may have.
    scratch : bytes, optional
        The folder where private writes go when their blocks are evicted; without one such blocks stay.
    kind : int
        0 private memory, 1 a file of memory filled by COPY, 2 by CONTINUE.

    Attributes
    ----------
    helpers : int
        How many threads may help to fetch a run of blocks.

    Raises
    ------
    MemoryError
        The kernel has no address space or no mapping left for it.
    OSError
        The kernel refuses otherwise.

    Notes
    -----
    Blocks: no. GIL: kept.
    """

    def __cinit__(self, NativeSource source not None, uint64_t block_nbytes, int delivery, bint writable,
                  str name not None, uint64_t timeout_ns, uint32_t retries, bint writes_back=False, int filling=0,
                  uint64_t budget_nbytes=0, bytes scratch=None, int kind=ANONYMOUS):
        cdef int error = 0
        cdef bytes encoded = name.encode("utf-8", "replace")[-(NAME_NBYTES - 1):]
        cdef const char *text = encoded
        cdef Uffd *uffd = NULL
        cdef Region *r
        cdef Terms terms
        if block_nbytes == 0 or block_nbytes % page_nbytes():
            raise ValueError(f"block_nbytes={block_nbytes} is not a multiple of the page ({page_nbytes()} bytes)")
        if writes_back and source.source.store == NULL:
            raise ValueError(f"{name}: its source takes no bytes back")
        if source.source.direct != NULL:
            r = region_at(<uint64_t>source.source.direct)
            if r != NULL and source.nbytes:
                raise ValueError(f"memory of lazy array {r.name.decode('utf-8', 'replace')!r} as the source of another: its "
                                 "pages would be read by the kernel while they are missing; pass its own source, or a copy")
        reap_now()
        self._source = source
        if delivery != MPROTECT:
            uffd = threads_uffd() if delivery == THREADS else inline_uffd()
        terms.block_nbytes = block_nbytes
        terms.delivery = delivery
        terms.kind = kind
        terms.filling = filling
        terms.writable = writable
        terms.writes_back = writes_back
        terms.budget_nbytes = budget_nbytes
        terms.scratch = NULL
        if scratch is not None:
            terms.scratch = scratch
        terms.timeout_ns = timeout_ns
        terms.retries = retries
        self.region = region_create(source.source, source.nbytes, &terms, uffd, text, &error)
        if self.region == NULL:
            if error == -ENOMEM:
                raise MemoryError(f"no address space for an array of {source.nbytes} bytes: look at RLIMIT_AS (ulimit -v), "
                                  "vm.overcommit_memory and vm.max_map_count")
            if error == -EOPNOTSUPP:
                raise OSError(EOPNOTSUPP, "memory='shared' needs a userfaultfd of Linux 5.14 (shared memory, minor faults)")
            if delivery == MPROTECT or kind != ANONYMOUS:
                raise OSError(-error, f"no memory file of {source.nbytes} bytes (memfd_create, ftruncate, mmap), which arrays "
                              "without userfaultfd, or with memory='shared', lie in" +
                              ("; look at RLIMIT_FSIZE (ulimit -f)" if error == -EFBIG else ""))
            raise OSError(-error, f"cannot register {source.nbytes} bytes with userfaultfd")
        self.region.owner = <void *>self

    def __dealloc__(self):
        cdef Region *r = self.region
        if r == NULL:
            return
        r.owner = NULL
        if lm_load32(&r.status) == LIVE:
            if r.writes_back and region_dirty(r, 0, r.nblocks):
                reap_later(r, self._source)  # it stays as it is until that is stored
                return
            _end(r, 0)
        if not region_free(r):
            reap_later(r, self._source)

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef Region *r = self.region
        if lm_load32(&r.status) != LIVE:
            refuse(r)
        if flags & PyBUF_WRITABLE and not r.writable:
            raise BufferError(f"array {self.name!r} is read-only (mode 'r')")
        view.buf = <void *>r.base
        view.obj = self
        view.len = <Py_ssize_t>r.nbytes
        view.itemsize = 1
        view.readonly = not r.writable
        view.ndim = 1
        view.format = NULL
        if flags & PyBUF_FORMAT:
            view.format = b"B"
        view.shape = <Py_ssize_t *>&r.nbytes if flags & PyBUF_ND else NULL
        view.strides = &view.itemsize if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL
        lm_add32(&r.exports, 1)

    def __releasebuffer__(self, Py_buffer *view):
        lm_sub32(&self.region.exports, 1)

    @property
    def name(self):
        """Of the array, for messages."""
        return self.region.name.decode("utf-8", "replace")

    @property
    def nbytes(self):
        """Of the source, bytes."""
        return self.region.nbytes

    @property
    def block_nbytes(self):
        """Of a block, bytes; the last one may be shorter."""
        return self.region.block_nbytes

    @property
    def nblocks(self):
        """How many blocks there are."""
        return self.region.nblocks

    @property
    def address(self):
        """Of the first byte."""
        return self.region.base

    @property
    def id(self):
        """A number that no other region of this process has, or had."""
        return self.region.id

    @property
    def closed(self):
        """Is the memory gone?"""
        return lm_load32(&self.region.status) != LIVE

    @property
    def lost(self):
        """Is it the parent process's, and not here after a fork?"""
        return lm_load32(&self.region.status) == LOST

    @property
    def writable(self):
        """May the memory be written to?"""
        return self.region.writable

    @property
    def writes_back(self):
        """Does what is written go back to the source? In a forked child it does not."""
        return self.region.writes_back

    @property
    def memory(self):
        """"private" or "shared"."""
        return "private" if self.region.kind == ANONYMOUS else "shared"

    @property
    def delivery(self):
        """"threads", "inline" or "mprotect"."""
        return "threads" if self.region.delivery == THREADS else "inline" if self.region.delivery == INLINE else "mprotect"

    @property
    def source(self):
        """The native source."""
        return self._source

    @property
    def arrays(self):
        """How many LazyArray instances lie in this memory."""
        return lm_load32(&self.region.arrays)

    @property
    def exports(self):
        """How many buffers are handed out."""
        return lm_load32(&self.region.exports)

    @property
    def kernel_faults(self):
        """Do system calls wait for absent pages? Else they get EFAULT."""
        return self.region.kernel_faults

    def take_kernel_faults(self, bint wait):
        """Say whether system calls wait for absent pages."""
        self.region.kernel_faults = wait

    def hold_elements(self, uint64_t nbytes, uint64_t at, bytes pattern not None):
        """Its elements are of `nbytes` bytes, the first at byte `at`; where a fetch failed, elements `pattern` are mapped. Empty: zeros.

        Units: `pattern` 2, 4, 8 or 16 bytes; else zeros.
        """
        cdef const char *text = pattern
        self._element_nbytes = nbytes
        self._element_at = at
        if len(pattern) in (2, 4, 8, 16):
            memcpy(self.region.absent, text, len(pattern))
            self.region.absent_at = at
            self.region.absent_nbytes = <uint32_t>len(pattern)

    def failure(self):
        """The PageError of its latest fetch that failed, or None. Blocks: no. GIL: kept."""
        if lm_load64(&self.region.errors) == 0:
            return None
        return error_of(self.region, self.region.failed_block, self.region.failed_error)

    cdef int need(self, uint64_t start, uint64_t stop) except -1:
        """`populate` without the argument checks. GIL: released meanwhile."""
        return self._run(start, stop)

    cdef int _run(self, uint64_t start, uint64_t stop) except -1:
        cdef Region *r = self.region
        # Starting a helper pays for itself over some blocks of memory, or over two that another process is waited for.
        cdef uint32_t helpers = self.helpers if stop - start > (1 if r.source.borrow != NULL else 4) * r.block_nbytes else 0
        cdef uint64_t failed = 0
        cdef uint64_t first = start // r.block_nbytes, last = (stop + r.block_nbytes - 1) // r.block_nbytes
        cdef Thread *me
        cdef bint called_off, ends
        cdef int error
        if last > r.nblocks:
            last = r.nblocks
        lm_add32(&r.users, 1)
        if lm_load32(&r.status) != LIVE:
            lm_sub32(&r.users, 1)
            refuse(r)
        while first < last and is_resident(lm_load32(&r.words[first])):
            first += 1  # the common case, all there, without giving up the GIL
        error = 0
        if first < last:
            me = thread_self()
            called_off = True
            while called_off:
                ends = me != NULL and operation_may_be_ended(me)
                with nogil:
                    error = job_run(r, first, last, helpers, &failed)
                called_off = ends and wait_is_over(me) and error == -EINTR
                try:
                    PyErr_CheckSignals()
                except BaseException:
                    lm_sub32(&r.users, 1)
                    raise
            if error == 0 and not lies_in_file(r):
                job_collapse(r, start, stop if stop < r.map_nbytes else r.map_nbytes)
        if error == 0:
            failed = first
            error = place_shown_all(r, start // r.block_nbytes, last)
        lm_sub32(&r.users, 1)
        if lm_load32(&r.status) != LIVE:
            refuse(r)
        if error:
            raise_page_error(r, failed, -error)
        return 0

    def populate(self, uint64_t start, uint64_t stop):
        """Fetch now what is missing of bytes [start, stop).

        Raises
        ------
        PageError
            A block could not be fetched.
        ValueError
            The array is closed.

        Notes
        -----
        Blocks: until all is there. GIL: released meanwhile.
        """
        self._run(start, stop)

    def prefetch(self, uint64_t start, uint64_t stop):
        """Fetch in the background what is missing of bytes [start, stop); failures are for the touch to find.

        Returns
        -------
        bool
            False: too much is under way already, nothing was started.

        Notes
        -----
        Blocks: no. GIL: kept.
        """
        cdef Region *r = self.region
        cdef uint64_t first = start // r.block_nbytes, last = (stop + r.block_nbytes - 1) // r.block_nbytes
        if lm_load32(&r.status) != LIVE:
            refuse(r)
        if last > r.nblocks:
            last = r.nblocks
        if first >= last:
            return True
        return job_post(r, first, last)

    def resident(self, uint64_t first, uint64_t last):
        """Which of blocks [first, last) are in memory, a byte each, 0 or 1."""
        cdef Region *r = self.region
        cdef bytearray answer = bytearray(last - first)
        cdef unsigned char *out = answer
        cdef uint64_t block
        if lm_load32(&r.status) != LIVE:
            return answer
        for block in range(first, last):
            out[block - first] = is_resident(lm_load32(&r.words[block]))
        return answer

    def resident_blocks(self):
        """How many blocks are in memory. Blocks: no. GIL: released meanwhile."""
        cdef Region *r = self.region
        cdef uint64_t block, n = 0
        lm_add32(&r.users, 1)
        if lm_load32(&r.status) == LIVE:
            with nogil:
                for block in range(r.nblocks):
                    n += is_resident(r.words[block])
        lm_sub32(&r.users, 1)
        return n

    def counters(self):
        """The region's counters, by name; `latency` is a list of counts, entry i of [2**i, 2**(i+1)) ns."""
        cdef Counters *c = &self.region.counters
        return {
            "faults": lm_load64(&c.taken), "filled": lm_load64(&c.filled), "joins": lm_load64(&c.joined),
            "failed": lm_load64(&c.failed), "blocks": lm_load64(&c.blocks), "nbytes_asked": lm_load64(&c.asked),
            "nbytes_used": lm_load64(&c.used), "zeroed": lm_load64(&c.zeroed),
            "refilled": lm_load64(&c.refilled), "eexist": lm_load64(&c.copy.eexist),
            "eagain": lm_load64(&c.copy.eagain), "reexposed": lm_load64(&self.region.exposure.reexposed),
            "errors": lm_load64(&self.region.errors), "moved": lm_load64(&c.moved), "refused": lm_load64(&c.refused),
            "units": lm_load64(&c.units), "evicted": lm_load64(&c.evicted), "rescued": lm_load64(&c.rescued),
            "recycled": lm_load64(&c.recycled), "pinned": lm_load64(&c.pinned), "stored": lm_load64(&c.stored),
            "stored_nbytes": lm_load64(&c.stored_nbytes), "store_errors": lm_load64(&self.region.store_errors),
            "waiting_nbytes": (lm_load32(&self.region.clocks[SMALL].waiting) * self.region.clocks[SMALL].nbytes +
                               lm_load32(&self.region.clocks[UNITS].waiting) * self.region.clocks[UNITS].nbytes),
            "held_nbytes": lm_load64(&self.region.held),
            "latency": [lm_load64(&c.latency[i]) for i in range(BUCKETS)],
        }

    def changed(self):
        """The first block that differs from a fresh fetch, or None: what private writes have touched.

        Notes
        -----
        Where something may have been written, every block in memory is fetched again. Blocks: as long as that takes. GIL: released
        meanwhile.
        """
        cdef Region *r = self.region
        cdef uint64_t block, nbytes, found = r.nblocks
        cdef void *fresh
        cdef int error = 0
        cdef bint evicted = r.scratch.folder != NULL and scratch_any(&r.scratch)
        if not evicted and not region_dirty(r, 0, r.nblocks):
            return None
        fresh = malloc(r.block_nbytes)
        if fresh == NULL:
            raise MemoryError
        lm_add32(&r.users, 1)
        with nogil:
            for block in range(r.nblocks):
                if evicted and scratch_has(&r.scratch, block):
                    found = block
                    break
                if (lm_load32(&r.words[block]) & STATE) in (MISSING, FAILED):
                    continue
                # A handler publishes a block after it has woken the toucher, who may have written by then: wait for it.
                if region_need(r, block):
                    continue
                nbytes = r.nbytes - block * r.block_nbytes
                if nbytes > r.block_nbytes:
                    nbytes = r.block_nbytes
                if region_is_zero(r, block):
                    memset(fresh, 0, nbytes)
                else:
                    error = region_fetch(r, block, fresh)
                if error or memcmp(fresh, <void *>(r.base + block * r.block_nbytes), nbytes) != 0:
                    found = block
                    break
        lm_sub32(&r.users, 1)
        free(fresh)
        if error:
            raise_page_error(r, found, -error)
        return found if found < r.nblocks else None

    def dirty(self, uint64_t start, uint64_t stop):
        """Has something been written to bytes [start, stop) that its source does not have yet?

        Notes
        -----
        Blocks: as long as fetching what is resident takes. GIL: kept.
        """
        cdef Region *r = self.region
        cdef uint64_t last = min((stop + r.block_nbytes - 1) // r.block_nbytes, r.nblocks)
        if stop <= start or lm_load32(&r.status) != LIVE:
            return False
        return region_dirty(r, start // r.block_nbytes, last)

    def flush(self, uint64_t start, uint64_t stop):
        """Write back what was written to bytes [start, stop), and have the source make it safe.

        Raises
        ------
        PageError
            A block could not be written back; it stays changed.
        ValueError
            The array is closed.

        Notes
        -----
        Blocks: as long as the source takes. GIL: released meanwhile.
        """
        cdef Region *r = self.region
        cdef uint64_t block = 0, last = min((stop + r.block_nbytes - 1) // r.block_nbytes, r.nblocks)
        cdef int error = 0
        cdef Thread *me = thread_self()
        cdef bint called_off = True, ends
        if not self.writes_back:
            return
        if lm_load32(&r.status) != LIVE:
            refuse(r)
        if stop <= start:
            return
        lm_add32(&r.users, 1)
        while called_off:
            ends = me != NULL and operation_may_be_ended(me)
            with nogil:
                error = region_flush(r, start // r.block_nbytes, last, &block)
            called_off = ends and wait_is_over(me) and error == -EINTR
            try:
                PyErr_CheckSignals()
            except BaseException:
                lm_sub32(&r.users, 1)
                raise
        lm_sub32(&r.users, 1)
        if error:
            made = error_of(r, block, -error, True)
            raise made from made.__cause__

    def evict(self, uint64_t start, uint64_t stop):
        """Give the memory of bytes [start, stop) back to the kernel; what is dirty is written first.

        Returns
        -------
        int
            How many blocks stay all the same: pinned, or not to be written.

        Notes
        -----
        Blocks: on writing. GIL: released meanwhile.
        """
        cdef Region *r = self.region
        cdef uint64_t last = min((stop + r.block_nbytes - 1) // r.block_nbytes, r.nblocks), left
        if lm_load32(&r.status) != LIVE:
            refuse(r)
        if stop <= start:
            return 0
        lm_add32(&r.users, 1)
        with nogil:
            left = evict_blocks(r, start // r.block_nbytes, last)
        lm_sub32(&r.users, 1)
        return left

    cpdef pin(self, uint64_t start, uint64_t stop, bint write):
        """Fetch bytes [start, stop) and keep them from being evicted, until `unpin` of the same. `write`: they count as written.

        Raises
        ------
        PageError
            A block could not be fetched; nothing is pinned then.

        Notes
        -----
        Blocks: on the source. GIL: released meanwhile.
        """
        cdef Region *r = self.region
        cdef uint64_t first = start // r.block_nbytes, failed = 0
        cdef uint64_t last = min((stop + r.block_nbytes - 1) // r.block_nbytes, r.nblocks)
        cdef int error
        self.need(start, stop)     # several at once, and so that Ctrl-C is heard
        lm_add32(&r.users, 1)
        with nogil:
            error = region_pin(r, first, last, &failed)
            if error == 0 and write:
                blocks_written(r, first, last)
        lm_sub32(&r.users, 1)
        if lm_load32(&r.status) != LIVE:
            refuse(r)
        if error:
            raise_page_error(r, failed, -error)

    cpdef unpin(self, uint64_t start, uint64_t stop, bint write):
        """What `pin` of the same bytes pinned may be evicted; with `write` it has been written until now. Blocks: no. GIL: kept."""
        cdef Region *r = self.region
        cdef uint64_t first = start // r.block_nbytes
        cdef uint64_t last = min((stop + r.block_nbytes - 1) // r.block_nbytes, r.nblocks)
        if stop > start and lm_load32(&r.status) == LIVE:
            if write:
                blocks_written(r, first, last)
            region_unpin(r, first, last)

    @property
    def budget_nbytes(self):
        """How much of it may be resident or wait, bytes; 0: as much as the process may have."""
        return self.region.budget_nbytes

    @property
    def held_nbytes(self):
        """How much of it is resident or waits, bytes."""
        return lm_load64(&self.region.held)

    def references(self, root):
        """How many references there are to what a weak reference points to, one of them this function's own; 0 it is dead."""
        target = root() if root is not None else None
        return Py_REFCNT(target) if target is not None else 0

    def end(self, root, Py_ssize_t references, uint32_t arrays):
        """Take the memory away now, and the source's descriptor with it, if nobody needs it.

        Parameters
        ----------
        root : weak reference
        references : int
            To the root, as `references` counts them, when no plain view is alive.
        arrays : int
            LazyArrays that may be alive.

        Returns
        -------
        bool
            False: there are views or buffers after all; nothing was done. Between this last look and the end no other Python thread runs.

        Raises
        ------
        TimeoutError
            A fetch is still running: memory is gone, the descriptor goes when that ends.

        Notes
        -----
        Blocks: until running fetches end, at most 5 s. GIL: released meanwhile.
        """
        cdef Region *r = self.region
        cdef int error
        if lm_load32(&r.status) != LIVE:
            return True
        if lm_load32(&r.arrays) > arrays or lm_load32(&r.exports) or self.references(root) > references:
            return False
        error = _end(r, _CLOSE_PATIENCE_NS)
        if error == -ETIMEDOUT:
            raise TimeoutError(f"array {self.name!r}: a fetch is still running; its memory is gone all the same")
        if error:
            raise OSError(-error, f"cannot unmap array {self.name!r}")
        self._source.close()
        reap_now()
        return True


cdef int _end(Region *r, uint64_t patience_ns):
    """Close a region and take its bytes off the account. Return: as `region_close`."""
    cdef int error
    lm_store32(&r.status, CLOSED)  # before the GIL is given up: the next operation sees it
    with nogil:
        jobs_cancel(r)
        error = region_close(r, lm_now_ns() + patience_ns)
        if error == 0:  # else a fetch may still count its own down
            forget_standins(r)
    return error


def region_owner(uint64_t address):
    """The Memory whose region covers an address, or None."""
    cdef Region *r = region_at(address)
    return memory_of(r) if r != NULL else None
