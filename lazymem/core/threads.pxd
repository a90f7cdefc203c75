cdef void threads_forget() noexcept nogil
