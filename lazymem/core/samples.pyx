"""Which C functions come with lazymem, where no compiler is at hand? For the demonstration, tests and examples.

Each is a source of lazymem.h's type, so it runs without Python and in a signal handler.
"""
from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from cpython.pycapsule cimport PyCapsule_New

from lazymem.core.native cimport lm_add64


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


# What `mixed` is told. In uint64s, so that a numpy array can be it.
ctypedef struct Mixed:
    uint64_t seed
    uint64_t block_nbytes
    uint64_t bad_one_in   # of so many blocks one fails; 0: none does
    uint64_t failed       # fetches that were made to fail; counted here


cdef uint64_t mixed_at(uint64_t seed, uint64_t i) noexcept nogil:
    """Output i of the generator splitmix64 with a seed: no two alike, and nothing that memory holds by accident. GIL: never."""
    cdef uint64_t x = seed + (i + 1) * <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef int fetch_mixed(void *ctx, void *dst, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """An array of uint64 whose element i is `mixed_at(seed, i)`, some blocks of which always fail.

    Units: bytes; offset a multiple of 8. Return: 0; -EIO for a block that is bad. GIL: never. Blocks: no. Thread: any.
    """
    cdef Mixed *told = <Mixed *>ctx
    cdef uint64_t first = offset // sizeof(uint64_t), whole = nbytes // sizeof(uint64_t), i, value
    if told.bad_one_in and mixed_at(~told.seed, offset // told.block_nbytes) % told.bad_one_in == 0:
        lm_add64(&told.failed, 1)
        return -EIO
    for i in range(whole):
        (<uint64_t *>dst)[i] = mixed_at(told.seed, first + i)
    value = mixed_at(told.seed, first + whole)
    memcpy(<char *>dst + whole * sizeof(uint64_t), &value, nbytes % sizeof(uint64_t))
    return 0


def mixed():
    """The function that writes splitmix64's numbers as uint64, and fails for some blocks, for `lazymem.CFunction`.

    Its `user_data` is an array of four uint64: seed, bytes of a block, of how many blocks one is to fail (0: none), and how many
    fetches it has made to fail, which it counts itself.

    Returns
    -------
    PyCapsule
        Named after the function's type.
    """
    return PyCapsule_New(<void *>fetch_mixed, "int (void *, void *, uint64_t, uint64_t)", NULL)
