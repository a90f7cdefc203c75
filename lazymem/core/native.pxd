# The words of native.h, for cimport.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "native.h" nogil:
    uint32_t lm_load32(const uint32_t *p)
    uint64_t lm_load64(const uint64_t *p)
    void lm_store32(uint32_t *p, uint32_t v)
    void lm_store64(uint64_t *p, uint64_t v)
    uint32_t lm_swap32(uint32_t *p, uint32_t v)
    uint64_t lm_swap64(uint64_t *p, uint64_t v)
    uint32_t lm_add32(uint32_t *p, uint32_t v)
    uint32_t lm_sub32(uint32_t *p, uint32_t v)
    uint64_t lm_add64(uint64_t *p, uint64_t v)
    uint64_t lm_sub64(uint64_t *p, uint64_t v)
    void lm_count(uint64_t *p, uint64_t v)
    void lm_or32(uint32_t *p, uint32_t v)
    void lm_and_not32(uint32_t *p, uint32_t v)
    bint lm_cas32(uint32_t *p, uint32_t was, uint32_t now)
    void lm_and_not64(uint64_t *p, uint64_t v)
    uint64_t lm_take_bits64(uint64_t *p, uint64_t v)
    void lm_or64(uint64_t *p, uint64_t v)
    bint lm_cas64(uint64_t *p, uint64_t was, uint64_t now)
    void lm_loads_done()
    int lm_copy_from(void *dst, const void *src, size_t nbytes)
    int lm_copy_to(void *dst, const void *src, size_t nbytes)
    int lm_low_bit(uint64_t v)
    int lm_high_bit(uint64_t v)
    void lm_pause()
    unsigned char lm_touch(const void *p)
    uint64_t lm_now_ns()
    void lm_sleep_ns(uint64_t ns)
    int lm_futex_wait(uint32_t *word, uint32_t seen, uint64_t timeout_ns)
    void lm_futex_wake(uint32_t *word, int waiters)
    int lm_futex_wait_shared(uint32_t *word, uint32_t seen, uint64_t timeout_ns)
    void lm_futex_wake_shared(uint32_t *word, int waiters)
    uint32_t lm_main_thread()
    uint32_t lm_gettid()
    bint lm_thread_is_gone(uint32_t tid)
    ctypedef struct sigset_t:
        pass
    void lm_no_signals(sigset_t *before)
    void lm_no_signals_but_faults(sigset_t *before)
    uint64_t lm_memory_nbytes()
    void lm_make_own(void *page)
    void lm_signals_again(const sigset_t *before)
    void lm_name_thread(const char *name)
    int lm_start_thread(void *(*run)(void *) noexcept nogil, size_t stack_nbytes)
    int lm_signal_thread(uint32_t tid, int sig)
    void lm_say(const char *text, size_t nbytes)
    const char *lm_errno_text(int error)
    int lm_errno_get()
    void lm_errno_set(int value)


# libc.errno lacks some of these in Cython 3.
cdef extern from "errno.h" nogil:
    int errno
    enum:
        EACCES, EAGAIN, EBADF, EBUSY, EDEADLK, EDQUOT, EEXIST, EFAULT, EINTR, EINVAL, EIO, ELOOP, ENODATA, ENOENT, ENOMEM
        ECHILD, EFBIG, ENOBUFS, ENOSPC, ENOTRECOVERABLE, ENOTTY, ENXIO
        ENOSYS, EOPNOTSUPP, EPERM, EPIPE, EREMOTEIO, ESRCH, EPROTO, EROFS, ESHUTDOWN, ESTALE, ETIMEDOUT
