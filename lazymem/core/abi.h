/* Which words of the kernel do the installed headers lack?
 *
 * Written by hand after Linux 6.12's include/uapi/linux/userfaultfd.h, checked against 6.18 at run time.  Never include
 * <linux/userfaultfd.h> beside it: distributions ship headers as old as 4.18.  Only what lazymem calls is here.
 */
#ifndef LAZYMEM_ABI_H
#define LAZYMEM_ABI_H

#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#ifndef SYS_userfaultfd
#  if defined(__x86_64__)
#    define SYS_userfaultfd 323
#  else
#    define SYS_userfaultfd 282
#  endif
#endif

#define UFFD_API 0xAAULL
#define UFFD_USER_MODE_ONLY 1

#define UFFD_EVENT_PAGEFAULT 0x12
#define UFFD_PAGEFAULT_FLAG_WRITE 1ULL
#define UFFD_PAGEFAULT_FLAG_WP 2ULL
#define UFFD_PAGEFAULT_FLAG_MINOR 4ULL
#define UFFD_FEATURE_PAGEFAULT_FLAG_WP (1ULL << 0)
#define UFFD_FEATURE_MISSING_SHMEM (1ULL << 5)
#define UFFD_FEATURE_SIGBUS (1ULL << 7)
#define UFFD_FEATURE_THREAD_ID (1ULL << 8)
#define UFFD_FEATURE_MINOR_SHMEM (1ULL << 10)
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1ULL << 12)
#define UFFD_FEATURE_POISON (1ULL << 14)
#define UFFD_FEATURE_WP_ASYNC (1ULL << 15)
#define UFFD_FEATURE_MOVE (1ULL << 16)
#define UFFDIO_WRITEPROTECT_MODE_WP 1ULL
#define PM_SCAN_WP_MATCHING 1ULL
#define PAGE_IS_WRITTEN 2ULL
#define PAGE_IS_PRESENT 8ULL

struct uffdio_range { uint64_t start, len; };
struct uffdio_api { uint64_t api, features, ioctls; };
struct uffdio_register { struct uffdio_range range; uint64_t mode, ioctls; };
struct uffdio_copy { uint64_t dst, src, len, mode; int64_t copy; };
struct uffdio_zeropage { struct uffdio_range range; uint64_t mode; int64_t zeropage; };
struct uffdio_poison { struct uffdio_range range; uint64_t mode; int64_t updated; };

struct uffdio_continue { struct uffdio_range range; uint64_t mode; int64_t mapped; };
struct uffdio_move { uint64_t dst, src, len, mode; int64_t move; };
struct uffdio_writeprotect { struct uffdio_range range; uint64_t mode; };

struct page_region { uint64_t start, end, categories; };
struct pm_scan_arg {   /* ioctl on /proc/self/pagemap; Linux 6.7 */
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

struct uffd_msg {
    uint8_t event, reserved1;
    uint16_t reserved2;
    uint32_t reserved3;
    uint64_t flags;   /* of a page fault; other events are never enabled here */
    uint64_t address;
    uint32_t ptid;    /* with UFFD_FEATURE_THREAD_ID */
    uint32_t reserved4;
};

#define UFFDIO_API _IOWR(0xAA, 0x3F, struct uffdio_api)
#define UFFDIO_REGISTER _IOWR(0xAA, 0x00, struct uffdio_register)
#define UFFDIO_WAKE _IOR(0xAA, 0x02, struct uffdio_range)
#define UFFDIO_COPY _IOWR(0xAA, 0x03, struct uffdio_copy)
#define UFFDIO_ZEROPAGE _IOWR(0xAA, 0x04, struct uffdio_zeropage)
#define UFFDIO_CONTINUE _IOWR(0xAA, 0x07, struct uffdio_continue)
#define UFFDIO_POISON _IOWR(0xAA, 0x08, struct uffdio_poison)
#define UFFDIO_MOVE _IOWR(0xAA, 0x05, struct uffdio_move)
#define UFFDIO_WRITEPROTECT _IOWR(0xAA, 0x06, struct uffdio_writeprotect)
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)

_Static_assert(sizeof(struct uffdio_range) == 16, "uffdio_range");
_Static_assert(sizeof(struct uffdio_api) == 24 && UFFDIO_API == 0xc018aa3f, "uffdio_api");
_Static_assert(sizeof(struct uffdio_register) == 32 && UFFDIO_REGISTER == 0xc020aa00, "uffdio_register");
_Static_assert(UFFDIO_WAKE == 0x8010aa02, "uffdio wake");
_Static_assert(sizeof(struct uffdio_copy) == 40 && UFFDIO_COPY == 0xc028aa03, "uffdio_copy");
_Static_assert(sizeof(struct uffdio_zeropage) == 32 && UFFDIO_ZEROPAGE == 0xc020aa04, "uffdio_zeropage");
_Static_assert(sizeof(struct uffdio_continue) == 32 && UFFDIO_CONTINUE == 0xc020aa07, "uffdio_continue");
_Static_assert(sizeof(struct uffdio_poison) == 32 && UFFDIO_POISON == 0xc020aa08, "uffdio_poison");
_Static_assert(sizeof(struct uffdio_move) == 40 && UFFDIO_MOVE == 0xc028aa05, "uffdio_move");
_Static_assert(sizeof(struct uffdio_writeprotect) == 24 && UFFDIO_WRITEPROTECT == 0xc018aa06, "uffdio_writeprotect");
_Static_assert(sizeof(struct pm_scan_arg) == 96 && PAGEMAP_SCAN == 0xc0606610, "pm_scan_arg");
_Static_assert(sizeof(struct uffd_msg) == 32, "uffd_msg");

/* madvise(2) words younger than glibc 2.36 */
#ifndef MADV_COLLAPSE
#  define MADV_COLLAPSE 25
#endif
#ifndef MADV_DONTNEED_LOCKED
#  define MADV_DONTNEED_LOCKED 24
#endif

#endif
