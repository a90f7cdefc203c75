"""How does a touch reach us on the touching thread itself?

With UFFD_FEATURE_SIGBUS the kernel sends the toucher SIGBUS where it would have queued a message. The handler fills the block
and returns; the instruction runs again. No other thread, no wake-up, no privilege. What it cannot see: system calls on absent
pages (they get EFAULT), and touches by threads that block SIGBUS (the kernel ends the process).

Where there is no userfaultfd, memory that is missing may not be accessed (mprotect.pyx), and the signal is SIGSEGV; all else
is the same. A program's own mistake, such as a write to a read-only array, is told from a touch by what the processor says of
it, or by being the same again and again.

The signals have other owners. Whoever had one before is called for every address that is not ours. Whoever takes it after us
is noticed the next time an array is made, and then called behind us; faulthandler's own switches are followed at once
(sigowner.py). The same handler serves `threads`: there, a SIGBUS on a region is the poison of a touch that failed. SIGSEGV is
taken for the first array without a userfaultfd, at the first close, and in a forked child, there to say what was touched.

Never SA_ONSTACK: sources may need more than a small alternate stack. SA_NODEFER: a source may touch another lazy array.
"""
from lazymem.core.abi cimport UFFD_FEATURE_SIGBUS
from lazymem.core.failure cimport guards_now
from lazymem.core.fill cimport PROTECTS, READS, UNKNOWN, WRITES, region_touch
from lazymem.core.mprotect cimport mprotect_exposed
from lazymem.core.native cimport *
from lazymem.core.region cimport (
    CLOSED, INLINE, LIVE, LOST, MPROTECT, SEVERED, UNREGISTERED, Region, region_enter, region_leave, regions_severed,
)
from lazymem.core.standin cimport stand_in_loose
from lazymem.core.stop cimport loud_stop
from lazymem.core.table cimport DETAIL_SHIFT, FAILED, STATE
from lazymem.core.thread cimport Thread, thread_self, thread_tid
from lazymem.core.uffd cimport (
    Uffd, page_is_absent, page_nbytes, uffd_forget, uffd_guard, uffd_is_guarded, uffd_make_sure, uffd_open,
)


