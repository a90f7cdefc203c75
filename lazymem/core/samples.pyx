"""Which C functions come with lazymem, where no compiler is at hand? For the demonstration, tests and examples.

Each is a source of lazymem.h's type, so it runs without Python and in a signal handler.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from cpython.pycapsule cimport PyCapsule_New


cdef int fetch_iota(void *ctx, void *dst, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """An array of int64 whose every element is its own index: 0, 1, 2, ...

    Units: bytes; any offset and length. Return: 0. GIL: never. Blocks: no. Thread: any.
    """
    cdef uint64_t done = 0, n
    cdef int64_t value
    while done < nbytes:
        value = <int64_t>((offset + done) // sizeof(int64_t))
        n = sizeof(int64_t) - (offset + done) % sizeof(int64_t)  # an array may begin or end inside an element
        if n > nbytes - done:
            n = nbytes - done
        memcpy(<char *>dst + done, <char *>&value + (offset + done) % sizeof(int64_t), n)
        done += n
    return 0


def iota():
    """The function that writes 0, 1, 2, ... as int64, for `lazymem.CFunction`.

    Returns
    -------
    PyCapsule
        Named after the function's type.
    """
    return PyCapsule_New(<void *>fetch_iota, "int (void *, void *, uint64_t, uint64_t)", NULL)


def iota_address():
    """Its address, for ctypes and cffi. Returns an int."""
    return <size_t>fetch_iota
