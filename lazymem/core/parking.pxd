cdef extern from "parking.h" nogil:
    void lm_park(const char *point) noexcept
