"""Where do a block's bytes come from, and where do they go back to, without the GIL?

Memory that is already there, a local file, a C function. A source is a `fetch` that fills exactly and returns 0 or -errno, perhaps with
a `store` that takes all of it or says -errno; its Python object only keeps alive what they need.
"""
from lazymem.core.native cimport *
from lazymem.core.thread cimport Thread, thread_self
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport free
from posix.fcntl cimport O_CLOEXEC, O_NOCTTY, O_NONBLOCK, O_RDONLY, O_RDWR, open
from posix.unistd cimport close, fsync


cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <unistd.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/uio.h>
    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 8
    #endif
    /* What lies in the page cache, without waiting; -1 and EAGAIN, or less than asked, where that is not all. */
    static inline ssize_t lm_pread_now(int fd, void *dst, size_t nbytes, int64_t offset)
    {
        struct iovec to = {dst, nbytes};
        return preadv2(fd, &to, 1, offset, RWF_NOWAIT);
    }
    /* Another open file of the same inode, whether or not it still has a name; -1: there is none to be had, or no hole in it. */
    static inline int lm_open_for_holes(int fd)
    {
        char link[32];
        struct stat s;
        if (fstat(fd, &s) || (int64_t)s.st_blocks * 512 >= s.st_size)
            return -1;
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        return open(link, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    }
    /* Is all of [at, end) a hole? Moves the file's position. */
    static inline int lm_is_hole(int fd, int64_t at, int64_t end)
    {
        off_t bytes_from = lseek(fd, at, SEEK_DATA);
        return bytes_from < 0 ? errno == ENXIO : bytes_from >= end;
    }
    static inline int lm_stamp(int fd, uint64_t *device, uint64_t *inode, int64_t *nbytes, int64_t *mtime_ns)
    {
        struct stat s;
        if (fstat(fd, &s))
            return -errno;
        *device = (uint64_t)s.st_dev;
        *inode = (uint64_t)s.st_ino;
        *nbytes = s.st_size;
        *mtime_ns = (int64_t)s.st_mtim.tv_sec * 1000000000 + s.st_mtim.tv_nsec;
        return 0;
    }
    /* By what name a file was opened; NULL: unknown. To be freed. */
    static inline char *lm_path_of(int fd)
    {
        char link[32], path[PATH_MAX + 1];
        ssize_t n;
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        n = readlink(link, path, sizeof path - 1);
        if (n <= 0 || path[0] != '/')
            return NULL;
        path[n] = 0;
        return strdup(path);
    }
    """
    int lm_stamp(int fd, uint64_t *device, uint64_t *inode, int64_t *nbytes, int64_t *mtime_ns) noexcept nogil
    int lm_open_for_holes(int fd) noexcept nogil
    bint lm_is_hole(int fd, int64_t at, int64_t end) noexcept nogil
    char *lm_path_of(int fd) noexcept nogil
    ssize_t lm_pread_now(int fd, void *dst, size_t nbytes, int64_t offset) noexcept nogil
    ssize_t pread(int fd, void *dst, size_t nbytes, int64_t offset) noexcept nogil
    ssize_t pwrite(int fd, const void *src, size_t nbytes, int64_t offset) noexcept nogil


cdef bint _is_ours(File *file, int fd) noexcept nogil:
    """Is this number still, or again, our file's? A stranger's is neither read by mistake nor closed. GIL: any. Blocks: no."""
    cdef uint64_t device = 0, inode = 0
    cdef int64_t size_nbytes = 0, mtime_ns = 0
    return (fd >= 0 and lm_stamp(fd, &device, &inode, &size_nbytes, &mtime_ns) == 0 and
            device == file.device and inode == file.inode)


cdef int _fetch_file(void *ctx, void *dst, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """Read exactly, and from the file as it was opened; where somebody closed its number (closerange), by another.

    Return: 0; -EBADF it was closed and cannot be opened again; else as `_read_file`. GIL: never. Blocks: on the disk.
    """
    cdef File *file = <File *>ctx
    cdef int fd = file.fd
    cdef int err = _read_file(file, fd, dst, offset, nbytes)
    if err == 0 or _is_ours(file, fd):
        return err
    fd = _another_number(file, fd)
    return _read_file(file, fd, dst, offset, nbytes) if fd >= 0 else fd


cdef int _another_number(File *file, int fd) noexcept nogil:
    """Open a file again whose number `fd` is ours no more. Return: the number; -EBADF it cannot be; -ESTALE another file is there."""
    cdef int again = file.fd
    if again != fd:
        return again
    if file.path == NULL:
        return -EBADF
    again = open(file.path, (O_RDWR if file.writable else O_RDONLY) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)
    if again < 0:
        return -EBADF
    if not _is_ours(file, again):
        close(again)
        return -ESTALE
    if not lm_cas32(<uint32_t *>&file.fd, <uint32_t>fd, <uint32_t>again):  # another thread was faster
        close(again)
        again = file.fd
    return again


cdef bint _is_as_opened(File *file, uint64_t device, uint64_t inode, int64_t size_nbytes, int64_t mtime_ns) noexcept nogil:
    """Is this still the file that was opened? One that is written to changes, but does not get shorter."""
    if device != file.device or inode != file.inode:
        return False
    return size_nbytes >= file.nbytes if file.writable else size_nbytes == file.nbytes and mtime_ns == file.mtime_ns


cdef int _store_file(void *ctx, const void *src, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """Write all of it, to the file that was opened; where somebody closed its number, by another.

    Nobody can look at a number and write to it in one step, so who closes numbers that are not his and opens files meanwhile may
    get our bytes there: between a system call and the next.
    Return: 0; -EBADF it was closed and cannot be opened again; -EINVAL bytes that are not the array's; -ESTALE the file was cut
    short; -errno of pwrite: some of it may have been written then. GIL: never. Blocks: on the disk.
    """
    cdef File *file = <File *>ctx
    cdef int fd = file.fd, turn, err = -EBADF
    if offset > file.length or nbytes > file.length - offset:
        return -EINVAL
    for turn in range(2):
        if _is_ours(file, fd):
            err = _write_file(file, fd, src, offset, nbytes)
        if err != -EBADF:  # which a number gives too that is another way, for reading only, to the same file
            return err
        if turn == 0:
            fd = _another_number(file, fd)
            if fd < 0:
                return fd
    return err


cdef int _write_file(File *file, int fd, const void *src, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """As `_store_file`, by this number. Source: pwrite(2)."""
    cdef uint64_t done = 0, device = 0, inode = 0
    cdef int64_t size_nbytes = 0, mtime_ns = 0
    cdef ssize_t n
    cdef int err = lm_stamp(fd, &device, &inode, &size_nbytes, &mtime_ns)
    if err:
        return err
    if not _is_as_opened(file, device, inode, size_nbytes, mtime_ns):
        return -ESTALE  # written to, a file that was cut short would have zeros where there was something else
    while done < nbytes:
        n = pwrite(fd, <const char *>src + done, nbytes - done, <int64_t>(file.start + offset + done))
        if n > 0:
            done += <uint64_t>n
        elif n == 0:
            return -EIO
        elif errno != EINTR:
            return -errno
    return 0


cdef int _sync_file(void *ctx) noexcept nogil:
    """Have the disk keep what was written. Return: 0; -errno of fsync: what was written may be lost, though a fetch still finds it.

    GIL: never. Blocks: on the disk.
    """
    cdef File *file = <File *>ctx
    cdef int fd = file.fd
    if not _is_ours(file, fd):
        fd = _another_number(file, fd)
        if fd < 0:
            return fd
    while fsync(fd):
        if errno != EINTR:
            return -errno
    return 0


cdef int _read_file(File *file, int fd, void *dst, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """Read exactly, and from the file as it was opened.

    The stamp is looked at after the read: a writer changes it before the bytes, so bytes of the new file cannot pass.
    A handler thread wants to hand the reading on before it waits for a disk, and only then: what is in the page cache is read at once.
    Return: 0; -ENODATA the file ends here now; -ESTALE it was changed; other -errno.
    GIL: never. Blocks: on the disk. Source: pread(2).
    """
    cdef uint64_t done = 0, device = 0, inode = 0
    cdef int64_t size_nbytes = 0, mtime_ns = 0
    cdef ssize_t n
    cdef int err
    cdef Thread *me = thread_self()
    cdef bint hands_on = me != NULL and me.before_blocking != NULL
    if hands_on:
        n = lm_pread_now(fd, dst, nbytes, <int64_t>(file.start + offset))
        if n > 0:
            done = <uint64_t>n
        if done < nbytes:
            me.before_blocking()
    while done < nbytes:
        n = pread(fd, <char *>dst + done, nbytes - done, <int64_t>(file.start + offset + done))
        if n > 0:
            done += <uint64_t>n
        elif n == 0:
            return -ENODATA
        elif errno != EINTR:
            return -errno
    err = lm_stamp(fd, &device, &inode, &size_nbytes, &mtime_ns)
    if err:
        return err
    return 0 if _is_as_opened(file, device, inode, size_nbytes, mtime_ns) else -ESTALE


cdef int _store_memory(void *ctx, const void *src, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """Return: 0; -EINVAL bytes that are not the memory's; -EFAULT it is gone (a mapped file that was cut short). GIL: never. Blocks: no."""
    cdef Py_buffer *view = <Py_buffer *>ctx
    if offset > <uint64_t>view.len or nbytes > <uint64_t>view.len - offset:
        return -EINVAL
    return lm_copy_to(<char *>view.buf + offset, src, nbytes)


cdef bint _is_hole(void *ctx, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """Source.is_zero of a sparse file, as it was opened: of one that has changed nothing is known, and the read says so.

    By a descriptor of our own: lseek(2) moves the position of an open file, and the user may read from the one that we were given.
    The stamp is looked at afterwards, as with a read.
    GIL: never. Blocks: where the file system must look on the disk for where its bytes lie.
    """
    cdef File *file = <File *>ctx
    cdef int fd = file.holes_fd
    cdef uint64_t device = 0, inode = 0
    cdef int64_t size_nbytes = 0, mtime_ns = 0
    if not _is_ours(file, fd):  # somebody closed it: a stranger's position must not move either
        return False
    if not lm_is_hole(fd, <int64_t>(file.start + offset), <int64_t>(file.start + offset + nbytes)):
        return False
    return (lm_stamp(fd, &device, &inode, &size_nbytes, &mtime_ns) == 0 and
            _is_as_opened(file, device, inode, size_nbytes, mtime_ns))


cdef class NativeSource:
    """A source as the core sees it.

    Attributes
    ----------
    nbytes : int, bytes
    kind : str
        "memory", "file", "function" or "provider".
    writable : bool
        Can what was changed be written back?
    """

    @property
    def writable(self):
        return self.source.store != NULL

    cdef object explain(self, uint64_t offset):
        """What was said when the block at `offset` could not be fetched: an exception to chain, or None. GIL: held."""
        return None

    cdef int close(self) except -1:
        """Let go of what only fetches need. The caller knows that none is running, and none will. GIL: held. Blocks: briefly."""
        return 0


cdef class MemorySource(NativeSource):
    """Bytes of any object with a contiguous buffer, held for as long as this lives.

    Parameters
    ----------
    exporter : buffer
    writable : bool
        It can be written back to.

    Raises
    ------
    BufferError, TypeError
        No contiguous buffer.
    BufferError, ValueError
        One that is read-only, to be written to.
    """

    def __cinit__(self, exporter, bint writable=False):
        PyObject_GetBuffer(exporter, &self._view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        self.kind = "memory"
        self.nbytes = <uint64_t>self._view.len
        self.source.direct = <const char *>self._view.buf
        self.source.leaf = True
        if writable:
            self.source.ctx = &self._view
            self.source.store = _store_memory

    def __dealloc__(self):
        PyBuffer_Release(&self._view)  # of nothing, if there was no buffer


cdef class FileSource(NativeSource):
    """A local file from `start` on; the descriptor is this object's from now on.

    Parameters
    ----------
    fd : int
    start, nbytes : int, bytes
        What part of the file it is.
    writable : bool
        It is written to, by us and perhaps by others: it is as it was opened as long as it does not get shorter.

    Attributes
    ----------
    stamp : (int, int)
        Size in bytes and modification time in ns of the file when it was opened; now, if it is written to.

    Raises
    ------
    OSError
        fstat(2) fails.
    ValueError
        The part reaches past the end of the file.
    """

    def __cinit__(self, int fd, uint64_t start, uint64_t nbytes, bint writable=False):
        self._file.fd = self._file.holes_fd = -1
        cdef int err = lm_stamp(fd, &self._file.device, &self._file.inode, &self._file.nbytes, &self._file.mtime_ns)
        if err:
            raise OSError(-err, f"fstat of descriptor {fd}")
        if start + nbytes < start or start + nbytes > <uint64_t>self._file.nbytes:
            raise ValueError(f"bytes {start}..{start + nbytes} of a file of {self._file.nbytes} bytes")
        self._file.fd = fd
        self._file.path = lm_path_of(fd)
        self._file.start = start
        self._file.length = nbytes
        self._file.writable = writable
        self._file.holes_fd = lm_open_for_holes(fd)
        self.kind = "file"
        self.nbytes = nbytes
        self.source.fetch = _fetch_file
        if self._file.holes_fd >= 0:
            self.source.is_zero = _is_hole
        self.source.ctx = &self._file
        self.source.leaf = True
        if writable:
            self.source.store = _store_file
            self.source.sync = _sync_file

    @property
    def stamp(self):
        cdef File now = self._file
        if now.writable:
            lm_stamp(now.fd, &now.device, &now.inode, &now.nbytes, &now.mtime_ns)
        return now.nbytes, now.mtime_ns

    cdef int close(self) except -1:
        if _is_ours(&self._file, self._file.fd):
            close(self._file.fd)
        self._file.fd = -1
        if _is_ours(&self._file, self._file.holes_fd):
            close(self._file.holes_fd)
        self._file.holes_fd = -1
        return 0

    def __dealloc__(self):
        self.close()
        free(self._file.path)


@cython.no_gc_clear  # C code may be running in it
cdef class FunctionSource(NativeSource):
    """A C function of lazymem.h's type.

    Parameters
    ----------
    address, user_data : int
        Of the function; what it gets as its first argument.
    nbytes : int, bytes
    keep : object
        What must live as long as the function.
    store : int
        Address of the function that takes bytes back; 0: none does.
    """

    def __cinit__(self, size_t address, uint64_t nbytes, size_t user_data, keep, size_t store=0):
        self._keep = keep
        self.kind = "function"
        self.nbytes = nbytes
        self.source.fetch = <fetch_t>address
        self.source.ctx = <void *>user_data
        self.source.store = <store_t>store
        self.source.may_block = True
