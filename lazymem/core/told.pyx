"""How does a Python thread hear of a touch that failed, when nothing that it was running can raise?

By an exception out of the blue: an asynchronous one. The touch goes on over a stand-in, and Python's main thread is asked (`Py_AddPendingCall`, which
a fault may call: it needs no GIL) to have the exception raised in the thread that touched. So it is seen soon, at some later point, and in
another place than the touch; a guard is what is exact. Only threads that Python knows can be told: any other access stops loudly.

When the pending call runs, it drops the loose stand-ins and begins a new era: later touches are tried anew.
"""
from lazymem.core.failure cimport failures_new_era, guards_coming
from lazymem.core.inline cimport inline_tell_by
from lazymem.core.memory cimport error_of
from lazymem.core.native cimport *
from lazymem.core.region cimport Region, region_numbered
from lazymem.core.standin cimport drop_loose, stand_in_loose
from lazymem.core.thread cimport Thread, thread_self

from lazymem.errors import touch_error


cdef extern from *:
    """
    #include <Python.h>
    #include <pthread.h>
    #if PY_VERSION_HEX >= 0x030d0000
    #define lm_finalizing() Py_IsFinalizing()
    #else
    #define lm_finalizing() _Py_IsFinalizing()
    #endif
    /* Does Python know this thread, and will it run again? Reads one thread-local word. */
    static inline int lm_is_python_thread(void) { return PyGILState_GetThisThreadState() != NULL && !lm_finalizing(); }
    static inline unsigned long lm_thread_ident(void) { return (unsigned long)pthread_self(); }
    """
    bint lm_is_python_thread() noexcept nogil
    unsigned long lm_thread_ident() noexcept nogil

cdef extern from "Python.h" nogil:
    int Py_AddPendingCall(int (*run)(void *) except -1 with gil, void *argument)

cdef extern from "Python.h":
    int PyThreadState_SetAsyncExc(unsigned long ident, object exception)
    void PyErr_SetObject(object kind, object value)

cdef enum:
    TOLD = 64

ctypedef struct News:
    uint32_t state          # 0 free, 1 being written, 2 to be told
    unsigned long ident     # Python's name of the thread
    uint64_t region_id
    uint64_t block
    int error

cdef News _news[TOLD]


cdef bint tell_thread(Region *r, uint64_t block, int error) noexcept nogil:
    """Let the calling thread's failed touch go on, and have it told.

    Return: False when it cannot be: no thread of Python's, a guard is being entered, or too many wait. GIL: kept if held. Blocks: no.
    Thread: the toucher, in a signal handler.
    """
    cdef Thread *me = thread_self()
    cdef bint known
    cdef int i
    if me == NULL or not lm_is_python_thread() or guards_coming():
        return False
    known = me.loose_error != 0 and _is_waiting(lm_thread_ident())
    if error == EINTR:  # it has been told already: by Python, of the signal
        if not stand_in_loose(r, block, me, error):
            return False
        Py_AddPendingCall(_tell, NULL)
        return True
    if not known:
        for i in range(TOLD):
            if lm_cas32(&_news[i].state, 0, 1):
                break
        else:
            return False
    if not stand_in_loose(r, block, me, error):
        if not known:
            lm_store32(&_news[i].state, 0)
        return False
    if not known:
        _news[i].ident = lm_thread_ident()
        _news[i].region_id = r.id
        _news[i].block = block
        _news[i].error = error
        lm_store32(&_news[i].state, 2)
        Py_AddPendingCall(_tell, NULL)  # where there is no room, those that wait there tell ours too
    return True


cdef bint _is_waiting(unsigned long ident) noexcept nogil:
    """Is there news for this thread already? One exception is enough."""
    cdef int i
    for i in range(TOLD):
        if lm_load32(&_news[i].state) == 2 and _news[i].ident == ident:
            return True
    return False


cdef int _tell(void *unused) except -1 with gil:
    """Python's main thread, between two instructions of its own. Raises if it is the one to be told."""
    cdef unsigned long me = lm_thread_ident()
    cdef Region *r
    cdef int i
    mine = None
    drop_loose()
    failures_new_era()
    for i in range(TOLD):
        if lm_load32(&_news[i].state) != 2:
            continue
        r = region_numbered(_news[i].region_id)
        if r != NULL:
            error = error_of(r, _news[i].block, _news[i].error)
            if _news[i].ident == me:
                mine = error
            else:
                PyThreadState_SetAsyncExc(_news[i].ident, touch_error(error))
        lm_store32(&_news[i].state, 0)
    if mine is not None:
        raise touch_error(mine)()
    return 0


inline_tell_by(tell_thread)
