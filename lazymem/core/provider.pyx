"""What does Python hold of a provider and its processes?

`Setting`: what a set of provider processes is started with, and the set. `ProviderSource`: one pickled provider as a source. And the
attendant, a thread that hands on what processes print and clears away what they leave; it takes the GIL, and nothing waits for it.
"""
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free
from libc.string cimport strdup

from lazymem.core.native cimport *
from lazymem.core.process cimport *
from lazymem.core.ring cimport RING_LAST_WORDS_AT, RING_OUTPUT_NBYTES, RING_TEXT_NBYTES

from lazymem.errors import ProviderError

cdef uint64_t _ids = 0

LAST_WORDS_AT = RING_LAST_WORDS_AT
LAST_WORDS_NBYTES = RING_TEXT_NBYTES
PROCESSES_LIMIT = PROCESSES_MAX


cdef char **_strings(list texts) except NULL:
    """A NULL-terminated array of malloc'd copies."""
    cdef char **array = <char **>calloc(len(texts) + 1, sizeof(char *))
    cdef Py_ssize_t i
    if array == NULL:
        raise MemoryError
    for i, text in enumerate(texts):
        array[i] = strdup(<const char *><bytes>text)
        if array[i] == NULL:
            raise MemoryError
    return array


@cython.no_gc
cdef class Setting:
    """A set of provider processes: how they are started, and those that there are.

    Parameters
    ----------
    argv, envp : list of bytes
        Of the interpreter; argv[0] is its path.
    block_nbytes : int, bytes
        The most that one request may ask for.
    spin_ns : int, ns
        How long both sides wait awake; 0 where there is one core.

    Raises
    ------
    OSError
        The current directory cannot be opened, or no descriptor is to be had.

    Notes
    -----
    The current directory is taken as it is now. Processes end by themselves when this does. Blocks: no. GIL: kept.
    """

    def __cinit__(self, list argv not None, list envp not None, uint64_t block_nbytes, uint64_t spin_ns):
        cdef int error
        self.block_nbytes = block_nbytes
        self.spin_ns = spin_ns
        error = lm_spawn_prepare(&self._spawn, _strings(argv), _strings(envp))
        self._prepared = True
        if error:
            raise OSError(-error, "provider processes cannot be prepared")

    @property
    def whole(self):
        """Are its descriptors still there? Somebody may have closed them (closerange)."""
        return lm_fd_is_ours(&self._spawn, self._spawn.reserved_fd) and lm_fd_is_ours(&self._spawn, self._spawn.cwd_fd)

    def start(self, uint32_t processes):
        """Start as many, those that there are included.

        Raises
        ------
        OSError
            The interpreter cannot be started.

        Notes
        -----
        Blocks: about a millisecond for each. GIL: released meanwhile. They become ready by themselves.
        """
        cdef uint32_t i
        cdef int error
        for i in range(min(processes, <uint32_t>PROCESSES_MAX)):
            with nogil:
                error = process_start(&self._spawn, self.block_nbytes, self.spin_ns, &self._places[i])
            if error:
                raise OSError(-error, f"a provider process cannot be started: {self._spawn.argv[0].decode()}")

    def __dealloc__(self):
        cdef int i
        if self._prepared:
            for i in range(PROCESSES_MAX):
                process_end(&self._places[i])
            lm_spawn_release(&self._spawn)


