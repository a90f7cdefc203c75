from lazymem.core.uffd cimport Uffd

cdef Uffd *threads_uffd() noexcept nogil
cdef void threads_forget() noexcept nogil
