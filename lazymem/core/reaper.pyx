"""Who unmaps an array that died while a fetch was still running in it, and stores what nobody had flushed?

Deallocation never waits. It hands what it cannot free to the list in region.pyx, and a thread is started that looks again after a moment, then after
longer ones. Memory and address space go as soon as nobody is in the region, without the GIL; then the source, whose Python objects need it: the
thread waits for it as nobody waits for the thread. It ends with the last of the list. Whenever a region is made or closed the list is looked
through too, so that a program that may start no thread loses nothing.

An array that died with something written that its source does not have stays what it is until that is stored; what cannot be is told by
sys.unraisablehook, and is lost.

As the interpreter ends nothing is reaped: the process is about to give back everything, and a fetch that is still running keeps what it runs in.
"""
from cpython.ref cimport PyObject, Py_DECREF, Py_INCREF

from lazymem.core.jobs cimport jobs_cancel
from lazymem.core.native cimport *
from lazymem.core.region cimport CLOSED, LIVE, Region, region_bury, region_close, region_die, region_left_behind, region_unlist, regions_free
from lazymem.core.standin cimport forget_standins
from lazymem.core.writes cimport region_flush


cdef extern from "ending.h" nogil:
    bint lm_finalizing() noexcept

cdef uint64_t FIRST_NS = 1000000, LONGEST_NS = 50000000
cdef uint32_t _reaps = 0   # 1: there is a thread


cdef void reap_later(Region *r, object source):
    """A region that could not be freed, and what its source lives in, are to go when nobody is in it any more. GIL: held. Blocks: no."""
    Py_INCREF(source)
    region_die(r, <void *>source)
    if not lm_finalizing() and lm_cas32(&_reaps, 0, 1) and lm_start_thread(_reap, 0):
        lm_store32(&_reaps, 0)


cdef int _store(Region *r) noexcept nogil:
    """Store what is left of a region that died, and close it. Return: 0; -errno: some of it is lost. Blocks: on the source. Thread: one
    that has entered it, and leaves it by this."""
    cdef uint64_t failed = 0
    cdef int error = region_flush(r, 0, r.nblocks, &failed)
    if lm_cas32(&r.status, LIVE, CLOSED):   # else another thread has just done it
        jobs_cancel(r)
        lm_sub32(&r.users, 1)
        if region_close(r, lm_now_ns()) == 0:
            forget_standins(r)
        region_unlist(r)
    else:
        error = 0
        lm_sub32(&r.users, 1)
    return error


cdef void _store_all() noexcept nogil:
    cdef Region *r = region_left_behind()
    cdef int error
    while r != NULL:
        error = _store(r)
        if error and not lm_finalizing():
            _tell(r.name, -error)
        r = region_left_behind()


cdef void _tell(const char *name, int error) noexcept with gil:
    raise OSError(error, f"array {name.decode('utf-8', 'replace')!r} was dropped with changes that cannot be written back; they are lost")


def store_left_behind():
    """Store now what arrays that died had not flushed. Blocks: on their sources. GIL: released meanwhile.

    Raises
    ------
    OSError
        Some of it could not be stored, and is lost.
    """
    cdef Region *r
    cdef int error = 0, err
    name = ""
    while True:
        with nogil:
            r = region_left_behind()
            err = _store(r) if r != NULL else 0
        if r == NULL:
            break
        if err:
            error = err
            name = r.name.decode("utf-8", "replace")
    if error:
        raise OSError(-error, f"array {name!r} was dropped with changes that cannot be written back; they are lost")


cdef void reap_now():
    """Let go of what nobody is in any more. GIL: held. Blocks: no."""
    cdef uint32_t freed = 0
    regions_free(&freed)
    if freed:
        _bury()


cdef void _bury():
    cdef void *kept = NULL
    while region_bury(&kept):
        Py_DECREF(<object>kept)


cdef void _bury_with_gil() noexcept with gil:
    _bury()


cdef void *_reap(void *unused) noexcept nogil:
    """The life of a reaper. GIL: taken now and then."""
    cdef uint64_t pause_ns = FIRST_NS
    cdef uint32_t freed = 0
    cdef bint left = True
    lm_name_thread(b"lazymem-reaper")
    while True:
        while left:
            lm_sleep_ns(pause_ns)
            pause_ns = min(2 * pause_ns, LONGEST_NS)
            _store_all()
            left = regions_free(&freed)
            if lm_finalizing():
                return NULL
            if freed:
                _bury_with_gil()
        lm_store32(&_reaps, 0)
        left = regions_free(&freed)  # did one come before we said that we are going?
        if not (left or freed) or not lm_cas32(&_reaps, 0, 1):
            return NULL
        left = True
        pause_ns = FIRST_NS


cdef void reaper_forget() noexcept nogil:
    """In a forked child: the thread is the parent's. What died there goes as the next region is made or closed. GIL: any. Blocks: no."""
    lm_store32(&_reaps, 0)
