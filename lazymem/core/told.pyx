"""How does a Python thread hear of a touch that failed, when nothing that it was running can raise?

By an exception out of the blue: an asynchronous one. The touch goes on over a stand-in. Python's main thread raises it itself, between two
instructions (`Py_AddPendingCall`, which a fault may call: it needs no GIL). For any other thread that would be too late, since the main thread may be
waiting for that very thread: a thread of ours is started, waits for the GIL as nobody waits for it, and has the exception raised there. So it is seen
soon, at some later point, and in another place than the touch; a guard is what is exact. Only threads that Python knows can be told: any other access
stops loudly. What a thread that has ended meanwhile was to be told, the main thread is.

As the exception comes to light, the loose stand-ins are dropped and a new era begins: later touches are tried anew.
"""
from lazymem.core.failure cimport failures_new_era, guards_coming
from lazymem.core.failure import cause_of
from lazymem.core.inline cimport inline_tell_by
from lazymem.core.memory cimport error_of, lost_stores
from lazymem.core.native cimport *
from lazymem.core.region cimport Region, region_numbered
from lazymem.core.standin cimport drop_loose, stand_in_loose
from lazymem.core.thread cimport Thread, thread_self

import threading

from lazymem.errors import page_error, touch_error


cdef extern from *:
    """
    #include "ending.h"
    #include "native.h"
    /* Does Python know this thread, and will it run again? Reads one thread-local word. */
    static inline int lm_is_python_thread(void) { return PyGILState_GetThisThreadState() != NULL && !lm_finalizing(); }
    /* A daemon thread of an interpreter that is ending: it will never run Python again, nobody waits for it, and it ends with the process. */
    static inline int lm_is_left_behind(void)
    {
        return lm_finalizing() && PyGILState_GetThisThreadState() != NULL && lm_gettid() != lm_main_thread();
    }
    /* A number that Python gives no other thread; the calling thread is one of Python's. */
    static inline uint64_t lm_thread_ident(void) { return PyThreadState_GetID(PyGILState_GetThisThreadState()); }
    /* Is there an exception that the calling thread has not seen yet? */
    static inline int lm_exception_waits(void) { return PyGILState_GetThisThreadState()->async_exc != NULL; }
    static inline int lm_holds_gil(void) { return PyGILState_Check(); }
    /* Have an exception raised in a thread with that number. 0: it has ended. GIL: held. */
    static int lm_raise_in(uint64_t ident, PyObject *exception)
    {
        PyThreadState *t;
        for (t = PyInterpreterState_ThreadHead(PyInterpreterState_Main()); t != NULL; t = PyThreadState_Next(t))
            if (PyThreadState_GetID(t) == ident)
                return PyThreadState_SetAsyncExc(t->thread_id, exception);
        return 0;
    }
    """
    bint lm_finalizing() noexcept nogil
    bint lm_is_python_thread() noexcept nogil
    bint lm_is_left_behind() noexcept nogil
    uint64_t lm_thread_ident() noexcept nogil
    bint lm_exception_waits() noexcept nogil
    bint lm_holds_gil() noexcept nogil
    int lm_raise_in(uint64_t ident, object exception)

cdef extern from "Python.h" nogil:
    int Py_AddPendingCall(int (*run)(void *) except -1 with gil, void *argument)

cdef extern from "Python.h":
    int PyThreadState_SetAsyncExc(unsigned long ident, object exception)

cdef enum:
    TOLD = 64
    TELL_NS = 100000000

ctypedef struct News:
    uint32_t state          # 0 free, 1 being written, 2 to be told, 3 being told
    uint64_t ident          # Python's number of the thread
    uint64_t region_id
    uint64_t block
    int error

cdef News _news[TOLD]
cdef uint32_t _teller_starts = 0   # 1: one has been started, and has not looked yet


