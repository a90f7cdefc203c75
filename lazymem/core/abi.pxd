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
    const uint64_t UFFD_PAGEFAULT_FLAG_WRITE
    const uint64_t UFFD_PAGEFAULT_FLAG_WP
    const uint64_t UFFD_PAGEFAULT_FLAG_MINOR
    const uint64_t UFFD_FEATURE_PAGEFAULT_FLAG_WP
    const uint64_t UFFD_FEATURE_MISSING_SHMEM
    const uint64_t UFFD_FEATURE_SIGBUS
    const uint64_t UFFD_FEATURE_THREAD_ID
    const uint64_t UFFD_FEATURE_MINOR_SHMEM
    const uint64_t UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    const uint64_t UFFD_FEATURE_POISON
    const uint64_t UFFD_FEATURE_WP_ASYNC
    const uint64_t UFFD_FEATURE_MOVE
    const uint64_t UFFDIO_WRITEPROTECT_MODE_WP
    const uint64_t PM_SCAN_WP_MATCHING
    const uint64_t PAGE_IS_WRITTEN
    const uint64_t PAGE_IS_PRESENT
    const unsigned long UFFDIO_API
    const unsigned long UFFDIO_REGISTER
    const unsigned long UFFDIO_WAKE
    const unsigned long UFFDIO_COPY
    const unsigned long UFFDIO_ZEROPAGE
    const unsigned long UFFDIO_POISON
    const unsigned long UFFDIO_CONTINUE
    const unsigned long UFFDIO_MOVE
    const unsigned long UFFDIO_WRITEPROTECT
    const unsigned long PAGEMAP_SCAN
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
    struct uffdio_move:
        uint64_t dst
        uint64_t src
        uint64_t len
        uint64_t mode
        int64_t move
    struct uffdio_writeprotect:
        uffdio_range range
        uint64_t mode
    struct page_region:
        uint64_t start
        uint64_t end
        uint64_t categories
    struct pm_scan_arg:
        uint64_t size
        uint64_t flags
        uint64_t start
        uint64_t end
        uint64_t walk_end
        uint64_t vec
        uint64_t vec_len
        uint64_t max_pages
        uint64_t category_inverted
        uint64_t category_mask
        uint64_t category_anyof_mask
        uint64_t return_mask
    struct uffd_msg:
        uint8_t event
        uint64_t flags
        uint64_t address
        uint32_t ptid
