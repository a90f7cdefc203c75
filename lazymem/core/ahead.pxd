from libc.stdint cimport uint64_t

from lazymem.core.region cimport Region

cdef void region_read_ahead(Region *r, uint64_t addr, void (*begin)() noexcept nogil, bint (*wanted)() noexcept nogil) noexcept nogil
