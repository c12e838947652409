cimport cython

from notifyloop.turn cimport primitives
from notifyloop.turn.layouts cimport HandleState
from notifyloop.turn.interests cimport Interests
from notifyloop.turn.state cimport Turn


cdef class Scheduler:
    cdef public Turn _turn


cdef renew(HandleState handle, object callback, object args, object context)
cdef call_anew(Scheduler loop, object callback, object args, object context)
cdef call_anew_threadsafe(Scheduler loop, object callback, object args, object context)
@cython.locals(turn=Turn, interests=Interests)
cpdef wake_up(Scheduler loop)
