"""How much memory may all arrays together have?

A kernel short of memory kills; it does not refuse. So what is resident or waits is counted, in bytes, and nothing is added past the
process's budget: who needs memory takes it from what is there (evict.pyx).
"""
from lazymem.core.native cimport *

cdef uint64_t _budget_nbytes = 0       # 0: none
cdef uint64_t _used_nbytes = 0         # in all regions


cdef bint memory_take(uint64_t nbytes) noexcept nogil:
    """Count so many bytes, if the budget has room for them. Return: has it? GIL: never. Blocks: no."""
    cdef uint64_t used, budget = lm_load64(&_budget_nbytes)
    while True:
        used = lm_load64(&_used_nbytes)
        if budget and used + nbytes > budget:
            return False
        if lm_cas64(&_used_nbytes, used, used + nbytes):
            return True


cdef void memory_force(uint64_t nbytes) noexcept nogil:
    """Count bytes, whether or not there is room. GIL: never. Blocks: no."""
    lm_add64(&_used_nbytes, nbytes)


cdef void memory_give(uint64_t nbytes) noexcept nogil:
    """So many bytes are free again. GIL: never. Blocks: no."""
    lm_sub64(&_used_nbytes, nbytes)


cdef uint64_t memory_used() noexcept nogil:
    """Units: bytes, resident and waiting, of all arrays. GIL: never. Blocks: no."""
    return lm_load64(&_used_nbytes)


cdef uint64_t memory_budget() noexcept nogil:
    """Units: bytes; 0: none. GIL: never. Blocks: no."""
    return lm_load64(&_budget_nbytes)


cdef void memory_budget_set(uint64_t nbytes) noexcept nogil:
    """Units: bytes; 0: none. What is there already stays until somebody needs memory. GIL: never. Blocks: no."""
    lm_store64(&_budget_nbytes, nbytes)