cdef extern from *:
    """
    #include <signal.h>
    #include <stdlib.h>
    #include <string.h>
    #include <errno.h>
    #include <stdint.h>
    #include <ucontext.h>
    #include <unistd.h>
    typedef void (*lm_handler)(int, siginfo_t *, void *);
    static struct sigaction lm_before[NSIG];      /* who had the signal before us */

    /* Become the owner of a signal, in front of whoever has it now. 0 / -errno; 1 when it is ours already. */
    static int lm_signal_take(int sig, lm_handler handler)
    {
        struct sigaction now, ours;
        if (sigaction(sig, NULL, &now))
            return -errno;
        if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == handler)
            return 1;
        memset(&ours, 0, sizeof ours);
        ours.sa_sigaction = handler;
        ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
        sigemptyset(&ours.sa_mask);
        lm_before[sig] = now;
        return sigaction(sig, &ours, NULL) ? -errno : 0;
    }

    /* Let the owner before us have it. A default or ignoring owner gets the signal back for good: the instruction runs again,
     * or, if somebody sent the signal, it is sent once more. `again`: the owner already had this one and passed it back. */
    static void lm_signal_pass(int sig, siginfo_t *info, void *ucontext, int again)
    {
        struct sigaction *before = &lm_before[sig];
        struct sigaction fallback;
        if (!again && before->sa_handler != SIG_DFL && before->sa_handler != SIG_IGN) {
            if (before->sa_flags & SA_SIGINFO)
                before->sa_sigaction(sig, info, ucontext);
            else
                before->sa_handler(sig);
            return;
        }
        if (before->sa_handler == SIG_IGN && info->si_code <= 0)
            return;  /* what somebody sends stays ignored */
        memset(&fallback, 0, sizeof fallback);
        fallback.sa_handler = SIG_DFL;
        if (sigaction(sig, &fallback, NULL))
            abort();  /* it would come back for ever */
        if (info->si_code <= 0)
            raise(sig);
    }
    /* What was tried? */
    enum { LM_READ, LM_WRITE, LM_EITHER, LM_OTHER };
    /* Was it tried on a page that is there? 1, 0; -1 the processor does not say. */
    static int lm_was_there(const void *ucontext)
    {
    #if defined(__x86_64__)
        const ucontext_t *u = ucontext;
        if (u->uc_mcontext.gregs[REG_TRAPNO] == 14)
            return u->uc_mcontext.gregs[REG_ERR] & 1;
    #endif
        (void)ucontext;
        return -1;
    }
    static int lm_access(const siginfo_t *info, const void *ucontext)
    {
    #if defined(__x86_64__)
        const ucontext_t *u = ucontext;
        long error = u->uc_mcontext.gregs[REG_ERR], trap = u->uc_mcontext.gregs[REG_TRAPNO];
        if (trap != 0) {   /* gVisor leaves both at 0 */
            if (trap != 14 || error & 0x30)   /* no page fault; an instruction's fetch; a protection key */
                return LM_OTHER;
            return error & 2 ? LM_WRITE : LM_READ;
        }
    #endif
        return info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR ? LM_EITHER : LM_OTHER;
    }
    static int lm_process;    /* that has the memory: not a raw clone's child */
    static inline void lm_process_is_this(void) { lm_process = getpid(); }
    static inline int lm_is_this_process(void) { return lm_process == getpid(); }
    static int lm_blocks(int sig)
    {
        sigset_t set;
        return pthread_sigmask(SIG_BLOCK, NULL, &set) == 0 && sigismember(&set, sig);
    }
    static inline uint64_t lm_info_addr(const siginfo_t *info) { return (uint64_t)(uintptr_t)info->si_addr; }
    static inline int lm_info_code(const siginfo_t *info) { return info->si_code; }
    /* 0 before the owner behind us is called, then one more for each signal it lets through to us */
    static __thread __attribute__((tls_model("initial-exec"))) int lm_passing;
    static inline int lm_passing_more(int n) { int before = lm_passing; lm_passing += n; return before; }
    """
    ctypedef struct siginfo_t:
        pass
    ctypedef void (*lm_handler)(int, siginfo_t *, void *) noexcept nogil
    int lm_signal_take(int sig, lm_handler handler) noexcept nogil
    void lm_signal_pass(int sig, siginfo_t *info, void *ucontext, bint again) noexcept nogil
    int lm_access(const siginfo_t *info, const void *ucontext) noexcept nogil
    int LM_READ, LM_WRITE, LM_EITHER, LM_OTHER
    int lm_was_there(const void *ucontext) noexcept nogil
    void lm_process_is_this() noexcept nogil
    bint lm_is_this_process() noexcept nogil
    bint lm_blocks(int sig) noexcept nogil
    uint64_t lm_info_addr(const siginfo_t *info) noexcept nogil
    int lm_info_code(const siginfo_t *info) noexcept nogil
    int lm_passing_more(int n) noexcept nogil
    int SIGBUS, SIGSEGV, BUS_MCEERR_AR

cdef Uffd _uffd
_uffd.fd = -1
cdef bint _taken = False     # there have been arrays
cdef bint _segv_taken = False
cdef enum:
    SAME_MOST = 64           # more faults than that in a row at one address that may be accessed: it is no touch,
    SAME_MOST_READS = 1048576  # where the processor does not say what it is; for where it does, only not for ever
cdef bint (*_tell)(Region *, uint64_t, int) noexcept nogil
_tell = NULL


cdef void _pass(int sig, siginfo_t *info, void *ucontext) noexcept nogil:
    """Not ours, or not to be saved. An owner that raises the signal again from its handler (faulthandler does) must end."""
    cdef bint again = lm_passing_more(1) > 0
    lm_signal_pass(sig, info, ucontext, again)
    lm_passing_more(-1)


cdef int _tried(siginfo_t *info, void *ucontext) noexcept nogil:
    cdef int access = lm_access(info, ucontext), there = lm_was_there(ucontext)
    if there < 0:
        return UNKNOWN
    return READS if access == LM_READ else PROTECTS if there else WRITES


