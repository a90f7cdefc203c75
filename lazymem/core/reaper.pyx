"""Who unmaps an array that died while a fetch was still running in it?

Deallocation never waits. It hands what it cannot free to the list in region.pyx, and a thread is started that looks again after a moment, then after
longer ones. Memory and address space go as soon as nobody is in the region, without the GIL; then the source, whose Python objects need it: the
thread waits for it as nobody waits for the thread. It ends with the last of the list. Whenever a region is made or closed the list is looked
through too, so that a program that may start no thread loses nothing.

As the interpreter ends nothing is reaped: the process is about to give back everything, and a fetch that is still running keeps what it runs in.
"""
from cpython.ref cimport PyObject, Py_DECREF, Py_INCREF

from lazymem.core.native cimport *
from lazymem.core.region cimport Region, region_bury, region_die, regions_free


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
