from notifyloop.turn.layouts cimport TransportState


cdef class Reader:
    cdef object _transport

    cpdef _run(self)


cdef class Writer:
    cdef public bint _cancelled
    cdef object _transport

    cpdef cancel(self)
    cpdef _run(self)


cpdef is_closing(TransportState transport)
cpdef get_write_buffer_size(TransportState transport)
