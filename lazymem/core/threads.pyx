"""How does a touch reach us when the toucher sleeps in the kernel?

Handler threads read messages from one userfaultfd for all regions. Leader and followers: exactly one thread, the leader, is in
read(); the others sleep on the baton. The leader also fills: a touch costs one wake-up. Before it runs a source that may block
(a C function) it hands the baton on, so that somebody always reads; a file hands it on when the page cache does not have the
bytes; memory never does.

A message for a block that another thread is filling is dropped: that fill's COPY wakes every sleeper of the block, and so does its
failure.

A C function may touch lazy arrays, and keeps its thread while another serves that touch. So that there always is another: of touches
by threads that are not ours, at most ENTERED_MAX are inside such sources at a time; each can nest CHAIN_MAX deep, so LIMIT
threads are always enough, and one is added whenever a leader would leave nobody to read. A touch above the limit is woken again
after a pause, to ask anew.
"""
from libc.stdlib cimport abort
from libc.string cimport strlen
from posix.unistd cimport close

from lazymem.core.abi cimport *
from lazymem.core.fill cimport region_touch, wake_block
from lazymem.core.native cimport *
from lazymem.core.region cimport LIVE, Region, region_enter, region_leave
from lazymem.core.stop cimport loud_stop
from lazymem.core.thread cimport Thread, thread_find, thread_self
from lazymem.core.uffd cimport (
    PRIVILEGE_NONE, page_nbytes, uffd_open, uffd_poison, uffd_read, uffd_wake,
)


cdef extern from *:
    """
    #include <signal.h>
    #include <sys/prctl.h>
    static inline void lm_name_thread(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }
    """
    void lm_name_thread(const char *name) noexcept nogil
    int SIGBUS

cdef enum:
    FOLLOWING = 1         # Thread.handler: a handler thread that does not read
    LEADING = 2           # the one that does
    ENTERED_MAX = 16
    LIMIT = 80            # more than ENTERED_MAX * CHAIN_MAX and a reader
    ASKED_MAX = 64        # threads that a user may ask for

cdef int _fd = -1
cdef int _privilege = PRIVILEGE_NONE
cdef uint64_t _features = 0
cdef uint32_t _baton = 0      # 0 free, 1 a thread reads, 2 it does and others sleep for it
cdef uint32_t _count = 0      # handler threads
cdef uint32_t _idle = 0       # of them, those that sleep for the baton
cdef uint32_t _entered = 0    # touches by foreign threads that are inside a source which may touch lazy arrays
cdef uint64_t DEFER_NS = 50000


cdef void _take_baton() noexcept nogil:
    """Blocks: until nobody else reads."""
    if lm_cas32(&_baton, 0, 1):
        return
    lm_add32(&_idle, 1)
    while lm_swap32(&_baton, 2) != 0:
        lm_futex_wait(&_baton, 2, 3600000000000)
    lm_sub32(&_idle, 1)


cdef void _give_baton() noexcept nogil:
    if lm_swap32(&_baton, 0) == 2:
        lm_futex_wake(&_baton, 1)


cdef void _hand_on() noexcept nogil:
    """`Thread.before_blocking` of a handler: let another read, unless that is arranged already. Thread: a handler."""
    cdef Thread *me = thread_self()
    if me.handler == LEADING:
        me.handler = FOLLOWING
        _give_baton()


cdef bint _somebody_can_read() noexcept nogil:
    """Is there a follower, or can one be added? A source that touches lazy arrays waits for it. Thread: the leader."""
    if lm_load32(&_idle) != 0:
        return True
    if lm_load32(&_count) >= <uint32_t>LIMIT:
        return False
    lm_add32(&_count, 1)
    if lm_start_thread(_handler, 1 << 20):
        lm_sub32(&_count, 1)
        return False
    return True


cdef bint _may_enter(uint32_t toucher, bint *foreign) noexcept nogil:
    """May a source that touches lazy arrays be run for this toucher now? Thread: the leader."""
    cdef Thread *thread = thread_find(toucher)
    foreign[0] = thread == NULL or not thread.handler
    return _somebody_can_read() and (not foreign[0] or lm_load32(&_entered) < <uint32_t>ENTERED_MAX)


