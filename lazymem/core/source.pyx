"""Where do a block's bytes come from, without the GIL?

Memory that is already there, a local file, a C function. A source is a `fetch` that fills exactly and returns 0 or -errno; its
Python object only keeps alive what `fetch` needs.
"""
from lazymem.core.native cimport *
from lazymem.core.thread cimport Thread, thread_self
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport free
from posix.fcntl cimport O_CLOEXEC, O_NOCTTY, O_NONBLOCK, O_RDONLY, open
from posix.unistd cimport close


cdef extern from *:
    """
    #include <sys/stat.h>
    #include <unistd.h>
    #include <errno.h>
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
    char *lm_path_of(int fd) noexcept nogil
    ssize_t lm_pread_now(int fd, void *dst, size_t nbytes, int64_t offset) noexcept nogil
    ssize_t pread(int fd, void *dst, size_t nbytes, int64_t offset) noexcept nogil


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
    cdef int fd = file.fd, again
    cdef int err = _read_file(file, fd, dst, offset, nbytes)
    if err == 0 or _is_ours(file, fd):
        return err
    again = file.fd
    if again == fd:
        if file.path == NULL:
            return -EBADF
        again = open(file.path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)
        if again < 0:
            return -EBADF
        if not _is_ours(file, again):
            close(again)
            return -ESTALE
        if not lm_cas32(<uint32_t *>&file.fd, <uint32_t>fd, <uint32_t>again):  # another thread was faster
            close(again)
            again = file.fd
    return _read_file(file, again, dst, offset, nbytes)


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
    if me != NULL and me.before_blocking != NULL:
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
    if device != file.device or inode != file.inode or size_nbytes != file.nbytes or mtime_ns != file.mtime_ns:
        return -ESTALE
    return 0


cdef class NativeSource:
    """A source as the core sees it.

    Attributes
    ----------
    nbytes : int, bytes
    kind : str
        "memory", "file", "function" or "provider".
    """

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

    Raises
    ------
    BufferError, TypeError
        No contiguous buffer.
    """

    def __cinit__(self, exporter):
        PyObject_GetBuffer(exporter, &self._view, PyBUF_SIMPLE)
        self.kind = "memory"
        self.nbytes = <uint64_t>self._view.len
        self.source.direct = <const char *>self._view.buf
        self.source.leaf = True

    def __dealloc__(self):
        PyBuffer_Release(&self._view)  # of nothing, if there was no buffer


cdef class FileSource(NativeSource):
    """A local file from `start` on; the descriptor is this object's from now on.

    Parameters
    ----------
    fd : int
    start, nbytes : int, bytes
        What part of the file it is.

    Attributes
    ----------
    stamp : (int, int)
        Size in bytes and modification time in ns of the file when it was opened.

    Raises
    ------
    OSError
        fstat(2) fails.
    ValueError
        The part reaches past the end of the file.
    """

    def __cinit__(self, int fd, uint64_t start, uint64_t nbytes):
        self._file.fd = -1
        cdef int err = lm_stamp(fd, &self._file.device, &self._file.inode, &self._file.nbytes, &self._file.mtime_ns)
        if err:
            raise OSError(-err, f"fstat of descriptor {fd}")
        if start + nbytes < start or start + nbytes > <uint64_t>self._file.nbytes:
            raise ValueError(f"bytes {start}..{start + nbytes} of a file of {self._file.nbytes} bytes")
        self._file.fd = fd
        self._file.path = lm_path_of(fd)
        self._file.start = start
        self.kind = "file"
        self.nbytes = nbytes
        self.stamp = (self._file.nbytes, self._file.mtime_ns)
        self.source.fetch = _fetch_file
        self.source.ctx = &self._file
        self.source.leaf = True

    cdef int close(self) except -1:
        if _is_ours(&self._file, self._file.fd):
            close(self._file.fd)
        self._file.fd = -1
        return 0

    def __dealloc__(self):
        if _is_ours(&self._file, self._file.fd):
            close(self._file.fd)
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
    """

    def __cinit__(self, size_t address, uint64_t nbytes, size_t user_data, keep):
        self._keep = keep
        self.kind = "function"
        self.nbytes = nbytes
        self.source.fetch = <fetch_t>address
        self.source.ctx = <void *>user_data
        self.source.may_block = True
