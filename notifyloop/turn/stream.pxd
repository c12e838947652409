cimport cython

from notifyloop.turn cimport primitives
from notifyloop.turn.layouts cimport TransportState

from notifyloop.turn.transport cimport begin, start_reading, stop_reading
from notifyloop.turn.transport cimport release as release_socket

cdef Py_ssize_t RECEIVE
cdef bint SERVER_COUNTS_TRANSPORTS


cpdef take(
    TransportState transport,
    object loop,
    object sock,
    object protocol,
    object waiter=*,
    object extra=*,
    object server=*,
    object peername=*,
    object context=*,
)
cpdef set_protocol(TransportState transport, object protocol)
cpdef bint takes_buffers(object protocol) except -1
cpdef read_eof(TransportState transport)
cpdef release(TransportState transport)
cdef detach(TransportState transport)
cpdef pause_reading(TransportState transport)
cpdef resume_reading(TransportState transport)
cpdef receive(TransportState transport)
@cython.locals(count=Py_ssize_t)
cpdef receive_into_protocol(TransportState transport)
@cython.locals(sent=Py_ssize_t)
cpdef write(TransportState transport, object data)
@cython.locals(sent=Py_ssize_t)
cpdef write_carefully(TransportState transport, object data)
cdef check_writing(TransportState transport, str method)
cpdef keep_rest(TransportState transport, object data, Py_ssize_t sent)
cpdef keep(TransportState transport, object data)
cpdef write_ready(TransportState transport)
@cython.locals(sent=Py_ssize_t)
cpdef bint send_buffer(TransportState transport) except -1
cpdef allow_direct_writes(TransportState transport)
cpdef Py_ssize_t not_sent(TransportState transport, object error) except -1
