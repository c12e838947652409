cimport cython

from notifyloop.turn cimport primitives
from notifyloop.turn.interest cimport Interest
from notifyloop.turn.interests cimport Interests
from notifyloop.turn.layouts cimport HandleState, TransportState
from notifyloop.turn.scheduling cimport Scheduler
from notifyloop.turn.state cimport Turn
from notifyloop.turn.stream cimport receive
from notifyloop.turn.timers cimport Timers

cdef object AnyHandle, BaseEventLoop, Handle, LockedHandle, RUN_OF_HANDLES, StreamTransport
cdef tuple NO_ARGUMENTS
cdef Py_ssize_t MOST_SPARE
cdef int ASLEEP, AWAKE, EVENT_READ, EVENT_WRITE


@cython.locals(turn=Turn, interests=Interests, timers=Timers, interest=Interest, places=list, words=tuple)
cpdef run_once(Scheduler loop)
@cython.locals(spare=list, spare_for_threads=list, known=HandleState, transport=TransportState, args=tuple, count=Py_ssize_t)
cpdef run_ready(Turn turn)
cdef let_rest(object handle, list spare)
