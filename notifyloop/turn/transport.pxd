cdef class Reader:
    cdef object _transport

    cpdef _run(self)


cdef class Writer:
    cdef public bint _cancelled
    cdef object _transport

    cpdef cancel(self)
    cpdef _run(self)
