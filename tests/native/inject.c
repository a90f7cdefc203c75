/* How does the i-th system call that lazymem's core makes fail, and nobody else's?
 *
 * The core's extension modules call libc through slots that the dynamic linker has filled in (mmap, ioctl, syscall ...).  Those of the core, and
 * only those, are pointed at the functions here: numpy, Python and libc itself go on as before, and the modules under test are the very ones
 * that users run.  Everything here may run in a signal handler.  What is counted lies in shared memory, so that a forked child counts on, and one
 * failure strikes one process.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined(__x86_64__)
enum { SLOT = 7, DATA = 6 };        /* R_X86_64_JUMP_SLOT, R_X86_64_GLOB_DAT */
#elif defined(__aarch64__)
enum { SLOT = 1026, DATA = 1025 };  /* R_AARCH64_ of the same names */
#endif
#ifndef SYS_userfaultfd
#define SYS_userfaultfd (sizeof(long) == 8 && SLOT == 7 ? 323 : 282)
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define KINDS(X) \
    X(mmap) X(munmap) X(mprotect) X(madvise) X(mincore) X(userfaultfd) X(open_device) X(NEW) X(API) X(REGISTER) X(WAKE) X(COPY) X(ZEROPAGE) \
    X(POISON) X(MOVE) X(WRITEPROTECT) X(SCAN) X(open_pagemap) X(read_message) X(pread) X(preadv2) X(pwrite) X(fsync) X(fallocate) X(lseek) X(fstat) X(process_vm_readv) X(process_vm_writev) X(futex_wait) X(futex_wake) X(posix_spawn) X(memfd_create) \
    X(ftruncate) X(pidfd_open) X(pthread_create) X(fcntl) X(sigaction)
#define NAME(n) K_##n,
enum kind { KINDS(NAME) KIND_COUNT };
#define TEXT(n) #n "\0"
static const char kind_names[] = KINDS(TEXT);
/* Instead of an errno.  SHORT: less than was asked for is done, and the answer is as the kernel's.  What Linux 6.18 does with pages that are just
 * being changed: MOVED, all of it is moved, and the answer is EEXIST; MOVED_FIRST, so is the first page alone; MOVED_MORE, one page more is
 * moved than the answer (EAGAIN, and how many) says.  HALF: SHORT, and the rest is then refused (EBUSY). */
enum { SHORT = -1, MOVED = -2, MOVED_FIRST = -3, MOVED_MORE = -4, HALF = -5 };

struct injection {
    uint64_t counts[KIND_COUNT];    /* calls since armed; of all kinds */
    uint64_t nth;                   /* the one that fails, from 1 */
    uint64_t struck;                /* how many have failed */
    uint64_t from;                  /* the caller of the first that did */
    int32_t kind, error;
    uint32_t on;                    /* later ones fail too */
};
static struct injection *now;

const char *inject_kinds(void) { return kind_names; }
struct injection *inject_state(void) { return now; }

void inject_arm(int kind, int error, uint64_t nth, int on)
{
    memset(now, 0, sizeof *now);
    now->error = error;
    now->nth = nth;
    now->on = (uint32_t)on;
    __atomic_store_n(&now->kind, kind, __ATOMIC_SEQ_CST);
}

void inject_disarm(void) { __atomic_store_n(&now->nth, 0, __ATOMIC_SEQ_CST); }

/* What the call is to fail with; 0: it is left alone. */
static int fails(int kind, void *from)
{
    uint64_t n = __atomic_add_fetch(&now->counts[kind], 1, __ATOMIC_SEQ_CST), nth = __atomic_load_n(&now->nth, __ATOMIC_SEQ_CST);
    if (kind != now->kind || nth == 0 || (now->on ? n < nth : n != nth))
        return 0;
    if (__atomic_add_fetch(&now->struck, 1, __ATOMIC_SEQ_CST) == 1)
        now->from = (uint64_t)(uintptr_t)from;
    if (now->error == HALF) {
        now->error = EBUSY;
        now->nth = n + 1;
        return SHORT;
    }
    return now->error;
}