cdef void _on_sigbus(int sig, siginfo_t *info, void *ucontext) noexcept nogil:
    """Async-signal-safe. errno is the interrupted code's and is put back."""
    cdef int saved = lm_errno_get(), error = 0
    cdef uint64_t addr = lm_info_addr(info)
    cdef Region *r = NULL
    cdef Thread *me
    if lm_info_code(info) > 0:  # the kernel's; a sent one has no address
        r = region_enter(addr)
    if r == NULL:
        _pass(sig, info, ucontext)
        lm_errno_set(saved)
        return
    me = thread_self()
    if r.delivery == MPROTECT or (lm_info_code(info) == BUS_MCEERR_AR and not page_is_absent(addr & ~(page_nbytes() - 1))):
        region_leave(r)  # a memory error in a page that is there: never ours to mend
        _pass(sig, info, ucontext)
        lm_errno_set(saved)
        return
    if r.delivery == INLINE:
        error = region_touch(r, addr, thread_tid(), _tried(info, ucontext), True)
    elif me != NULL and (me.operations or me.depth):
        error = region_touch(r, addr, me.tid, _tried(info, ucontext), True)  # poison of an earlier touch: this one can raise, so try anew
    else:
        error = _error_of_poison(r, addr)
        if error == 0:  # poison without a failure any more: filling it heals it, going on without would end here again
            error = region_touch(r, addr, thread_tid(), _tried(info, ucontext), True)
    _go_on(r, addr, me, error, sig, info, ucontext)
    lm_errno_set(saved)


cdef void _go_on(Region *r, uint64_t addr, Thread *me, int error, int sig, siginfo_t *info, void *ucontext) noexcept nogil:
    """Let the touch go on, or say why it cannot. Leaves the region."""
    if error < 0 and me != NULL and _let_go(r, addr, me, -error):
        error = 0
    if error < 0:
        loud_stop(r, addr, -error)
    region_leave(r)
    if error < 0:
        _pass(sig, info, ucontext)


cdef bint _let_go(Region *r, uint64_t addr, Thread *me, int error) noexcept nogil:
    """May a touch that failed outside operations go on? Under a guard, which will raise; or if its thread can be told."""
    cdef uint64_t block = (addr - r.base) // r.block_nbytes
    if lm_load32(&r.status) != LIVE or block >= r.nblocks or error == ESHUTDOWN or me.operations or me.depth:
        return False
    if guards_now():
        return stand_in_loose(r, block, me, error)
    return _tell != NULL and _tell(r, block, error)


cdef void inline_tell_by(bint (*tell)(Region *, uint64_t, int) noexcept nogil) noexcept nogil:
    """How a thread is told of a touch that failed; told.pyx, which stands above. GIL: any. Blocks: no."""
    global _tell
    _tell = tell


cdef int _error_of_poison(Region *r, uint64_t addr) noexcept nogil:
    """Why is there a SIGBUS where messages are read? Because the block failed and was poisoned. Return: -errno; 0 it has
    healed."""
    cdef uint64_t block = (addr - r.base) // r.block_nbytes
    cdef uint32_t seen
    if lm_load32(&r.status) != LIVE or block >= r.nblocks:
        return -EBUSY
    seen = lm_load32(&r.words[block])
    return -<int>(seen >> DETAIL_SHIFT) if (seen & STATE) == FAILED else 0


cdef bint _is_touch(Region *r, uint64_t addr, Thread *me, int access) noexcept nogil:
    """Is a SIGSEGV in a live region without a userfaultfd a touch? Else it is the program's mistake, and its owner's."""
    cdef uint64_t block = (addr - r.base) // r.block_nbytes
    if access == LM_OTHER or (access == LM_WRITE and not r.writable) or addr >= r.base + r.map_nbytes or block >= r.nblocks:
        return False
    if me == NULL:
        return True
    if not mprotect_exposed(&r.exposure, block):
        me.same_faults = 0
    elif me.same_addr != addr:  # another thread was faster; or somebody changed the protection; or it is no touch
        me.same_addr = addr
        me.same_faults = 1
    else:
        me.same_faults += 1
    return me.same_faults <= <uint32_t>(SAME_MOST if access == LM_EITHER else SAME_MOST_READS)


