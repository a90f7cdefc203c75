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

from lazymem.core.abi cimport *
from lazymem.core.ahead cimport region_read_ahead
from lazymem.core.fill cimport PROTECTS, READS, WRITES, region_touch, wake_block
from lazymem.core.native cimport *
from lazymem.core.region cimport LIVE, Region, region_enter, region_leave, regions_severed, regions_slot, regions_wake
from lazymem.core.stop cimport loud_stop
from lazymem.core.thread cimport Thread, thread_find, thread_self
from lazymem.core.uffd cimport (
    Uffd, page_nbytes, uffd_asks, uffd_forget, uffd_guard, uffd_is_guarded, uffd_make_sure, uffd_open, uffd_poison, uffd_read,
    uffd_wake, uffd_zero,
)


cdef extern from *:
    """
    #include <signal.h>
    """
    int SIGBUS

cdef enum:
    FOLLOWING = 1         # Thread.handler: a handler thread that does not read
    LEADING = 2           # the one that does
    ENTERED_MAX = 16
    LIMIT = 80            # more than ENTERED_MAX * CHAIN_MAX and a reader
    ASKED_MAX = 64        # threads that a user may ask for

cdef Uffd _uffd
_uffd.fd = -1
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


cdef void _hand_on() noexcept nogil:
    """`Thread.before_blocking` of a handler: let another read, unless that is arranged already. Thread: a handler."""
    cdef Thread *me = thread_self()
    if me.handler == LEADING:
        _somebody_can_read()
        me.handler = FOLLOWING
        _give_baton()


cdef bint _wanted() noexcept nogil:
    """Is it this handler that others' faults wait for? Thread: a handler."""
    return thread_self().handler == LEADING and uffd_asks(&_uffd)


cdef bint _may_enter(uint32_t toucher, bint *foreign) noexcept nogil:
    """May a source that touches lazy arrays be run for this toucher now? Thread: the leader."""
    cdef Thread *thread = thread_find(toucher)
    foreign[0] = thread == NULL or not thread.handler
    return _somebody_can_read() and (not foreign[0] or lm_load32(&_entered) < <uint32_t>ENTERED_MAX)


cdef void _descriptor_lost() noexcept nogil:
    """Our descriptor is closed and cannot be had again: missing pages would become zeros, sleepers sleep for ever. End loudly."""
    cdef const char *text = (b"\nlazymem: the userfaultfd of this process was closed by somebody else; lazy arrays would read "
                             b"zeros where pages are missing. Stopping.\n")
    lm_say(text, strlen(text))
    abort()


cdef void _make_sure() noexcept nogil:
    """Nobody may read from a number that is not ours any more: a stranger's bytes would be gone. Blocks: where it was closed,
    until it has been given back; for want of a free number, at most 5 s."""
    cdef uint64_t deadline_ns
    if uffd_make_sure(&_uffd) == 0:
        return
    deadline_ns = lm_now_ns() + <uint64_t>5000000000
    while uffd_make_sure(&_uffd):
        if not uffd_is_guarded(&_uffd) or lm_now_ns() > deadline_ns:
            _descriptor_lost()
        lm_sleep_ns(10000000)
    regions_wake(&_uffd)


