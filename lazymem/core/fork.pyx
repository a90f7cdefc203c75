"""What does a forked child find?

pthread_atfork, so that a fork by C code is seen too. Regions are MADV_DONTFORK: the child has none of their memory, where an ordinary
child would read zeros from every missing page. Here its records of threads, staging blocks, descriptors and jobs start anew, so
that arrays made in the child work; the parent's arrays are LOST there: operations raise, a bare touch is stopped with a message.
"""
from lazymem.core.failure cimport failures_forget
from lazymem.core.inline cimport signals_forget
from lazymem.core.jobs cimport jobs_forget, jobs_hold, jobs_let_go
from lazymem.core.pool cimport pool_forget_all
from lazymem.core.process cimport rings_forget
from lazymem.core.region cimport regions_forget, regions_hold, regions_let_go
from lazymem.core.serve cimport serve_forget
from lazymem.core.thread cimport thread_forget_all
from lazymem.core.threads cimport threads_forget


cdef extern from "pthread.h" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil)


cdef void _prepare() noexcept nogil:
    jobs_hold()
    regions_hold()


cdef void _in_parent() noexcept nogil:
    regions_let_go()
    jobs_let_go()


cdef void _in_child() noexcept nogil:
    # 1. The parent's descriptors first: an ioctl on one here would act on the parent's memory.
    signals_forget()
    threads_forget()
    # 2. What other threads of the parent held for ever.
    thread_forget_all()
    pool_forget_all()
    jobs_forget()
    failures_forget()
    rings_forget()
    serve_forget()
    # 3. The addresses.
    regions_forget()
    _in_parent()


pthread_atfork(_prepare, _in_parent, _in_child)
