"""What does a provider process do with a request?

`Server`: the ring's other side. Python threads take requests, call the provider on memory of the ring itself, and answer. Whenever one takes a
request and no other is left to take the next, another is started (child.py), up to THREADS_MAX.

A native thread watches, whatever Python does: it holds the word by which the other side learns of our death (a robust futex; the kernel marks it
when the process ends, however it does), ends the process when the served one is gone, or runs another program, and empties the pipes that are
descriptors 1 and 2 here into the ring, so that printing never waits for anybody.
"""
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.string cimport memcpy, memset

from lazymem.core.failure cimport guards_count, loose_now
from lazymem.core.native cimport *
from lazymem.core.operation cimport begin, blame, first_after
from lazymem.core.process cimport process_serves, process_serving
from lazymem.core.ring cimport *
from lazymem.core.standin cimport drop_loose, operation_end
from lazymem.core.thread cimport Thread, thread_self

from numbers import Integral
from threading import Lock


cdef extern from *:
    """
    #include "ring.h"
    #include <fcntl.h>
    #include <linux/futex.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    #endif
    #include <poll.h>
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdio.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #ifndef SYS_pidfd_open
    #define SYS_pidfd_open 434
    #endif

    static lm_head *lm_watched;
    static uint32_t lm_watching;             /* 1: our death will be noticed */
    static int lm_pipes[2] = {-1, -1};       /* the reading ends of descriptors 1 and 2 */
    static ino_t lm_pipe_inodes[2];
    static uint32_t lm_pipes_open, lm_emptying;

    static lm_head *lm_map_ring(int fd, uint64_t *nbytes)
    {
        struct stat st;
        void *p;
        if (fstat(fd, &st) || st.st_size < (off_t)RING_BLOCKS_AT)
            return NULL;
        p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
        if (p == MAP_FAILED)
            return NULL;
        madvise(p, (size_t)st.st_size, MADV_DONTFORK);   /* a child that a provider forks has none of it */
        madvise(p, (size_t)st.st_size, MADV_DONTDUMP);
        *nbytes = (uint64_t)st.st_size;
        return (lm_head *)p;
    }

    static void lm_empty_pipe(int k)
    {
        lm_output *o = &lm_watched->output[k];
        char text[4 << 10];
        struct stat st;
        ssize_t n;
        if (fstat(lm_pipes[k], &st) || !S_ISFIFO(st.st_mode) || st.st_ino != lm_pipe_inodes[k]) {
            lm_pipes[k] = -1;    /* a provider has closed it; perhaps the number is now of something that it opened */
            __atomic_fetch_sub(&lm_pipes_open, 1, __ATOMIC_SEQ_CST);
            return;
        }
        __atomic_store_n(&lm_emptying, 1, __ATOMIC_SEQ_CST);
        while ((n = read(lm_pipes[k], text, sizeof text)) > 0) {
            uint64_t written = o->written, room = RING_OUTPUT_NBYTES - (written - __atomic_load_n(&o->read, __ATOMIC_SEQ_CST));
            uint64_t i, fits = (uint64_t)n < room ? (uint64_t)n : room;
            for (i = 0; i < fits; i++)
                o->bytes[(written + i) % RING_OUTPUT_NBYTES] = text[i];
            o->dropped += (uint64_t)n - fits;
            __atomic_store_n(&o->written, written + fits, __ATOMIC_SEQ_CST);
        }
        __atomic_store_n(&lm_emptying, 0, __ATOMIC_SEQ_CST);
        if (n == 0) {   /* nobody can write to it any more */
            close(lm_pipes[k]);
            lm_pipes[k] = -1;
            __atomic_fetch_sub(&lm_pipes_open, 1, __ATOMIC_SEQ_CST);
        }
    }

    /* What was printed so far is in the ring, or half a second has passed. */
    static void lm_await_output(void)
    {
        int i, k, n, waiting = 1;
        for (i = 0; i < 2500 && waiting; i++) {
            waiting = 0;
            for (k = 0; k < 2; k++)
                if (lm_pipes[k] >= 0 && ioctl(lm_pipes[k], FIONREAD, &n) == 0 && n > 0)
                    waiting = 1;
            if (waiting || __atomic_load_n(&lm_emptying, __ATOMIC_SEQ_CST)) {   /* in this order: see lm_empty_pipe */
                waiting = 1;
                usleep(200);
            }
        }
    }

    /* The served process's program, as it is now: another that it executes has the same number, and asks nothing. -1: not to be had. */
    static int lm_open_program(int pid)
    {
        char path[32];
        snprintf(path, sizeof path, "/proc/%d/maps", pid);
        return open(path, O_RDONLY | O_CLOEXEC);
    }
    static int lm_program_is_gone(int fd)   /* its memory is */
    {
        char byte;
        return fd >= 0 && pread(fd, &byte, 1, 0) == 0;
    }

    static void *lm_watch(void *unused)
    {
        static struct robust_list node;
        static struct robust_list_head list;
        uint32_t me = (uint32_t)syscall(SYS_gettid);
        int parent = (int)lm_watched->server_of, pidfd = (int)syscall(SYS_pidfd_open, parent, 0);
        int program = lm_open_program(parent);
        struct timespec asked_to_end = {0, 0}, now;
        (void)unused;
        prctl(PR_SET_NAME, "lazymem-watch", 0, 0, 0);
        /* This thread's own list, in place of the C library's, of which it uses nothing. */
        node.next = &list.list;
        list.list.next = &node;
        list.futex_offset = (long)((char *)&lm_watched->alive - (char *)&node);
        list.list_op_pending = NULL;
        __atomic_store_n(&lm_watched->alive, me, __ATOMIC_SEQ_CST);
        syscall(SYS_set_robust_list, &list, sizeof list);
        __atomic_store_n(&lm_watching, 1, __ATOMIC_SEQ_CST);
        for (;;) {
            struct pollfd p[3] = {{pidfd, POLLIN, 0}, {lm_pipes[0], POLLIN, 0}, {lm_pipes[1], POLLIN, 0}};
            int wait_ms = pidfd < 0 || asked_to_end.tv_sec ? 200 : 2000;
            int k, n = poll(p, 3, wait_ms);
            if (getppid() != parent || (n == 0 && lm_program_is_gone(program)))
                _exit(0);
            if (n > 0 && p[0].revents)
                pidfd = -1;      /* as above */
            for (k = 0; k < 2; k++)
                if (n > 0 && lm_pipes[k] >= 0 && p[k + 1].revents)
                    lm_empty_pipe(k);
            if (__atomic_load_n(&lm_watched->quit, __ATOMIC_SEQ_CST)) {
                clock_gettime(CLOCK_MONOTONIC, &now);
                if (!asked_to_end.tv_sec)
                    asked_to_end = now;
                else if (now.tv_sec - asked_to_end.tv_sec >= 5)   /* some close() hangs */
                    _exit(0);
            }
        }
        return NULL;
    }

    static int lm_start_watch(void)
    {
        pthread_t thread;
        sigset_t all, before;
        int error, k, ends[2];
        struct stat st;
        for (k = 0; k < 2; k++) {
            if (pipe2(ends, O_CLOEXEC) || fstat(ends[0], &st))
                return -errno;
            lm_pipe_inodes[k] = st.st_ino;
            fcntl(ends[0], F_SETFL, O_NONBLOCK);
            if (dup2(ends[1], k + 1) < 0)
                return -errno;
            close(ends[1]);
            lm_pipes[k] = ends[0];
        }
        lm_pipes_open = 2;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&thread, NULL, lm_watch, NULL);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return -error;
    }

    /* Nothing is printed from here on; wait until what was has reached the ring. */
    static void lm_end_output(void)
    {
        int null = open("/dev/null", O_WRONLY | O_CLOEXEC), i;
        dup2(null, 1);
        dup2(null, 2);
        for (i = 0; i < 100 && __atomic_load_n(&lm_pipes_open, __ATOMIC_SEQ_CST); i++)
            usleep(2000);
    }
    /* A block's temporary arrays come and go with each request: do not give their pages back to the kernel each time. */
    static void lm_keep_freed_memory(void)
    {
    #ifdef __GLIBC__
        mallopt(M_MMAP_THRESHOLD, 32 << 20);
        mallopt(M_TRIM_THRESHOLD, 64 << 20);
    #endif
    }
    static int lm_here(void) { return open(".", O_PATH | O_DIRECTORY | O_CLOEXEC); }
    static void lm_go(int fd) { if (fchdir(fd)) { } }
    /* Threads share the current directory, unless one says that it will not. A container may forbid it. */
    static __thread int lm_has_own_directory;
    static void lm_take_own_directory(int here)
    {
        lm_has_own_directory = unshare(CLONE_FS) == 0;
        if (lm_has_own_directory)
            lm_go(here);   /* not where the thread that started this one has gone meanwhile */
    }
    static int lm_own_directory(void) { return lm_has_own_directory; }
    """
    lm_head *lm_watched
    uint32_t lm_watching
    lm_head *lm_map_ring(int fd, uint64_t *nbytes) noexcept nogil
    int lm_start_watch() noexcept nogil
    void lm_await_output() noexcept nogil
    void lm_end_output() noexcept nogil
    void lm_keep_freed_memory() noexcept nogil
    int lm_here() noexcept nogil
    void lm_go(int fd) noexcept nogil
    void lm_take_own_directory(int here) noexcept nogil
    bint lm_own_directory() noexcept nogil
    void _exit(int status) noexcept nogil
    int close(int fd) noexcept nogil
    int getppid() noexcept nogil

