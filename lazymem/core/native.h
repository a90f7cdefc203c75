/* What do C and Linux have that Cython cannot say?
 *
 * Atomics, futexes, the thread's number, and one word of thread-local storage.  Everything here may be called in a signal
 * handler.  Units: _ns nanoseconds of CLOCK_MONOTONIC.
 */
#ifndef LAZYMEM_NATIVE_H
#define LAZYMEM_NATIVE_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static inline uint32_t lm_load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline uint64_t lm_load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void lm_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline void lm_store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline uint32_t lm_swap32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
static inline uint32_t lm_add32(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
static inline uint32_t lm_sub32(uint32_t *p, uint32_t v) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }
static inline uint64_t lm_add64(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
static inline uint64_t lm_swap64(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
static inline uint64_t lm_sub64(uint64_t *p, uint64_t v) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }
/* counters that nothing is ordered by */
static inline void lm_count(uint64_t *p, uint64_t v) { __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
static inline void lm_or32(uint32_t *p, uint32_t v) { __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
static inline void lm_and_not32(uint32_t *p, uint32_t v) { __atomic_fetch_and(p, ~v, __ATOMIC_SEQ_CST); }
static inline int lm_cas32(uint32_t *p, uint32_t was, uint32_t is)
{
    return __atomic_compare_exchange_n(p, &was, is, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline void lm_and_not64(uint64_t *p, uint64_t v) { __atomic_fetch_and(p, ~v, __ATOMIC_SEQ_CST); }
static inline uint64_t lm_take_bits64(uint64_t *p, uint64_t v) { return __atomic_fetch_and(p, ~v, __ATOMIC_SEQ_CST) & v; }
static inline void lm_or64(uint64_t *p, uint64_t v) { __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
static inline int lm_cas64(uint64_t *p, uint64_t was, uint64_t is)
{
    return __atomic_compare_exchange_n(p, &was, is, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
/* Loads before it are done before loads after it: the second look of a sequence lock. */
static inline void lm_loads_done(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
static inline int lm_low_bit(uint64_t v) { return __builtin_ctzll(v); }
static inline int lm_high_bit(uint64_t v) { return 63 - __builtin_clzll(v); }

static inline void lm_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* The one load that benchmarks time: it must happen, and happen here. */
static inline unsigned char lm_touch(const void *p) { return *(const volatile unsigned char *)p; }

static inline uint64_t lm_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void lm_sleep_ns(uint64_t ns)
{
    struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

/* 0 woken (perhaps for nothing), -EAGAIN the word had changed, -ETIMEDOUT, -EINTR. */
static inline int lm_futex_wait(uint32_t *word, uint32_t seen, uint64_t timeout_ns)
{
    struct timespec t = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    return syscall(SYS_futex, word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, seen, &t, NULL, 0) ? -errno : 0;
}

/* A wake that is lost may be an hour's sleep, so one that failed is tried once more. */
static inline void lm_futex_wake(uint32_t *word, int waiters)
{
    if (syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, waiters, NULL, NULL, 0) < 0)
        syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, waiters, NULL, NULL, 0);
}

/* The same on a word of memory that two processes share. */
static inline int lm_futex_wait_shared(uint32_t *word, uint32_t seen, uint64_t timeout_ns)
{
    struct timespec t = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    return syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0) ? -errno : 0;
}

static inline void lm_futex_wake_shared(uint32_t *word, int waiters)
{
    if (syscall(SYS_futex, word, FUTEX_WAKE, waiters, NULL, NULL, 0) < 0)
        syscall(SYS_futex, word, FUTEX_WAKE, waiters, NULL, NULL, 0);
}

static inline int lm_errno_get(void) { return errno; }
static inline void lm_errno_set(int value) { errno = value; }

static inline uint32_t lm_main_thread(void) { return (uint32_t)getpid(); }   /* its number */
static inline uint32_t lm_gettid(void) { return (uint32_t)syscall(SYS_gettid); }
static inline uint64_t lm_memory_nbytes(void) { return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE); }
/* Write to a page what is there: it is this process's alone then, if it was shared with a child or with its like. */
static inline void lm_make_own(void *page) { __atomic_fetch_add((uint8_t *)page, 0, __ATOMIC_SEQ_CST); }
static inline int lm_thread_is_gone(uint32_t tid) { return syscall(SYS_tgkill, getpid(), tid, 0) != 0 && errno == ESRCH; }
static inline int lm_signal_thread(uint32_t tid, int sig) { return (int)syscall(SYS_tgkill, getpid(), tid, sig); }

/* An errno in words, where the C library can say so in a signal handler; else NULL. */
static inline const char *lm_errno_text(int error)
{
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 32)
    extern const char *strerrordesc_np(int);
    return strerrordesc_np(error);
#else
    (void)error;
    return NULL;
#endif
}

/* memcpy from memory that may not be readable (a mapped file that was cut short). 0 / -EFAULT. */
static inline int lm_copy_from(void *dst, const void *src, size_t nbytes)
{
    while (nbytes) {
        struct iovec to = {dst, nbytes}, from = {(void *)src, nbytes};
        ssize_t n = process_vm_readv(getpid(), &to, 1, &from, 1, 0);
        if (n < 0 && (errno == ENOSYS || errno == EPERM)) {  /* a sandbox forbids the question: read it and see */
            memcpy(dst, src, nbytes);
            return 0;
        }
        if (n <= 0)
            return -EFAULT;
        dst = (char *)dst + n;
        src = (const char *)src + n;
        nbytes -= (size_t)n;
    }
    return 0;
}

/* memcpy to memory that may not be writable, or may be gone. 0 / -EFAULT. */
static inline int lm_copy_to(void *dst, const void *src, size_t nbytes)
{
    while (nbytes) {
        struct iovec from = {(void *)src, nbytes}, to = {dst, nbytes};
        ssize_t n = process_vm_writev(getpid(), &from, 1, &to, 1, 0);
        if (n < 0 && (errno == ENOSYS || errno == EPERM)) {
            memcpy(dst, src, nbytes);
            return 0;
        }
        if (n <= 0)
            return -EFAULT;
        dst = (char *)dst + n;
        src = (const char *)src + n;
        nbytes -= (size_t)n;
    }
    return 0;
}

/* On descriptor 2, from anywhere. That it may fail changes nothing: the process is about to end. */
static inline void lm_say(const char *text, size_t nbytes)
{
    ssize_t written = write(2, text, nbytes);
    (void)written;
}

/* Between the two no handler runs on this thread. */
static inline void lm_no_signals(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, before);
}
/* The same, but for the faults of its own touches. */
static inline void lm_no_signals_but_faults(sigset_t *before)
{
    sigset_t most;
    sigfillset(&most);
    sigdelset(&most, SIGBUS);
    sigdelset(&most, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &most, before);
}
static inline void lm_signals_again(const sigset_t *before) { pthread_sigmask(SIG_SETMASK, before, NULL); }

static inline void lm_name_thread(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }   /* the calling one; 15 bytes */

/* A thread of ours that nobody joins, and that takes no signals: they are the program's. stack_nbytes 0: the usual. 0 / -errno. */
static inline int lm_start_thread(void *(*run)(void *), size_t stack_nbytes)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    int error;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (stack_nbytes)
        pthread_attr_setstacksize(&attributes, stack_nbytes);
    sigfillset(&all);
    sigdelset(&all, SIGBUS);   /* a source that touches an inline array */
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, &attributes, run, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return -error;
}

/* Thread-local words that a signal handler may read: initial-exec storage is part of the thread's own block, where the
 * default model of a shared object may call malloc at a thread's first access. */
#define LM_THREAD_LOCAL static __thread __attribute__((tls_model("initial-exec")))

#endif
