"""How long does one touch take, and how long the least that could serve it?

Two things for `lazymem bench`: the clock around one load, in loops without the GIL, on one thread or many; and the floors, the
bare minimum over the same ioctls that the deliveries use: a SIGBUS handler that does nothing but COPY, and a thread that
does nothing but read() and COPY. No table, no registry, no source, no counters. A floor takes SIGBUS for good, so it lives
in a process that makes no lazy array.
"""
from libc.stdlib cimport calloc, free

from lazymem.core.abi cimport UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_SIGBUS, UFFD_FEATURE_THREAD_ID, uffd_msg
from lazymem.core.native cimport *
from lazymem.core.uffd cimport CopyCounts, page_nbytes, uffd_copy, uffd_open, uffd_read, uffd_register


cdef extern from "native.h" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    int mprotect(void *, size_t, int)
    int PROT_NONE, PROT_READ, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_DONTFORK
    void *MAP_FAILED

cdef extern from *:
    """
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <string.h>
    typedef struct {
        char *base;
        const uint64_t *offsets;
        uint64_t *took_ns;
        uint64_t n;
        uint64_t write_nbytes;
        uint32_t *ready, *go;
        uint64_t done_ns;
        pthread_t thread;
    } lm_toucher;

    static int lm_spawn(pthread_t *thread, void *(*run)(void *), void *argument)
    {
        return -pthread_create(thread, NULL, run, argument);
    }
    static void lm_join(pthread_t thread) { pthread_join(thread, NULL); }
    static inline void lm_yield(void) { sched_yield(); }
    static inline void lm_write_touch(void *p) { *(volatile unsigned char *)p = 1; }
    static inline uint64_t lm_fault_addr(const siginfo_t *info) { return (uint64_t)(uintptr_t)info->si_addr; }
    typedef void (*lm_floor_handler)(int, siginfo_t *, void *);
    static int lm_own_sigbus(lm_floor_handler handler)
    {
        struct sigaction ours;
        memset(&ours, 0, sizeof ours);
        ours.sa_sigaction = handler;
        ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;   /* as the product's */
        sigemptyset(&ours.sa_mask);
        return sigaction(SIGBUS, &ours, NULL) ? -errno : 0;
    }
    static void lm_sigbus_as_before(void) { signal(SIGBUS, SIG_DFL); }
    """
    ctypedef struct siginfo_t:
        pass
    ctypedef struct pthread_t:
        pass
    ctypedef struct lm_toucher:
        char *base
        const uint64_t *offsets
        uint64_t *took_ns
        uint64_t n
        uint64_t write_nbytes
        uint32_t *ready
        uint32_t *go
        uint64_t done_ns
        pthread_t thread
    ctypedef void (*lm_floor_handler)(int, siginfo_t *, void *) noexcept nogil
    int lm_spawn(pthread_t *thread, void *(*run)(void *) noexcept nogil, void *argument) noexcept nogil
    void lm_join(pthread_t thread) noexcept nogil
    void lm_yield() noexcept nogil
    void lm_write_touch(void *p) noexcept nogil
    uint64_t lm_fault_addr(const siginfo_t *info) noexcept nogil
    int lm_own_sigbus(lm_floor_handler handler) noexcept nogil
    void lm_sigbus_as_before() noexcept nogil

# ---------------------------------------------------------------------------------------------------------------------------
# The clock

cdef void _read_loop(char *base, const uint64_t *offsets, uint64_t *took_ns, uint64_t n) noexcept nogil:
    cdef uint64_t i, began_ns
    for i in range(n):
        began_ns = lm_now_ns()
        lm_touch(base + offsets[i])
        took_ns[i] = lm_now_ns() - began_ns


cdef void _write_loop(char *base, const uint64_t *offsets, uint64_t *took_ns, uint64_t n, uint64_t nbytes) noexcept nogil:
    """One clock around a write to every page of `nbytes`."""
    cdef uint64_t i, j, began_ns, pages = (nbytes + page_nbytes() - 1) // page_nbytes(), page = page_nbytes()
    for i in range(n):
        began_ns = lm_now_ns()
        for j in range(pages):
            lm_write_touch(base + offsets[i] + j * page)
        took_ns[i] = lm_now_ns() - began_ns


cdef void *_toucher(void *argument) noexcept nogil:
    cdef lm_toucher *t = <lm_toucher *>argument
    lm_add32(t.ready, 1)
    while lm_load32(t.go) == 0:
        lm_yield()
    if t.write_nbytes:
        _write_loop(t.base, t.offsets, t.took_ns, t.n, t.write_nbytes)
    else:
        _read_loop(t.base, t.offsets, t.took_ns, t.n)
    t.done_ns = lm_now_ns()
    return NULL