cdef bint _is_unstored(void *ctx, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """Source.is_zero of a provider that said where it has bytes: without asking it. GIL: never. Blocks: no."""
    cdef Asking *a = <Asking *>ctx
    cdef uint64_t low = 0, high = a.stored_count, middle
    while low < high:  # the first range that ends behind `offset`
        middle = (low + high) // 2
        if a.stored[2 * middle + 1] <= offset:
            low = middle + 1
        else:
            high = middle
    return low == a.stored_count or a.stored[2 * low] >= offset + nbytes


@cython.no_gc_clear  # a fetch may be running in it
cdef class ProviderSource(NativeSource):
    """A pickled provider, asked in processes.

    Parameters
    ----------
    setting : Setting
    pickled : bytes
    nbytes, identity : int
        Of the provider's bytes; a number that tells arrays apart across processes.
    processes : int
        How many may serve it at a time.
    timeout_ns, deadline_ns, retries : int
        Of an attempt; of all attempts at a block; how many after the first.
    stored : bytes or None
        Where bytes are stored, all else being zeros: uint64 starts and stops by turns, ascending. None: not known.
    writable : bool
        The provider has write_from.
    """

    def __cinit__(self, Setting setting not None, bytes pickled not None, uint64_t nbytes, uint64_t identity,
                  uint32_t processes, uint64_t timeout_ns, uint64_t deadline_ns, uint32_t retries, bytes stored,
                  bint writable=False):
        global _ids
        cdef Asking *a = <Asking *>calloc(1, sizeof(Asking))
        if a == NULL:
            raise MemoryError
        _ids += 1
        self._asking = a
        self.setting = setting
        self.pickled = pickled
        self.kind = "provider"
        self.nbytes = nbytes
        a.id = _ids
        a.identity = identity
        a.nbytes = nbytes
        a.pickle = <const char *>pickled
        a.pickle_nbytes = len(pickled)
        a.spawn = &setting._spawn
        a.block_nbytes = setting.block_nbytes
        a.spin_ns = setting.spin_ns
        a.shared = setting._places
        a.processes = max(1, min(processes, <uint32_t>PROCESSES_MAX))
        a.timeout_ns = timeout_ns
        a.deadline_ns = deadline_ns
        a.retries = retries
        if stored is not None:
            self.stored = stored
            a.stored = <const uint64_t *><const char *>stored
            a.stored_count = len(stored) // (2 * sizeof(uint64_t))
            self.source.is_zero = _is_unstored
        self.source.borrow = asking_borrow
        self.source.give_back = asking_give_back
        self.source.ctx = a
        if writable:
            self.source.store = asking_store
            self.source.sync = asking_sync
        self.source.may_block = True
        self.source.leaf = True  # what it touches, it touches in another process

    @property
    def identity(self):
        """The number that tells this array's bytes from others', in every process."""
        return self._asking.identity

    @property
    def processes(self):
        """How many processes may serve it at a time."""
        return self._asking.processes

    @property
    def attempts(self):
        """How often a process was asked for a block."""
        return lm_load64(&self._asking.attempts)

    @property
    def has_own(self):
        """Does it have processes of its own, an attempt of it having killed or stalled one?"""
        return lm_load32(&self._asking.has_own) != 0

    cdef object explain(self, uint64_t offset):
        """The latest text about this block, as an exception to chain; None if it is forgotten."""
        cdef uint64_t best = 0
        cdef Text *t
        cdef bytes text = None
        cdef int i
        for i in range(TEXTS):
            t = &self._asking.texts[i]
            if lm_load64(&t.sequence) > best and t.offset in (offset, <uint64_t>ABOUT_ALL):
                best = lm_load64(&t.sequence)
                text = t.text
                if lm_load64(&t.sequence) != best:
                    text = None
        return None if text is None else ProviderError(text.decode("utf-8", "replace"))

    cdef int close(self) except -1:
        """Its processes forget it: they call the provider's own close()."""
        if not self._closed:
            self._closed = True
            provider_forget(self._asking)
        return 0

    def __dealloc__(self):
        if self._asking != NULL:
            self.close()
            free(self._asking)


def process_ids():
    """The numbers of the provider processes that there are."""
    cdef int pids[256]
    cdef int n = rings_count(pids, 256)
    return [pids[i] for i in range(n)]


def in_provider_process():
    """Is this process itself one? Then constructing an array starts nothing."""
    return process_is_provider()


def attend(write):
    """The attendant's life: call `write(stream, bytes)` with what processes print, and clear away the dead.

    Parameters
    ----------
    write : callable
        stream 0: standard output; 1: standard error. Must not raise.

    Notes
    -----
    Blocks: for ever. GIL: released, but to call `write`. Thread: a daemon of its own, one per process.
    """
    while True:
        drain(write)
        with nogil:
            rings_rest()


def flush(uint64_t timeout_ns):
    """Have `drain` find what was printed up to now. Blocks: until the timeout at most. GIL: released meanwhile."""
    with nogil:
        rings_flush(lm_now_ns() + timeout_ns)


def drain(write):
    """Hand on what processes have printed so far. As `attend`, but returns. Blocks: as `write` does. Thread: one at a time."""
    cdef char text[RING_OUTPUT_NBYTES]
    cdef uint64_t said = 0, dropped = 0
    cdef uint32_t stream = 0
    cdef bint found
    while True:
        with nogil:
            found = rings_attend(&said, &dropped, text, &stream)
        if not found:
            return
        if said:
            write(stream, PyBytes_FromStringAndSize(text, said))
        if dropped:
            name = "stderr" if stream else "stdout"
            write(1, f"lazymem: {dropped} bytes that a provider wrote to {name} were dropped: it was faster than they could be "
                     "handed on\n".encode())