cdef void _refuse(Region *r, uint64_t addr, uint32_t tid, int error) noexcept nogil:
    """A touch that may not go on: poison its page, so that the toucher is stopped, or a system call of its gets EFAULT.

    Kernels before 6.6 cannot poison: there the toucher is sent the signal.
    """
    cdef uint64_t page = addr & ~(page_nbytes() - 1)
    _make_sure()  # it may be for want of a number that the touch failed
    if _uffd.features & UFFD_FEATURE_POISON:
        uffd_poison(&_uffd, page, page_nbytes())
        wake_block(r, (addr - r.base) // r.block_nbytes)
    else:
        loud_stop(r, addr, error)
        lm_signal_thread(tid, SIGBUS)


cdef int _access(const uffd_msg *message) noexcept nogil:
    if message.flags & UFFD_PAGEFAULT_FLAG_WP:
        return PROTECTS
    return WRITES if message.flags & UFFD_PAGEFAULT_FLAG_WRITE else READS


cdef void *_handler(void *unused) noexcept nogil:
    """The life of a handler thread. GIL: never. Blocks: for ever, between faults."""
    cdef uffd_msg message
    cdef Region *r
    cdef uint64_t page
    cdef bint foreign, enters, sure = False
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
            sure = False
        if not sure:
            _make_sure()
        sure = False
        n = uffd_read(&_uffd, &message)                                  # 1. a message
        if n <= 0 or message.event != UFFD_EVENT_PAGEFAULT:
            continue
        page = message.address & ~(page_nbytes() - 1)
        r = region_enter(message.address)                                # 2. whose
        if r == NULL:
            # (mlockall, a debugger: not to be asked for ever. Who evicts a block into the slot clears it)
            if regions_slot(page) and uffd_poison(&_uffd, page, page_nbytes()):
                uffd_zero(&_uffd, page, page_nbytes())
            uffd_wake(&_uffd, page, page_nbytes())
            continue
        enters = False
        if r.source.may_block and lm_load32(&r.status) == LIVE:          # 3. hand the reading on, unless filling is instant
            if r.source.leaf:
                _somebody_can_read()                                     #    (or soon will)
            else:
                if not _may_enter(message.ptid, &foreign):
                    region_leave(r)
                    lm_sleep_ns(DEFER_NS)
                    uffd_wake(&_uffd, page, page_nbytes())
                    continue
                enters = foreign
            if enters:
                lm_add32(&_entered, 1)
            if r.source.borrow == NULL:
                _hand_on()                                               #    (a process that is awake answers before a handler wakes)
        outcome = region_touch(r, message.address, message.ptid, _access(&message), False)  # 4. fill
        if enters:
            lm_sub32(&_entered, 1)
        sure = outcome == 0                                              # (the ioctl that ended it has just been answered)
        if outcome == -ESHUTDOWN:
            uffd_wake(&_uffd, page, page_nbytes())
        elif outcome < 0:
            _refuse(r, message.address, message.ptid, -outcome)
        else:
            region_read_ahead(r, message.address, _hand_on, _wanted)
        region_leave(r)
    return NULL


cdef void threads_forget() noexcept nogil:
    """In a forked child: threads and descriptor are the parent's. GIL: any."""
    global _baton, _count, _idle, _entered
    uffd_forget(&_uffd)
    _baton = 0
    _count = 0
    _idle = 0
    _entered = 0


cdef Uffd *threads_uffd() noexcept nogil:
    """The process's userfaultfd for handler threads. GIL: never. Blocks: no."""
    return &_uffd


def descriptor(uint32_t threads):
    """Make sure of the process's userfaultfd for handler threads, and of so many of them; it is opened at the first call.

    Returns
    -------
    (int, bool)
        Privilege: 2 where system calls on absent pages wait for them, 1 where they get EFAULT; does it survive a close of its
        number?

    Raises
    ------
    OSError
        No rung of the ladder can be climbed, no thread can be started, or it was open and somebody closed it.

    Notes
    -----
    Blocks: some 50 us. GIL: released meanwhile.
    """
    cdef int error = 0
    with nogil:
        if _uffd.fd >= 0:
            error = uffd_make_sure(&_uffd)
        else:
            error = uffd_open(&_uffd, UFFD_FEATURE_THREAD_ID, True)
            if error == 0:
                uffd_guard(&_uffd)  # that there is none to be had is no error
    if error:
        regions_severed()
        raise OSError(-error, "userfaultfd")
    threads = min(threads, <uint32_t>ASKED_MAX)
    while lm_load32(&_count) < threads:
        lm_add32(&_count, 1)
        error = lm_start_thread(_handler, 1 << 20)
        if error:
            lm_sub32(&_count, 1)
            raise OSError(-error, "no handler thread can be started")
    return _uffd.privilege, uffd_is_guarded(&_uffd)


def state():
    """Handler threads, and those of them that wait for work behind the reader."""
    return lm_load32(&_count), lm_load32(&_idle)
