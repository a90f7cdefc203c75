cdef int signals_take() noexcept nogil
cdef void signals_forget() noexcept nogil
