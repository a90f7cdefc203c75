from libc.stdint cimport int64_t, uint32_t, uint64_t

from lazymem.core.abi cimport uffd_msg

ctypedef struct CopyCounts:
    uint64_t eexist
    uint64_t eagain

cdef enum Privilege:
    PRIVILEGE_NONE = 0     # nothing opened
    PRIVILEGE_USER = 1     # only faults of user code are delivered; a system call on an absent page gets EFAULT
    PRIVILEGE_KERNEL = 2   # system calls wait for the page as user code does

cdef enum Faults:          # which a range is registered for, as the kernel counts them
    FAULTS_MISSING = 1
    FAULTS_WRITE = 2
    FAULTS_MINOR = 4

cdef enum Placing:         # how pages come into place, as the kernel counts them
    PLAINLY = 0
    ASLEEP = 1             # nobody is woken
    PROTECTED = 2          # a write to them is a fault

cdef extern from "guardian.h" nogil:
    ctypedef struct lm_guardian:
        uint32_t state

ctypedef struct Uffd:
    int fd               # its number, or -1. Anybody may close that, or put another file there: look at `uffd_make_sure`
    int privilege
    uint64_t features    # what was enabled
    uint64_t device      # what fstat(2) says of it: no other file says the same
    uint64_t inode
    lm_guardian guardian

cdef int uffd_open(Uffd *uffd, uint64_t wanted, bint for_system_calls) noexcept nogil
cdef bint uffd_moves(Uffd *uffd) noexcept nogil
cdef bint uffd_tracks(Uffd *uffd) noexcept nogil
cdef bint uffd_tracks_async(Uffd *uffd) noexcept nogil
cdef int uffd_know(Uffd *uffd, int fd) noexcept nogil
cdef int uffd_guard(Uffd *uffd) noexcept nogil
cdef bint uffd_is_guarded(Uffd *uffd) noexcept nogil
cdef bint uffds_unguarded() noexcept nogil
cdef int uffd_make_sure(Uffd *uffd) noexcept nogil
cdef void uffd_forget(Uffd *uffd) noexcept nogil
cdef int uffd_register(Uffd *uffd, uint64_t addr, uint64_t nbytes, uint64_t mode) noexcept nogil
cdef bint uffd_shares(Uffd *uffd) noexcept nogil
cdef bint uffd_unregistered(Uffd *uffd, uint64_t addr, uint64_t nbytes, uint32_t *asks, uint64_t unreadable) noexcept nogil
cdef int uffd_wake(Uffd *uffd, uint64_t addr, uint64_t nbytes) noexcept nogil
cdef int uffd_copy(Uffd *uffd, uint64_t dst, uint64_t src, uint64_t nbytes, uint64_t mode, CopyCounts *counts) noexcept nogil
cdef int uffd_zero(Uffd *uffd, uint64_t dst, uint64_t nbytes) noexcept nogil
cdef int uffd_move(Uffd *uffd, uint64_t dst, uint64_t src, uint64_t nbytes, uint64_t mode, uint64_t *moved) noexcept nogil
cdef int uffd_protect(Uffd *uffd, uint64_t addr, uint64_t nbytes, bint protect) noexcept nogil
cdef int uffd_continue(Uffd *uffd, uint64_t addr, uint64_t nbytes, uint64_t mode) noexcept nogil
cdef int pages_written(int pagemap, uint64_t addr, uint64_t nbytes, bint protect, uint64_t *found, uint64_t *end) noexcept nogil
cdef int uffd_poison(Uffd *uffd, uint64_t addr, uint64_t nbytes) noexcept nogil
cdef bint uffd_asks(Uffd *uffd) noexcept nogil
cdef int uffd_read(Uffd *uffd, uffd_msg *message) noexcept nogil
cdef bint page_is_absent(uint64_t addr) noexcept nogil
cdef uint64_t page_nbytes() noexcept nogil
