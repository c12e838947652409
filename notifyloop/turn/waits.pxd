from notifyloop.turn.interest cimport Interest
from notifyloop.turn.interests cimport Interests


cdef class Wait:
    cdef public Interests interests
    cdef public Interest interest
    cdef public int event
    cdef public object future
    cdef public object operation
    cdef public object sock
    cdef public bint _cancelled
    cdef unsigned long long _asked

    cpdef begin(self, object sock, object future, object operation)
    cpdef _run(self)
    cpdef end(self)
    cpdef release(self)
