from libc.stdint cimport uint32_t, uint64_t

from lazymem.core.region cimport Region

cdef int job_run(Region *r, uint64_t first, uint64_t last, uint32_t helpers, uint64_t *failed_block) noexcept nogil
cdef bint job_collapse(Region *r, uint64_t first_byte, uint64_t end_byte) noexcept nogil
cdef bint job_post(Region *r, uint64_t first, uint64_t last) noexcept nogil
cdef void jobs_cancel(Region *r) noexcept nogil
cdef void jobs_hold() noexcept nogil
cdef void jobs_let_go() noexcept nogil
cdef void jobs_forget() noexcept nogil
