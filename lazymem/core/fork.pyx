"""What does a forked child find?

Its parent's arrays, right values, private writes as of the fork (region.pyx); nothing is copied that the parent had not written. They are served
inline there, by a userfaultfd of the child's own; what was being fetched is missing, and what was not written is fetched again. Records of threads, staging
blocks, descriptors, jobs and provider processes start anew. By pthread_atfork, so that a fork by C code is seen too; a raw clone is not, has none of the
memory, and stops at a touch.
"""
from lazymem.core.failure cimport failures_forget
from lazymem.core.frames cimport moves_forget
from lazymem.core.inline cimport inline_reopen, signals_forget
from lazymem.core.interrupt cimport interrupt_forget
from lazymem.core.jobs cimport jobs_forget, jobs_hold, jobs_let_go
from lazymem.core.pool cimport pool_forget_all
from lazymem.core.process cimport rings_forget
from lazymem.core.reaper cimport reaper_forget
from lazymem.core.region cimport regions_any, regions_hold, regions_inherit, regions_let_go, regions_reserve
from lazymem.core.serve cimport serve_forget
from lazymem.core.thread cimport thread_forget_all
from lazymem.core.threads cimport threads_forget
from lazymem.core.told cimport told_forget


cdef extern from "pthread.h" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil)


cdef void _prepare() noexcept nogil:
    jobs_hold()
    regions_hold()


cdef void _in_parent() noexcept nogil:
    regions_let_go()
    jobs_let_go()


cdef void _in_child() noexcept nogil:
    # 0. The addresses of what it did not get, before anything else is mapped there.
    regions_reserve()
    # 1. The parent's descriptors first: an ioctl on one here would act on the parent's memory.
    signals_forget()
    threads_forget()
    # 2. What other threads of the parent held for ever.
    thread_forget_all()
    moves_forget()
    pool_forget_all()
    jobs_forget()
    failures_forget()
    rings_forget()
    interrupt_forget()
    reaper_forget()
    told_forget()
    serve_forget()
    # 3. The addresses.
    if regions_any():
        regions_inherit(inline_reopen())
    _in_parent()


pthread_atfork(_prepare, _in_parent, _in_child)