#define HERE __builtin_return_address(0)
#define MAY_FAIL(kind, failed) \
    do { int e = fails(kind, HERE); if (e) { errno = e; return failed; } } while (0)

static void *our_mmap(void *p, size_t n, int prot, int flags, int fd, off_t at)
{
    MAY_FAIL(K_mmap, MAP_FAILED);
    return mmap(p, n, prot, flags, fd, at);
}
static int our_munmap(void *p, size_t n) { MAY_FAIL(K_munmap, -1); return munmap(p, n); }
static int our_mprotect(void *p, size_t n, int prot) { MAY_FAIL(K_mprotect, -1); return mprotect(p, n, prot); }
static int our_madvise(void *p, size_t n, int advice) { MAY_FAIL(K_madvise, -1); return madvise(p, n, advice); }
static int our_mincore(void *p, size_t n, unsigned char *out) { MAY_FAIL(K_mincore, -1); return mincore(p, n, out); }
static int our_fstat(int fd, struct stat *st) { MAY_FAIL(K_fstat, -1); return fstat(fd, st); }
static int our_ftruncate(int fd, off_t n) { MAY_FAIL(K_ftruncate, -1); return ftruncate(fd, n); }
static int our_memfd_create(const char *name, unsigned flags) { MAY_FAIL(K_memfd_create, -1); return memfd_create(name, flags); }
static int our_sigaction(int sig, const struct sigaction *is, struct sigaction *was)
{
    MAY_FAIL(K_sigaction, -1);
    return sigaction(sig, is, was);
}
static ssize_t our_process_vm_readv(pid_t pid, const struct iovec *to, unsigned long n, const struct iovec *from, unsigned long m, unsigned long flags)
{
    MAY_FAIL(K_process_vm_readv, -1);
    return process_vm_readv(pid, to, n, from, m, flags);
}
static ssize_t our_process_vm_writev(pid_t pid, const struct iovec *from, unsigned long n, const struct iovec *to, unsigned long m, unsigned long flags)
{
    MAY_FAIL(K_process_vm_writev, -1);
    return process_vm_writev(pid, from, n, to, m, flags);
}

static int our_open(const char *path, int flags, ...)
{
    if (strcmp(path, "/dev/userfaultfd") == 0)
        MAY_FAIL(K_open_device, -1);
    else if (strcmp(path, "/proc/self/pagemap") == 0)
        MAY_FAIL(K_open_pagemap, -1);
    return open(path, flags, 0);
}

static int our_fcntl(int fd, int command, ...)
{
    va_list rest;
    long argument;
    va_start(rest, command);
    argument = va_arg(rest, long);
    va_end(rest);
    MAY_FAIL(K_fcntl, -1);
    return fcntl(fd, command, argument);
}

static ssize_t our_pread(int fd, void *p, size_t n, off_t at)
{
    int e = fails(K_pread, HERE);
    if (e == SHORT)
        return pread(fd, p, n > 1 ? n / 2 : n, at);
    if (e) {
        errno = e;
        return -1;
    }
    return pread(fd, p, n, at);
}

static ssize_t our_preadv2(int fd, const struct iovec *to, int n, off_t at, int flags)
{
    struct iovec half = to[0];
    int e = fails(K_preadv2, HERE);
    if (e == SHORT) {
        half.iov_len /= 2;
        return preadv2(fd, &half, 1, at, flags);
    }
    if (e) {
        errno = e;
        return -1;
    }
    return preadv2(fd, to, n, at, flags);
}

static ssize_t our_pwrite(int fd, const void *p, size_t n, off_t at)
{
    int e = fails(K_pwrite, HERE);
    if (e == SHORT)
        return pwrite(fd, p, n > 1 ? n / 2 : n, at);
    if (e) {
        errno = e;
        return -1;
    }
    return pwrite(fd, p, n, at);
}

