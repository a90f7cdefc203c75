"""Has a signal come that may end a wait (Ctrl-C)?

Python's own handler only notes that a signal came; it is acted upon between two instructions of Python, and it is noted where only the GIL
lets one look. A wait cannot take that: whoever holds it may be waiting, in a touch, for the very block that is being fetched here. So a wait for
the main thread, as it turns from spinning to sleeping, puts a handler of ours in front of the owner's, and takes it off as it wakes, if it is still
ours. The handler counts, and calls the owner's; the wait sees the count move, and fails with EINTR.

    a touch       is ended by SIGINT, and only where that is Python's default handler's (KeyboardInterrupt): it is let go on, and Python
                  raises what it raises. Any other owner, asyncio or a server, has its own idea, and the wait goes on.
    an operation  that fetches first is ended by any signal that asks a program to end and that somebody handles: Python runs the handler, and
                  if that raises nothing, the operation goes on.
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
    #include "native.h"
    /* A set of them is a mask of bits, in this order. */
    static const int lm_ending[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    enum { LM_ENDING = sizeof lm_ending / sizeof lm_ending[0], LM_SIGINT_ONLY = 1, LM_ANY = (1 << LM_ENDING) - 1 };
    static struct sigaction lm_owner[LM_ENDING];
    static uint32_t lm_listeners[LM_ENDING], lm_came[LM_ENDING], lm_listen_lock;

    static void lm_on_ending(int sig, siginfo_t *info, void *ucontext)
    {
        struct sigaction owner;
        int i, saved = errno;
        for (i = 0; i < LM_ENDING && lm_ending[i] != sig; i++)
            ;
        owner = lm_owner[i];
        __atomic_fetch_add(&lm_came[i], 1, __ATOMIC_SEQ_CST);
        if (owner.sa_flags & SA_SIGINFO)
            owner.sa_sigaction(sig, info, ucontext);
        else if (owner.sa_handler != SIG_DFL && owner.sa_handler != SIG_IGN)
            owner.sa_handler(sig);
        errno = saved;
    }
    static int lm_is_listening(const struct sigaction *now) { return (now->sa_flags & SA_SIGINFO) && now->sa_sigaction == lm_on_ending; }
    static void lm_listen_enter(sigset_t *before)   /* no handler of this thread may come here while it holds the lock */
    {
        lm_no_signals(before);
        while (__atomic_exchange_n(&lm_listen_lock, 1, __ATOMIC_ACQUIRE))
            sched_yield();
    }
    static void lm_listen_exit(const sigset_t *before)
    {
        __atomic_store_n(&lm_listen_lock, 0, __ATOMIC_RELEASE);
        lm_signals_again(before);
    }
    /* One listener more, for each of a set. Which of them are listened to now? Not those that nobody handles. */
    static uint32_t lm_listen(uint32_t wanted)
    {
        struct sigaction now, ours;
        sigset_t before;
        uint32_t taken = 0;
        int i;
        lm_listen_enter(&before);
        for (i = 0; i < LM_ENDING; i++) {
            if (!(wanted >> i & 1) || sigaction(lm_ending[i], NULL, &now))
                continue;
            if (!lm_is_listening(&now)) {
                if (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN)
                    continue;
                lm_owner[i] = now;
                memset(&ours, 0, sizeof ours);
                ours.sa_sigaction = lm_on_ending;
                ours.sa_flags = (now.sa_flags & (SA_ONSTACK | SA_RESTART | SA_NODEFER)) | SA_SIGINFO;
                ours.sa_mask = now.sa_mask;
                if (sigaction(lm_ending[i], &ours, NULL))
                    continue;
            }
            lm_listeners[i]++;
            taken |= 1u << i;
        }
        lm_listen_exit(&before);
        return taken;
    }
    static void lm_listen_no_more(uint32_t taken)
    {
        struct sigaction now;
        sigset_t before;
        int i;
        lm_listen_enter(&before);
        for (i = 0; i < LM_ENDING; i++)
            if (taken >> i & 1 && --lm_listeners[i] == 0 && sigaction(lm_ending[i], NULL, &now) == 0 && lm_is_listening(&now))
                sigaction(lm_ending[i], &lm_owner[i], NULL);   /* else somebody has taken it meanwhile */
        lm_listen_exit(&before);
    }
    static void lm_listen_forget(void)   /* the parent's threads that listened are not here */
    {
        struct sigaction now;
        int i;
        for (i = 0; i < LM_ENDING; i++) {
            if (lm_listeners[i] && sigaction(lm_ending[i], NULL, &now) == 0 && lm_is_listening(&now))
                sigaction(lm_ending[i], &lm_owner[i], NULL);
            lm_listeners[i] = 0;
        }
        lm_listen_lock = 0;
    }
    /* How many of a set have come: it moves. */
    static uint32_t lm_came_now(uint32_t wanted)
    {
        uint32_t n = 0;
        int i;
        for (i = 0; i < LM_ENDING; i++)
            if (wanted >> i & 1)
                n += __atomic_load_n(&lm_came[i], __ATOMIC_SEQ_CST);
        return n;
    }
    """
    uint32_t LM_SIGINT_ONLY, LM_ANY
    uint32_t lm_listen(uint32_t wanted) noexcept nogil
    void lm_listen_no_more(uint32_t taken) noexcept nogil
    void lm_listen_forget() noexcept nogil
    uint32_t lm_came_now(uint32_t wanted) noexcept nogil

