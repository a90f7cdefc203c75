"""What runs between begin and end of an operation that can raise, and what does it raise?

`begin` notes how many touches have failed; `end` drops this thread's stand-ins and looks at what failed since: by this thread, or by
any in the operands' bytes. Never for another array.
"""
from cpython.exc cimport PyErr_CheckSignals

from lazymem.core.failure cimport LOG_ENTRIES, Failure, failure_read, failures_now
from lazymem.core.failure import cause_of
from lazymem.core.memory cimport error_of, raise_page_error, refuse
from lazymem.core.native cimport *
from lazymem.core.region cimport SEVERED, UNREGISTERED, Region, region_at, region_numbered
from lazymem.core.standin cimport operation_begin, operation_end, standins_wait
from lazymem.core.thread cimport thread_self

from lazymem.errors import page_error


def begin_operation():
    """Start an operation that can raise; returns what `end_operation` wants. Blocks: up to 1 s for other threads' stand-ins."""
    cdef uint64_t sequence
    begin(&sequence)
    return sequence


cdef int begin(uint64_t *sequence) except -1:
    """`begin_operation`. GIL: released while it waits."""
    cdef uint64_t deadline_ns
    cdef bint gone
    while not operation_begin(sequence):
        deadline_ns = lm_now_ns() + 1000000000
        with nogil:
            gone = standins_wait(deadline_ns)
        if not gone:
            raise TimeoutError("lazymem: another thread's failed operation has not ended for 1 s; bytes that it could not "
                               "fetch are mapped as zeros meanwhile, so nothing is read")
    return 0


def end_operation(uint64_t sequence, operands=()):
    """End it; raise PageError if a touch of this thread failed since, or anybody's in the operands' bytes.

    Parameters
    ----------
    sequence : int
        From `begin_operation`.
    operands : sequence of (int, int)
        Address ranges.

    Notes
    -----
    Blocks: no. GIL: kept.
    """
    if operation_end(sequence):
        blame(sequence, operands)


cdef int blame(uint64_t sequence, operands) except -1:
    """Raise for the first log entry after `sequence` that concerns this thread or these bytes. GIL: held."""
    cdef uint64_t now = failures_now(), i, start
    cdef uint32_t me = thread_self().tid if thread_self() != NULL else 0
    cdef Failure entry
    cdef Region *r
    for low, high in operands:
        r = region_at(<uint64_t>low)
        if r != NULL and lm_load32(&r.status) in (SEVERED, UNREGISTERED):
            refuse(r)
    if failures_now() == sequence:
        return 0
    if thread_self() != NULL and thread_self().first_sequence > sequence:
        if thread_self().first_error == EINTR and PyErr_CheckSignals():
            return -1  # KeyboardInterrupt, which ended the touch
        r = region_numbered(thread_self().first_region)
        if r == NULL:
            raise page_error("(closed meanwhile)", "gone", thread_self().first_block, 0, 0, thread_self().first_error,
                             cause_of(thread_self().first_error))
        raise_page_error(r, thread_self().first_block, thread_self().first_error)
    if now - sequence >= LOG_ENTRIES or not failure_read(sequence + 1, &entry):
        _blame_latest(sequence, operands)  # overrun: the regions themselves know of their latest
    for i in range(max(sequence, now - min(now, <uint64_t>LOG_ENTRIES)) + 1, now + 1):
        if not failure_read(i, &entry):
            continue
        r = region_numbered(entry.region_id)
        if r == NULL:
            continue
        start = r.base + entry.block * r.block_nbytes
        if entry.tid == me or any(low < start + r.block_nbytes and start < high for low, high in operands):
            raise_page_error(r, entry.block, entry.error)
    return 0


cdef object first_after(uint64_t sequence):
    """The PageError of the first failure after `sequence` that is still known; never None. Raises if that has cost an array its memory.

    GIL: held.
    """
    cdef uint64_t now = failures_now(), i
    cdef Failure entry
    cdef Region *r
    for i in range(max(sequence, now - min(now, <uint64_t>LOG_ENTRIES)) + 1, now + 1):
        if failure_read(i, &entry):
            r = region_numbered(entry.region_id)
            if r != NULL and lm_load32(&r.status) == UNREGISTERED:
                refuse(r)
            if r != NULL:
                return error_of(r, entry.block, entry.error)
    return page_error("(closed meanwhile)", "gone", 0, 0, 0, EIO, f"{now - sequence} touches failed")


cdef int _blame_latest(uint64_t sequence, operands) except -1:
    """Raise if the latest failure of an operand's region came after `sequence`; which bytes failed before it is forgotten."""
    cdef Region *r
    for low, high in operands:
        r = region_at(<uint64_t>low)
        if r != NULL and lm_load64(&r.last_failure) > sequence:
            raise_page_error(r, r.last_failed_block, r.last_error)
    return 0