static int our_fsync(int fd) { MAY_FAIL(K_fsync, -1); return fsync(fd); }
static int our_fallocate(int fd, int mode, off_t at, off_t n) { MAY_FAIL(K_fallocate, -1); return fallocate(fd, mode, at, n); }
static off_t our_lseek(int fd, off_t at, int whence) { MAY_FAIL(K_lseek, -1); return lseek(fd, at, whence); }

static ssize_t our_read(int fd, void *p, size_t n)
{
    if (n == 32)
        MAY_FAIL(K_read_message, -1);
    return read(fd, p, n);
}

struct copy { uint64_t dst, src, len, mode; int64_t done; };     /* MOVE too */

/* A MOVE of which the answer says something else than what was done. */
static int moved_otherwise(int fd, unsigned long request, struct copy *move, int how, uint64_t page)
{
    uint64_t whole = move->len, said = how == MOVED_MORE && whole > page ? page : 0;
    if (how == MOVED_FIRST)
        move->len = page;
    else if (said)
        move->len = 2 * page;
    if (ioctl(fd, request, move) == 0) { /* (else it was refused, and that is the answer) */
        errno = said ? EAGAIN : EEXIST;
        move->done = said ? (int64_t)said : -EEXIST;
    }
    move->len = whole;
    return -1;
}

static int our_ioctl(int fd, unsigned long request, ...)
{
    struct range { uint64_t start, len, mode; int64_t done; } *range;      /* ZEROPAGE, POISON */
    struct copy *copy;
    uint64_t whole, page = (uint64_t)sysconf(_SC_PAGESIZE);
    va_list rest;
    void *argument;
    int kind, e;
    va_start(rest, request);
    argument = va_arg(rest, void *);
    va_end(rest);
    switch (request) {
    case 0xaa00: kind = K_NEW; break;
    case 0xc018aa3f: kind = K_API; break;
    case 0xc020aa00: kind = K_REGISTER; break;
    case 0x8010aa02: kind = K_WAKE; break;
    case 0xc028aa03: kind = K_COPY; break;
    case 0xc020aa04: kind = K_ZEROPAGE; break;
    case 0xc020aa08: kind = K_POISON; break;
    case 0xc028aa05: kind = K_MOVE; break;
    case 0xc018aa06: kind = K_WRITEPROTECT; break;
    case 0xc0606610: kind = K_SCAN; break;
    default: return ioctl(fd, request, argument);
    }
    e = fails(kind, HERE);
    range = argument;
    copy = argument;
    if (e < SHORT && kind == K_MOVE)
        return moved_otherwise(fd, request, copy, e, page);
    if (e == SHORT && (kind == K_COPY || kind == K_MOVE) && copy->len > page) {              /* one page, and an answer as the kernel's */
        whole = copy->len;
        copy->len = page;
        e = ioctl(fd, request, argument) ? errno : EAGAIN;
        copy->len = whole;
    } else if (e == SHORT && kind == K_ZEROPAGE && range->len > page) {
        whole = range->len;
        range->len = page;
        e = ioctl(fd, request, argument) ? errno : EAGAIN;
        range->len = whole;
    } else if (e > 0) {
        if (kind == K_COPY || kind == K_MOVE)
            copy->done = -e;
        else if (kind == K_ZEROPAGE || kind == K_POISON)
            range->done = -e;
        else if (kind == K_API)
            memset(argument, 0, 24);
    } else
        return ioctl(fd, request, argument);
    errno = e;
    return -1;
}

static long our_syscall(long number, ...)
{
    long a[6];
    va_list rest;
    int i;
    va_start(rest, number);
    for (i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_futex && (a[1] & 127) == 0)
        MAY_FAIL(K_futex_wait, -1);
    else if (number == SYS_futex)
        MAY_FAIL(K_futex_wake, -1);
    else if (number == SYS_userfaultfd)
        MAY_FAIL(K_userfaultfd, -1);
    else if (number == SYS_pidfd_open)
        MAY_FAIL(K_pidfd_open, -1);
    return syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static int our_posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
                           char *const argv[], char *const envp[])
{
    int e = fails(K_posix_spawn, HERE);
    return e ? e : posix_spawn(pid, path, actions, attributes, argv, envp);
}

