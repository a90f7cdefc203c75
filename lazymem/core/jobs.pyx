"""Who fetches blocks that nobody has touched yet?

A few native threads, started at the first prefetch or parallel populate. A job is a run of blocks with a cursor: whoever works on it takes the
next block, so populate's own thread and its helpers share one run, and a slow block holds up nobody else. Jobs stand in a fixed
table under a mutex; none of this is on the path of a fault.

A second kind of job has the kernel join what a populate has made resident into huge pages (MADV_COLLAPSE, Linux 6.1): a copy of
4 KiB pages is scanned at two thirds of the speed of numpy's own memory, which is huge pages. It runs behind populate, for 2 MiB that are
resident whole; where the kernel refuses, nothing is lost.
"""
from libc.string cimport memcpy, memset

from lazymem.core.abi cimport MADV_COLLAPSE
from lazymem.core.fill cimport region_need
from lazymem.core.frames cimport UNITS
from lazymem.core.native cimport *
from lazymem.core.region cimport LIVE, Region
from lazymem.core.table cimport MISSING, is_resident
from lazymem.core.thread cimport CHAIN_MAX, Thread, thread_self
from lazymem.core.units cimport region_need_unit


cdef extern from *:
    """
    #include <pthread.h>
    static pthread_mutex_t lm_jobs_lock = PTHREAD_MUTEX_INITIALIZER;
    static inline void lm_jobs_enter(void) { pthread_mutex_lock(&lm_jobs_lock); }
    static inline void lm_jobs_exit(void) { pthread_mutex_unlock(&lm_jobs_lock); }
    """
    void lm_jobs_enter() noexcept nogil
    void lm_jobs_exit() noexcept nogil

cdef extern from "abi.h" nogil:
    int madvise(void *, size_t, int)

cdef uint64_t HUGE_NBYTES = 2 << 20

cdef enum:
    JOBS = 64
    HELPERS_MAX = 16

ctypedef struct Job:
    Region *r            # entered for as long as the job stands
    bint collapse        # its blocks are HUGE_NBYTES of memory to be joined
    uint64_t next        # block; advanced by whoever takes one
    uint64_t end
    uint32_t helpers     # that may still join
    uint32_t at_work     # helpers on it now
    int error            # of the first block that failed; the job ends there
    uint64_t failed_block
    uint32_t around_depth  # of the thread that posted it, in a provider process: what waits for it waits for its helpers
    uint64_t around[CHAIN_MAX]
    bint posted          # nobody waits for it: the last to leave removes it
    bint used

cdef Job _jobs[JOBS]
memset(_jobs, 0, sizeof(_jobs))
cdef uint32_t _bell = 0      # moves when a job is posted
cdef uint32_t _helpers = 0


cdef uint64_t _take(Job *job, bint *whole) noexcept nogil:
    """The next block of a job; or the first of a unit that lies in it whole and is missing."""
    cdef uint64_t n = job.r.clocks[UNITS].blocks, block
    while True:
        block = lm_load64(&job.next)
        whole[0] = (job.r.units and not job.r.writable and block % n == 0 and block + n <= job.end and
                    lm_load32(&job.r.words[block]) == MISSING)
        if block >= job.end or lm_cas64(&job.next, block, block + (n if whole[0] else 1)):
            return block


cdef void _work(Job *job) noexcept nogil:
    """Take blocks of a job until there are none, or one has failed, or the region is closed."""
    cdef uint64_t block, last
    cdef bint whole
    cdef int error
    while lm_load32(&job.r.status) == LIVE and job.error == 0:
        block = _take(job, &whole)
        if block >= job.end:
            return
        if whole and region_need_unit(job.r, block):
            continue
        last = block + job.r.clocks[UNITS].blocks if whole else block + 1
        error = 0
        while block < last and error == 0:
            error = region_need(job.r, block)
            block += 1
        block -= 1
        if error:
            lm_jobs_enter()
            if job.error == 0 or block < job.failed_block:
                job.failed_block = block
                job.error = error
            lm_jobs_exit()
            return


