from libc.stdint cimport int64_t, uint32_t, uint64_t

from lazymem.core.abi cimport uffd_msg

ctypedef struct CopyCounts:
    uint64_t eexist
    uint64_t eagain

cdef enum Privilege:
    PRIVILEGE_NONE = 0     # nothing opened
    PRIVILEGE_USER = 1     # only faults of user code are delivered; a system call on an absent page gets EFAULT
    PRIVILEGE_KERNEL = 2   # system calls wait for the page as user code does

cdef int uffd_open(uint64_t wanted, uint64_t optional, int *privilege, uint64_t *features) noexcept nogil
cdef int uffd_register(int fd, uint64_t addr, uint64_t nbytes) noexcept nogil
cdef int uffd_wake(int fd, uint64_t addr, uint64_t nbytes) noexcept nogil
cdef int uffd_copy(int fd, uint64_t dst, uint64_t src, uint64_t nbytes, CopyCounts *counts) noexcept nogil
cdef int uffd_zero(int fd, uint64_t dst, uint64_t nbytes) noexcept nogil
cdef int uffd_poison(int fd, uint64_t addr, uint64_t nbytes) noexcept nogil
cdef int uffd_read(int fd, uffd_msg *message) noexcept nogil
cdef bint page_is_absent(uint64_t addr) noexcept nogil
cdef uint64_t page_nbytes() noexcept nogil