cdef uint32_t _is_default = 0   # SIGINT is Python's default handler's (sigowner.py)
cdef uint32_t _main_thread = lm_main_thread()   # of this process: asked at every touch, where a system call would be felt


cdef bint _may_be_ended(Thread *me, uint32_t by) noexcept nogil:
    me.ended_by = by
    me.listening = 0
    me.signals_seen = lm_came_now(by)
    me.interrupted = _came
    return True


cdef bint touch_may_be_ended(Thread *me, uint32_t toucher) noexcept nogil:
    """What this thread waits for from now on is a touch of `toucher`: if that is the main thread, Ctrl-C may end it.

    Return: whether `wait_is_over` must follow. GIL: any. Blocks: no. Thread: the toucher, or the handler thread that serves it.
    """
    return lm_load32(&_is_default) and me.interrupted == NULL and toucher == _main_thread and _may_be_ended(me, LM_SIGINT_ONLY)


cdef bint operation_may_be_ended(Thread *me) noexcept nogil:
    """This thread fetches for an operation from now on: if it is the main thread, Python may want to end that.

    Return: whether `wait_is_over` must follow. GIL: any. Blocks: no.
    """
    return me.tid == _main_thread and _may_be_ended(me, LM_ANY)


cdef bint wait_is_over(Thread *me) noexcept nogil:
    """Return: has a signal come that may have ended it? GIL: any. Blocks: no. Thread: that of `..._may_be_ended`, which returned true."""
    cdef bint came = lm_came_now(me.ended_by) != me.signals_seen
    me.interrupted = NULL
    if me.listening:
        lm_listen_no_more(me.listening)
        me.listening = 0
    return came


cdef bint _came() noexcept nogil:
    """`Thread.interrupted`. The first question is asked before it sleeps, and begins to listen."""
    cdef Thread *me = thread_self()
    if not me.listening:
        me.listening = lm_listen(me.ended_by)
    return lm_came_now(me.ended_by) != me.signals_seen


cdef void interrupt_forget() noexcept nogil:
    """In a forked child. GIL: any. Blocks: no."""
    global _main_thread
    _main_thread = lm_main_thread()
    lm_listen_forget()


def set_default(bint default):
    """Say whether SIGINT belongs to Python's default handler."""
    lm_store32(&_is_default, default)