cdef void _refuse(Region *r, uint64_t addr, uint32_t tid, int error) noexcept nogil:
    """A touch that may not go on: poison its page, so that the toucher is stopped, or a system call of its gets EFAULT.

    Kernels before 6.6 cannot poison: there the toucher is sent the signal.
    """
    cdef uint64_t page = addr & ~(page_nbytes() - 1)
    if _features & UFFD_FEATURE_POISON:
        uffd_poison(_fd, page, page_nbytes())
        wake_block(r, (addr - r.base) // r.block_nbytes)
    else:
        loud_stop(r, addr, error)
        lm_signal_thread(tid, SIGBUS)


cdef void _descriptor_lost() noexcept nogil:
    """Somebody closed our descriptor (closerange?): missing pages would become zeros, sleepers sleep for ever. End loudly."""
    cdef const char *text = (b"\nlazymem: the userfaultfd of this process was closed by somebody else; lazy arrays would read "
                             b"zeros where pages are missing. Stopping.\n")
    lm_say(text, strlen(text))
    abort()


cdef void *_handler(void *unused) noexcept nogil:
    """The life of a handler thread. GIL: never. Blocks: for ever, between faults."""
    cdef uffd_msg message
    cdef Region *r
    cdef uint64_t page
    cdef bint foreign, enters
    cdef int n, outcome
    cdef Thread *me = thread_self()
    if me == NULL:  # no record to be had among so many threads
        lm_sub32(&_count, 1)
        return NULL
    me.handler = FOLLOWING
    me.before_blocking = _hand_on
    lm_name_thread(b"lazymem-handler")
    while True:
        if me.handler == FOLLOWING:
            _take_baton()
            me.handler = LEADING
        n = uffd_read(_fd, &message)                                     # 1. a message
        if n < 0:
            _descriptor_lost()
        if n == 0 or message.event != UFFD_EVENT_PAGEFAULT:
            continue
        page = message.address & ~(page_nbytes() - 1)
        r = region_enter(message.address)                                # 2. whose
        if r == NULL:
            uffd_wake(_fd, page, page_nbytes())
            continue
        enters = False
        if r.source.may_block and lm_load32(&r.status) == LIVE:          # 3. hand the reading on, unless filling is instant
            if r.source.leaf:
                _somebody_can_read()                                     #    (or soon will)
            else:
                if not _may_enter(message.ptid, &foreign):
                    region_leave(r)
                    lm_sleep_ns(DEFER_NS)
                    uffd_wake(_fd, page, page_nbytes())
                    continue
                enters = foreign
            if enters:
                lm_add32(&_entered, 1)
            if r.source.borrow == NULL:
                _hand_on()                                               #    (a process that is awake answers before a handler wakes)
        outcome = region_touch(r, message.address, message.ptid, False)  # 4. fill
        if enters:
            lm_sub32(&_entered, 1)
        if outcome == -ESHUTDOWN:
            uffd_wake(_fd, page, page_nbytes())
        elif outcome in (-EBADF, -ENOTTY):
            _descriptor_lost()
        elif outcome < 0:
            _refuse(r, message.address, message.ptid, -outcome)
        region_leave(r)
    return NULL


cdef void threads_forget() noexcept nogil:
    """In a forked child: threads and descriptor are the parent's. GIL: any."""
    global _fd, _privilege, _baton, _count, _idle, _entered
    if _fd >= 0:
        close(_fd)
    _fd = -1
    _privilege = PRIVILEGE_NONE
    _baton = 0
    _count = 0
    _idle = 0
    _entered = 0


def descriptor(uint32_t threads):
    """The process's userfaultfd for handler threads, opened at the first call, with at least so many threads behind it.

    Returns
    -------
    (int, int)
        Descriptor; privilege: 2 where system calls on absent pages wait for them, 1 where they get EFAULT.

    Raises
    ------
    OSError
        No rung of the ladder can be climbed, or no thread can be started.
    """
    global _fd, _privilege, _features
    cdef int error
    if _fd < 0:
        fd = uffd_open(UFFD_FEATURE_THREAD_ID, UFFD_FEATURE_POISON, &_privilege, &_features)
        if fd < 0:
            raise OSError(-fd, "userfaultfd")
        _fd = fd
    threads = min(threads, <uint32_t>ASKED_MAX)
    while lm_load32(&_count) < threads:
        lm_add32(&_count, 1)
        error = lm_start_thread(_handler, 1 << 20)
        if error:
            lm_sub32(&_count, 1)
            raise OSError(-error, "no handler thread can be started")
    return _fd, _privilege


def state():
    """Handler threads, and those of them that wait for work behind the reader."""
    return lm_load32(&_count), lm_load32(&_idle)
