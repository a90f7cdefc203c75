from lazymem.core.region cimport Region

cdef void reap_later(Region *r, object source)
cdef void reap_now()
cdef void reaper_forget() noexcept nogil
