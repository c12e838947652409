from notifyloop.turn.interests cimport Interests
from notifyloop.turn.timers cimport Timers


cdef class Turn:
    cdef public object ready
    cdef public object pop
    cdef public object pops_from
    cdef public Interests interests
    cdef public Timers timers
    cdef public unsigned long long iterations
    cdef public unsigned long long callbacks
    cdef public bint checked
    cdef public dict own
    cdef public dict selectors
    cdef public list spare
    cdef public list spare_for_threads
    cdef public object waking

    cpdef use_handles_again(self, bint again)
