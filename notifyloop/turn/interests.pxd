from notifyloop.port cimport foreign
from notifyloop.port.batch cimport Batch
from notifyloop.turn.interest cimport Interest


cdef int ENABLE, REMOVE, FORGET, ASK, LEVEL_ONESHOT, UNSURE


cdef class Interests:
    cdef public object port
    cdef public dict by_descriptor
    cdef public long long stale_notifications
    cdef public unsigned long long asked
    cdef public list places
    cdef public list _vacant
    cdef public list _vacated
    cdef public list changed
    cdef public bint _doubted
    cdef public dict foreign
    cdef public list _forgotten
    cdef public object _forks
    cdef public object _shared
    cdef public int sleeping
    cdef public list _untold
    cdef public Batch _batch
    cdef public Batch _orders_now

    cpdef want(self, Interest interest, int events)
    cpdef forget(self, Interest interest)
    cpdef disbelieve(self, object interests)
    cpdef tuple dequeue(self, object timeout)
    cpdef list ready(self, object words)
    cpdef unwanted(self, Interest interest, int events=*)
