from notifyloop.port cimport foreign


cdef class Interest:
    cdef public object fileobj
    cdef public long long fd
    cdef public int events
    cdef public object data
    cdef public object reader
    cdef public object writer
    cdef public object owner
    cdef public unsigned long long key
    cdef public int armed

    cpdef object handle_for(self, int event)
    cpdef object hand_to(self, int event, object handle)
    cpdef bytes arm(self, object enable=*)
    cpdef object selector_key(self)


cdef class InterestInTheEnd(Interest):
    pass