cdef bint _is_resident(Region *r, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t block
    for block in range(start // r.block_nbytes, (end + r.block_nbytes - 1) // r.block_nbytes):
        if block < r.nblocks and not is_resident(lm_load32(&r.words[block])):
            return False
    return True


cdef void _collapse(Job *job) noexcept nogil:
    """Join 2 MiB after 2 MiB of a job's range. A kernel that does not know how ends it."""
    cdef Region *r = job.r
    cdef uint64_t unit
    while lm_load32(&r.status) == LIVE:
        unit = lm_add64(&job.next, 1)
        if unit >= job.end:
            return
        if _is_resident(r, unit * HUGE_NBYTES, (unit + 1) * HUGE_NBYTES):
            if madvise(<void *>(r.base + unit * HUGE_NBYTES), HUGE_NBYTES, MADV_COLLAPSE) and errno == EINVAL:
                lm_store64(&job.next, job.end)


cdef Job *_pick() noexcept nogil:
    """A job that wants a helper. Thread: jobs entered."""
    cdef int i
    for i in range(JOBS):
        if _jobs[i].used and _jobs[i].helpers and lm_load64(&_jobs[i].next) < _jobs[i].end and _jobs[i].error == 0:
            return &_jobs[i]
    return NULL


cdef void _leave(Job *job) noexcept nogil:
    """Thread: jobs entered. The last helper of a posted job removes it."""
    lm_sub32(&job.at_work, 1)
    if job.posted and job.at_work == 0 and (lm_load64(&job.next) >= job.end or job.error or job.r.status != LIVE):
        job.used = False
        lm_sub32(&job.r.users, 1)


cdef void *_helper(void *unused) noexcept nogil:
    """The life of a fetcher thread. GIL: never. Blocks: for ever, between jobs."""
    cdef Job *job
    cdef uint32_t heard
    cdef Thread *me = thread_self()
    lm_name_thread(b"lazymem-fetcher")
    while True:
        heard = lm_load32(&_bell)
        lm_jobs_enter()
        job = _pick()
        if job != NULL:
            job.helpers -= 1
            lm_add32(&job.at_work, 1)
        lm_jobs_exit()
        if job == NULL:
            lm_futex_wait(&_bell, heard, 3600000000000)
            continue
        if me != NULL:
            me.around_depth = job.around_depth
            memcpy(me.around, job.around, sizeof(me.around))
        if job.collapse:
            _collapse(job)
        else:
            _work(job)
        lm_jobs_enter()
        _leave(job)
        lm_jobs_exit()
    return NULL


cdef Job *_post(Region *r, uint64_t first, uint64_t last, uint32_t helpers, bint posted, bint collapse) noexcept nogil:
    """Return: NULL when the table is full or no thread can be started."""
    cdef Job *job = NULL
    cdef Thread *me = thread_self()
    cdef int i
    lm_jobs_enter()
    while _helpers < helpers and _helpers < HELPERS_MAX and lm_start_thread(_helper, 0) == 0:
        lm_add32(&_helpers, 1)
    if _helpers:
        for i in range(JOBS):
            if not _jobs[i].used:
                job = &_jobs[i]
                break
    if job != NULL:
        memset(job, 0, sizeof(Job))
        lm_add32(&r.users, 1)
        job.r = r
        job.next = first
        job.end = last
        job.helpers = helpers
        job.posted = posted
        job.collapse = collapse
        if me != NULL:
            job.around_depth = me.around_depth
            memcpy(job.around, me.around, sizeof(me.around))
        job.used = True
    lm_jobs_exit()
    if job != NULL:
        lm_add32(&_bell, 1)
        lm_futex_wake(&_bell, <int>helpers)
    return job


cdef bint job_collapse(Region *r, uint64_t first_byte, uint64_t end_byte) noexcept nogil:
    """Join the whole 2 MiB of a range that are resident, in the background. Return: False when too much is under way.

    Units: bytes of the region. GIL: any. Blocks: no.
    """
    cdef uint64_t first = (first_byte + HUGE_NBYTES - 1) // HUGE_NBYTES, last = end_byte // HUGE_NBYTES
    cdef Job *job
    if first >= last:
        return True
    job = _post(r, first, last, 1, True, True)
    return job != NULL


cdef bint job_post(Region *r, uint64_t first, uint64_t last) noexcept nogil:
    """Fetch blocks [first, last) in the background. Return: False when too much is under way. GIL: any. Blocks: no."""
    return _post(r, first, last, 2, True, False) != NULL


cdef int job_run(Region *r, uint64_t first, uint64_t last, uint32_t helpers, uint64_t *failed_block) noexcept nogil:
    """Fetch blocks [first, last) now, on this thread and up to so many helpers.

    Return: 0; -errno of a block that failed, the first such as far as is known, its number in `failed_block`; -EINTR it was called off.
    GIL: any. Blocks: until all are there or one has failed. Thread: one that has entered the region.
    """
    cdef Job alone
    cdef Job *job = _post(r, first, last, helpers, False, False) if helpers and last - first > 1 else NULL
    cdef Thread *me = thread_self()
    cdef int error
    if job == NULL:
        memset(&alone, 0, sizeof(Job))
        alone.r = r
        alone.next = first
        alone.end = last
        _work(&alone)
        failed_block[0] = alone.failed_block
        return alone.error
    _work(job)
    lm_jobs_enter()
    job.helpers = 0  # nobody joins any more
    lm_jobs_exit()
    while lm_load32(&job.at_work):
        if job.error == -EINTR or (me != NULL and me.interrupted != NULL and me.interrupted()):
            break
        lm_sleep_ns(20000)
    lm_jobs_enter()
    error = job.error
    if lm_load32(&job.at_work):
        job.posted = True  # called off: the last helper to come back from its block removes it
        lm_store64(&job.next, job.end)
        lm_jobs_exit()
        return -EINTR
    failed_block[0] = job.failed_block
    job.used = False
    lm_sub32(&r.users, 1)
    lm_jobs_exit()
    return error


cdef void jobs_cancel(Region *r) noexcept nogil:
    """No helper takes up a block of this region any more; those at one end it. GIL: any. Blocks: no."""
    cdef int i
    lm_jobs_enter()
    for i in range(JOBS):
        if _jobs[i].used and _jobs[i].posted and _jobs[i].r == r:
            lm_store64(&_jobs[i].next, _jobs[i].end)
            if lm_load32(&_jobs[i].at_work) == 0:
                _jobs[i].used = False
                lm_sub32(&r.users, 1)
    lm_jobs_exit()


cdef void jobs_hold() noexcept nogil:
    """Before a fork: nobody is changing the table while it is copied. GIL: any. Blocks: for microseconds."""
    lm_jobs_enter()


cdef void jobs_let_go() noexcept nogil:
    """After it, in the parent and in the child. GIL: any."""
    lm_jobs_exit()


cdef void jobs_forget() noexcept nogil:
    """In a forked child: the threads are the parent's. GIL: any."""
    global _helpers
    memset(_jobs, 0, sizeof(_jobs))
    _helpers = 0