cdef bint tell_thread(Region *r, uint64_t block, int error) noexcept nogil:
    """Let the calling thread's failed touch go on, and have it told.

    Return: False when it cannot be: no thread of Python's, a guard is being entered, or too many wait. GIL: kept if held. Blocks: no.
    Thread: the toucher, in a signal handler.
    """
    cdef Thread *me = thread_self()
    cdef int i
    while lm_is_left_behind():  # it must neither go on over zeros nor take the process with it, which has a status of its own
        lm_sleep_ns(1000000000)
    if me == NULL or not lm_is_python_thread() or guards_coming():
        return False
    if error == EINTR:  # it has been told already: by Python, of the signal
        if not stand_in_loose(r, block, me, error):
            return False
        Py_AddPendingCall(_tell, NULL)
        return True
    if me.loose_error == 0 or not (_is_waiting(lm_thread_ident()) or lm_exception_waits()):  # one exception is enough
        for i in range(TOLD):
            if lm_cas32(&_news[i].state, 0, 1):
                break
        else:
            return False
        _news[i].ident = lm_thread_ident()
        _news[i].region_id = r.id
        _news[i].block = block
        _news[i].error = error
        lm_store32(&_news[i].state, 2)
        _have_it_told(me, &_news[i])
    return stand_in_loose(r, block, me, error)


cdef void _have_it_told(Thread *me, News *news) noexcept nogil:
    cdef uint64_t deadline_ns
    if me.tid != lm_main_thread() and lm_cas32(&_teller_starts, 0, 1):
        if lm_start_thread(_teller, 0):
            lm_store32(&_teller_starts, 0)
            Py_AddPendingCall(_tell, NULL)  # better late than never
            return
    if me.tid == lm_main_thread():
        Py_AddPendingCall(_tell, NULL)  # where there is no room, those that wait there tell ours too
    elif not lm_holds_gil():  # then it can be told before it goes on, and hears of it as it comes back to Python
        deadline_ns = lm_now_ns() + TELL_NS
        while lm_load32(&news.state) >= 2 and lm_now_ns() < deadline_ns:
            lm_sleep_ns(50000)


cdef bint _is_waiting(uint64_t ident) noexcept nogil:
    """Is there news for this thread already?"""
    cdef int i
    for i in range(TOLD):
        if lm_load32(&_news[i].state) >= 2 and _news[i].ident == ident:
            return True
    return False


cdef void *_teller(void *unused) noexcept nogil:
    """The life of a thread that tells: a few instructions of Python."""
    lm_store32(&_teller_starts, 0)  # what is added from now on may need another one
    if not lm_finalizing():
        _tell_all()
    return NULL


cdef void _tell_all() noexcept with gil:
    _tell_others(~<uint64_t>0)


cdef int _tell(void *unused) except -1 with gil:
    """Python's main thread, between two instructions of its own. Raises if it is the one to be told."""
    mine = _tell_others(lm_thread_ident())
    if mine is not None:
        raise touch_error(mine, try_anew)()
    try_anew()
    return 0


cdef object _tell_others(uint64_t me):
    """Tell every thread that there is news for. Return: the error of thread `me`, which is not told. GIL: held."""
    cdef Region *r
    cdef int i
    mine = None
    for i in range(TOLD):
        if not lm_cas32(&_news[i].state, 2, 3):
            continue
        r = region_numbered(_news[i].region_id)
        error = page_error("(closed meanwhile)", "gone", _news[i].block, 0, 0, _news[i].error, cause_of(_news[i].error)) \
            if r == NULL else error_of(r, _news[i].block, _news[i].error)
        # From here to the end of the news nobody else runs Python, so the thread cannot have been told before it fails again.
        if _news[i].ident == me:
            mine = error
        elif lm_raise_in(_news[i].ident, touch_error(error, try_anew)) == 0:
            PyThreadState_SetAsyncExc(threading.main_thread().ident, touch_error(error, try_anew))
        lm_store32(&_news[i].state, 0)
    return mine


cdef void told_forget() noexcept nogil:
    """In a forked child: only what the thread that forked was to be told is news here. GIL: any. Blocks: no."""
    cdef int i
    lm_store32(&_teller_starts, 0)
    for i in range(TOLD):
        if _news[i].state != 2 or _news[i].ident != lm_thread_ident():
            lm_store32(&_news[i].state, 0)
        else:
            Py_AddPendingCall(_tell, NULL)


def try_anew():
    """The thread that was told has seen it: what it touches from now on is fetched again.

    Returns what it had stored meanwhile and is lost, for the message. Blocks: no. GIL: kept.
    """
    drop_loose()
    failures_new_era()
    return lost_stores()


inline_tell_by(tell_thread)
