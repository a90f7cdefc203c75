cdef void regions_look() noexcept nogil
