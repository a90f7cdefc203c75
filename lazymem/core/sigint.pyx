"""How does Ctrl-C end a touch that waits?

Python's own handler only notes that a SIGINT came; it is acted upon between two instructions of Python, and a touch is in the middle of one. So a wait for
the main thread's touch, as it turns from spinning to sleeping, puts a handler of ours in front of Python's, and takes it off as it wakes, if it is still
ours. The handler counts, and calls Python's; the wait sees the count move, the touch fails with EINTR and is let go on, and Python raises what it
raises.

Only if the SIGINT is Python's default handler's (KeyboardInterrupt). Any other owner, asyncio or a server, has its own idea, and the wait goes on.
"""
from lazymem.core.native cimport *
from lazymem.core.thread cimport Thread, thread_self


cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <unistd.h>
    static struct sigaction lm_sigint_owner;
    static uint32_t lm_sigint_lock, lm_sigint_holders, lm_sigints;

    static void lm_on_sigint(int sig, siginfo_t *info, void *ucontext)
    {
        int saved = errno;
        struct sigaction owner = lm_sigint_owner;
        __atomic_fetch_add(&lm_sigints, 1, __ATOMIC_SEQ_CST);
        if (owner.sa_flags & SA_SIGINFO)
            owner.sa_sigaction(sig, info, ucontext);
        else if (owner.sa_handler != SIG_DFL && owner.sa_handler != SIG_IGN)
            owner.sa_handler(sig);
        errno = saved;
    }
    static void lm_sigint_enter(sigset_t *before)   /* no handler of this thread may come here while it holds the lock */
    {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, before);
        while (__atomic_exchange_n(&lm_sigint_lock, 1, __ATOMIC_ACQUIRE))
            sched_yield();
    }
    static void lm_sigint_exit(const sigset_t *before)
    {
        __atomic_store_n(&lm_sigint_lock, 0, __ATOMIC_RELEASE);
        pthread_sigmask(SIG_SETMASK, before, NULL);
    }
    /* One holder more. Is SIGINT ours now? */
    static int lm_sigint_take(void)
    {
        struct sigaction now, ours;
        sigset_t before;
        int taken = 0;
        lm_sigint_enter(&before);
        if (sigaction(SIGINT, NULL, &now) == 0) {
            if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == lm_on_sigint)
                taken = 1;
            else if (now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN) {
                lm_sigint_owner = now;
                memset(&ours, 0, sizeof ours);
                ours.sa_sigaction = lm_on_sigint;
                ours.sa_flags = (now.sa_flags & (SA_ONSTACK | SA_RESTART | SA_NODEFER)) | SA_SIGINFO;
                ours.sa_mask = now.sa_mask;
                taken = sigaction(SIGINT, &ours, NULL) == 0;
            }
        }
        lm_sigint_holders += (uint32_t)taken;
        lm_sigint_exit(&before);
        return taken;
    }
    static void lm_sigint_give_back(void)
    {
        struct sigaction now;
        sigset_t before;
        lm_sigint_enter(&before);
        if (--lm_sigint_holders == 0 && sigaction(SIGINT, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO)
            && now.sa_sigaction == lm_on_sigint)
            sigaction(SIGINT, &lm_sigint_owner, NULL);
        lm_sigint_exit(&before);
    }
    static void lm_sigint_forget(void)   /* the parent's threads that held it are not here */
    {
        struct sigaction now;
        if (lm_sigint_holders && sigaction(SIGINT, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO)
            && now.sa_sigaction == lm_on_sigint)
            sigaction(SIGINT, &lm_sigint_owner, NULL);
        lm_sigint_holders = lm_sigint_lock = 0;
    }
    static inline uint32_t lm_sigints_now(void) { return __atomic_load_n(&lm_sigints, __ATOMIC_SEQ_CST); }
    static inline uint32_t lm_main_thread(void) { return (uint32_t)getpid(); }
    """
    bint lm_sigint_take() noexcept nogil
    void lm_sigint_give_back() noexcept nogil
    void lm_sigint_forget() noexcept nogil
    uint32_t lm_sigints_now() noexcept nogil
    uint32_t lm_main_thread() noexcept nogil

cdef uint32_t _is_default = 0   # SIGINT is Python's default handler's (sigowner.py)


cdef bint sigint_may_end(Thread *me, uint32_t toucher) noexcept nogil:
    """What this thread waits for from now on is a touch of `toucher`: if that is the main thread, Ctrl-C may end it.

    Return: whether `sigint_no_more` must follow. GIL: any. Blocks: no. Thread: the toucher, or the handler thread that serves it.
    """
    if lm_load32(&_is_default) and me.interrupted == NULL and toucher == lm_main_thread():
        me.sigints_seen = lm_sigints_now()
        me.sigint_held = False
        me.interrupted = _came
        return True
    return False


cdef void sigint_no_more(Thread *me) noexcept nogil:
    """The touch is over. GIL: any. Blocks: no. Thread: that of `sigint_may_end`, which returned true."""
    me.interrupted = NULL
    if me.sigint_held:
        me.sigint_held = False
        lm_sigint_give_back()


cdef bint _came() noexcept nogil:
    """`Thread.interrupted` of a touch. The first question is asked before it sleeps, and takes the signal."""
    cdef Thread *me = thread_self()
    if not me.sigint_held:
        me.sigint_held = lm_sigint_take()
    return lm_sigints_now() != me.sigints_seen


cdef void sigint_forget() noexcept nogil:
    """In a forked child. GIL: any. Blocks: no."""
    lm_sigint_forget()


def set_default(bint default):
    """Say whether SIGINT belongs to Python's default handler."""
    lm_store32(&_is_default, default)
