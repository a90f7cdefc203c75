# The words of abi.h, for cimport.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "abi.h" nogil:
    enum:
        SYS_userfaultfd
        UFFD_USER_MODE_ONLY
        UFFD_EVENT_PAGEFAULT
        MADV_COLLAPSE
        MADV_DONTNEED_LOCKED
    const uint64_t UFFD_API
    const uint64_t UFFD_FEATURE_SIGBUS
    const uint64_t UFFD_FEATURE_THREAD_ID
    const uint64_t UFFD_FEATURE_POISON
    const uint64_t UFFDIO_REGISTER_MODE_MISSING
    const unsigned long UFFDIO_API
    const unsigned long UFFDIO_REGISTER
    const unsigned long UFFDIO_WAKE
    const unsigned long UFFDIO_COPY
    const unsigned long UFFDIO_ZEROPAGE
    const unsigned long UFFDIO_POISON
    const unsigned long UFFDIO_CONTINUE
    const unsigned long USERFAULTFD_IOC_NEW

    struct uffdio_range:
        uint64_t start
        uint64_t len
    struct uffdio_api:
        uint64_t api
        uint64_t features
        uint64_t ioctls
    struct uffdio_register:
        uffdio_range range
        uint64_t mode
        uint64_t ioctls
    struct uffdio_copy:
        uint64_t dst
        uint64_t src
        uint64_t len
        uint64_t mode
        int64_t copy
    struct uffdio_zeropage:
        uffdio_range range
        uint64_t mode
        int64_t zeropage
    struct uffdio_poison:
        uffdio_range range
        uint64_t mode
        int64_t updated
    struct uffdio_continue:
        uffdio_range range
        uint64_t mode
        int64_t mapped
    struct uffd_msg:
        uint8_t event
        uint64_t flags
        uint64_t address
        uint32_t ptid
