from libc.stdint cimport uint64_t

from lazymem.core.region cimport Region
from lazymem.core.uffd cimport Uffd

cdef int signals_take() noexcept nogil
cdef void segv_take() noexcept nogil
cdef void signals_forget() noexcept nogil
cdef Uffd *inline_uffd() noexcept nogil
cdef Uffd *inline_reopen() noexcept nogil
cdef void inline_tell_by(bint (*tell)(Region *, uint64_t, int) noexcept nogil) noexcept nogil