static int our_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    int e = fails(K_pthread_create, HERE);
    return e ? e : pthread_create(thread, attributes, run, argument);
}

#define OURS(name) {#name, (void *)our_##name}, {#name "64", (void *)our_##name}
static const struct { const char *name; void *function; } ours[] = {
    OURS(mmap), OURS(munmap), OURS(mprotect), OURS(madvise), OURS(mincore), OURS(fstat), OURS(ftruncate), OURS(memfd_create), OURS(sigaction),
    OURS(process_vm_readv), OURS(process_vm_writev), OURS(fsync), OURS(open), OURS(fcntl), OURS(pread), OURS(pwrite), OURS(fallocate), OURS(lseek), OURS(preadv2), {"preadv64v2", (void *)our_preadv2}, OURS(read),
    OURS(ioctl), OURS(syscall), OURS(posix_spawn), OURS(pthread_create),
};

static int pointed;

static void point_table(uintptr_t base, const ElfW(Rela) *at, size_t nbytes, const ElfW(Sym) *symbols, const char *strings)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    size_t i, k;
    for (i = 0; i < nbytes / sizeof *at; i++) {
        const char *name = strings + symbols[ELF64_R_SYM(at[i].r_info)].st_name;
        uintptr_t slot = base + at[i].r_offset;
        if (ELF64_R_TYPE(at[i].r_info) != SLOT && ELF64_R_TYPE(at[i].r_info) != DATA)
            continue;
        for (k = 0; k < sizeof ours / sizeof *ours; k++)
            if (strcmp(name, ours[k].name) == 0) {
                mprotect((void *)(slot & ~(page - 1)), page, PROT_READ | PROT_WRITE);
                *(void **)slot = ours[k].function;
                pointed++;
            }
    }
}

static int point_object(struct dl_phdr_info *object, size_t size, void *part)
{
    const ElfW(Dyn) *d = NULL;
    const ElfW(Rela) *slots = NULL, *others = NULL;
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    size_t slots_nbytes = 0, others_nbytes = 0;
    int i;
    if (!strstr(object->dlpi_name, part))
        return 0;
    for (i = 0; i < object->dlpi_phnum; i++)
        if (object->dlpi_phdr[i].p_type == PT_DYNAMIC)
            d = (const void *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr);
    for (; d && d->d_tag != DT_NULL; d++)
        switch (d->d_tag) {
        case DT_JMPREL: slots = (const void *)d->d_un.d_ptr; break;
        case DT_PLTRELSZ: slots_nbytes = d->d_un.d_val; break;
        case DT_RELA: others = (const void *)d->d_un.d_ptr; break;
        case DT_RELASZ: others_nbytes = d->d_un.d_val; break;
        case DT_SYMTAB: symbols = (const void *)d->d_un.d_ptr; break;
        case DT_STRTAB: strings = (const void *)d->d_un.d_ptr; break;
        }
    if (slots)
        point_table(object->dlpi_addr, slots, slots_nbytes, symbols, strings);
    if (others)
        point_table(object->dlpi_addr, others, others_nbytes, symbols, strings);
    return 0;
}

/* Every module loaded so far whose path has `part` in it. Return: how many slots are ours now. */
int inject_install(char *part)
{
    if (now == NULL)
        now = mmap(NULL, sizeof *now, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    now->kind = -1;
    pointed = 0;
    dl_iterate_phdr(point_object, part);
    return pointed;
}

/* The caller of the first call that failed: its module and where in it. */
int inject_where(char *out, size_t nbytes)
{
    Dl_info info;
    const char *name;
    if (!now->from || !dladdr((void *)(uintptr_t)now->from, &info))
        return 0;
    name = strrchr(info.dli_fname, '/');
    return snprintf(out, nbytes, "%.*s+0x%lx", (int)strcspn(name + 1, "."), name + 1, (long)(now->from - (uintptr_t)info.dli_fbase));
}
