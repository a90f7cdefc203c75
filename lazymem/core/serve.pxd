cdef void serve_forget() noexcept nogil