THREADS_MAX = 16
AGAIN, FAILED, CYCLE = ANSWER_AGAIN, ANSWER_FAILED, ANSWER_CYCLE
cdef bint _forked = False


cdef void serve_forget() noexcept nogil:
    """In a child that a provider forked: the ring is not there. GIL: any."""
    global _forked
    _forked = True


cdef class Staging:
    """A slot's block, as what a provider is given is made of: to write into, or to read. It counts who still looks at it."""
    cdef void *address
    cdef Py_ssize_t nbytes
    cdef Py_ssize_t one
    cdef bint readonly
    cdef uint32_t exports

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.readonly and flags & PyBUF_WRITABLE:
            raise BufferError("what is to be written back is read-only")
        self.one = 1
        view.buf = self.address
        view.obj = self
        view.len = self.nbytes
        view.itemsize = 1
        view.readonly = self.readonly
        view.ndim = 1
        view.format = NULL
        if flags & PyBUF_FORMAT:
            view.format = b"B"
        view.shape = &self.nbytes if flags & PyBUF_ND else NULL
        view.strides = &self.one if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1


cdef object _run(uint32_t ask, tuple loaded, object view, uint64_t offset):
    """What a request asks of a provider. The count that it answers, or None."""
    if ask == ASK_FETCH:
        return loaded[0](view, offset)
    if ask == ASK_STORE:
        return loaded[2].write_from(view, offset)
    flush = getattr(loaded[2], "flush", None)
    if flush is not None:
        flush()
    return None


