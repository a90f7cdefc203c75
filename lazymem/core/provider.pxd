from lazymem.core.process cimport Asking, PROCESSES_MAX, Place, lm_spawn
from lazymem.core.source cimport NativeSource
from libc.stdint cimport uint64_t

cdef class Setting:
    cdef lm_spawn _spawn
    cdef bint _prepared
    cdef Place _places[PROCESSES_MAX]
    cdef readonly uint64_t block_nbytes
    cdef readonly uint64_t spin_ns
    cdef object __weakref__

cdef class ProviderSource(NativeSource):
    cdef Asking *_asking
    cdef readonly Setting setting
    cdef readonly bytes pickled
    cdef readonly bytes stored
    cdef bint _closed
