cimport cython

from notifyloop.turn cimport primitives
from notifyloop.turn.layouts cimport TransportState

cdef Py_ssize_t RECORD
cdef int OPEN, READ_WANTS_WRITE, WRITE_WANTS_READ


cpdef receive(TransportState transport)
@cython.locals(stage=int, crossed=int)
cpdef take(TransportState transport)
@cython.locals(count=Py_ssize_t, eighths=Py_ssize_t)
cpdef take_bytes(TransportState transport)
cpdef bint deliver(TransportState transport, object data) except -1
@cython.locals(size=Py_ssize_t, received=Py_ssize_t, count=Py_ssize_t)
cpdef take_into_protocol(TransportState transport)
cpdef bint update(TransportState transport, Py_ssize_t received) except -1
cpdef after_reading(TransportState transport, object error)
cpdef object read(TransportState transport)
cpdef Py_ssize_t read_into(TransportState transport, object buffer) except -1
@cython.locals(there_is=int, crossed=int)
cpdef bint there_is_something(TransportState transport) except -1
cpdef not_read(TransportState transport, object error)
@cython.locals(sent=Py_ssize_t)
cpdef write(TransportState transport, object data)
@cython.locals(size=Py_ssize_t, sent=Py_ssize_t)
cpdef send(TransportState transport, object data)
cpdef keep_rest(TransportState transport, object data, Py_ssize_t sent)
cpdef Py_ssize_t not_sent(TransportState transport, object error) except -1
cpdef object what_the_system_says(TransportState transport, object error)
@cython.locals(sent=Py_ssize_t)
cpdef send_buffer(TransportState transport)
@cython.locals(size=Py_ssize_t, count=Py_ssize_t)
cpdef object first_of(object buffer)
cpdef write_ready(TransportState transport)
