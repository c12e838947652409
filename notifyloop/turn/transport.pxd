cimport cython

from notifyloop.turn.interest cimport Interest
from notifyloop.turn.interests cimport Interests
from notifyloop.turn.layouts cimport TransportState
from notifyloop.turn.readiness cimport adopt, forget, rest
from notifyloop.turn.scheduling cimport Scheduler

cdef object TrueSocket
cdef int EVENT_READ, EVENT_WRITE


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
cpdef begin(
    TransportState transport,
    object loop,
    object sock,
    object protocol,
    object extra=*,
    object peername=*,
    object context=*,
)
cpdef connect(TransportState transport, object waiter)
cpdef go_on(TransportState transport, object waiter)
cpdef get_extra_info(TransportState transport, object name, object default=*)
@cython.locals(interest=Interest)
cpdef start_reading(TransportState transport, object reader=*)
@cython.locals(interest=Interest)
cpdef stop_reading(TransportState transport)
@cython.locals(interest=Interest, loop=Scheduler, interests=Interests)
cpdef want(TransportState transport, int events)
cpdef close(TransportState transport)
@cython.locals(interest=Interest, loop=Scheduler)
cpdef leave(TransportState transport)
cpdef lose(TransportState transport, object error)
cpdef call_connection_lost(TransportState transport, object error)
cpdef release(TransportState transport)
@cython.locals(interest=Interest, loop=Scheduler)
cpdef close_socket(TransportState transport)