cdef class Server:
    """The serving side of the ring that is descriptor `fd`; the descriptor is closed.

    Parameters
    ----------
    fd : int
    load : callable
        load(pickle) -> (read_into, lock or None, provider).
    explain : callable
        explain(exception) -> (answer, text as bytes).
    grow : callable
        grow(): start another thread in `serve`.
    tidy : callable or None
        tidy(): undo what a provider may have left behind on its thread, after each request.
    forget : callable
        forget(provider): it is not needed any more.

    Raises
    ------
    OSError
        No ring there, one of another version of lazymem, or no thread.
    """
    cdef lm_head *head
    cdef uint64_t nbytes
    cdef uint64_t block_nbytes
    cdef dict known            # number -> (read_into, lock, provider)
    cdef dict loading          # number -> held by the thread that loads it
    cdef dict pieces           # (number, slot) -> what came of its pickle
    cdef list staging          # by slot
    cdef object load, explain, grow, tidy, forget
    cdef uint32_t idle
    cdef uint32_t at_work
    cdef uint32_t servers
    cdef int here

    def __cinit__(self, int fd, load, explain, grow, tidy, forget):
        cdef int error, i
        cdef Staging staging
        self.head = lm_map_ring(fd, &self.nbytes)
        if self.head == NULL or self.head.layout != RING_LAYOUT:
            raise OSError(EPROTO, "no ring of this version of lazymem: is another version installed for this interpreter?")
        if <uint32_t>getppid() != self.head.server_of:
            _exit(0)
        self.block_nbytes = self.head.block_nbytes
        self.load, self.explain, self.grow, self.tidy, self.forget = load, explain, grow, tidy, forget
        self.known = {}
        self.loading = {}
        self.pieces = {}
        self.staging = []
        self.here = lm_here()
        lm_keep_freed_memory()
        for i in range(RING_SLOTS):
            staging = Staging()
            staging.address = block_at(self.head, self.block_nbytes, i)
            self.staging.append(staging)
        process_serves(self.head.level)
        global lm_watched
        lm_watched = self.head
        error = lm_start_watch()
        if error:
            raise OSError(-error, "the watching thread cannot be started")
        close(fd)

    def ready(self):
        """Say that requests are taken from now on. Blocks: until the watching thread watches."""
        with nogil:
            while lm_load32(&lm_watching) == 0:
                lm_sleep_ns(100000)
        lm_store32(&self.head.ready, 1)

    def serve(self):
        """Take requests and answer them until the process is asked to end. Blocks: until then. GIL: released while waiting."""
        cdef int slot
        cdef uint32_t server = self.servers, tag
        cdef Thread *me = thread_self()
        self.servers += 1
        lm_take_own_directory(self.here)
        while True:
            self.idle += 1
            with nogil:
                slot = ring_next(self.head)
            self.idle -= 1
            if slot < 0:
                return
            self.at_work += 1
            tag = lm_load32(&slot_at(self.head, slot).word) & <uint32_t>SLOT_TAG
            try:
                if self.idle == 0:
                    self.grow()
                self._answer(slot, server)
            except BaseException as error:
                self._fail(slot, tag, error)
            process_serving(server, NULL, 0)
            if me != NULL:
                me.around_depth = 0
            self.at_work -= 1

    cdef void _fail(self, int slot, uint32_t tag, object error) noexcept:
        """Answer for a thread that did not come to it, though no provider raised: out of memory, or an exception was sent to it."""
        cdef lm_slot *s = slot_at(self.head, slot)
        cdef uint32_t answer = ANSWER_FAILED
        if (lm_load32(&s.word) & ~<uint32_t>SLOT_SLEEPS) != (SLOT_TAKEN | tag):
            return  # it had answered
        s.text_nbytes = 0
        try:
            answer, text = self.explain(error)
            self._say(s, text)
        except BaseException:
            pass
        ring_answer(self.head, slot, answer, self._receipt(s, answer, s.provider, s.offset, s.nbytes))

    def finish(self):
        """Tell every provider that it is needed no more, and hand over what was printed. The process ends next. Blocks: until other
        threads have done so too; some close() that hangs is ended by the watching thread."""
        for _, _, provider in list(self.known.values()):
            self.forget(provider)
        while self.at_work:
            with nogil:
                lm_sleep_ns(5000000)
        with nogil:
            lm_end_output()

    cdef int _answer(self, int slot, uint32_t server) except -1:
        cdef lm_slot *s = slot_at(self.head, slot)
        cdef uint64_t provider = s.provider
        cdef Thread *me = thread_self()
        cdef uint32_t depth = min(s.depth, <uint32_t>RING_CHAIN)
        if s.ask == ASK_FORGET:
            self._forget(s, slot, provider)
            return 0
        if s.ask == ASK_FLUSH:
            with nogil:
                lm_await_output()
                ring_answer(self.head, slot, ANSWER_FILLED, lm_receipt(0, ASK_FLUSH, ANSWER_FILLED, 0, 0, 0))
            return 0
        if me != NULL:
            memcpy(me.around, s.chain, depth * sizeof(uint64_t))
            me.around_depth = depth
        process_serving(server, s.chain, depth)
        if s.ask == ASK_LOAD:
            self._load(s, slot, provider)
        else:
            loaded = self.known.get(provider)
            if loaded is None:
                ring_answer(self.head, slot, ANSWER_UNKNOWN, self._receipt(s, ANSWER_UNKNOWN, provider, s.offset, s.nbytes))
            else:
                self._call(s, slot, provider, loaded)
        return 0

    cdef uint64_t _receipt(self, lm_slot *s, uint32_t answer, uint64_t provider, uint64_t offset, uint64_t nbytes) noexcept:
        return lm_receipt(lm_load32(&s.word) & <uint32_t>SLOT_TAG, s.ask, answer, provider, offset, nbytes)

    cdef int _forget(self, lm_slot *s, int slot, uint64_t provider) except -1:
        lm_store32(&s.begun, 1)
        loaded = self.known.pop(provider, None)
        if loaded is not None:
            self.forget(loaded[2])
            self.loading.pop(provider, None)
        ring_answer(self.head, slot, ANSWER_FILLED, 0)
        return 0

    cdef int _say(self, lm_slot *s, bytes text) except -1:
        """Leave a text for the other side: its end, where it is too long."""
        text = text[-RING_TEXT_NBYTES:]
        memcpy(s.text, <const char *>text, len(text))
        s.text_nbytes = <uint32_t>len(text)
        return 0

    cdef int _load(self, lm_slot *s, int slot, uint64_t provider) except -1:
        """Take a piece of a pickle; with the last, load it, if no other thread has by now."""
        cdef uint32_t answer = ANSWER_FILLED
        cdef uint64_t n = min(s.nbytes, self.block_nbytes), offset = s.offset, total = s.total
        key = (provider, slot)
        if offset == 0:
            self.pieces[key] = bytearray()
        pieces = self.pieces.setdefault(key, bytearray())
        pieces += (<char *>block_at(self.head, self.block_nbytes, slot))[:n]
        if <uint64_t>len(pieces) >= total:
            del self.pieces[key]
            with self.loading.setdefault(provider, Lock()):
                lm_store32(&s.begun, 1)
                try:
                    if provider not in self.known:
                        self.known[provider] = self.load(bytes(pieces))
                except BaseException as error:
                    answer, text = self.explain(error)
                    self._say(s, text)
        self._rest()
        if _forked:
            _exit(70)
        ring_answer(self.head, slot, answer, self._receipt(s, answer, provider, offset, n))
        return 0

    cdef int _call(self, lm_slot *s, int slot, uint64_t provider, tuple loaded) except -1:
        """Call the provider on the slot's block, zeros until it writes or what it is to take back, and answer."""
        cdef Staging staging = <Staging>self.staging[slot]
        cdef uint64_t nbytes = min(s.nbytes, self.block_nbytes), offset = s.offset, sequence = 0, loose = 0
        cdef uint32_t answer = ANSWER_FILLED, ask = s.ask
        cdef bytes text = b""
        cdef void *block = staging.address
        if ask != ASK_FETCH:
            pass
        elif nbytes > 65536:
            with nogil:
                memset(block, 0, nbytes)
        else:
            memset(block, 0, nbytes)
        staging.nbytes = <Py_ssize_t>nbytes
        staging.readonly = ask != ASK_FETCH
        name = "read_into" if ask == ASK_FETCH else "write_from"
        view = PyMemoryView_FromObject(staging)
        surroundings = PyContext_CopyCurrent()
        got = None
        try:
            begin(&sequence)
            loose = loose_now()
            PyContext_Enter(surroundings)
            guards_count(1)  # what its own threads touch goes on, and is seen below: nobody there need be told
            try:
                if loaded[1] is None:
                    lm_store32(&s.begun, 1)
                    got = _run(ask, loaded, view, offset)
                else:
                    with loaded[1]:
                        lm_store32(&s.begun, 1)
                        got = _run(ask, loaded, view, offset)
            finally:
                PyContext_Exit(surroundings)
                guards_count(-1)
                if operation_end(sequence):  # an array that it touched, as memory, could not be fetched
                    blame(sequence, ())
                if loose_now() != loose:  # or a thread of its own did, or another request's: who knows?
                    drop_loose()
                    raise first_after(sequence)
            if got is not None and not (isinstance(got, Integral) and got == nbytes):
                answer = ANSWER_FAILED
                verb = "fill" if ask == ASK_FETCH else "take"
                text = (f"{name}(buffer, {offset}) returned {got!r}: it must {verb} all {nbytes} bytes, and return None or "
                        f"{nbytes}").encode("utf-8", "replace")
        except BaseException as error:
            if _forked:
                _exit(70)
            answer, text = self.explain(error)
            error.__traceback__ = None  # its frames may hold views of the block
        if _forked:
            _exit(70)
        got = surroundings = None
        try:
            view.release()
        except BufferError:
            pass
        view = None
        if staging.exports:
            self._collect()
            if staging.exports:
                answer = ANSWER_KEPT
                text = f"{name}() kept its buffer (an array made of it, a slice): copy what is needed later. ".encode() + text
        if text:
            self._say(s, text)
        self._rest()
        ring_answer(self.head, slot, answer, self._receipt(s, answer, provider, offset, nbytes))
        if self.tidy is not None:
            self.tidy()
        return 0

    cdef int _collect(self) except -1:
        import gc
        gc.collect()
        return 0

    cdef void _rest(self) noexcept:
        """The current directory is what it was, unless it is shared with another request that may be using what it set."""
        if (lm_own_directory() or self.at_work <= 1) and not _forked:
            lm_go(self.here)