def touch(size_t base, size_t offsets, size_t took_ns, uint64_t n, uint64_t write_nbytes=0, uint32_t threads=1):
    """Touch `n` places and note how long each took.

    Parameters
    ----------
    base : int
        Address.
    offsets, took_ns : int
        Addresses of `n` uint64: bytes from `base`, in the order of touching; where the nanoseconds go.
    write_nbytes : int, bytes
        0: read one byte. Else write one byte in every page of so many, under one clock.
    threads : int
        1: the calling thread. More: so many native threads, the places shared out in equal runs.

    Returns
    -------
    int, ns
        From the start of all to the end of the last.

    Notes
    -----
    Blocks: as the touches do. GIL: released.
    """
    cdef lm_toucher *touchers
    cdef uint32_t ready = 0, go = 0, i, started = 0
    cdef uint64_t began_ns, ended_ns = 0, share, first
    cdef int error = 0
    if threads <= 1:
        with nogil:
            began_ns = lm_now_ns()
            if write_nbytes:
                _write_loop(<char *>base, <const uint64_t *>offsets, <uint64_t *>took_ns, n, write_nbytes)
            else:
                _read_loop(<char *>base, <const uint64_t *>offsets, <uint64_t *>took_ns, n)
            ended_ns = lm_now_ns()
        return ended_ns - began_ns
    touchers = <lm_toucher *>calloc(threads, sizeof(lm_toucher))
    if touchers == NULL:
        raise MemoryError("touching threads")
    with nogil:
        for i in range(threads):
            first = n * i // threads
            share = n * (i + 1) // threads - first
            touchers[i].base = <char *>base
            touchers[i].offsets = <const uint64_t *>offsets + first
            touchers[i].took_ns = <uint64_t *>took_ns + first
            touchers[i].n = share
            touchers[i].write_nbytes = write_nbytes
            touchers[i].ready = &ready
            touchers[i].go = &go
            error = lm_spawn(&touchers[i].thread, _toucher, &touchers[i])
            if error:
                break
            started += 1
        while lm_load32(&ready) != started:
            lm_yield()
        began_ns = lm_now_ns()
        lm_store32(&go, 1)
        for i in range(started):
            lm_join(touchers[i].thread)
            if touchers[i].done_ns > ended_ns:
                ended_ns = touchers[i].done_ns
    free(touchers)
    if error:
        raise OSError(-error, "no thread can be started")
    return ended_ns - began_ns


# ---------------------------------------------------------------------------------------------------------------------------
# The floors. One per process: its words are what the handlers read.

cdef int _fd = -1
cdef uint64_t _source = 0
cdef uint64_t _block_nbytes = 0
cdef uint64_t _served = 0
cdef CopyCounts _counts


cdef void _on_sigbus(int sig, siginfo_t *info, void *ucontext) noexcept nogil:
    """The least an inline delivery must do: keep errno, and copy."""
    global _served
    cdef int saved = lm_errno_get()
    if uffd_copy(_fd, lm_fault_addr(info) & ~(_block_nbytes - 1), _source, _block_nbytes, &_counts):
        lm_sigbus_as_before()  # not ours: let it end the process
    _served += 1               # exact on one thread; nobody else reads it meanwhile
    lm_errno_set(saved)


cdef void *_reader(void *unused) noexcept nogil:
    """The least a handler thread must do: read, and copy."""
    global _served
    cdef uffd_msg message
    cdef int n
    while True:
        n = uffd_read(_fd, &message)
        if n < 0:
            return NULL
        if n == 1 and message.event == UFFD_EVENT_PAGEFAULT:
            _served += 1
            uffd_copy(_fd, message.address & ~(_block_nbytes - 1), _source, _block_nbytes, &_counts)


def floor_start(str delivery not None, size_t source, uint64_t block_nbytes):
    """Make this process serve faults in the barest way there is. Once per process, for good.

    Parameters
    ----------
    delivery : {"inline", "threads"}
    source : int
        Address of one block of bytes, copied at every fault. It must stay.
    block_nbytes : int, bytes
        A power of two, from a page to 2 MiB.

    Raises
    ------
    OSError
        No userfaultfd, or no thread.
    RuntimeError
        Called twice.
    """
    global _fd, _source, _block_nbytes
    cdef int privilege = 0, error
    cdef uint64_t features = 0
    cdef pthread_t thread
    if _fd >= 0:
        raise RuntimeError("a process has one floor")
    if block_nbytes < page_nbytes() or block_nbytes > 2 << 20 or block_nbytes & (block_nbytes - 1):
        raise ValueError(f"block_nbytes={block_nbytes}: give a power of two from a page to 2 MiB")
    if delivery not in ("inline", "threads"):
        raise ValueError(f"delivery={delivery!r}")
    _source = source
    _block_nbytes = block_nbytes
    fd = uffd_open(UFFD_FEATURE_SIGBUS if delivery == "inline" else UFFD_FEATURE_THREAD_ID, 0, &privilege, &features)
    if fd < 0:
        raise OSError(-fd, "userfaultfd")
    _fd = fd
    error = lm_own_sigbus(_on_sigbus) if delivery == "inline" else lm_spawn(&thread, _reader, NULL)
    if error:
        raise OSError(-error, "the floor cannot start")


def floor_map(uint64_t nbytes):
    """Make an empty region for the floor: mapped, aligned and registered as the product's are.

    Returns
    -------
    (int, int, int)
        Address of the region; address and bytes of the whole mapping, for `floor_unmap`.
    """
    cdef uint64_t align = 2 << 20, whole = nbytes + 2 * align, base
    cdef int error
    cdef void *p = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if p == MAP_FAILED:
        raise MemoryError(f"no address space for {whole} bytes")
    base = (<uint64_t>p + align) & ~(align - 1)
    madvise(<void *>base, nbytes, MADV_DONTFORK)
    error = uffd_register(_fd, base, nbytes)
    if error == 0 and mprotect(<void *>base, nbytes, PROT_READ):
        error = -errno
    if error:
        munmap(p, whole)
        raise OSError(-error, "the floor's region cannot be made")
    return base, <uint64_t>p, whole


def floor_unmap(size_t mapping, uint64_t nbytes):
    """Give back what `floor_map` made."""
    munmap(<void *>mapping, nbytes)


def floor_served():
    """How many faults the floor has served."""
    return _served
