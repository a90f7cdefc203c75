"""How long does one touch take, and how long the least that could serve it?

Two things for `lazymem bench`: the clock around one load, in native loops, on one thread or many; and the floors, the
bare minimum over the same ioctls that the deliveries use: a SIGBUS handler that does nothing but COPY, and a thread that
does nothing but read() and COPY. No table, no registry, no source, no counters. A floor takes SIGBUS for good, so it lives
in a process that makes no lazy array. One more floor: what waking a process that sleeps costs, and nothing else.
"""
from libc.stdlib cimport calloc, free

from lazymem.core.abi cimport UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_SIGBUS, UFFD_FEATURE_THREAD_ID, uffd_msg
from lazymem.core.native cimport *
from lazymem.core.uffd cimport (
    FAULTS_MISSING, PLAINLY, CopyCounts, Uffd, page_nbytes, uffd_copy, uffd_open, uffd_read, uffd_register,
)


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
    #include <sys/prctl.h>
    typedef struct {
        char *base;
        const uint64_t *offsets;
        uint64_t *took_ns;
        uint64_t n;
        uint64_t write_nbytes;
        uint64_t pause_ns;
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

    /* A word that two processes wait on each other by, each in a line of its own. */
    typedef struct { uint32_t asked; char line[60]; uint32_t answered; } lm_ping;
    static lm_ping *lm_shared_ping(void)
    {
        void *p = mmap(NULL, sizeof(lm_ping), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        return p == MAP_FAILED ? NULL : (lm_ping *)p;
    }
    /* Its life: sleep until asked, answer, sleep again. It ends with the thread that started it. */
    static int lm_fork_sleeper(lm_ping *ping)
    {
        uint32_t seen = 0;
        int parent = getpid(), pid = fork();
        if (pid)
            return pid < 0 ? -errno : pid;
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (getppid() != parent)
            _exit(0);
        for (;;) {
            while (lm_load32(&ping->asked) == seen)
                lm_futex_wait_shared(&ping->asked, seen, 3600000000000u);
            seen++;
            lm_store32(&ping->answered, seen);
        }
    }
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
        uint64_t pause_ns
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
    ctypedef struct lm_ping:
        uint32_t asked
        uint32_t answered
    lm_ping *lm_shared_ping() noexcept nogil
    int lm_fork_sleeper(lm_ping *ping) noexcept nogil

# ---------------------------------------------------------------------------------------------------------------------------
# The clock

cdef void _pause(uint64_t ns) noexcept nogil:
    """Between two touches: at work, as a program that computes is, so that its own core stays awake."""
    cdef uint64_t until_ns
    if ns:
        until_ns = lm_now_ns() + ns
        while lm_now_ns() < until_ns:
            lm_pause()


cdef void _loop(lm_toucher *t) noexcept nogil:
    """The clock around a load of one byte; or around a write to every page of `write_nbytes`."""
    cdef uint64_t i, j, began_ns, page = page_nbytes(), pages = (t.write_nbytes + page - 1) // page
    for i in range(t.n):
        _pause(t.pause_ns)
        began_ns = lm_now_ns()
        if pages == 0:
            lm_touch(t.base + t.offsets[i])
        for j in range(pages):
            lm_write_touch(t.base + t.offsets[i] + j * page)
        t.took_ns[i] = lm_now_ns() - began_ns
    t.done_ns = lm_now_ns()


cdef void *_toucher(void *argument) noexcept nogil:
    cdef lm_toucher *t = <lm_toucher *>argument
    lm_add32(t.ready, 1)
    while lm_load32(t.go) == 0:
        lm_yield()
    _loop(t)
    return NULL


cdef int _touch(lm_toucher *touchers, uint32_t threads, uint64_t *spent_ns) noexcept nogil:
    """On this thread, or on so many others. Return: 0; -errno of starting one."""
    cdef uint32_t ready = 0, go = 0, i, started = 0
    cdef uint64_t began_ns, ended_ns = 0
    cdef int error = 0
    if threads == 1:
        began_ns = lm_now_ns()
        _loop(touchers)
        spent_ns[0] = touchers.done_ns - began_ns
        return 0
    for i in range(threads):
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
    spent_ns[0] = ended_ns - began_ns
    return error


def touch(size_t base, size_t offsets, size_t took_ns, uint64_t n, uint64_t write_nbytes=0, uint32_t threads=1,
          uint64_t pause_ns=0, bint keep_gil=False):
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
    pause_ns : int, ns
        How long each thread waits, awake, before each touch; not counted in it.
    keep_gil : bool
        The calling thread holds the GIL all the time.

    Returns
    -------
    int, ns
        From the start of all to the end of the last.

    Notes
    -----
    Blocks: as the touches do. GIL: released, unless it is to be kept.
    """
    cdef lm_toucher *touchers
    cdef uint32_t i
    cdef uint64_t first, spent_ns = 0
    cdef int error
    threads = max(1, threads)
    touchers = <lm_toucher *>calloc(threads, sizeof(lm_toucher))
    if touchers == NULL:
        raise MemoryError("touching threads")
    for i in range(threads):
        first = n * i // threads
        touchers[i].base = <char *>base
        touchers[i].offsets = <const uint64_t *>offsets + first
        touchers[i].took_ns = <uint64_t *>took_ns + first
        touchers[i].n = n * (i + 1) // threads - first
        touchers[i].write_nbytes = write_nbytes
        touchers[i].pause_ns = pause_ns
    if keep_gil:
        error = _touch(touchers, threads, &spent_ns)
    else:
        with nogil:
            error = _touch(touchers, threads, &spent_ns)
    free(touchers)
    if error:
        raise OSError(-error, "no thread can be started")
    return spent_ns


# ---------------------------------------------------------------------------------------------------------------------------
# The floors. One per process: its words are what the handlers read.

cdef Uffd _uffd
_uffd.fd = -1
cdef uint64_t _source = 0
cdef uint64_t _block_nbytes = 0
cdef uint64_t _served = 0
cdef CopyCounts _counts


cdef void _on_sigbus(int sig, siginfo_t *info, void *ucontext) noexcept nogil:
    """The least an inline delivery must do: keep errno, and copy."""
    global _served
    cdef int saved = lm_errno_get()
    if uffd_copy(&_uffd, lm_fault_addr(info) & ~(_block_nbytes - 1), _source, _block_nbytes, PLAINLY, &_counts):
        lm_sigbus_as_before()  # not ours: let it end the process
    _served += 1               # exact on one thread; nobody else reads it meanwhile
    lm_errno_set(saved)


cdef void *_reader(void *unused) noexcept nogil:
    """The least a handler thread must do: read, and copy."""
    global _served
    cdef uffd_msg message
    cdef int n
    while True:
        n = uffd_read(&_uffd, &message)
        if n < 0:
            return NULL
        if n == 1 and message.event == UFFD_EVENT_PAGEFAULT:
            _served += 1
            uffd_copy(&_uffd, message.address & ~(_block_nbytes - 1), _source, _block_nbytes, PLAINLY, &_counts)


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
    global _source, _block_nbytes
    cdef int error
    cdef pthread_t thread
    if _uffd.fd >= 0:
        raise RuntimeError("a process has one floor")
    if block_nbytes < page_nbytes() or block_nbytes > 2 << 20 or block_nbytes & (block_nbytes - 1):
        raise ValueError(f"block_nbytes={block_nbytes}: give a power of two from a page to 2 MiB")
    if delivery not in ("inline", "threads"):
        raise ValueError(f"delivery={delivery!r}")
    _source = source
    _block_nbytes = block_nbytes
    error = uffd_open(&_uffd, UFFD_FEATURE_SIGBUS if delivery == "inline" else UFFD_FEATURE_THREAD_ID,
                      delivery != "inline")
    if error:
        raise OSError(-error, "userfaultfd")
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
    error = uffd_register(&_uffd, base, nbytes, FAULTS_MISSING)
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


# ---------------------------------------------------------------------------------------------------------------------------
# The floor of asking a process that sleeps

cdef lm_ping *_ping = NULL


def wake_start():
    """Start a process that sleeps until it is asked, answers, and sleeps again. Once per process, for good.

    Returns
    -------
    int
        Its number. It ends when the calling thread does.

    Raises
    ------
    OSError, MemoryError, RuntimeError
        No process; no memory; called twice.
    """
    global _ping
    cdef int pid
    if _ping != NULL:
        raise RuntimeError("a process has one that it wakes")
    _ping = lm_shared_ping()
    if _ping == NULL:
        raise MemoryError("a page to share")
    pid = lm_fork_sleeper(_ping)
    if pid < 0:
        raise OSError(-pid, "no process can be started")
    return pid


def wake(size_t took_ns, uint64_t n, uint64_t pause_ns):
    """Wake that process `n` times, and note how long each answer took.

    Parameters
    ----------
    took_ns : int
        Address of `n` uint64.
    pause_ns : int, ns
        How long to wait, awake, before each: long enough for it to have gone to sleep.

    Returns
    -------
    int, ns
        All of it.

    Notes
    -----
    The answer is waited for awake, as lazymem does. Blocks: n times the pause, and for ever if the process has been killed. GIL:
    released.
    """
    cdef uint64_t *took = <uint64_t *>took_ns
    cdef uint64_t i, began_ns, first_ns = lm_now_ns()
    cdef uint32_t number
    if _ping == NULL:
        raise RuntimeError("wake_start comes first")
    with nogil:
        for i in range(n):
            _pause(pause_ns)
            began_ns = lm_now_ns()
            number = lm_add32(&_ping.asked, 1) + 1
            lm_futex_wake_shared(&_ping.asked, 1)
            while lm_load32(&_ping.answered) != number:
                lm_pause()
            took[i] = lm_now_ns() - began_ns
    return lm_now_ns() - first_ns