cdef void _on_sigsegv(int sig, siginfo_t *info, void *ucontext) noexcept nogil:
    """A touch where there is no userfaultfd. Of the memory of a closed array, or of one that a forked child did not get, it
    only says so."""
    cdef int saved = lm_errno_get()
    cdef uint64_t addr = lm_info_addr(info)
    cdef Region *r = NULL
    cdef Thread *me
    cdef uint32_t status
    if lm_info_code(info) > 0:
        r = region_enter(addr)
    if r != NULL:
        status = lm_load32(&r.status)
        if status == LIVE and r.delivery == MPROTECT:
            me = thread_self()
            if not lm_is_this_process():
                loud_stop(r, addr, ENOENT)
            elif _is_touch(r, addr, me, lm_access(info, ucontext)):
                _go_on(r, addr, me, region_touch(r, addr, thread_tid(), _tried(info, ucontext), True), sig, info, ucontext)
                lm_errno_set(saved)
                return
        elif status in (CLOSED, LOST, SEVERED, UNREGISTERED):
            loud_stop(r, addr, EBUSY)
        region_leave(r)
    _pass(sig, info, ucontext)
    lm_errno_set(saved)


cdef int signals_take() noexcept nogil:
    """Own SIGBUS, in front of whoever owns it now. Return: 0 / -errno. GIL: any. Blocks: no."""
    global _taken
    cdef int error = lm_signal_take(SIGBUS, _on_sigbus)
    _taken = True
    return error if error < 0 else 0


cdef void segv_take() noexcept nogil:
    """Own SIGSEGV too, for good: whoever touches memory that is taken away is to be told. GIL: any. Blocks: no."""
    global _segv_taken
    lm_signal_take(SIGSEGV, _on_sigsegv)
    _segv_taken = True


cdef void signals_forget() noexcept nogil:
    """In a forked child: the descriptor is the parent's. Its arrays' memory is not here: SIGSEGV is taken to say so. GIL: any.
    """
    lm_process_is_this()
    if _taken:
        segv_take()
    uffd_forget(&_uffd)


cdef Uffd *inline_uffd() noexcept nogil:
    """The process's userfaultfd for inline delivery. GIL: never. Blocks: no."""
    return &_uffd


cdef int _open() noexcept nogil:
    """Return: 0 / -errno. That there is no guardian to be had is no error."""
    cdef int error = uffd_open(&_uffd, UFFD_FEATURE_SIGBUS, False)
    if error == 0:
        uffd_guard(&_uffd)
    return error


cdef Uffd *inline_reopen() noexcept nogil:
    """In a forked child: a userfaultfd of its own, without a descriptor where there is none to be had. Its guardian is there
    before the child can close anything. GIL: any. Blocks: some 50 us."""
    _open()
    return &_uffd


def take_signals(bint segv=False):
    """Own SIGBUS, and SIGSEGV once that has been wanted, in front of whoever owns them now.

    Raises
    ------
    OSError
        sigaction(2) fails.

    Notes
    -----
    Blocks: no. GIL: kept. Called when an array is made, at the first close, and when faulthandler was switched.
    """
    global _segv_taken
    cdef int error = signals_take()
    lm_process_is_this()
    _segv_taken |= segv
    if error == 0 and _segv_taken:
        error = lm_signal_take(SIGSEGV, _on_sigsegv)
    if error < 0:
        raise OSError(-error, "sigaction")


def blocks_sigbus():
    """Does the calling thread block SIGBUS? An inline touch on it would end the process."""
    return lm_blocks(SIGBUS)


def blocks_sigsegv():
    """Does the calling thread block SIGSEGV? A touch on it, with delivery mprotect, would end the process."""
    return lm_blocks(SIGSEGV)


def descriptor():
    """Make sure of the process's userfaultfd for inline delivery; it is opened at the first call.

    Returns
    -------
    (int, bool)
        Privilege (1 user faults, 2 kernel faults too; inline never uses the latter); does it survive a close of its number?

    Raises
    ------
    OSError
        No rung of the ladder can be climbed, or it was open and somebody closed it.

    Notes
    -----
    Blocks: some 50 us. GIL: released meanwhile.
    """
    cdef int error
    with nogil:
        error = uffd_make_sure(&_uffd) if _uffd.fd >= 0 else _open()
    if error:
        regions_severed()
        raise OSError(-error, "userfaultfd")
    return _uffd.privilege, uffd_is_guarded(&_uffd)
