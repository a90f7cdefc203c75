"""What does leaving a guard prove?

That no touch has failed in this process since it was entered, on any thread: nothing read meanwhile was a stand-in. The order of steps is in failure.pyx.
And that the kernel still sends us every touch: nothing was zeros that nobody knows of.
"""
from lazymem.core.failure cimport *
from lazymem.core.memory cimport error_of
from lazymem.core.native cimport *
from lazymem.core.operation cimport first_after
from lazymem.core.region cimport regions_severed
from lazymem.core.registered cimport regions_look
from lazymem.core.standin cimport drop_loose, standins_wait


def enter_guard():
    """Enter; returns what `leave_guard` wants.

    Raises
    ------
    TimeoutError
        Another thread's operation that failed has not ended for 1 s.

    Notes
    -----
    Blocks: until there are no stand-ins, at most 1 s. GIL: released meanwhile.
    """
    cdef uint64_t sequence, deadline_ns = lm_now_ns() + 1000000000
    cdef bint gone
    sequence = failures_now()                                    # (1)
    drop_loose()
    gone = standins_live() == 0                                  # (2)
    if not gone:
        guards_come(1)  # from now on nothing else makes us wait
        with nogil:
            gone = standins_wait(deadline_ns)
        guards_come(-1)
    if not gone:
        raise TimeoutError("lazymem.guard: another thread's operation has failed and not ended for 1 s; what it could not fetch is "
                           "mapped as zeros meanwhile, so nothing may be read under a guard")
    guards_count(1)
    return sequence


def leave_guard(uint64_t sequence):
    """Leave; the PageError of the first touch that has failed since, or None.

    Raises
    ------
    RuntimeError
        Arrays have lost their memory: the userfaultfd was closed, or memory unregistered, by somebody else.

    Notes
    -----
    Blocks: some 2 us for each array, at most some 2 ms. GIL: kept.
    """
    guards_count(-1)
    if regions_severed():
        raise RuntimeError("lazymem.guard: somebody closed lazymem's userfaultfd (os.closerange? a daemoniser?): values read "
                           "meanwhile may be zeros that are no data")
    regions_look()
    if failures_now() == sequence:
        return None
    drop_loose()
    return first_after(sequence)
