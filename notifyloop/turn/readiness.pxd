cimport cython

from notifyloop.turn.interest cimport Interest
from notifyloop.turn.interests cimport Interests
from notifyloop.turn.scheduling cimport Scheduler
from notifyloop.turn.waits cimport Wait


cdef object Future, descriptor_of


cpdef rest(Scheduler loop, Interest interest)
cpdef forget(Scheduler loop, Interest interest)
@cython.locals(interests=Interests)
cpdef adopt(Scheduler loop, object sock, object transport)
@cython.locals(interests=Interests, interest=Interest)
cpdef watch(Scheduler loop, object fd, int event, object callback, object args, object context)
@cython.locals(interests=Interests, interest=Interest)
cpdef bint unwatch(Scheduler loop, object fd, int event) except -1
@cython.locals(interest=Interest)
cpdef Interest interest_in(Scheduler loop, object sock)
@cython.locals(interests=Interests, interest=Interest, wait=Wait)
cpdef Wait wait_in(Scheduler loop, object sock, int event)
@cython.locals(interests=Interests, interest=Interest)
cpdef begin_wait(Scheduler loop, object sock, Wait wait, object operation=*)
cpdef end_wait(Wait wait)
